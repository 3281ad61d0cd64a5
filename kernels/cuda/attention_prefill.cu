// Attention of chunks of a prompt: one block takes a tile of up to PrefillRows() rows through all
// keys, twice: for the exact maxima, then for numerators and sums. Scores are computed twice
// instead of stored.
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/launchers.h"

namespace fixpoint::FIXPOINT_CUDA_NAMESPACE {
namespace {

// Shared memory, in this order; kPrefillRows rows of it, used or not.
struct PrefillShared {
  int64_t* sums;                  // [kPrefillRows][head_dim]
  SoftmaxReciprocal* reciprocal;  // [kPrefillRows]
  ScoreParams* params;            // [kPrefillRows]
  int32_t* prefix;                // [kPrefillRows][kMaxPrefixTokens] scores, then numerators
  int32_t* part;                  // [kAttentionWarps][kPrefillRows] of maxima, then denominators
  int32_t* largest;               // [kPrefillRows]
  int8_t* numerators;             // [2 buffers][2 planes][kPrefillRows][kNumeratorStride]
};
constexpr int32_t kNumeratorBytes = 2 * kPrefillRows * kNumeratorStride;

constexpr size_t PrefillSharedBytes(int32_t head_dim) {
  return kPrefillRows *
             (sizeof(int64_t) * static_cast<size_t>(head_dim) + sizeof(SoftmaxReciprocal) +
              sizeof(ScoreParams) + sizeof(int32_t) * (kMaxPrefixTokens + kAttentionWarps + 1)) +
         2 * kNumeratorBytes;
}

FIXPOINT_DEVICE PrefillShared LayOut(uint8_t* memory, int32_t head_dim) {
  PrefillShared s;
  s.sums = reinterpret_cast<int64_t*>(memory);
  s.reciprocal = reinterpret_cast<SoftmaxReciprocal*>(s.sums + kPrefillRows * head_dim);
  s.params = reinterpret_cast<ScoreParams*>(s.reciprocal + kPrefillRows);
  s.prefix = reinterpret_cast<int32_t*>(s.params + kPrefillRows);
  s.part = s.prefix + kPrefillRows * kMaxPrefixTokens;
  s.largest = s.part + kAttentionWarps * kPrefillRows;
  s.numerators = reinterpret_cast<int8_t*>(s.largest + kPrefillRows);
  return s;
}

// Combines each lane's values of its columns over the lanes that share them and over the warps:
// part[warp][row].
template <int32_t kCols8, typename Combine>
FIXPOINT_DEVICE void CombineColumns(int32_t (&value)[kCols8][2], int32_t* part, Combine combine) {
  FIXPOINT_UNROLL
  for (int32_t j = 0; j < kCols8; ++j) {
    FIXPOINT_UNROLL
    for (int32_t e = 0; e < 2; ++e) {
      FIXPOINT_UNROLL
      for (int32_t mask = 4; mask < 32; mask *= 2) {
        value[j][e] = static_cast<int32_t>(combine(value[j][e], ShuffleXor(value[j][e], mask)));
      }
      if (Lane() < 4) part[Warp() * kPrefillRows + 8 * j + 2 * Lane() + e] = value[j][e];
    }
  }
}

// First pass: largest[row] over prefix and cache. Ends with a barrier.
template <int32_t kChunks, int32_t kCols8>
FIXPOINT_DEVICE void FindLargest(const CudaAttentionArgs& args, const TileView& view,
                                 const QueryOperand<kChunks, kCols8>& query,
                                 const LaneLimits<kCols8>& limits, const PrefillShared& s) {
  int32_t largest[kCols8][2];
  FIXPOINT_UNROLL
  for (int32_t j = 0; j < kCols8; ++j) largest[j][0] = largest[j][1] = INT32_MIN;
  const int32_t blocks = view.Blocks();
  for (int32_t block = 0; block < blocks; ++block) {
    int32_t score[kCols8][4];
    ScoreKeys(view.KTile(args, block), args.head_dim, query, score);
    FIXPOINT_UNROLL
    for (int32_t j = 0; j < kCols8; ++j) {
      FIXPOINT_UNROLL
      for (int32_t e = 0; e < 4; ++e) {
        const bool seen = KeyPosition(block, e) <= limits.limit[j][e & 1];
        if (seen && score[j][e] > largest[j][e & 1]) largest[j][e & 1] = score[j][e];
      }
    }
  }
  CombineColumns(largest, s.part, MaxOf{});
  SyncThreads();
  for (int32_t row = ThreadX(); row < view.rows; row += kAttentionThreads) {
    int32_t all = s.part[row];
    for (int32_t w = 1; w < kAttentionWarps; ++w) {
      const int32_t other = s.part[w * kPrefillRows + row];
      if (other > all) all = other;
    }
    for (int32_t j = 0; j < args.prefix_tokens; ++j) {
      const int32_t other = s.prefix[row * kMaxPrefixTokens + j];
      if (other > all) all = other;
    }
    s.largest[row] = all;
  }
  SyncThreads();
}

// Numerators of a KV block into shared memory, added to the lane's denominators.
template <int32_t kChunks, int32_t kCols8>
FIXPOINT_DEVICE void FindNumerators(const CudaAttentionArgs& args, const TileView& view,
                                    const QueryOperand<kChunks, kCols8>& query,
                                    const LaneLimits<kCols8>& limits, const PrefillShared& s,
                                    int32_t block, int8_t* numerators,
                                    int32_t (&denominator)[kCols8][2]) {
  int32_t score[kCols8][4];
  ScoreKeys(view.KTile(args, block), args.head_dim, query, score);
  FIXPOINT_UNROLL
  for (int32_t j = 0; j < kCols8; ++j) {
    FIXPOINT_UNROLL
    for (int32_t e = 0; e < 4; ++e) {
      const int32_t row = 8 * j + 2 * (Lane() & 3) + (e & 1);
      const int32_t position = KeyPosition(block, e);
      int32_t value = 0;
      if (position <= limits.limit[j][e & 1]) {
        value = Numerator32(s.largest[row] - score[j][e], s.params[row]);
      }
      denominator[j][e & 1] += value;
      StoreNumerator(numerators, 8 * kCols8, row, position % kKvBlockTokens, value);
    }
  }
}

// int32 sums of at most kMaxSplitBlocks blocks into the int64 ones, which are this lane's alone.
template <int32_t kChunks, int32_t kCols8>
FIXPOINT_DEVICE void Flush(ValueSums<kChunks, kCols8>& values, int32_t head_dim, int64_t* sums) {
  values.ForEach(head_dim,
                 [&](int32_t row, int32_t d, int32_t sum) { sums[row * head_dim + d] += sum; });
  values.Clear();
}

// Prefix numerators and reciprocals of each row, from the parts of the denominators. Ends with a
// barrier.
FIXPOINT_DEVICE void FinishDenominators(const CudaAttentionArgs& args, const TileView& view,
                                        const PrefillShared& s) {
  for (int32_t row = ThreadX(); row < view.rows; row += kAttentionThreads) {
    uint64_t z = 0;
    for (int32_t w = 0; w < kAttentionWarps; ++w) {
      z += static_cast<uint64_t>(s.part[w * kPrefillRows + row]);
    }
    for (int32_t j = 0; j < args.prefix_tokens; ++j) {
      int32_t* score = s.prefix + row * kMaxPrefixTokens + j;
      *score = Numerator32(s.largest[row] - *score, s.params[row]);
      z += static_cast<uint64_t>(*score);
    }
    s.reciprocal[row] = ReciprocalOfSum(z, LongDivide{});
  }
  SyncThreads();
}

template <int32_t kChunks, int32_t kCols8>
FIXPOINT_KERNEL(kAttentionThreads, 1)
PrefillKernel(const CudaAttentionArgs args) {
  FIXPOINT_SHARED(shared);
  const PrefillShared s = LayOut(shared, args.head_dim);
  const TileView view(args, BlockX(), BlockY());
  for (int32_t i = ThreadX(); i < kPrefillRows * args.head_dim; i += kAttentionThreads) {
    s.sums[i] = 0;
  }
  for (int32_t row = ThreadX(); row < view.rows; row += kAttentionThreads) {
    s.params[row] = args.scores[view.Row(row).head];
  }
  ScorePrefix(args, view, s.prefix);
  SyncThreads();

  const QueryOperand<kChunks, kCols8> query(args, view);
  const LaneLimits<kCols8> limits(view);
  FindLargest(args, view, query, limits, s);

  ValueSums<kChunks, kCols8> values;
  values.Clear();
  int32_t denominator[kCols8][2] = {};
  const int32_t blocks = view.Blocks();
  for (int32_t block = 0; block < blocks; ++block) {
    // Two buffers: one barrier a block is enough, a warp cannot be two blocks ahead.
    int8_t* numerators = s.numerators + (block & 1) * kNumeratorBytes;
    FindNumerators(args, view, query, limits, s, block, numerators, denominator);
    SyncThreads();
    const int8_t* v_tile =
        view.KTile(args, block) + static_cast<size_t>(kKvBlockTokens) * args.head_dim;
    values.Add(v_tile, args.head_dim, numerators);
    if ((block + 1) % kMaxSplitBlocks == 0) Flush(values, args.head_dim, s.sums);
  }
  Flush(values, args.head_dim, s.sums);
  CombineColumns(denominator, s.part, SumOf{});
  SyncThreads();
  FinishDenominators(args, view, s);
  for (int32_t row = 0; row < view.rows; ++row) {
    const TileRow where = view.Row(row);
    for (int32_t d = ThreadX(); d < args.head_dim; d += kAttentionThreads) {
      const int64_t weighted = s.sums[row * args.head_dim + d] +
                               PrefixSum(args, view.kv_head, s.prefix + row * kMaxPrefixTokens, d);
      StoreAttended(args, where, d, weighted, s.reciprocal[row]);
    }
  }
}

}  // namespace

int AttendPrefill(const CudaAttentionArgs& args, CudaStream* stream) {
  const Grid grid = {static_cast<uint32_t>(args.num_tiles), static_cast<uint32_t>(args.kv_heads)};
  const size_t bytes = PrefillSharedBytes(args.head_dim);
  if (args.head_dim <= 64) {
    return Launch(PrefillKernel<1, 4>, grid, kAttentionThreads, bytes, stream, args);
  }
  if (args.head_dim <= 128) {
    return Launch(PrefillKernel<2, 4>, grid, kAttentionThreads, bytes, stream, args);
  }
  // Twice the dimensions: half of the rows, or registers would not do.
  return Launch(PrefillKernel<4, 2>, grid, kAttentionThreads, bytes, stream, args);
}

}  // namespace fixpoint::FIXPOINT_CUDA_NAMESPACE
