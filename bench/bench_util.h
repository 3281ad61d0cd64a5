// One timer, one pair of threads and one way to print for all benches of kernels.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cpu/dispatch.h"
#include "kernels/ops.h"
#include "kernels/reference/reference_ops.h"

namespace fixpoint::bench {

// n zeroed elements on a 64-byte border.
template <typename T>
class Buffer {
 public:
  explicit Buffer(size_t n) : size_(n) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, n * sizeof(T) + 64) != 0) {
      std::fprintf(stderr, "out of memory: %zu bytes\n", n * sizeof(T));
      std::exit(1);
    }
    std::memset(memory, 0, n * sizeof(T));
    data_.reset(static_cast<T*>(memory));
  }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  T& operator[](size_t i) { return data_.get()[i]; }
  size_t size() const { return size_; }
  void Fill(int64_t low, int64_t high, uint64_t seed) {
    std::mt19937_64 engine(seed);
    std::uniform_int_distribution<int64_t> draw(low, high);
    for (size_t i = 0; i < size_; ++i) data_.get()[i] = static_cast<T>(draw(engine));
  }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  size_t size_;
};

inline size_t RoundUp(size_t n, size_t step) { return (n + step - 1) / step * step; }

inline double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Runs body(thread) on `threads` threads at once, each after thread_init, `repeats` times; the
// median of the times that the slowest thread took, in seconds. Threads are started anew, outside
// of the time.
template <typename Body>
double MedianSeconds(const Ops& ops, int threads, int repeats, const Body& body) {
  std::vector<double> times;
  for (int i = 0; i < repeats + 1; ++i) {
    std::vector<double> taken(threads);
    std::vector<std::thread> others;
    const auto run = [&](int thread) {
      if (ops.thread_init != nullptr) ops.thread_init();
      const double start = Now();
      body(thread);
      taken[thread] = Now() - start;
    };
    for (int thread = 1; thread < threads; ++thread) others.emplace_back(run, thread);
    run(0);
    for (std::thread& other : others) other.join();
    if (i > 0)
      times.push_back(*std::max_element(taken.begin(), taken.end()));  // the first warms up
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

inline std::string CpuName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown CPU";
}

// Levels named on the command line, or all that this CPU supports but the reference.
inline std::vector<const Ops*> LevelsFromArguments(int argc, char** argv) {
  std::vector<const Ops*> levels;
  for (int i = 1; i < argc; ++i) {
    const Ops* ops = FindOps(argv[i]);
    if (ops == nullptr) {
      std::fprintf(stderr, "%s: unknown or unsupported kernel level\n", argv[i]);
      std::exit(1);
    }
    levels.push_back(ops);
  }
  if (levels.empty()) {
    for (const absl::string_view name : SupportedOps()) {
      if (name != "reference") levels.push_back(FindOps(name));
    }
  }
  return levels;
}

}  // namespace fixpoint::bench
