// What the tests of kernels share, without a test framework: aligned memory of exact size, so that
// AddressSanitizer sees each step beyond it, and random data with extremes in it.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <type_traits>

#include "kernels/ops.h"

namespace fixpoint {

// n zeroed elements on a 64-byte border.
template <typename T>
class Aligned {
 public:
  explicit Aligned(size_t n) : size_(n) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, n * sizeof(T) + (n == 0)) != 0) std::abort();
    data_.reset(static_cast<T*>(memory));
    std::memset(memory, 0, n * sizeof(T));
  }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  size_t size() const { return size_; }
  T& operator[](size_t i) { return data_.get()[i]; }
  const T& operator[](size_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  size_t size_;
};

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  // Uniform in [low, high].
  int64_t In(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine_);
  }
  // Mostly uniform, one in eight at an end.
  int64_t Extreme(int64_t low, int64_t high) {
    const int64_t pick = In(0, 15);
    return pick == 0 ? low : pick == 1 ? high : In(low, high);
  }
  // Any int32 magnitude alike: a random number of bits, ends included.
  int32_t AnyInt32() {
    const int64_t pick = In(0, 31);
    if (pick == 0) return INT32_MIN;
    if (pick == 1) return INT32_MAX;
    return static_cast<int32_t>(In(INT32_MIN, INT32_MAX)) >> In(0, 31);
  }
  template <typename Container>
  void Fill(Container& values, int64_t low, int64_t high) {
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<std::remove_reference_t<decltype(values[0])>>(Extreme(low, high));
    }
  }

 private:
  std::mt19937_64 engine_;
};

inline size_t RoundUp(size_t n, size_t step) { return (n + step - 1) / step * step; }

// The planes of an activation site with their memory.
struct Site {
  Site(int32_t tokens, int32_t channels, bool wide)
      : stride(RoundUp(channels, 64)), hi(tokens * stride), lo(wide ? tokens * stride : 0) {}
  ActivationPlanes planes() { return {hi.data(), lo.size() == 0 ? nullptr : lo.data(), stride}; }
  size_t stride;
  Aligned<int8_t> hi, lo;
};

}  // namespace fixpoint
