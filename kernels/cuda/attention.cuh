// The steps of two-pass integer attention that prefill and decode share. A block of kWarps warps
// works on the rows of one AttentionTile and one kv head, a KV block of 64 keys at a time. Both
// products take 16 rows of the cache (keys of K, dimensions of V) as rows of the matrix instruction
// and 8 query rows as its columns, so that what is large is never padded.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/rows.cuh"
#include "kernels/reference/arithmetic.h"

namespace fixpoint::FIXPOINT_CUDA_NAMESPACE {

inline constexpr int32_t kAttentionWarps = 4;
inline constexpr int32_t kAttentionThreads = 32 * kAttentionWarps;
static_assert(16 * kAttentionWarps == kKvBlockTokens, "a warp has 16 keys of a KV block");

// Numerators of a row for 64 keys in bytes, and some, so that 8 rows lie in different banks.
inline constexpr int32_t kNumeratorStride = kKvBlockTokens + 16;

// SoftmaxNumerator (kernels/reference/arithmetic.h) in 32 bits. Every product and sum fits:
// ScoreParams say so for the first two roundings, and |p * f| < 2^29 for those of the polynomial.
FIXPOINT_DEVICE constexpr int32_t RoundShift32(int32_t x, int32_t n) {
  return n == 0 ? x : (x + (1 << (n - 1))) >> n;
}
FIXPOINT_DEVICE constexpr int32_t Numerator32(int32_t distance, const ScoreParams& s) {
  const int32_t d = distance < s.d_max ? distance : s.d_max;
  const int32_t y = RoundShift32(RoundShift32(d, s.a) * s.c, s.n);
  const int32_t f = y & 32767, whole = y >> 15;
  int32_t p = RoundShift32(111 * f, 15) - 871;
  p = RoundShift32(p * f, 15) + 3922;
  p = RoundShift32(p * f, 15) - 11354;
  p = RoundShift32(p * f, 15) + 16384;
  const int32_t e = whole >= 16 ? 0 : RoundShift32(p, whole);
  return e > 16383 ? 16383 : e;
}

// Where a row of a tile lies.
struct TileRow {
  int32_t token;  // in the flat batch
  int32_t head;   // query head of the model
  int32_t limit;  // last cache position that it sees
};

struct TileView {
  AttentionTile tile;
  int32_t kv_head, group, rows;
  const int32_t* table;

  FIXPOINT_DEVICE TileView(const CudaAttentionArgs& args, int32_t tile_index, int32_t kv_head)
      : tile(args.tiles[tile_index]), kv_head(kv_head) {
    group = 1;  // num_heads / kv_heads, without the division that a GPU does in floating point
    while ((group + 1) * args.kv_heads <= args.num_heads) ++group;
    rows = tile.tokens * tile.heads;
    table = args.block_tables + tile.table_begin;
  }
  FIXPOINT_DEVICE TileRow Row(int32_t row) const {
    int32_t token = 0, head = row;  // row / heads and the rest
    while (head >= tile.heads) {
      head -= tile.heads;
      ++token;
    }
    return {tile.token + token, kv_head * group + tile.head_begin + head, tile.position + token};
  }
  // KV blocks that its last token sees.
  FIXPOINT_DEVICE int32_t Blocks() const {
    return (tile.position + tile.tokens - 1) / kKvBlockTokens + 1;
  }
  FIXPOINT_DEVICE const int8_t* KTile(const CudaAttentionArgs& args, int32_t block) const {
    return args.cache.base + static_cast<size_t>(table[block]) * args.cache.block_stride +
           static_cast<size_t>(kv_head) * 2 * kKvBlockTokens * args.head_dim;
  }
};

// The columns of a lane in a product: rows 8 * j + 2 * (lane % 4) + {0, 1} of the tile.
template <int32_t kCols8>
struct LaneLimits {
  int32_t limit[kCols8][2];  // last key position; -1: no such row
  FIXPOINT_DEVICE explicit LaneLimits(const TileView& view) {
    FIXPOINT_UNROLL
    for (int32_t j = 0; j < kCols8; ++j) {
      FIXPOINT_UNROLL
      for (int32_t e = 0; e < 2; ++e) {
        const int32_t row = 8 * j + 2 * (Lane() & 3) + e;
        limit[j][e] = row < view.rows ? view.Row(row).limit : -1;
      }
    }
  }
};

// The query rows as the second operand: row 8 * j + lane / 4, 64 dimensions at a time, zero behind
// head_dim and behind the last row.
template <int32_t kChunks, int32_t kCols8>
struct QueryOperand {
  Quad q[kChunks][kCols8];
  FIXPOINT_DEVICE QueryOperand(const CudaAttentionArgs& args, const TileView& view) {
    FIXPOINT_UNROLL
    for (int32_t j = 0; j < kCols8; ++j) {
      const int32_t index = 8 * j + (Lane() >> 2);
      const TileRow row = view.Row(index < view.rows ? index : 0);
      const int8_t* from = args.q + static_cast<size_t>(row.token) * args.q_stride +
                           static_cast<size_t>(row.head) * args.head_dim;
      FIXPOINT_UNROLL
      for (int32_t c = 0; c < kChunks; ++c) {
        const int32_t d = 64 * c + 16 * (Lane() & 3);
        q[c][j] = index < view.rows && d < args.head_dim ? LoadQuad(from + d) : Quad{};
      }
    }
  }
};

// Scores of the warp's 16 keys of a KV block: key 16 * warp + lane / 4 + 8 * (e / 2), row 8 * j + 2
// * (lane % 4) + e % 2.
template <int32_t kChunks, int32_t kCols8>
FIXPOINT_DEVICE void ScoreKeys(const int8_t* k_tile, int32_t head_dim,
                               const QueryOperand<kChunks, kCols8>& query,
                               int32_t (&score)[kCols8][4]) {
  const int8_t* row =
      k_tile + static_cast<size_t>(16 * Warp() + (Lane() >> 2)) * head_dim + 16 * (Lane() & 3);
  FIXPOINT_UNROLL
  for (int32_t j = 0; j < kCols8; ++j) {
    FIXPOINT_UNROLL
    for (int32_t e = 0; e < 4; ++e) score[j][e] = 0;
  }
  FIXPOINT_UNROLL
  for (int32_t c = 0; c < kChunks; ++c) {
    const bool inside = 64 * c + 16 * (Lane() & 3) < head_dim;
    const Quad low = inside ? LoadQuad(row + 64 * c) : Quad{};
    const Quad high = inside ? LoadQuad(row + static_cast<size_t>(8) * head_dim + 64 * c) : Quad{};
    FIXPOINT_UNROLL
    for (int32_t j = 0; j < kCols8; ++j) MultiplyTile64(score[j], low, high, query.q[c][j]);
  }
}

// Cache position of element e of a product of scores.
FIXPOINT_DEVICE int32_t KeyPosition(int32_t block, int32_t e) {
  return block * kKvBlockTokens + 16 * Warp() + (Lane() >> 2) + 8 * (e >> 1);
}

// Scores of the fixed prefix, all threads of the block: scores[row][kMaxPrefixTokens]. They are few
// and have int16 operands. Visible after a barrier.
FIXPOINT_DEVICE void ScorePrefix(const CudaAttentionArgs& args, const TileView& view,
                                 int32_t* scores) {
  for (int32_t i = ThreadX(); i < view.rows * kMaxPrefixTokens; i += kAttentionThreads) {
    const int32_t j = i % kMaxPrefixTokens;
    if (j >= args.prefix_tokens) continue;
    const TileRow row = view.Row(i / kMaxPrefixTokens);
    const int8_t* q = args.q + static_cast<size_t>(row.token) * args.q_stride +
                      static_cast<size_t>(row.head) * args.head_dim;
    const int16_t* k = args.prefix_k +
                       (static_cast<size_t>(view.kv_head) * args.prefix_tokens + j) * args.head_dim;
    int32_t score = 0;
    for (int32_t d = 0; d < args.head_dim; ++d) score += q[d] * k[d];
    scores[i] = score;
  }
}

// Sums of the products of numerators with V over some KV blocks, by the planes of the numerators (e
// = 128 * high + low, 7 bits each): dimension 16 * (warp + kAttentionWarps * m) + lane / 4 + 8 * (e
// / 2), row 8 * j + 2 * (lane % 4) + e % 2.
template <int32_t kChunks, int32_t kCols8>
struct ValueSums {
  int32_t high[kChunks][kCols8][4], low[kChunks][kCols8][4];

  FIXPOINT_DEVICE void Clear() {
    FIXPOINT_UNROLL
    for (int32_t m = 0; m < kChunks; ++m) {
      FIXPOINT_UNROLL
      for (int32_t j = 0; j < kCols8; ++j) {
        FIXPOINT_UNROLL
        for (int32_t e = 0; e < 4; ++e) high[m][j][e] = low[m][j][e] = 0;
      }
    }
  }

  // numerators: [2 planes][8 * kCols8][kNumeratorStride] in shared memory.
  FIXPOINT_DEVICE void Add(const int8_t* v_tile, int32_t head_dim, const int8_t* numerators) {
    const int32_t g = Lane() >> 2, t = Lane() & 3;
    Quad p[2][kCols8];
    FIXPOINT_UNROLL
    for (int32_t j = 0; j < kCols8; ++j) {
      const int8_t* row = numerators + (8 * j + g) * kNumeratorStride + 16 * t;
      p[0][j] = LoadSharedQuad(row);
      p[1][j] = LoadSharedQuad(row + 8 * kCols8 * kNumeratorStride);
    }
    FIXPOINT_UNROLL
    for (int32_t m = 0; m < kChunks; ++m) {
      const int32_t d = 16 * (Warp() + kAttentionWarps * m);
      if (d >= head_dim) break;
      const int8_t* row = v_tile + static_cast<size_t>(d + g) * kKvBlockTokens + 16 * t;
      const Quad a = LoadQuad(row), b = LoadQuad(row + 8 * kKvBlockTokens);
      FIXPOINT_UNROLL
      for (int32_t j = 0; j < kCols8; ++j) {
        MultiplyTile64(high[m][j], a, b, p[0][j]);
        MultiplyTile64(low[m][j], a, b, p[1][j]);
      }
    }
  }

  // visit(row, dimension, sum) for what this lane has.
  template <typename Visit>
  FIXPOINT_DEVICE void ForEach(int32_t head_dim, Visit&& visit) const {
    FIXPOINT_UNROLL
    for (int32_t m = 0; m < kChunks; ++m) {
      const int32_t d = 16 * (Warp() + kAttentionWarps * m) + (Lane() >> 2);
      if (d >= head_dim) break;
      FIXPOINT_UNROLL
      for (int32_t j = 0; j < kCols8; ++j) {
        FIXPOINT_UNROLL
        for (int32_t e = 0; e < 4; ++e) {
          visit(8 * j + 2 * (Lane() & 3) + (e & 1), d + 8 * (e >> 1),
                128 * high[m][j][e] + low[m][j][e]);
        }
      }
    }
  }
};

FIXPOINT_DEVICE void StoreNumerator(int8_t* numerators, int32_t rows, int32_t row, int32_t key,
                                    int32_t e) {
  numerators[row * kNumeratorStride + key] = static_cast<int8_t>(e >> 7);
  numerators[(rows + row) * kNumeratorStride + key] = static_cast<int8_t>(e & 127);
}

// The end of a row: mean of the values, requantized, one dimension.
FIXPOINT_DEVICE void StoreAttended(const CudaAttentionArgs& args, const TileRow& row, int32_t d,
                                   int64_t weighted, const SoftmaxReciprocal& reciprocal) {
  const int32_t channel = row.head * args.head_dim + d;
  const int32_t value = Narrow(NormalizeWeighted(weighted, reciprocal), args.requantize.p,
                               args.requantize.multipliers[channel], args.requantize.k);
  int8_t* hi = RowOf(args.out.hi, args.out.stride, row.token);
  int8_t* lo = RowOf(args.out.lo, args.out.stride, row.token);
  StoreActivation(value, hi + channel, lo == nullptr ? nullptr : lo + channel);
}

// What the prefix adds to a row's weighted sum in dimension d.
FIXPOINT_DEVICE int64_t PrefixSum(const CudaAttentionArgs& args, int32_t kv_head,
                                  const int32_t* numerators, int32_t d) {
  int64_t sum = 0;
  for (int32_t j = 0; j < args.prefix_tokens; ++j) {
    const size_t key = static_cast<size_t>(kv_head) * args.prefix_tokens + j;
    sum += int64_t{numerators[j]} * args.prefix_v[key * args.head_dim + d];
  }
  return sum;
}

}  // namespace fixpoint::FIXPOINT_CUDA_NAMESPACE
