// Attention of few rows with many keys: the keys are cut into ranges, so that all of the device has
// work. Scores are stored once (4 bytes for head_dim bytes of K read) because the maximum must be
// known before the first numerator.
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/launchers.h"

namespace fixpoint::FIXPOINT_CUDA_NAMESPACE {
namespace {

// Part `split` of a tile: KV blocks [begin, end), empty for splits behind the tile's length.
struct SplitView : TileView {
  int32_t split, begin, end;
  FIXPOINT_DEVICE explicit SplitView(const CudaDecodeArgs& args)
      : TileView(args.attention, BlockX(), BlockY()), split(BlockZ()) {
    begin = split * args.split_blocks;
    end = begin + args.split_blocks;
    if (end > tile.score_blocks) end = tile.score_blocks;
  }
};

FIXPOINT_DEVICE size_t PartIndex(const CudaDecodeArgs& args, int32_t split) {
  const size_t head = static_cast<size_t>(BlockX()) * args.attention.kv_heads + BlockY();
  return (head * args.splits + split) * kDecodeRows;
}

FIXPOINT_DEVICE int32_t* ScoreRow(const CudaDecodeArgs& args, const TileView& view,
                                  int32_t position) {
  const size_t key =
      static_cast<size_t>(view.kv_head) * args.score_keys + view.tile.score_begin + position;
  return args.scores + key * args.row_stride;
}

// Scores, and the maximum of each row over the split; the first split counts the prefix too.
template <int32_t kChunks>
FIXPOINT_KERNEL(kAttentionThreads, 1)
DecodeScoresKernel(const CudaDecodeArgs args) {
  FIXPOINT_SHARED(shared);
  auto* part = reinterpret_cast<int32_t*>(shared);         // [kAttentionWarps][kDecodeRows]
  int32_t* prefix = part + kAttentionWarps * kDecodeRows;  // [kDecodeRows][kMaxPrefixTokens]
  const SplitView view(args);
  if (view.begin >= view.end) return;  // the whole block
  const CudaAttentionArgs& a = args.attention;
  if (view.split == 0) ScorePrefix(a, view, prefix);
  const QueryOperand<kChunks, 1> query(a, view);
  const LaneLimits<1> limits(view);
  int32_t largest[2] = {INT32_MIN, INT32_MIN};
  for (int32_t block = view.begin; block < view.end; ++block) {
    int32_t score[1][4];
    ScoreKeys(view.KTile(a, block), a.head_dim, query, score);
    FIXPOINT_UNROLL
    for (int32_t e = 0; e < 4; ++e) {
      const int32_t position = KeyPosition(block, e), row = 2 * (Lane() & 3) + (e & 1);
      if (row < view.rows) ScoreRow(args, view, position)[row] = score[0][e];
      const bool seen = position <= limits.limit[0][e & 1];
      if (seen && score[0][e] > largest[e & 1]) largest[e & 1] = score[0][e];
    }
  }
  FIXPOINT_UNROLL
  for (int32_t e = 0; e < 2; ++e) {
    FIXPOINT_UNROLL
    for (int32_t mask = 4; mask < 32; mask *= 2) {
      const int32_t other = ShuffleXor(largest[e], mask);
      if (other > largest[e]) largest[e] = other;
    }
    if (Lane() < 4) part[Warp() * kDecodeRows + 2 * Lane() + e] = largest[e];
  }
  SyncThreads();
  if (ThreadX() >= view.rows) return;
  int32_t all = INT32_MIN;
  for (int32_t w = 0; w < kAttentionWarps; ++w) {
    const int32_t other = part[w * kDecodeRows + ThreadX()];
    if (other > all) all = other;
  }
  for (int32_t j = 0; view.split == 0 && j < a.prefix_tokens; ++j) {
    const int32_t other = prefix[ThreadX() * kMaxPrefixTokens + j];
    if (other > all) all = other;
  }
  args.maxima[PartIndex(args, view.split) + ThreadX()] = all;
}

// Splits of a tile that have keys.
FIXPOINT_DEVICE int32_t UsedSplits(const CudaDecodeArgs& args, const TileView& view) {
  int32_t used = 0;
  while (used * args.split_blocks < view.tile.score_blocks) ++used;
  return used;
}

FIXPOINT_DEVICE int32_t RowMaximum(const CudaDecodeArgs& args, const TileView& view, int32_t row) {
  int32_t largest = INT32_MIN;
  const int32_t used = UsedSplits(args, view);
  for (int32_t s = 0; s < used; ++s) {
    const int32_t other = args.maxima[PartIndex(args, s) + row];
    if (other > largest) largest = other;
  }
  return largest;
}

struct SumShared {
  int8_t* numerators;  // [2 buffers][2 planes][kDecodeRows][kNumeratorStride]
  int32_t* largest;    // [kDecodeRows]
  int32_t* part;       // [kAttentionWarps][kDecodeRows] denominators
};
constexpr int32_t kNumeratorBytes = 2 * kDecodeRows * kNumeratorStride;
constexpr size_t kSumSharedBytes =
    2 * kNumeratorBytes + sizeof(int32_t) * kDecodeRows * (1 + kAttentionWarps);

// Numerators of the split's keys, their sum and the weighted sum of V.
template <int32_t kChunks>
FIXPOINT_KERNEL(kAttentionThreads, 1)
DecodeSumsKernel(const CudaDecodeArgs args) {
  FIXPOINT_SHARED(shared);
  SumShared s;
  s.numerators = reinterpret_cast<int8_t*>(shared);
  s.largest = reinterpret_cast<int32_t*>(shared + 2 * kNumeratorBytes);
  s.part = s.largest + kDecodeRows;
  const SplitView view(args);
  if (view.begin >= view.end) return;  // the whole block
  const CudaAttentionArgs& a = args.attention;
  if (ThreadX() < view.rows) s.largest[ThreadX()] = RowMaximum(args, view, ThreadX());
  SyncThreads();

  // A thread has one key and every second row.
  const int32_t key = ThreadX() % kKvBlockTokens, first_row = ThreadX() / kKvBlockTokens;
  constexpr int32_t kRowStep = kAttentionThreads / kKvBlockTokens;
  constexpr int32_t kRowsOfThread = kDecodeRows / kRowStep;
  int32_t limit[kRowsOfThread];
  ScoreParams params[kRowsOfThread];
  int32_t denominator[kRowsOfThread] = {};
  FIXPOINT_UNROLL
  for (int32_t i = 0; i < kRowsOfThread; ++i) {
    const int32_t r = first_row + kRowStep * i;
    const TileRow row = view.Row(r < view.rows ? r : 0);
    limit[i] = r < view.rows ? row.limit : -1;
    params[i] = a.scores[row.head];
  }

  ValueSums<kChunks, 1> values;
  values.Clear();
  for (int32_t block = view.begin; block < view.end; ++block) {
    int8_t* numerators = s.numerators + (block & 1) * kNumeratorBytes;
    const int32_t position = block * kKvBlockTokens + key;
    const int32_t* score = ScoreRow(args, view, position);
    FIXPOINT_UNROLL
    for (int32_t i = 0; i < kRowsOfThread; ++i) {
      const int32_t row = first_row + kRowStep * i;
      int32_t value = 0;
      if (position <= limit[i]) value = Numerator32(s.largest[row] - score[row], params[i]);
      denominator[i] += value;
      StoreNumerator(numerators, kDecodeRows, row, key, value);
    }
    SyncThreads();  // two buffers: one barrier a block is enough
    values.Add(view.KTile(a, block) + static_cast<size_t>(kKvBlockTokens) * a.head_dim, a.head_dim,
               numerators);
  }

  const size_t part = PartIndex(args, view.split);
  values.ForEach(a.head_dim, [&](int32_t row, int32_t d, int32_t sum) {
    if (row < view.rows) args.sums[(part + row) * a.head_dim + d] = sum;
  });
  FIXPOINT_UNROLL
  for (int32_t i = 0; i < kRowsOfThread; ++i) {
    FIXPOINT_UNROLL
    for (int32_t mask = 1; mask < 32; mask *= 2) denominator[i] += ShuffleXor(denominator[i], mask);
    if (Lane() == 0) s.part[Warp() * kDecodeRows + first_row + kRowStep * i] = denominator[i];
  }
  SyncThreads();
  if (ThreadX() >= view.rows) return;
  // The warps that had this row: two, one for each half of the keys.
  const int32_t warp = ThreadX() % kRowStep * (kAttentionWarps / kRowStep);
  int32_t all = 0;
  for (int32_t w = 0; w < kAttentionWarps / kRowStep; ++w) {
    all += s.part[(warp + w) * kDecodeRows + ThreadX()];
  }
  args.denominators[part + ThreadX()] = all;
}

// All splits and the prefix together.
FIXPOINT_KERNEL(kAttentionThreads, 1) DecodeMergeKernel(const CudaDecodeArgs args) {
  FIXPOINT_SHARED(shared);
  auto* reciprocal = reinterpret_cast<SoftmaxReciprocal*>(shared);      // [kDecodeRows]
  auto* prefix = reinterpret_cast<int32_t*>(reciprocal + kDecodeRows);  // [..][kMaxPrefixTokens]
  const CudaAttentionArgs& a = args.attention;
  const TileView view(a, BlockX(), BlockY());
  const int32_t used = UsedSplits(args, view);
  ScorePrefix(a, view, prefix);
  SyncThreads();
  if (ThreadX() < view.rows) {
    const int32_t row = ThreadX();
    const int32_t largest = RowMaximum(args, view, row);
    const ScoreParams params = a.scores[view.Row(row).head];
    uint64_t z = 0;
    for (int32_t s = 0; s < used; ++s) {
      z += static_cast<uint64_t>(args.denominators[PartIndex(args, s) + row]);
    }
    for (int32_t j = 0; j < a.prefix_tokens; ++j) {
      int32_t* score = prefix + row * kMaxPrefixTokens + j;
      *score = Numerator32(largest - *score, params);
      z += static_cast<uint64_t>(*score);
    }
    reciprocal[row] = ReciprocalOfSum(z, LongDivide{});
  }
  SyncThreads();
  for (int32_t row = 0; row < view.rows; ++row) {
    const TileRow where = view.Row(row);
    for (int32_t d = ThreadX(); d < a.head_dim; d += kAttentionThreads) {
      int64_t weighted = PrefixSum(a, view.kv_head, prefix + row * kMaxPrefixTokens, d);
      for (int32_t s = 0; s < used; ++s) {
        weighted += args.sums[(PartIndex(args, s) + row) * a.head_dim + d];
      }
      StoreAttended(a, where, d, weighted, reciprocal[row]);
    }
  }
}

template <int32_t kChunks>
int LaunchDecode(const CudaDecodeArgs& args, CudaStream* stream) {
  const CudaAttentionArgs& a = args.attention;
  const Grid heads = {static_cast<uint32_t>(a.num_tiles), static_cast<uint32_t>(a.kv_heads)};
  const Grid parts = {heads.x, heads.y, static_cast<uint32_t>(args.splits)};
  constexpr size_t kPrefixBytes = sizeof(int32_t) * kDecodeRows * kMaxPrefixTokens;
  int error = Launch(DecodeScoresKernel<kChunks>, parts, kAttentionThreads,
                     sizeof(int32_t) * kAttentionWarps * kDecodeRows + kPrefixBytes, stream, args);
  if (error != 0) return error;
  error =
      Launch(DecodeSumsKernel<kChunks>, parts, kAttentionThreads, kSumSharedBytes, stream, args);
  if (error != 0) return error;
  return Launch(DecodeMergeKernel, heads, kAttentionThreads,
                sizeof(SoftmaxReciprocal) * kDecodeRows + kPrefixBytes, stream, args);
}

}  // namespace

int AttendDecode(const CudaDecodeArgs& args, CudaStream* stream) {
  const int32_t head_dim = args.attention.head_dim;
  if (head_dim <= 64) return LaunchDecode<1>(args, stream);
  if (head_dim <= 128) return LaunchDecode<2>(args, stream);
  return LaunchDecode<4>(args, stream);
}

}  // namespace fixpoint::FIXPOINT_CUDA_NAMESPACE
