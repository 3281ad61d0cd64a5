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

// 2^-f in Q14 for 32 fractions f of 15 bits, shifted right by `whole` with rounding: the end of
// ExpNegative.
FIXPOINT_INLINE __m512i ExpWords(__m512i f, __m512i whole) {
  // vpmulhrsw(a, b) is rs(a * b, 15).
  __m512i p = _mm512_set1_epi16(111);
  p = _mm512_add_epi16(_mm512_mulhrs_epi16(p, f), _mm512_set1_epi16(-871));
  p = _mm512_add_epi16(_mm512_mulhrs_epi16(p, f), _mm512_set1_epi16(3922));
  p = _mm512_add_epi16(_mm512_mulhrs_epi16(p, f), _mm512_set1_epi16(-11354));
  p = _mm512_add_epi16(_mm512_mulhrs_epi16(p, f), _mm512_set1_epi16(16384));
  // Half of 2^whole is 0 for whole == 0, and shifts by 16 or more give 0. p + half <= 32768 is
  // read as unsigned.
  const __m512i half = _mm512_srli_epi16(_mm512_sllv_epi16(_mm512_set1_epi16(1), whole), 1);
  return _mm512_min_epu16(_mm512_srlv_epi16(_mm512_add_epi16(p, half), whole),
                          _mm512_set1_epi16(16383));
}

// Softmax numerators of 2 x 16 scores, as 32 words in the order of vpackssdw: four of the first,
// four of the second, and so on.
struct Numerators {
  Numerators(const ScoreParams& params, int32_t largest)
      : largest(_mm512_set1_epi32(largest)),
        limit(_mm512_set1_epi32(params.d_max)),
        factor(_mm512_set1_epi32(params.c)),
        first(params.a),
        second(params.n) {}

  FIXPOINT_INLINE __m512i Log2(__m512i score) const {
    const __m512i distance = _mm512_min_epi32(_mm512_sub_epi32(largest, score), limit);
    return second(_mm512_mullo_epi32(first(distance), factor));
  }
  FIXPOINT_INLINE __m512i operator()(__m512i s0, __m512i s1) const {
    const __m512i y0 = Log2(s0), y1 = Log2(s1);
    const __m512i low15 = _mm512_set1_epi32(32767);
    const __m512i f = _mm512_packs_epi32(_mm512_and_si512(y0, low15), _mm512_and_si512(y1, low15));
    // y < 2^31, so its integer part is below 2^16: saturated to 32767 it still shifts everything
    // out.
    const __m512i whole = _mm512_packs_epi32(_mm512_srli_epi32(y0, 15), _mm512_srli_epi32(y1, 15));
    return ExpWords(f, whole);
  }
  __m512i largest, limit, factor;
  Round first, second;
};

// The same where rs(d_max, a) fits 16 bits and n <= 16, as it does in every calibrated model: the
// product is made in 16-bit halves, for 32 scores at once.
struct WordNumerators {
  static bool Fits(const ScoreParams& params) {
    return RoundShift(params.d_max, params.a) <= 65535 && params.n <= 16;
  }
  WordNumerators(const ScoreParams& params, int32_t largest)
      // Half of the first shift is added here; no distance is above 2^31 - 2^15.
      : largest(_mm512_set1_epi32(largest + (params.a > 0 ? 1 << (params.a - 1) : 0))),
        limit(_mm512_set1_epi16(static_cast<int16_t>(RoundShift(params.d_max, params.a)))),
        factor(_mm512_set1_epi16(static_cast<int16_t>(params.c))),
        half(_mm512_set1_epi16(static_cast<int16_t>(1 << (params.n - 1)))),
        first(_mm_cvtsi32_si128(params.a)),
        second(_mm_cvtsi32_si128(params.n)),
        second_up(_mm_cvtsi32_si128(16 - params.n)),
        whole(_mm_cvtsi32_si128(params.n - 1)) {}

  FIXPOINT_INLINE __m512i operator()(__m512i s0, __m512i s1) const {
    const __m512i d0 = _mm512_srl_epi32(_mm512_sub_epi32(largest, s0), first);
    const __m512i d1 = _mm512_srl_epi32(_mm512_sub_epi32(largest, s1), first);
    // rs is monotone: the limit may come behind it.
    const __m512i d = _mm512_min_epu16(_mm512_packus_epi32(d0, d1), limit);
    // y = (d * c + half) >> n, of which the 15 low bits and the rest are wanted.
    const __m512i product = _mm512_mullo_epi16(d, factor);
    const __m512i low = _mm512_add_epi16(product, half);
    const __m512i carry = _mm512_mulhi_epu16(d, factor);
    const __m512i high = _mm512_mask_sub_epi16(carry, _mm512_cmplt_epu16_mask(low, product), carry,
                                               _mm512_set1_epi16(-1));
    const __m512i y =
        _mm512_or_si512(_mm512_srl_epi16(low, second), _mm512_sll_epi16(high, second_up));
    return ExpWords(_mm512_and_si512(y, _mm512_set1_epi16(32767)), _mm512_srl_epi16(high, whole));
  }
  __m512i largest, limit, factor, half;
  __m128i first, second, second_up, whole;
};

FIXPOINT_INLINE void FindLargest(const int32_t* scores, Row& row) {
  __m512i largest = _mm512_set1_epi32(row.largest);
  for (int32_t j = 0; j < row.keys; j += 16) {
    largest = _mm512_mask_max_epi32(largest, TailMask16(row.keys - j), largest,
                                    _mm512_load_si512(scores + j));
  }
  row.largest = _mm512_reduce_max_epi32(largest);
}

// Numerators of 64 keys in the order of Numerators, cut into byte planes in the order of the keys.
FIXPOINT_INLINE void StorePlanes(__m512i e0, __m512i e1, uint8_t* high, uint8_t* low) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i low7 = _mm512_set1_epi16(127);
  _mm512_store_si512(
      high, _mm512_permutexvar_epi32(
                order, _mm512_packus_epi16(_mm512_srli_epi16(e0, 7), _mm512_srli_epi16(e1, 7))));
  _mm512_store_si512(
      low, _mm512_permutexvar_epi32(
               order, _mm512_packus_epi16(_mm512_and_si512(e0, low7), _mm512_and_si512(e1, low7))));
}

// Words of ones for the keys that exist, `left` from the first of 32 on.
FIXPOINT_INLINE __m512i KeepWords(int32_t left) {
  const auto ones = [](int32_t n) {
    return _mm512_maskz_set1_epi32(n <= 0 ? __mmask16{0} : TailMask16(n), -1);
  };
  return _mm512_packs_epi32(ones(left), ones(left - 16));
}

// Planes of `keys` scores, zero from there up to `padded`; the sum of the numerators.
template <typename MakeNumerators>
FIXPOINT_INLINE uint32_t NumeratorPlanes(const MakeNumerators& numerators, const int32_t* scores,
                                         int32_t keys, int32_t padded, uint8_t* high,
                                         uint8_t* low) {
  __m512i sum = _mm512_setzero_si512();
  const auto block = [&](int32_t j, bool whole) __attribute__((always_inline)) {
    __m512i e0 = numerators(_mm512_load_si512(scores + j), _mm512_load_si512(scores + j + 16));
    __m512i e1 = numerators(_mm512_load_si512(scores + j + 32), _mm512_load_si512(scores + j + 48));
    if (!whole) {
      e0 = _mm512_and_si512(e0, KeepWords(keys - j));
      e1 = _mm512_and_si512(e1, KeepWords(keys - j - 32));
    }
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_add_epi16(e0, e1), _mm512_set1_epi16(1)));
    StorePlanes(e0, e1, high + j, low + j);
  };
  int32_t j = 0;
  for (; j + 64 <= keys; j += 64) block(j, true);
  if (j < keys) {
    block(j, false);
    j += 64;
  }
  for (; j < padded; j += 64) {
    _mm512_store_si512(high + j, _mm512_setzero_si512());
    _mm512_store_si512(low + j, _mm512_setzero_si512());
  }
  // At most kMaxContext numerators below 2^14: below 2^31.
  return static_cast<uint32_t>(_mm512_reduce_add_epi32(sum));
}

// Numerator planes of a row from its scores, zero up to `padded` keys (a multiple of 64); its
// prefix numerators and reciprocal.
FIXPOINT_INLINE void SoftmaxRow(const KvHead& kv_head, const int32_t* scores, int32_t padded,
                                uint8_t* high, uint8_t* low, Row& row) {
  FindLargest(scores, row);
  const ScoreParams& params = kv_head.args.scores[row.head];
  uint64_t total =
      WordNumerators::Fits(params)
          ? NumeratorPlanes(WordNumerators(params, row.largest), scores, row.keys, padded, high,
                            low)
          : NumeratorPlanes(Numerators(params, row.largest), scores, row.keys, padded, high, low);
  for (int32_t j = 0; j < kv_head.args.prefix_tokens; ++j) {
    row.prefix_scores[j] = SoftmaxNumerator(row.largest - row.prefix_scores[j], params);
    total += static_cast<uint64_t>(row.prefix_scores[j]);
  }
  row.reciprocal = ReciprocalOfSum(total);
}

// Whether 128 * high + low and what the prefix adds stay in int32, with room for a rounding.
FIXPOINT_INLINE bool SumsFitInt32(const KvHead& kv_head, const Row& row) {
  return int64_t{127} * 127 * 128 * row.keys +
             int64_t{32767} * 16383 * kv_head.args.prefix_tokens <=
         INT32_MAX - (1 << 16);
}

// rs(A, pre_shift) of 16 channels, A in int32. Its shift is at most 16 then, as Z < 2^31.
FIXPOINT_INLINE __m512i ShortSums(const KvHead& kv_head, const Row& row, int32_t d, __m512i high,
                                  __m512i low) {
  __m512i a = _mm512_add_epi32(_mm512_slli_epi32(high, 7), low);
  for (int32_t j = 0; j < kv_head.args.prefix_tokens; ++j) {
    const int16_t* v = PrefixRow(kv_head, kv_head.args.prefix_v, j) + d;
    const __m512i value =
        _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(v)));
    a = _mm512_add_epi32(a, _mm512_mullo_epi32(value, _mm512_set1_epi32(row.prefix_scores[j])));
  }
  return Round(row.reciprocal.pre_shift)(a);
}

// sat32(rs(A, pre_shift)) of 8 channels for any number of keys. The conversion saturates to -2^31
// where the rule says -(2^31 - 1): both are far beyond the clamp that follows the product.
FIXPOINT_INLINE __m256i LongSums(const KvHead& kv_head, const Row& row, int32_t d, __m256i high,
                                 __m256i low) {
  __m512i a = _mm512_add_epi64(_mm512_slli_epi64(_mm512_cvtepi32_epi64(high), 7),
                               _mm512_cvtepi32_epi64(low));
  for (int32_t j = 0; j < kv_head.args.prefix_tokens; ++j) {
    const int16_t* v = PrefixRow(kv_head, kv_head.args.prefix_v, j) + d;
    const __m512i value =
        _mm512_cvtepi16_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(v)));
    a = _mm512_add_epi64(a, _mm512_mul_epi32(value, _mm512_set1_epi64(row.prefix_scores[j])));
  }
  return _mm512_cvtsepi64_epi32(Round64(row.reciprocal.pre_shift)(a));
}

// Channels [d, d + 16) of a row from the sums of its planes.
FIXPOINT_INLINE void StoreChannels(const KvHead& kv_head, const Row& row, int32_t d, __m512i high,
                                   __m512i low) {
  const AttentionArgs& args = kv_head.args;
  __m512i sums;
  if (SumsFitInt32(kv_head, row)) {
    sums = ShortSums(kv_head, row, d, high, low);
  } else {
    const __m256i first =
        LongSums(kv_head, row, d, _mm512_castsi512_si256(high), _mm512_castsi512_si256(low));
    const __m256i second = LongSums(kv_head, row, d + 8, _mm512_extracti64x4_epi64(high, 1),
                                    _mm512_extracti64x4_epi64(low, 1));
    sums = _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
  }
  // 128 * A / Z; post_shift is 37 to 39.
  const __m512i mean = ScaleWide(row.reciprocal.post_shift, 32767)(
      sums, _mm512_set1_epi32(static_cast<int32_t>(row.reciprocal.reciprocal)));
  const int32_t channel = row.head * args.head_dim + d;
  const __m512i multipliers = LoadMultipliers(args.requantize.multipliers + channel, 0xffff);
  StoreSite(Round(args.requantize.k)(Times16(mean, multipliers)), args.out.hi, args.out.lo,
            static_cast<size_t>(row.token) * args.out.stride + channel, 0xffff);
}

}  // namespace
}  // namespace fixpoint
