// Operands whose products are exact in every type, for tests of products.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "calibrator/random.h"

namespace fixpoint {

// Whole numbers in [-limit, limit].
inline std::vector<float> Integers(int64_t n, int32_t limit, uint64_t seed) {
  Random random(seed);
  std::vector<float> x(n);
  for (float& value : x) value = static_cast<float>(random.Below(2 * limit + 1) - limit);
  return x;
}

// The same values in bf16, cut off: exact for whole numbers up to 256.
inline std::vector<uint16_t> Bf16(const std::vector<float>& x) {
  std::vector<uint16_t> out;
  for (const float value : x)
    out.push_back(static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16));
  return out;
}

}  // namespace fixpoint
