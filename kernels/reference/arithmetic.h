// The scalar rules that everything else is made of (docs/NUMERICS.md). Shared by the reference
// operations, the tails of faster levels, the CUDA kernels (constexpr functions are callable on the
// device) and the sampler; plain C++ without floating point.
#pragma once

#include <cstdint>

#include "kernels/ops.h"

namespace fixpoint {
// Files compiled with flags of one instruction set define this (kernels/cpu/isa_arithmetic.h says
// why).
#ifdef FIXPOINT_INTERNAL_ARITHMETIC
namespace {
#endif

// (x + 2^(n-1)) >> n, nearest, ties toward +infinity; n == 0 is the identity. n <= 30.
constexpr int32_t RoundShift(int32_t x, int32_t n) {
  return n == 0 ? x
                : static_cast<int32_t>((static_cast<int64_t>(x) + (int64_t{1} << (n - 1))) >> n);
}
// The same on int64, n <= 62. Requires |x| < 2^62.
constexpr int64_t RoundShift64(int64_t x, int32_t n) {
  return n == 0 ? x : (x + (int64_t{1} << (n - 1))) >> n;
}
template <typename T>
constexpr T Clamp(T x, T limit) {
  return x < -limit ? -limit : x > limit ? limit : x;
}
constexpr int32_t Sat8(int32_t x) { return Clamp(x, 127); }
constexpr int32_t Sat16(int32_t x) { return Clamp(x, 32767); }

// rs(int32(sat16(rs(v, p))) * M, k) without the last clamp. |result| <= 2^29 for k >= 1.
constexpr int32_t Narrow(int32_t v, int32_t p, int32_t multiplier, int32_t k) {
  return RoundShift(Sat16(RoundShift(v, p)) * multiplier, k);
}
constexpr int64_t Wide(int32_t acc, int32_t multiplier, int32_t n) {
  return RoundShift64(static_cast<int64_t>(acc) * multiplier, n);
}

// Stores a requantized value as int8 (lo == nullptr) or as the planes of an int16 site.
constexpr void StoreActivation(int32_t value, int8_t* hi, int8_t* lo) {
  if (lo == nullptr) {
    *hi = static_cast<int8_t>(Sat8(value));
    return;
  }
  const int32_t x = Clamp(value, kWideSiteLimit);
  const int32_t high = (x + 128) >> 8;
  *hi = static_cast<int8_t>(high);
  *lo = static_cast<int8_t>(x - 256 * high);
}

// floor(sqrt(x)), bit by bit: exact and branch-light; faster levels may use any exact routine.
constexpr uint64_t IntegerSqrt(uint64_t x) {
  uint64_t root = 0;
  for (uint64_t bit = uint64_t{1} << 62; bit != 0; bit >>= 2) {
    if (x >= root + bit) {
      x -= root + bit;
      root = (root >> 1) + bit;
    } else {
      root >>= 1;
    }
  }
  return root;
}

// Right shift that brings a row of the residual stream below 2^kNormInputBits. Depends on the row's
// largest magnitude alone, so neither order nor split of the row can change it.
constexpr int32_t NormInputShift(int32_t largest_magnitude) {
  if (largest_magnitude <= kNormInputLimit) return 0;
  return 32 - __builtin_clz(static_cast<uint32_t>(largest_magnitude)) - kNormInputBits;
}

// floor(n / d). GPUs have no integer division, and what their compiler makes of one begins with a
// floating-point reciprocal: CUDA kernels pass LongDivide.
struct NativeDivide {
  constexpr uint64_t operator()(uint64_t n, uint64_t d) const { return n / d; }
};
// Bit by bit. Requires 0 < d < 2^32 and a quotient below 2^32.
struct LongDivide {
  constexpr uint64_t operator()(uint64_t n, uint64_t d) const {
    uint64_t quotient = 0;
    for (int32_t i = 31; i >= 0; --i) {
      if (n >= d << i) {
        n -= d << i;
        quotient |= uint64_t{1} << i;
      }
    }
    return quotient;
  }
};

// 1 / sqrt(sum) as inverse * 2^-shift with 31 significant bits.
struct InverseRoot {
  int64_t inverse;  // (2^30, 2^31)
  int32_t shift;    // 62 - z/2
};
template <typename Divide = NativeDivide>
constexpr InverseRoot InverseSquareRoot(uint64_t sum, Divide divide = {}) {
  if (sum == 0) sum = 1;
  const int32_t z = __builtin_clzll(sum) & ~1;
  const uint64_t root = IntegerSqrt(sum << z);  // [2^31, 2^32)
  uint64_t inverse = divide(uint64_t{1} << 62, root);
  if (inverse > 0x7fffffffu) inverse = 0x7fffffffu;
  return {static_cast<int64_t>(inverse), 62 - z / 2};
}

// 2^-(y / 32768) in Q14, for y >= 0: polynomial in the fraction, then a rounded shift by the
// integer part. 0 .. 16383.
constexpr int32_t ExpNegative(int32_t y) {
  const int32_t f = y & 32767;
  int32_t p = 111;
  p = RoundShift(p * f, 15) - 871;
  p = RoundShift(p * f, 15) + 3922;
  p = RoundShift(p * f, 15) - 11354;
  p = RoundShift(p * f, 15) + 16384;
  const int32_t whole = y >> 15;
  if (whole >= 16) return 0;
  const int32_t e = RoundShift(p, whole);
  return e > 16383 ? 16383 : e;
}
constexpr int32_t SoftmaxNumerator(int32_t distance, const ScoreParams& s) {
  const int32_t d = distance < s.d_max ? distance : s.d_max;
  return ExpNegative(RoundShift(RoundShift(d, s.a) * s.c, s.n));
}

// Reciprocal of a softmax denominator. Requires 2^13 < z < 2^31.
struct SoftmaxReciprocal {
  int64_t reciprocal;  // [2^30, 2^31)
  int32_t pre_shift;   // of the weighted sum
  int32_t post_shift;  // of the product
};
template <typename Divide = NativeDivide>
constexpr SoftmaxReciprocal ReciprocalOfSum(uint64_t z, Divide divide = {}) {
  const int32_t b = 64 - __builtin_clzll(z);
  uint64_t reciprocal = divide(uint64_t{1} << 61, z << (31 - b));
  if (reciprocal > 0x7fffffffu) reciprocal = 0x7fffffffu;
  const int32_t s = b > 16 ? b - 16 : 0;
  return {static_cast<int64_t>(reciprocal), s, 23 + b - s};
}
// 128 * weighted / z as sat16.
constexpr int32_t NormalizeWeighted(int64_t weighted, const SoftmaxReciprocal& r) {
  const int64_t a = Clamp<int64_t>(RoundShift64(weighted, r.pre_shift), 0x7fffffff);
  return static_cast<int32_t>(Clamp<int64_t>(RoundShift64(a * r.reciprocal, r.post_shift), 32767));
}

// 32768 * sigmoid(-i / 8), i = 0 .. 128, rounded to nearest (scripts/make_tables.py writes it, a
// test checks it).
inline constexpr int16_t kSigmoidTable[129] = {
#include "kernels/reference/sigmoid_table.inc"
};

// silu(g) in g's own scale. `table` is kSigmoidTable, or a copy of it in another memory.
constexpr int32_t Silu(int32_t g, int32_t multiplier, int32_t shift,
                       const int16_t* table = kSigmoidTable) {
  const int32_t a = g < 0 ? -g : g;
  int32_t i = RoundShift(a * multiplier, shift);
  if (i > 32767) i = 32767;
  const int32_t low = table[i >> 8];
  const int32_t w = low + RoundShift((table[(i >> 8) + 1] - low) * (i & 255), 8);
  const int32_t r = RoundShift(a * w, 15);
  return g >= 0 ? a - r : -r;
}

// In-place Walsh-Hadamard transform in Sylvester order without scaling; n a power of two.
inline void WalshHadamard(int32_t* x, int32_t n) {
  for (int32_t half = 1; half < n; half *= 2) {
    for (int32_t i = 0; i < n; i += 2 * half) {
      for (int32_t j = i; j < i + half; ++j) {
        const int32_t a = x[j], b = x[j + half];
        x[j] = a + b;
        x[j + half] = a - b;
      }
    }
  }
}

#ifdef FIXPOINT_INTERNAL_ARITHMETIC
}  // namespace
#endif
}  // namespace fixpoint
