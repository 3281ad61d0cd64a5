// Attention of int8 queries over the int8 KV cache, for DotSums and MatrixSums (neon_products.h). A
// "row" is one (token, query head); the rows of a kv head are numbered token first, so that
// neighbours see nearly the same keys. kRows of them share every load of K and V. Per block of
// rows: all scores, then per row the softmax, then the weighted sum of V.
//
// The numerators are split as e = 128 * high + low into two byte planes of 0..127. A plane's sum
// stays below 127 * 127 * kMaxContext < 2^31, so int32 holds it for every context and the planes
// meet only at the end, in int64. Everything here has internal linkage (isa_arithmetic.h).
#pragma once

#include "kernels/cpu/neon_numerators.h"
#include "kernels/cpu/neon_products.h"

namespace fixpoint {
namespace {

static_assert(int64_t{127} * 127 * kMaxContext <= INT32_MAX);

constexpr int32_t kRows = 6;
constexpr int32_t kValueRows = 3;  // 3 rows x 2 planes

FIXPOINT_INLINE size_t RoundUp64(size_t n) { return (n + 63) / 64 * 64; }

// Where things lie in the caller's scratch; `stride` is the number of cache keys rounded up to a
// block.
struct Scratch {
  FIXPOINT_INLINE Scratch(void* base, size_t keys)
      : stride(RoundUp64(keys)),
        scores(static_cast<int32_t*>(base)),
        planes(reinterpret_cast<int8_t*>(scores + kRows * stride)) {}
  static size_t Bytes(size_t keys) { return RoundUp64(keys) * kRows * (sizeof(int32_t) + 2); }
  FIXPOINT_INLINE int32_t* Scores(int32_t row) const { return scores + row * stride; }
  FIXPOINT_INLINE int8_t* Plane(int32_t row, int32_t plane) const {
    return planes + (2 * row + plane) * stride;
  }
  size_t stride;
  int32_t* scores;  // [kRows][stride]
  int8_t* planes;   // [kRows][2][stride], high and low
};

struct KvHead {
  const AttentionArgs& args;
  Scratch scratch;
  int32_t index;
};

struct Row {
  int32_t token, head;
  int32_t keys;  // cache positions that it sees
  const int8_t* query;
  int32_t largest;
  int32_t prefix_scores[kMaxPrefix];  // later the numerators
  SoftmaxReciprocal reciprocal;
};

// K tile of a block of the block table; the V tile lies kKvBlockTokens * head_dim behind.
FIXPOINT_INLINE const int8_t* KTile(const KvHead& head, int32_t block) {
  const AttentionArgs& args = head.args;
  return args.cache.base + static_cast<size_t>(args.block_table[block]) * args.cache.block_stride +
         static_cast<size_t>(head.index) * 2 * kKvBlockTokens * args.head_dim;
}

// First key or value of the kv head in prefix_k or prefix_v.
FIXPOINT_INLINE const int16_t* PrefixRow(const KvHead& head, const int16_t* all, int32_t j) {
  const AttentionArgs& args = head.args;
  return all + (static_cast<size_t>(head.index) * args.prefix_tokens + j) * args.head_dim;
}

FIXPOINT_INLINE int32_t DotPrefix(const int8_t* q, const int16_t* key, int32_t head_dim) {
  int32x4_t sum = vdupq_n_s32(0);
  for (int32_t d = 0; d < head_dim; d += 8) {
    const int16x8_t a = vmovl_s8(vld1_s8(q + d)), b = vld1q_s16(key + d);
    sum = vmlal_high_s16(vmlal_s16(sum, vget_low_s16(a), vget_low_s16(b)), a, b);
  }
  return vaddvq_s32(sum);
}

void StartRow(const KvHead& head, int32_t index, Row& row) {
  const AttentionArgs& args = head.args;
  const int32_t group = args.num_heads / args.kv_heads;
  row.token = index / group;
  row.head = head.index * group + index % group;
  row.keys = args.position + row.token + 1;
  row.query = args.q + static_cast<size_t>(row.token) * args.q_stride +
              static_cast<size_t>(row.head) * args.head_dim;
  row.largest = INT32_MIN;
  for (int32_t j = 0; j < args.prefix_tokens; ++j) {
    row.prefix_scores[j] = DotPrefix(row.query, PrefixRow(head, args.prefix_k, j), args.head_dim);
    if (row.prefix_scores[j] > row.largest) row.largest = row.prefix_scores[j];
  }
}

// Scores of kCount rows against the keys of all blocks up to the last one that the last row sees.
template <template <int> class Sums, int kCount>
void ScoreRows(const KvHead& head, const Row* rows) {
  const int32_t head_dim = head.args.head_dim;
  const size_t group_bytes = static_cast<size_t>(head_dim) * 16;
  for (int32_t key = 0; key < rows[kCount - 1].keys; key += 16) {
    const int8_t* tile = KTile(head, key / kKvBlockTokens) +
                         static_cast<size_t>(key % kKvBlockTokens / 16) * group_bytes;
    Sums<kCount> sums;
    sums.Clear();
    for (int32_t d = 0; d < head_dim; d += kChunk, tile += kChunkBytes) {
      int8x16_t queries[kCount];
#pragma GCC unroll 8
      for (int r = 0; r < kCount; ++r) queries[r] = vld1q_s8(rows[r].query + d);
      sums.AddTile(queries, tile, 64);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g) {
        vst1q_s32(head.scratch.Scores(r) + key + 4 * g, sums.Sums(r, g));
      }
    }
  }
}

// Planes of a row, zero up to `padded` keys; its prefix numerators and reciprocal.
void SoftmaxRow(const KvHead& head, const int32_t* scores, int32_t padded, int8_t* high,
                int8_t* low, Row& row) {
  const ScoreParams& params = head.args.scores[row.head];
  row.largest = Largest(scores, row.keys, row.largest);
  uint64_t total = NumeratorPlanes(params, row.largest, scores, row.keys, padded, high, low);
  for (int32_t j = 0; j < head.args.prefix_tokens; ++j) {
    row.prefix_scores[j] = SoftmaxNumerator(row.largest - row.prefix_scores[j], params);
    total += static_cast<uint64_t>(row.prefix_scores[j]);
  }
  row.reciprocal = ReciprocalOfSum(total);
}

// sat16(128 * A / Z) of 4 channels in int32. Saturating A to -2^31 where the rule says -(2^31 - 1)
// changes nothing: both are far beyond the clamp that follows the product.
FIXPOINT_INLINE int32x4_t Means(const KvHead& head, const Row& row, int32_t d, int32x4_t high,
                                int32x4_t low) {
  int64x2_t first = vaddw_s32(vshll_n_s32(vget_low_s32(high), 7), vget_low_s32(low));
  int64x2_t second = vaddw_high_s32(vshll_high_n_s32(high, 7), low);
  for (int32_t j = 0; j < head.args.prefix_tokens; ++j) {
    const int32x4_t value = vmovl_s16(vld1_s16(PrefixRow(head, head.args.prefix_v, j) + d));
    const int32x4_t numerator = vdupq_n_s32(row.prefix_scores[j]);
    first = vmlal_s32(first, vget_low_s32(value), vget_low_s32(numerator));
    second = vmlal_high_s32(second, value, numerator);
  }
  const int64x2_t shift = vdupq_n_s64(-row.reciprocal.pre_shift);
  const int32x4_t sums =
      vqmovn_high_s64(vqmovn_s64(vrshlq_s64(first, shift)), vrshlq_s64(second, shift));
  return ScaleWide(row.reciprocal.post_shift, 32767)(
      sums, vdupq_n_s32(static_cast<int32_t>(row.reciprocal.reciprocal)));
}

// Channels [d, d + 16) of kCount rows: weighted sums of both planes and what follows them.
template <template <int> class Sums, int kCount>
FIXPOINT_INLINE void SumValues(const KvHead& head, int32_t first, const Row* rows, int32_t d) {
  const AttentionArgs& args = head.args;
  const size_t quad_bytes = static_cast<size_t>(args.head_dim) * 4;
  Sums<2 * kCount> sums;
  sums.Clear();
  for (int32_t key = 0; key < rows[kCount - 1].keys; key += kChunk) {
    const int8_t* tile = KTile(head, key / kKvBlockTokens) +
                         static_cast<size_t>(kKvBlockTokens) * args.head_dim +
                         static_cast<size_t>(key % kKvBlockTokens / 4) * quad_bytes + 4 * d;
    int8x16_t planes[2 * kCount];
#pragma GCC unroll 8
    for (int r = 0; r < 2 * kCount; ++r) {
      planes[r] = vld1q_s8(head.scratch.Plane(first + r / 2, r % 2) + key);
    }
    sums.AddTile(planes, tile, quad_bytes);
  }
#pragma GCC unroll 4
  for (int r = 0; r < kCount; ++r) {
    const Row& row = rows[r];
    const int32_t channel = row.head * args.head_dim + d;
    const size_t at = static_cast<size_t>(row.token) * args.out.stride + channel;
    const Round last(args.requantize.k);
#pragma GCC unroll 2
    for (int g = 0; g < 4; g += 2) {
      const Eight mean{
          Means(head, row, d + 4 * g, sums.Sums(2 * r, g), sums.Sums(2 * r + 1, g)),
          Means(head, row, d + 4 * g + 4, sums.Sums(2 * r, g + 1), sums.Sums(2 * r + 1, g + 1))};
      const int16x8_t multipliers = vld1q_s16(args.requantize.multipliers + channel + 4 * g);
      StoreSite(last(Multiply(Saturate16(mean), multipliers)), args.out.hi, args.out.lo,
                at + 4 * static_cast<size_t>(g));
    }
  }
}

template <template <int> class Sums>
void AttendRows(const KvHead& head, int32_t index, int32_t count) {
  Row rows[kRows];
  for (int32_t r = 0; r < count; ++r) StartRow(head, index + r, rows[r]);
  switch (count) {
    case 1:
      ScoreRows<Sums, 1>(head, rows);
      break;
    case 2:
      ScoreRows<Sums, 2>(head, rows);
      break;
    case 3:
      ScoreRows<Sums, 3>(head, rows);
      break;
    case 4:
      ScoreRows<Sums, 4>(head, rows);
      break;
    case 5:
      ScoreRows<Sums, 5>(head, rows);
      break;
    default:
      ScoreRows<Sums, kRows>(head, rows);
  }
  const auto padded = static_cast<int32_t>(RoundUp64(static_cast<size_t>(rows[count - 1].keys)));
  for (int32_t r = 0; r < count; ++r) {
    SoftmaxRow(head, head.scratch.Scores(r), padded, head.scratch.Plane(r, 0),
               head.scratch.Plane(r, 1), rows[r]);
  }
  for (int32_t d = 0; d < head.args.head_dim; d += 16) {
    for (int32_t r = 0; r < count; r += kValueRows) {
      switch (count - r) {
        case 1:
          SumValues<Sums, 1>(head, r, rows + r, d);
          break;
        case 2:
          SumValues<Sums, 2>(head, r, rows + r, d);
          break;
        default:
          SumValues<Sums, kValueRows>(head, r, rows + r, d);
      }
    }
  }
}

template <template <int> class Sums>
void AttendHeads(const AttentionArgs& args) {
  const int32_t rows = args.tokens * (args.num_heads / args.kv_heads);
  for (int32_t index = args.kv_head_begin; index < args.kv_head_end; ++index) {
    const KvHead head{args, Scratch(args.scratch, static_cast<size_t>(args.position) + args.tokens),
                      index};
    for (int32_t row = 0; row < rows; row += kRows) {
      AttendRows<Sums>(head, row, rows - row < kRows ? rows - row : kRows);
    }
  }
}

}  // namespace
}  // namespace fixpoint
