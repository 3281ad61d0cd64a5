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

// Vectors of 32 numerators that are made side by side, for 64 keys.
constexpr int kChains = 2;

// 2^-f in Q14 for fractions f of 15 bits, shifted right by `whole` with rounding: the end of
// ExpNegative.
FIXPOINT_INLINE void ExpWords(const __m512i (&f)[kChains], const __m512i (&whole)[kChains],
                              __m512i (&e)[kChains]) {
  // vpmulhrsw(a, b) is rs(a * b, 15).
  const auto horner = [&](int16_t c) __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (int i = 0; i < kChains; ++i) e[i] = _mm512_mulhrs_epi16(e[i], f[i]);
#pragma GCC unroll 2
    for (int i = 0; i < kChains; ++i) e[i] = _mm512_add_epi16(e[i], _mm512_set1_epi16(c));
  };
#pragma GCC unroll 2
  for (int i = 0; i < kChains; ++i) e[i] = _mm512_set1_epi16(111);
  horner(-871);
  horner(3922);
  horner(-11354);
  horner(16384);
  // rs(p, whole) is floor(2 * p / 2^whole) / 2 rounded up, which vpavgw with 0 gives; shifts by 16
  // or more give 0.
#pragma GCC unroll 2
  for (int i = 0; i < kChains; ++i) {
    e[i] = _mm512_srlv_epi16(_mm512_add_epi16(e[i], e[i]), whole[i]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < kChains; ++i) {
    e[i] =
        _mm512_min_epu16(_mm512_avg_epu16(e[i], _mm512_setzero_si512()), _mm512_set1_epi16(16383));
  }
}

// Softmax numerators of kChains x 32 scores. Each 32 become words in the order of vpackssdw: four
// of the first 16, four of the second, and so on.
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
  FIXPOINT_INLINE void operator()(const int32_t* scores, __m512i (&e)[kChains]) const {
    const __m512i low15 = _mm512_set1_epi32(32767);
    __m512i f[kChains], whole[kChains];
    for (int i = 0; i < kChains; ++i, scores += 32) {
      const __m512i y0 = Log2(_mm512_load_si512(scores)), y1 = Log2(_mm512_load_si512(scores + 16));
      f[i] = _mm512_packs_epi32(_mm512_and_si512(y0, low15), _mm512_and_si512(y1, low15));
      // y < 2^31, so its integer part is below 2^16: saturated to 32767 it still shifts everything
      // out.
      whole[i] = _mm512_packs_epi32(_mm512_srli_epi32(y0, 15), _mm512_srli_epi32(y1, 15));
    }
    ExpWords(f, whole, e);
  }
  __m512i largest, limit, factor;
  Round first, second;
};

// The low words of (high * 2^16 + low) >> count, 0 <= count < 16; `count` as words of a vector.
FIXPOINT_INLINE __m512i FunnelShift(__m512i high, __m512i low, __m512i count) {
#ifdef __AVX512VBMI2__
  return _mm512_shrdv_epi16(low, high, count);
#else
  return _mm512_or_si512(_mm512_srlv_epi16(low, count),
                         _mm512_sllv_epi16(high, _mm512_sub_epi16(_mm512_set1_epi16(16), count)));
#endif
}

// What a WordNumerators of a row begins with, ready to be broadcast.
struct WordScale {
  int32_t largest;  // and half of the first shift: no distance is above 2^31 - 2^15
  int32_t factor, half, shift, whole;  // twice the same word
  int32_t first;
};
FIXPOINT_INLINE WordScale MakeWordScale(const ScoreParams& params, int32_t largest) {
  const auto twice = [](int32_t word) {
    return static_cast<int32_t>(static_cast<uint32_t>(word) * 0x10001u);
  };
  return {.largest = largest + (params.a > 0 ? 1 << (params.a - 1) : 0),
          .factor = twice(params.c),
          .half = twice(1 << (params.n - 1)),
          .shift = twice(params.n),
          .whole = twice(params.n - 1),
          .first = params.a};
}

// The same where n < 16, and the numerator at d_max is 0 and its rs(d, a) fits 16 bits, as it does
// in every calibrated model: the product is made in 16-bit halves, for 32 scores at once, and
// distances beyond d_max need no limit. Multiplications, shifts, averages and limits all go to one
// port of the CPU: what can be done by sums and masks is.
struct WordNumerators {
  static bool Fits(const ScoreParams& params) {
    return params.n < 16 && RoundShift(params.d_max, params.a) <= 65535 &&
           SoftmaxNumerator(params.d_max, params) == 0;
  }
  FIXPOINT_INLINE explicit WordNumerators(const WordScale& scale)
      : largest(_mm512_set1_epi32(scale.largest)),
        factor(_mm512_set1_epi32(scale.factor)),
        half(_mm512_set1_epi32(scale.half)),
        shift(_mm512_set1_epi32(scale.shift)),
        whole(_mm512_set1_epi32(scale.whole)),
        first(_mm512_set1_epi32(scale.first)) {}

  FIXPOINT_INLINE void operator()(const int32_t* scores, __m512i (&e)[kChains]) const {
    __m512i f[kChains], low[kChains], high[kChains];
#pragma GCC unroll 2
    for (int i = 0; i < kChains; ++i) {
      f[i] = _mm512_packus_epi32(Distance(scores + 32 * i), Distance(scores + 32 * i + 16));
    }
    // y = (d * c + half) >> n, of which the 15 low bits and the rest are wanted.
#pragma GCC unroll 2
    for (int i = 0; i < kChains; ++i) {
      low[i] = _mm512_mullo_epi16(f[i], factor);
      high[i] = _mm512_mulhi_epu16(f[i], factor);
    }
#pragma GCC unroll 2
    for (int i = 0; i < kChains; ++i) {
      const __m512i product = low[i];
      low[i] = _mm512_add_epi16(product, half);
      high[i] = _mm512_mask_sub_epi16(high[i], _mm512_cmplt_epu16_mask(low[i], product), high[i],
                                      _mm512_set1_epi16(-1));
    }
#pragma GCC unroll 2
    for (int i = 0; i < kChains; ++i) {
      f[i] = _mm512_and_si512(FunnelShift(high[i], low[i], shift), _mm512_set1_epi16(32767));
      high[i] = _mm512_srlv_epi16(high[i], whole);
    }
    ExpWords(f, high, e);
  }
  FIXPOINT_INLINE __m512i Distance(const int32_t* scores) const {
    return _mm512_srlv_epi32(_mm512_sub_epi32(largest, _mm512_load_si512(scores)), first);
  }
  __m512i largest, factor, half, shift, whole, first;
};

// The largest of `keys` scores and what `row` has so far.
FIXPOINT_INLINE void FindLargest(const int32_t* scores, int32_t keys, Row& row) {
  __m512i largest = _mm512_set1_epi32(row.largest);
  for (int32_t j = 0; j < keys; j += 16) {
    largest = _mm512_mask_max_epi32(largest, TailMask16(keys - j), largest,
                                    _mm512_load_si512(scores + j));
  }
  row.largest = _mm512_reduce_max_epi32(largest);
}

// Numerators of 64 keys in the order of Numerators, cut into byte planes in the order of the keys.
FIXPOINT_INLINE void StorePlanes(__m512i e0, __m512i e1, uint8_t* high, uint8_t* low) {
#ifdef __AVX512VBMI__
  // Of each four words: a byte of each from bit 7 on, then one of each from bit 0 on.
  const __m512i bits = _mm512_set1_epi64(0x3020100037271707);
  const __m512i order =
      _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 16, 20, 24, 28, 18, 22, 26, 30);
  e0 = _mm512_multishift_epi64_epi8(bits, e0);
  e1 = _mm512_multishift_epi64_epi8(bits, e1);
  _mm512_store_si512(high, _mm512_permutex2var_epi32(e0, order, e1));
  const __m512i low8 =
      _mm512_permutex2var_epi32(e0, _mm512_or_si512(order, _mm512_set1_epi32(1)), e1);
  _mm512_store_si512(low, _mm512_and_si512(low8, _mm512_set1_epi8(127)));
#else
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i low7 = _mm512_set1_epi16(127);
  _mm512_store_si512(
      high, _mm512_permutexvar_epi32(
                order, _mm512_packus_epi16(_mm512_srli_epi16(e0, 7), _mm512_srli_epi16(e1, 7))));
  _mm512_store_si512(
      low, _mm512_permutexvar_epi32(
               order, _mm512_packus_epi16(_mm512_and_si512(e0, low7), _mm512_and_si512(e1, low7))));
#endif
}

// Words of ones for the keys that exist, `left` from the first of 32 on.
FIXPOINT_INLINE __m512i KeepWords(int32_t left) {
  const auto ones = [](int32_t n) {
    return _mm512_maskz_set1_epi32(n <= 0 ? __mmask16{0} : TailMask16(n), -1);
  };
  return _mm512_packs_epi32(ones(left), ones(left - 16));
}

static_assert(kKvBlockTokens == kChains * 32);

// The numerators of the first `keys` of a block's 64 keys as planes, zero behind them; lanes whose
// sum is theirs.
template <typename MakeNumerators>
FIXPOINT_INLINE __m512i BlockNumerators(const MakeNumerators& numerators, const int32_t* scores,
                                        int32_t keys, uint8_t* high, uint8_t* low) {
  __m512i e[kChains];
  numerators(scores, e);
  if (keys < kKvBlockTokens) {
    for (int i = 0; i < kChains; ++i) e[i] = _mm512_and_si512(e[i], KeepWords(keys - 32 * i));
  }
  StorePlanes(e[0], e[1], high, low);
  return _mm512_madd_epi16(_mm512_add_epi16(e[0], e[1]), _mm512_set1_epi16(1));
}

// Of `keys` scores, zero up to `padded` keys (a multiple of 64).
template <typename MakeNumerators>
FIXPOINT_INLINE __m512i NumeratorPlanes(const MakeNumerators& numerators, const int32_t* scores,
                                        int32_t keys, int32_t padded, uint8_t* high, uint8_t* low) {
  __m512i total = _mm512_setzero_si512();
  int32_t j = 0;
  for (; j < keys; j += kKvBlockTokens) {
    total = _mm512_add_epi32(total,
                             BlockNumerators(numerators, scores + j, keys - j, high + j, low + j));
  }
  for (; j < padded; j += kKvBlockTokens) {
    _mm512_store_si512(high + j, _mm512_setzero_si512());
    _mm512_store_si512(low + j, _mm512_setzero_si512());
  }
  return total;
}

// The same with the row's largest score known.
FIXPOINT_INLINE __m512i RowPlanes(const KvHead& kv_head, const Row& row, const int32_t* scores,
                                  int32_t keys, int32_t padded, uint8_t* high, uint8_t* low) {
  const ScoreParams& params = kv_head.args.scores[row.head];
  if (WordNumerators::Fits(params)) {
    return NumeratorPlanes(WordNumerators(MakeWordScale(params, row.largest)), scores, keys, padded,
                           high, low);
  }
  return NumeratorPlanes(Numerators(params, row.largest), scores, keys, padded, high, low);
}

// A row's prefix numerators and reciprocal, from the lanes of its other numerators' sum: at most
// kMaxContext numerators below 2^14, below 2^31.
FIXPOINT_INLINE void EndRow(const KvHead& kv_head, __m512i lanes, Row& row) {
  auto total = static_cast<uint64_t>(static_cast<uint32_t>(_mm512_reduce_add_epi32(lanes)));
  const ScoreParams& params = kv_head.args.scores[row.head];
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
