// The int8 products of cuBLASLt on one device: chosen and checked at the start, run afterwards.
// Compiled only where CUDA's headers are.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/cuda_device.h"
#include "engine/cuda_matmul.h"
#include "engine/matmul_tuner.h"
#include "kernels/cuda/cublaslt_product.h"

namespace fixpoint {

// Used by one thread at a time.
class Int8Matmuls final : private MatmulTrials {
 public:
  // `device`, whose stream and kernels are used, and `api` must outlive it; `handle` is the
  // caller's. `log` is not empty.
  Int8Matmuls(CudaDevice& device, const CublasLtApi& api, cublasLtHandle_t handle, MatmulLog log)
      : device_(device), api_(api), handle_(handle), log_(std::move(log)) {}

  // CudaDevice::PrepareMatmuls. `identity` is one line with all that an algorithm depends on but
  // the version of cuBLASLt. The file `cache_path` ("": none) is read before and, if anything came
  // out otherwise, written after; its troubles are log lines.
  absl::Status Prepare(absl::Span<const CudaMatmul> matmuls, int32_t* expected,
                       const std::string& identity, const std::string& cache_path);
  // CudaDevice::Matmul.
  absl::Status Run(const CudaMatmul& matmul) const;

  // What runs a product: an algorithm of cuBLASLt or "own kernel".
  std::string NameOf(const MatmulShape& shape) const;

 private:
  struct Prepared {
    std::unique_ptr<CublasLtProduct> product;
    std::optional<cublasLtMatmulAlgo_t> algorithm;  // none: our own kernel
  };

  absl::Status Begin(const CudaMatmul& matmul) override;
  absl::StatusOr<std::vector<MatmulAlgorithm>> Candidates(int most) override;
  absl::Status Check(const MatmulAlgorithm& algorithm) override;
  absl::StatusOr<double> Seconds(const MatmulAlgorithm& algorithm) override;
  std::string Name(const MatmulAlgorithm& algorithm) const override;

  absl::Status PrepareOne(const CudaMatmul& matmul, MatmulTuner& tuner);
  absl::Status RunOwn(const CudaMatmul& matmul, int32_t* acc) const;
  absl::Status RunAlgorithm(const CublasLtProduct& product, const cublasLtMatmulAlgo_t& algorithm,
                            const CudaMatmul& matmul) const;
  CublasLtQueue QueueOf(const CudaMatmul& matmul) const;
  // [tokens][outputs] of a result on the device.
  absl::StatusOr<std::vector<int32_t>> Fetch(const int32_t* acc) const;

  CudaDevice& device_;
  const CublasLtApi& api_;
  const cublasLtHandle_t handle_;
  const MatmulLog log_;
  std::map<MatmulShape, Prepared> prepared_;

  // Of the product that is being chosen.
  CudaMatmul matmul_;
  int32_t* expected_on_device_ = nullptr;
  std::vector<int32_t> expected_;
  std::unique_ptr<CublasLtProduct> product_;
};

}  // namespace fixpoint
