// Data of the kernel cases: arrays with a copy on the device, random parameters, comparison.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "kernels/cuda/kernel_cases.h"
#include "kernels/reference/arithmetic.h"
#include "kernels/test_data.h"

namespace fixpoint {

// Device memory with the contents of a host array. Outputs are poisoned, so that what a kernel does
// not write is seen.
template <typename T>
class DeviceArray {
 public:
  DeviceArray(CaseDevice& device, const Aligned<T>& host)
      : device_(device), size_(host.size()), data_(device.Allocate(Bytes())) {
    device.Upload(data_, host.data(), Bytes());
  }
  DeviceArray(CaseDevice& device, size_t size)
      : device_(device), size_(size), data_(device.Allocate(Bytes())) {
    Aligned<T> poison(size);
    std::memset(static_cast<void*>(poison.data()), 0x5a, Bytes());
    device.Upload(data_, poison.data(), Bytes());
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { device_.Free(data_); }

  T* get() { return static_cast<T*>(data_); }
  Aligned<T> Read() const {
    Aligned<T> host(size_);
    device_.Download(host.data(), data_, Bytes());
    return host;
  }

 private:
  size_t Bytes() const { return size_ * sizeof(T); }
  CaseDevice& device_;
  size_t size_;
  void* data_;
};

// An activation site on the device; reads back only the columns that exist.
class DeviceSite {
 public:
  DeviceSite(CaseDevice& device, const Site& site, bool poisoned)
      : stride_(site.stride),
        hi_(poisoned ? DeviceArray<int8_t>(device, site.hi.size())
                     : DeviceArray<int8_t>(device, site.hi)),
        lo_(poisoned ? DeviceArray<int8_t>(device, site.lo.size())
                     : DeviceArray<int8_t>(device, site.lo)),
        wide_(site.lo.size() > 0) {}
  ActivationPlanes planes() { return {hi_.get(), wide_ ? lo_.get() : nullptr, stride_}; }

  // Behind the row's end the poison must be untouched: it is where the zeros are.
  std::string Compare(const Site& expected, int32_t rows, int32_t columns) {
    std::string difference = ComparePlane(expected.hi, hi_.Read(), rows, columns, "hi");
    if (difference.empty() && wide_) {
      difference = ComparePlane(expected.lo, lo_.Read(), rows, columns, "lo");
    }
    return difference;
  }

 private:
  std::string ComparePlane(const Aligned<int8_t>& expected, const Aligned<int8_t>& actual,
                           int32_t rows, int32_t columns, const char* plane) const {
    for (int32_t r = 0; r < rows; ++r) {
      for (size_t c = 0; c < stride_; ++c) {
        const size_t i = static_cast<size_t>(r) * stride_ + c;
        const int want = c < static_cast<size_t>(columns) ? expected[i] : 0x5a;
        if (actual[i] != want) {
          return std::string(plane) + "[" + std::to_string(r) + "][" + std::to_string(c) +
                 "]: expected " + std::to_string(want) + ", got " + std::to_string(actual[i]);
        }
      }
    }
    return "";
  }

  size_t stride_;
  DeviceArray<int8_t> hi_, lo_;
  bool wide_;
};

template <typename T>
std::string Compare(const Aligned<T>& expected, const Aligned<T>& actual) {
  for (size_t i = 0; i < expected.size(); ++i) {
    if (expected[i] != actual[i]) {
      return "element " + std::to_string(i) + ": expected " + std::to_string(expected[i]) +
             ", got " + std::to_string(actual[i]);
    }
  }
  return "";
}

struct NarrowData {
  NarrowData(CaseDevice& device, Random& random, int32_t channels, int32_t round)
      : host(Multipliers(random, channels)), device_copy(device, host) {
    p = round == 0 ? 0 : round == 1 ? 30 : static_cast<int32_t>(random.In(0, 16));
    k = round == 2 ? 1 : round == 3 ? 30 : static_cast<int32_t>(random.In(8, 24));
  }
  static Aligned<int16_t> Multipliers(Random& random, int32_t channels) {
    Aligned<int16_t> values(static_cast<size_t>(channels));
    random.Fill(values, 1, 32767);
    return values;
  }
  NarrowParams on_host() const { return {host.data(), p, k}; }
  NarrowParams on_device() { return {device_copy.get(), p, k}; }
  Aligned<int16_t> host;
  DeviceArray<int16_t> device_copy;
  int32_t p = 0, k = 1;
};

struct WideData {
  WideData(CaseDevice& device, Random& random, int32_t channels, int32_t round)
      : host(Multipliers(random, channels)), device_copy(device, host) {
    n = round == 0 ? 1 : round == 1 ? 62 : static_cast<int32_t>(random.In(20, 50));
  }
  static Aligned<int32_t> Multipliers(Random& random, int32_t channels) {
    Aligned<int32_t> values(static_cast<size_t>(channels));
    random.Fill(values, 1, INT32_MAX);
    return values;
  }
  WideParams on_host() const { return {host.data(), n}; }
  WideParams on_device() { return {device_copy.get(), n}; }
  Aligned<int32_t> host;
  DeviceArray<int32_t> device_copy;
  int32_t n = 1;
};

// Accumulators in parts, and what they come to. Every second set has one part of any int32, the
// others several parts, planes or a bias whose sum stays in int32.
struct AccumulatorData {
  AccumulatorData(CaseDevice& device, Random& random, int32_t tokens, int32_t columns,
                  int32_t round)
      : stride(RoundUp(static_cast<size_t>(columns), 16)),
        splits(round % 2 == 0 ? 1 : static_cast<int32_t>(random.In(1, 5))),
        wide(round % 4 == 1 || round % 4 == 3),
        biased(round % 3 == 1 && round % 2 == 1),
        bias(Fill(random, static_cast<size_t>(columns), round)),
        parts(Fill(random, Elements(tokens), round)),
        total(static_cast<size_t>(tokens) * stride),
        device_bias(device, bias),
        device_parts(device, parts) {
    const size_t split_stride = static_cast<size_t>(tokens) * stride;
    for (size_t i = 0; i < total.size(); ++i) {
      const size_t column = i % stride;
      int64_t sums[2] = {};
      for (size_t plane = 0; plane <= static_cast<size_t>(wide); ++plane) {
        for (size_t s = 0; s < static_cast<size_t>(splits); ++s) {
          sums[plane] += parts[(plane * static_cast<size_t>(splits) + s) * split_stride + i];
        }
      }
      int64_t sum = sums[0] + RoundShift64(sums[1], 8);
      if (biased && column < static_cast<size_t>(columns)) sum += bias[column];
      if (sum != static_cast<int32_t>(sum)) std::abort();  // the case's own mistake
      total[i] = static_cast<int32_t>(sum);
    }
  }
  size_t Elements(int32_t tokens) const {
    return static_cast<size_t>(tokens) * stride * static_cast<size_t>(splits) * (wide ? 2 : 1);
  }
  static Aligned<int32_t> Fill(Random& random, size_t n, int32_t round) {
    Aligned<int32_t> values(n);
    for (size_t i = 0; i < n; ++i) {
      values[i] = round % 2 == 0 ? random.AnyInt32() : random.AnyInt32() / 8;
    }
    return values;
  }
  Accumulators view() {
    const size_t split_stride = total.size();
    return {.data = device_parts.get(),
            .stride = stride,
            .split_stride = split_stride,
            .plane_stride = wide ? split_stride * static_cast<size_t>(splits) : 0,
            .splits = splits,
            .bias = biased ? device_bias.get() : nullptr};
  }
  size_t stride;
  int32_t splits;
  bool wide, biased;
  Aligned<int32_t> bias, parts;
  Aligned<int32_t> total;  // [tokens][stride]
  DeviceArray<int32_t> device_bias, device_parts;
};

// "" for 0, or the error of a launch.
inline std::string LaunchError(int error) {
  return error == 0 ? "" : "launch failed with error " + std::to_string(error);
}

}  // namespace fixpoint
