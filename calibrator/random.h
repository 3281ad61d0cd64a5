// The calibrator's own random numbers: the same seed gives the same sequence everywhere, unlike the
// standard library's distributions.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

namespace fixpoint {

// xoshiro256** seeded by SplitMix64 from (seed, stream). Distinct streams are independent for every
// practical purpose.
class Random {
 public:
  explicit Random(uint64_t seed, uint64_t stream = 0) {
    uint64_t state = seed ^ (stream * 0xd1342543de82ef95u);
    for (uint64_t& word : state_) {
      state += 0x9e3779b97f4a7c15u;
      uint64_t z = state;
      z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
      z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
      word = z ^ (z >> 31);
    }
  }

  uint64_t Next() {
    const uint64_t result = RotateLeft(state_[1] * 5, 7) * 9;
    const uint64_t t = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= t;
    state_[3] = RotateLeft(state_[3], 45);
    return result;
  }

  // In [0, 1), 53 bits.
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1p-53; }

  // In [0, n), n >= 1; the bias is below n / 2^53.
  int64_t Below(int64_t n) { return static_cast<int64_t>(Uniform() * static_cast<double>(n)); }

  // Mean 0, variance 1 (Box-Muller, one of the pair).
  double Normal() {
    const double radius = std::sqrt(-2 * std::log(1 - Uniform()));
    return radius * std::cos(2 * std::numbers::pi * Uniform());
  }

 private:
  static uint64_t RotateLeft(uint64_t x, int n) { return (x << n) | (x >> (64 - n)); }

  uint64_t state_[4];
};

}  // namespace fixpoint
