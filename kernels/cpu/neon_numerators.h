// Softmax numerators of a row of scores, 8 at a time, as the two byte planes of
// neon_attention_rows.h. Everything here has internal linkage (isa_arithmetic.h).
#pragma once

#include "kernels/cpu/neon_common.h"

namespace fixpoint {
namespace {

constexpr int32_t kMaxPrefix = 16;

int32_t Largest(const int32_t* scores, int32_t keys, int32_t start) {
  int32x4_t largest = vdupq_n_s32(start);
  int32_t j = 0;
  for (; j + 4 <= keys; j += 4) largest = vmaxq_s32(largest, vld1q_s32(scores + j));
  int32_t most = vmaxvq_s32(largest);
  for (; j < keys; ++j) most = scores[j] > most ? scores[j] : most;
  return most;
}

// 2^-f in Q14 for 8 fractions f of 15 bits, shifted right by `whole` (0 .. 16) with rounding: the
// end of ExpNegative. sqrdmulh(a, b) is rs(a * b, 15). A shift by 16 gives 0, as p <= 16384.
FIXPOINT_INLINE int16x8_t ExpWords(int16x8_t f, int16x8_t whole) {
  int16x8_t p = vqrdmulhq_s16(vdupq_n_s16(111), f);
  p = vqrdmulhq_s16(vaddq_s16(p, vdupq_n_s16(-871)), f);
  p = vqrdmulhq_s16(vaddq_s16(p, vdupq_n_s16(3922)), f);
  p = vqrdmulhq_s16(vaddq_s16(p, vdupq_n_s16(-11354)), f);
  p = vaddq_s16(p, vdupq_n_s16(16384));
  return vminq_s16(vrshlq_s16(p, vnegq_s16(whole)), vdupq_n_s16(16383));
}

struct Numerators {
  FIXPOINT_INLINE Numerators(const ScoreParams& params, int32_t largest)
      : largest(vdupq_n_s32(largest)),
        limit(vdupq_n_s32(params.d_max)),
        factor(vdupq_n_s32(params.c)),
        first(params.a),
        second(params.n) {}

  FIXPOINT_INLINE int32x4_t Log2(int32x4_t score) const {
    const int32x4_t distance = vminq_s32(vsubq_s32(largest, score), limit);
    return second(vmulq_s32(first(distance), factor));
  }
  FIXPOINT_INLINE int16x8_t operator()(Eight scores) const {
    const Eight y{Log2(scores.low), Log2(scores.high)};
    const int16x8_t f = vandq_s16(vmovn_high_s32(vmovn_s32(y.low), y.high), vdupq_n_s16(32767));
    const int16x8_t whole =
        vqmovn_high_s32(vqmovn_s32(vshrq_n_s32(y.low, 15)), vshrq_n_s32(y.high, 15));
    return ExpWords(f, vminq_s16(whole, vdupq_n_s16(16)));
  }
  int32x4_t largest, limit, factor;
  Round first, second;
};

// Planes of `keys` scores, zero from there up to `padded` (a multiple of 64); the sum of the
// numerators, which stays below 2^31: at most kMaxContext of them below 2^14. What the scores hold
// behind `keys`, up to a multiple of 16, does not matter.
FIXPOINT_INLINE uint32_t NumeratorPlanes(const ScoreParams& params, int32_t largest,
                                         const int32_t* scores, int32_t keys, int32_t padded,
                                         int8_t* high, int8_t* low) {
  const Numerators numerators(params, largest);
  const int16x8_t order = {0, 1, 2, 3, 4, 5, 6, 7};
  int32x4_t sum = vdupq_n_s32(0);
  const auto store = [&](int32_t j, int16x8_t e) __attribute__((always_inline)) {
    sum = vpadalq_s16(sum, e);
    vst1_s8(high + j, vshrn_n_s16(e, 7));
    vst1_s8(low + j, vmovn_s16(vandq_s16(e, vdupq_n_s16(127))));
  };
  int32_t j = 0;
  for (; j + 8 <= keys; j += 8) store(j, numerators(Load8(scores + j)));
  if (j < keys) {
    const uint16x8_t exists = vcltq_s16(order, vdupq_n_s16(static_cast<int16_t>(keys - j)));
    const int16x8_t e = numerators(Load8(scores + j));
    store(j, vandq_s16(e, vreinterpretq_s16_u16(exists)));
    j += 8;
  }
  for (; j < padded; j += 8) {
    vst1_s8(high + j, vdup_n_s8(0));
    vst1_s8(low + j, vdup_n_s8(0));
  }
  return static_cast<uint32_t>(vaddvq_s32(sum));
}

}  // namespace
}  // namespace fixpoint
