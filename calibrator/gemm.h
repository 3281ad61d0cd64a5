// Dense float matrix products: y = x * w^T. One interface, so that training can run on a GPU later;
// the CPU implementation is oneDNN, on this project's threads (one oneDNN primitive a tile,
// oneDNN's own threading switched off).
#pragma once

#include <cstdint>
#include <memory>

#include "base/thread_pool.h"

namespace fixpoint {

enum class GemmType : uint8_t { kFloat32, kBf16 };

constexpr int64_t BytesOf(GemmType type) { return type == GemmType::kFloat32 ? 4 : 2; }

// y[m][n] = (accumulate ? y[m][n] : 0) + sum_k x[m][k] * w[n][k], sums in float32. Strides are in
// elements between rows.
struct GemmArgs {
  GemmType type = GemmType::kFloat32;  // of x and w
  int64_t rows = 0;                    // m
  int64_t outputs = 0;                 // n
  int64_t depth = 0;                   // k, at least 1
  const void* x = nullptr;             // [rows][x_stride]
  int64_t x_stride = 0;
  const void* w = nullptr;  // [outputs][w_stride], or [depth][w_stride] with w_by_depth
  int64_t w_stride = 0;
  bool w_by_depth = false;
  float* y = nullptr;  // [rows][y_stride]
  int64_t y_stride = 0;
  bool accumulate = false;
  // The values behind w stay as they are until ForgetWeights: a device may keep its copy of them.
  bool keep_w = false;
};

class FloatGemm {
 public:
  virtual ~FloatGemm() = default;
  // Whether bf16 products exist and are worth it: several times the speed of float32 (AMX). Without
  // it kBf16 must not be used. Integers up to 256 are exact in bf16, and so are sums of their
  // products below 2^24.
  virtual bool fast_bf16() const = 0;
  // Runs on the whole team. The same arguments give the same bits, whatever the number of threads.
  virtual void Multiply(const GemmArgs& args) = 0;
  // Runs on the calling thread alone: for use inside the team's work. Thread-safe.
  virtual void MultiplyHere(const GemmArgs& args) = 0;
  // Drops what was kept of operands with keep_w. To be called before memory that was such an
  // operand is changed or freed; not during Multiply.
  virtual void ForgetWeights() {}
};

// `pool` must outlive the result.
std::unique_ptr<FloatGemm> CreateCpuGemm(ThreadPool& pool);

}  // namespace fixpoint
