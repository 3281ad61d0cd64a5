// The weight of a token in a draw: the scalar rules that engine/sampler.h and the CUDA kernel share
// (docs/NUMERICS.md, "Sampling", derives them). Plain C++ without floating point.
#pragma once

#include <cstdint>

namespace fixpoint {

// Multiplier of a logit distance: y = rs64(d * c, n), with 24 fraction bits.
struct ExpScale {
  uint64_t c = 0;  // below 2^32
  int32_t n = 1;   // [1, 52]
};

// T[i] = round(2^31 * 2^(-i/256)), i = 0 .. 256, is kernels/reference/exp2_table.inc.
inline constexpr int32_t kExp2Entries = 257;

constexpr uint64_t ScaledDistance(uint32_t distance, const ExpScale& scale) {
  return (distance * scale.c + (uint64_t{1} << (scale.n - 1))) >> scale.n;
}

// 2^31 * 2^-(fraction of y), y with 24 fraction bits: in [2^30, 2^31].
constexpr uint32_t Exp2Fraction(uint64_t y, const uint32_t* table) {
  const uint32_t i = static_cast<uint32_t>(y >> 16) & 255;
  const uint64_t slope = table[i] - table[i + 1];
  return table[i] - static_cast<uint32_t>((slope * (y & 0xffff) + 32768) >> 16);
}

// 2^31 * exp(-d / temperature) of a distance d in [0, 2^31) below the largest logit. Never rises
// with the distance; 2^31 exactly at 0.
constexpr uint32_t SamplingWeight(uint32_t distance, const ExpScale& scale, const uint32_t* table) {
  const uint64_t y = ScaledDistance(distance, scale);
  const uint64_t whole = y >> 24;
  if (whole > 32) return 0;
  const uint64_t t = Exp2Fraction(y, table);
  return static_cast<uint32_t>(whole == 0 ? t : (t + (uint64_t{1} << (whole - 1))) >> whole);
}

// What the shortest beginning of top_p has to reach, of the sum (below 2^51) of what there is:
// ceil(sum * top_p_q16 / 65536), without the product of 68 bits.
constexpr uint64_t TopPTarget(uint64_t sum, uint32_t top_p_q16) {
  return (sum >> 16) * top_p_q16 + (((sum & 0xffff) * top_p_q16 + 65535) >> 16);
}

// floor(random * total / 2^64), below total.
constexpr uint64_t DrawBelow(uint64_t total, uint64_t random) {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(random) * total) >> 64);
}

}  // namespace fixpoint
