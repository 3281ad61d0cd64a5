// What the vnni and amx levels share of attention over one kv head: rows, their softmax into two
// byte planes, and the end of the weighted sums. A "row" is one (token, query head); the rows of a
// kv head are numbered token first, so that neighbours see nearly the same keys.
//
// The numerators are split as e = 128 * high + low into two byte planes of 0..127, which are the
// unsigned operand that vpdpbusd and tdpbusd want. A plane's sum stays below
// 127 * 127 * kMaxContext < 2^31, so int32 holds it for every context and the planes meet only at
// the end, in int64. Everything here has internal linkage (isa_arithmetic.h).
#pragma once

#include "kernels/cpu/vnni_common.h"

namespace fixpoint {
namespace {

static_assert(int64_t{127} * 127 * kMaxContext <= INT32_MAX);

constexpr int32_t kMaxPrefix = 16;
constexpr int32_t kMaxHeadDim = 512;

FIXPOINT_INLINE size_t RoundUp64(size_t n) { return (n + 63) / 64 * 64; }

struct KvHead {
  const AttentionArgs& args;
  int32_t index;
};

// K tile of a block of the block table; the V tile lies kKvBlockTokens * head_dim behind.
FIXPOINT_INLINE const int8_t* KTile(const KvHead& head, int32_t block) {
  const AttentionArgs& args = head.args;
  return args.cache.base + static_cast<size_t>(args.block_table[block]) * args.cache.block_stride +
         static_cast<size_t>(head.index) * 2 * kKvBlockTokens * args.head_dim;
}

struct Row {
  int32_t token, head;
  int32_t keys;  // cache positions that it sees
  int32_t largest;
  int32_t prefix_scores[kMaxPrefix];  // later the numerators
  SoftmaxReciprocal reciprocal;
};

FIXPOINT_INLINE int32_t DotPrefix(const int8_t* q, const int16_t* key, int32_t head_dim) {
  __m512i sum = _mm512_setzero_si512();
  for (int32_t d = 0; d < head_dim; d += 32) {
    const int32_t left = head_dim - d;
    const __mmask32 mask = left >= 32 ? ~__mmask32{0} : (__mmask32{1} << left) - 1;
    const __m512i a = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(mask, q + d));
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(a, _mm512_maskz_loadu_epi16(mask, key + d)));
  }
  return _mm512_reduce_add_epi32(sum);
}

// First key or value of the kv head in prefix_k or prefix_v.
FIXPOINT_INLINE const int16_t* PrefixRow(const KvHead& head, const int16_t* all, int32_t j) {
  const AttentionArgs& args = head.args;
  return all + (static_cast<size_t>(head.index) * args.prefix_tokens + j) * args.head_dim;
}

// Which row it is and its scores against the prefix; returns its query.
FIXPOINT_INLINE const int8_t* StartRow(const KvHead& head, int32_t index, Row& row) {
  const AttentionArgs& args = head.args;
  const int32_t group = args.num_heads / args.kv_heads;
  row.token = index / group;
  row.head = head.index * group + index % group;
  row.keys = args.position + row.token + 1;
  const int8_t* q = args.q + static_cast<size_t>(row.token) * args.q_stride +
                    static_cast<size_t>(row.head) * args.head_dim;
  row.largest = INT32_MIN;
  for (int32_t j = 0; j < args.prefix_tokens; ++j) {
    row.prefix_scores[j] = DotPrefix(q, PrefixRow(head, args.prefix_k, j), args.head_dim);
    if (row.prefix_scores[j] > row.largest) row.largest = row.prefix_scores[j];
  }
  return q;
}

// Softmax numerators of 2 x 16 distances (largest - score, >= 0), as 32 words in the order of the
// keys.
struct Numerators {
  explicit FIXPOINT_INLINE Numerators(const ScoreParams& params)
      : limit(_mm512_set1_epi32(params.d_max)),
        factor(_mm512_set1_epi32(params.c)),
        first(params.a),
        second(params.n) {}

  FIXPOINT_INLINE __m512i Log2(__m512i distance) const {
    return second(_mm512_mullo_epi32(first(_mm512_min_epi32(distance, limit)), factor));
  }
  FIXPOINT_INLINE __m512i operator()(__m512i d0, __m512i d1) const {
    const __m512i y0 = Log2(d0), y1 = Log2(d1);
    const __m512i low15 = _mm512_set1_epi32(32767);
    const __m512i f = _mm512_packs_epi32(_mm512_and_si512(y0, low15), _mm512_and_si512(y1, low15));
    // y < 2^31, so its integer part is below 2^16: saturated to 32767 it still shifts everything
    // out.
    const __m512i whole = _mm512_packs_epi32(_mm512_srli_epi32(y0, 15), _mm512_srli_epi32(y1, 15));
    // vpmulhrsw(a, b) is rs(a * b, 15).
    __m512i p = _mm512_set1_epi16(111);
    p = _mm512_add_epi16(_mm512_mulhrs_epi16(p, f), _mm512_set1_epi16(-871));
    p = _mm512_add_epi16(_mm512_mulhrs_epi16(p, f), _mm512_set1_epi16(3922));
    p = _mm512_add_epi16(_mm512_mulhrs_epi16(p, f), _mm512_set1_epi16(-11354));
    p = _mm512_add_epi16(_mm512_mulhrs_epi16(p, f), _mm512_set1_epi16(16384));
    // Half of 2^whole is 0 for whole == 0, and shifts by 16 or more give 0. p + half <= 32768 is
    // read as unsigned.
    const __m512i half = _mm512_srli_epi16(_mm512_sllv_epi16(_mm512_set1_epi16(1), whole), 1);
    const __m512i e = _mm512_min_epu16(_mm512_srlv_epi16(_mm512_add_epi16(p, half), whole),
                                       _mm512_set1_epi16(16383));
    return _mm512_permutexvar_epi64(_mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0), e);
  }
  __m512i limit, factor;
  Round first, second;
};

FIXPOINT_INLINE void FindLargest(const int32_t* scores, Row& row) {
  __m512i largest = _mm512_set1_epi32(row.largest);
  for (int32_t j = 0; j < row.keys; j += 16) {
    largest = _mm512_mask_max_epi32(largest, TailMask16(row.keys - j), largest,
                                    _mm512_load_si512(scores + j));
  }
  row.largest = _mm512_reduce_max_epi32(largest);
}

// Numerator planes of a row from its scores, zero up to `padded` keys (a multiple of 64); its
// prefix numerators and reciprocal.
FIXPOINT_INLINE void SoftmaxRow(const KvHead& kv_head, const int32_t* scores, int32_t padded,
                                uint8_t* high, uint8_t* low, Row& row) {
  FindLargest(scores, row);
  const ScoreParams& params = kv_head.args.scores[row.head];
  const Numerators numerators(params);
  const __m512i largest = _mm512_set1_epi32(row.largest);
  __m512i sum = _mm512_setzero_si512();
  for (int32_t j = 0; j < padded; j += 32) {
    const int32_t left = row.keys - j;
    const __mmask32 mask = left >= 32 ? ~__mmask32{0} : left <= 0 ? 0 : (__mmask32{1} << left) - 1;
    const __m512i e = _mm512_maskz_mov_epi16(
        mask, numerators(_mm512_sub_epi32(largest, _mm512_load_si512(scores + j)),
                         _mm512_sub_epi32(largest, _mm512_load_si512(scores + j + 16))));
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(e, _mm512_set1_epi16(1)));
    _mm256_store_si256(reinterpret_cast<__m256i*>(high + j),
                       _mm512_cvtepi16_epi8(_mm512_srli_epi16(e, 7)));
    _mm256_store_si256(reinterpret_cast<__m256i*>(low + j),
                       _mm512_cvtepi16_epi8(_mm512_and_si512(e, _mm512_set1_epi16(127))));
  }
  // At most (kMaxContext + prefix) numerators below 2^14: below 2^31 + 2^18, so unsigned.
  uint64_t total = static_cast<uint32_t>(_mm512_reduce_add_epi32(sum));
  for (int32_t j = 0; j < kv_head.args.prefix_tokens; ++j) {
    row.prefix_scores[j] = SoftmaxNumerator(row.largest - row.prefix_scores[j], params);
    total += static_cast<uint64_t>(row.prefix_scores[j]);
  }
  row.reciprocal = ReciprocalOfSum(total);
}

// 8 channels: int32 sums of the planes in, 128 * A / Z as int32 lanes out.
FIXPOINT_INLINE __m256i Normalize(const KvHead& kv_head, const Row& row, int32_t d, __m256i high,
                                  __m256i low) {
  __m512i a = _mm512_add_epi64(_mm512_slli_epi64(_mm512_cvtepi32_epi64(high), 7),
                               _mm512_cvtepi32_epi64(low));
  for (int32_t j = 0; j < kv_head.args.prefix_tokens; ++j) {
    const int16_t* v = PrefixRow(kv_head, kv_head.args.prefix_v, j) + d;
    const __m512i value =
        _mm512_cvtepi16_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(v)));
    a = _mm512_add_epi64(a, _mm512_mul_epi32(value, _mm512_set1_epi64(row.prefix_scores[j])));
  }
  a = ClampWide(Round64(row.reciprocal.pre_shift)(a), 0x7fffffff);
  a = _mm512_mul_epi32(a, _mm512_set1_epi64(row.reciprocal.reciprocal));
  return _mm512_cvtepi64_epi32(ClampWide(Round64(row.reciprocal.post_shift)(a), 32767));
}

FIXPOINT_INLINE void StoreChannels(const KvHead& kv_head, const Row& row, int32_t d, __m512i high,
                                   __m512i low) {
  const AttentionArgs& args = kv_head.args;
  const __m256i first =
      Normalize(kv_head, row, d, _mm512_castsi512_si256(high), _mm512_castsi512_si256(low));
  const __m256i second = Normalize(kv_head, row, d + 8, _mm512_extracti64x4_epi64(high, 1),
                                   _mm512_extracti64x4_epi64(low, 1));
  const int32_t channel = row.head * args.head_dim + d;
  const __m512i mean = _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
  const __m512i multipliers = LoadMultipliers(args.requantize.multipliers + channel, 0xffff);
  StoreSite(Round(args.requantize.k)(Times16(mean, multipliers)), args.out.hi, args.out.lo,
            static_cast<size_t>(row.token) * args.out.stride + channel, 0xffff);
}

}  // namespace
}  // namespace fixpoint
