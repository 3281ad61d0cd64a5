// Vector forms of the scalar rules in arithmetic.h for 128-bit NEON. Everything here has internal
// linkage (isa_arithmetic.h).
//
// srshl shifts right by -n with the rounding of rs(x, n): nearest, ties toward +infinity, exact for
// every x because the sum before the shift is not cut off, and the identity for n == 0. The
// narrowing moves saturate to -2^(n-1) where our rules say -(2^(n-1) - 1): a maximum behind them
// mends that.
#pragma once

#include <arm_neon.h>

#include "kernels/cpu/isa_arithmetic.h"

namespace fixpoint {
namespace {

#define FIXPOINT_INLINE inline __attribute__((always_inline))

FIXPOINT_INLINE int32x4_t Clamp32(int32x4_t x, int32_t limit) {
  return vmaxq_s32(vminq_s32(x, vdupq_n_s32(limit)), vdupq_n_s32(-limit));
}

// Eight int32 lanes: channels c .. c + 7.
struct Eight {
  int32x4_t low, high;
};

FIXPOINT_INLINE Eight Load8(const int32_t* p) { return {vld1q_s32(p), vld1q_s32(p + 4)}; }
FIXPOINT_INLINE void Store8(int32_t* p, Eight x) {
  vst1q_s32(p, x.low);
  vst1q_s32(p + 4, x.high);
}
FIXPOINT_INLINE Eight Clamp8(Eight x, int32_t limit) {
  return {Clamp32(x.low, limit), Clamp32(x.high, limit)};
}

// rs(x, n), every x.
struct Round {
  explicit FIXPOINT_INLINE Round(int32_t n) : shift(vdupq_n_s32(-n)) {}
  FIXPOINT_INLINE int32x4_t operator()(int32x4_t x) const { return vrshlq_s32(x, shift); }
  FIXPOINT_INLINE Eight operator()(Eight x) const { return {(*this)(x.low), (*this)(x.high)}; }
  int32x4_t shift;
};

// sat16 of eight lanes.
FIXPOINT_INLINE int16x8_t Saturate16(Eight x) {
  const int16x8_t words = vqmovn_high_s32(vqmovn_s32(x.low), x.high);
  return vmaxq_s16(words, vdupq_n_s16(-32767));
}

FIXPOINT_INLINE Eight Multiply(int16x8_t a, int16x8_t b) {
  return {vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b)};
}

// rs(int32(sat16(rs(v, p))) * M, k) without the last clamp.
struct VectorNarrow {
  explicit FIXPOINT_INLINE VectorNarrow(const NarrowParams& params)
      : multipliers(params.multipliers), first(params.p), second(params.k) {}
  FIXPOINT_INLINE Eight operator()(Eight v, int32_t channel) const {
    return second(Multiply(Saturate16(first(v)), vld1q_s16(multipliers + channel)));
  }
  const int16_t* multipliers;
  Round first, second;
};

FIXPOINT_INLINE void StoreInt8(Eight v, int8_t* out) {
  // Saturated to 16 bits, then to 8: the same as at once.
  const int8x8_t bytes = vqmovn_s16(Saturate16(v));
  vst1_s8(out, vmax_s8(bytes, vdup_n_s8(-127)));
}

// StoreActivation of arithmetic.h at `offset` of both planes.
FIXPOINT_INLINE void StoreSite(Eight v, int8_t* hi, int8_t* lo, size_t offset) {
  if (lo == nullptr) {
    StoreInt8(v, hi + offset);
    return;
  }
  const int16x8_t limit = vdupq_n_s16(kWideSiteLimit);
  const int16x8_t x = vmaxq_s16(vminq_s16(Saturate16(v), limit), vnegq_s16(limit));
  vst1_s8(hi + offset, vrshrn_n_s16(x, 8));
  vst1_s8(lo + offset, vmovn_s16(x));  // x - 256 * high has the low byte of x
}

// clamp(rs64(a * m, n), +-limit). Saturating to int32 first changes nothing, as limit < 2^31.
struct ScaleWide {
  FIXPOINT_INLINE ScaleWide(int32_t n, int32_t limit) : limit(limit), shift(vdupq_n_s64(-n)) {}
  FIXPOINT_INLINE int32x4_t operator()(int32x4_t a, int32x4_t m) const {
    const int64x2_t low = vrshlq_s64(vmull_s32(vget_low_s32(a), vget_low_s32(m)), shift);
    const int64x2_t high = vrshlq_s64(vmull_high_s32(a, m), shift);
    return Clamp32(vqmovn_high_s64(vqmovn_s64(low), high), limit);
  }
  FIXPOINT_INLINE Eight operator()(Eight a, Eight m) const {
    return {(*this)(a.low, m.low), (*this)(a.high, m.high)};
  }
  int32_t limit;
  int64x2_t shift;
};

}  // namespace
}  // namespace fixpoint
