// Vector forms of the scalar rules in arithmetic.h, 16 int32 lanes wide. For files of the vnni and
// amx levels only. Everything here has internal linkage (isa_arithmetic.h).
#pragma once

#include <immintrin.h>

#include "kernels/cpu/isa_arithmetic.h"

namespace fixpoint {
namespace {

#define FIXPOINT_INLINE inline __attribute__((always_inline))

FIXPOINT_INLINE __mmask16 TailMask16(int32_t n) {
  return n >= 16 ? 0xffff : static_cast<__mmask16>((1u << n) - 1);
}

FIXPOINT_INLINE __m512i Clamp32(__m512i x, int32_t limit) {
  return _mm512_max_epi32(_mm512_min_epi32(x, _mm512_set1_epi32(limit)), _mm512_set1_epi32(-limit));
}

// rs(x, n) for all x: x + 2^(n-1) could overflow, so the bit that decides is added after the shift.
struct SafeRound {
  explicit FIXPOINT_INLINE SafeRound(int32_t n)
      : shift(_mm_cvtsi32_si128(n)),
        before(_mm_cvtsi32_si128(n > 0 ? n - 1 : 0)),
        one(_mm512_set1_epi32(n > 0 ? 1 : 0)) {}
  FIXPOINT_INLINE __m512i operator()(__m512i x) const {
    return _mm512_add_epi32(_mm512_sra_epi32(x, shift),
                            _mm512_and_si512(_mm512_sra_epi32(x, before), one));
  }
  __m128i shift, before;
  __m512i one;
};

// rs(x, n) where x + 2^(n-1) fits int32.
struct Round {
  explicit FIXPOINT_INLINE Round(int32_t n)
      : shift(_mm_cvtsi32_si128(n)), half(_mm512_set1_epi32(n > 0 ? 1 << (n - 1) : 0)) {}
  FIXPOINT_INLINE __m512i operator()(__m512i x) const {
    return _mm512_sra_epi32(_mm512_add_epi32(x, half), shift);
  }
  __m128i shift;
  __m512i half;
};

// sat16(rs(x, n)) for all x. Up to 16 the clamp comes first, at the borders of what rounds to
// +-32767, so that x + 2^(n-1) cannot overflow.
struct Round16 {
  explicit FIXPOINT_INLINE Round16(int32_t n)
      : small(n <= 16),
        most(_mm512_set1_epi32(static_cast<int32_t>(Border(n) - (n > 0 && n <= 16 ? 1 : 0)))),
        least(_mm512_set1_epi32(static_cast<int32_t>(-Border(n)))),
        quick(n <= 16 ? n : 0),
        safe(n) {}
  // 32767 * 2^n + 2^(n-1)
  FIXPOINT_INLINE static int64_t Border(int32_t n) {
    if (n > 16) return 0;
    return (int64_t{32767} << n) + (n > 0 ? int64_t{1} << (n - 1) : 0);
  }
  FIXPOINT_INLINE __m512i operator()(__m512i x) const {
    if (!small) return Clamp32(safe(x), 32767);
    return quick(_mm512_max_epi32(_mm512_min_epi32(x, most), least));
  }
  bool small;
  __m512i most, least;
  Round quick;
  SafeRound safe;
};

// rs64(x, n) where x + 2^(n-1) fits int64.
struct Round64 {
  explicit FIXPOINT_INLINE Round64(int32_t n)
      : shift(_mm_cvtsi32_si128(n)), half(_mm512_set1_epi64(n > 0 ? int64_t{1} << (n - 1) : 0)) {}
  FIXPOINT_INLINE __m512i operator()(__m512i x) const {
    return _mm512_sra_epi64(_mm512_add_epi64(x, half), shift);
  }
  __m128i shift;
  __m512i half;
};

// Up to 16 multipliers as int32 lanes whose upper halves are zero.
FIXPOINT_INLINE __m512i LoadMultipliers(const int16_t* m, __mmask16 mask) {
  return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, m));
}

// a * m for lanes a within int16 and m in [0, 2^15): one multiply-add of 16-bit pairs, as the upper
// half of m is zero.
FIXPOINT_INLINE __m512i Times16(__m512i a, __m512i m) { return _mm512_madd_epi16(a, m); }

// rs(int32(sat16(rs(v, p))) * M, k) without the last clamp.
struct VectorNarrow {
  explicit FIXPOINT_INLINE VectorNarrow(const NarrowParams& params)
      : multipliers(params.multipliers), first(params.p), second(params.k) {}
  FIXPOINT_INLINE __m512i operator()(__m512i v, int32_t channel, __mmask16 mask) const {
    return second(Times16(first(v), LoadMultipliers(multipliers + channel, mask)));
  }
  const int16_t* multipliers;
  Round16 first;
  Round second;
};

FIXPOINT_INLINE void StoreInt8(__m512i v, int8_t* out, __mmask16 mask) {
  _mm_mask_storeu_epi8(out, mask, _mm512_cvtepi32_epi8(Clamp32(v, 127)));
}

// StoreActivation of arithmetic.h at `offset` of both planes.
FIXPOINT_INLINE void StoreSite(__m512i v, int8_t* hi, int8_t* lo, size_t offset, __mmask16 mask) {
  if (lo == nullptr) {
    StoreInt8(v, hi + offset, mask);
    return;
  }
  const __m512i x = Clamp32(v, kWideSiteLimit);
  const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(128)), 8);
  _mm_mask_storeu_epi8(hi + offset, mask, _mm512_cvtepi32_epi8(high));
  // x - 256 * high has the low byte of x.
  _mm_mask_storeu_epi8(lo + offset, mask, _mm512_cvtepi32_epi8(x));
}

// The same for 64 channels, four vectors in order.
FIXPOINT_INLINE void StoreSite64(const __m512i (&v)[4], int8_t* hi, int8_t* lo, size_t offset) {
  // Packing takes four values of each vector in turn.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  __m512i first = _mm512_packs_epi32(v[0], v[1]), second = _mm512_packs_epi32(v[2], v[3]);
  if (lo == nullptr) {
    const __m512i bytes =
        _mm512_max_epi8(_mm512_packs_epi16(first, second), _mm512_set1_epi8(-127));
    _mm512_storeu_si512(hi + offset, _mm512_permutexvar_epi32(order, bytes));
    return;
  }
  const __m512i most = _mm512_set1_epi16(kWideSiteLimit),
                least = _mm512_set1_epi16(-kWideSiteLimit);
  const __m512i half = _mm512_set1_epi16(128), low8 = _mm512_set1_epi16(255);
  first = _mm512_max_epi16(_mm512_min_epi16(first, most), least);
  second = _mm512_max_epi16(_mm512_min_epi16(second, most), least);
  const __m512i high = _mm512_packs_epi16(_mm512_srai_epi16(_mm512_add_epi16(first, half), 8),
                                          _mm512_srai_epi16(_mm512_add_epi16(second, half), 8));
  const __m512i low =
      _mm512_packus_epi16(_mm512_and_si512(first, low8), _mm512_and_si512(second, low8));
  _mm512_storeu_si512(hi + offset, _mm512_permutexvar_epi32(order, high));
  _mm512_storeu_si512(lo + offset, _mm512_permutexvar_epi32(order, low));
}

// value(first channel, mask) of `channels` channels to a site whose row begins at `offset`.
template <typename Value>
FIXPOINT_INLINE void StoreRow(const Value& value, int32_t channels, int8_t* hi, int8_t* lo,
                              size_t offset) {
  int32_t c = 0;
  for (; c + 64 <= channels; c += 64) {
    const __m512i v[4] = {value(c, 0xffff), value(c + 16, 0xffff), value(c + 32, 0xffff),
                          value(c + 48, 0xffff)};
    StoreSite64(v, hi, lo, offset + static_cast<size_t>(c));
  }
  for (; c < channels; c += 16) {
    const __mmask16 mask = TailMask16(channels - c);
    StoreSite(value(c, mask), hi, lo, offset + static_cast<size_t>(c), mask);
  }
}

// The 64-bit products of the even and of the odd int32 lanes with m.
struct WidePair {
  __m512i even, odd;
};
FIXPOINT_INLINE WidePair MultiplyWide(__m512i a, __m512i m) {
  return {_mm512_mul_epi32(a, m),
          _mm512_mul_epi32(_mm512_srli_epi64(a, 32), _mm512_srli_epi64(m, 32))};
}
FIXPOINT_INLINE __m512i ClampWide(__m512i x, int64_t limit) {
  return _mm512_max_epi64(_mm512_min_epi64(x, _mm512_set1_epi64(limit)), _mm512_set1_epi64(-limit));
}
// Back to int32 lanes; the values fit.
FIXPOINT_INLINE __m512i JoinWide(WidePair x) {
  return _mm512_mask_blend_epi32(0xaaaa, x.even, _mm512_slli_epi64(x.odd, 32));
}

// clamp(rs64(a * m, n), +-limit). With n >= 32 and |a * m| below 2^62 a result fits int32 and the
// odd ones are shifted into their lanes at once.
struct ScaleWide {
  FIXPOINT_INLINE ScaleWide(int32_t n, int32_t limit)
      : quick(n >= 32),
        limit(limit),
        round(n),
        odd_shift(_mm_cvtsi32_si128(n >= 32 ? n - 32 : 0)) {}
  FIXPOINT_INLINE __m512i operator()(__m512i a, __m512i m) const {
    const WidePair x = MultiplyWide(a, m);
    if (!quick) {
      return JoinWide({ClampWide(round(x.even), limit), ClampWide(round(x.odd), limit)});
    }
    const __m512i odd = _mm512_sra_epi64(_mm512_add_epi64(x.odd, round.half), odd_shift);
    return Clamp32(_mm512_mask_blend_epi32(0xaaaa, round(x.even), odd), limit);
  }
  bool quick;
  int32_t limit;
  Round64 round;
  __m128i odd_shift;
};

}  // namespace
}  // namespace fixpoint
