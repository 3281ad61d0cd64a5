// One prepared int8 product by cuBLASLt. Compiled only where CUDA's headers are.
#pragma once

#include <cstdint>
#include <memory>
#include <tuple>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/cuda_matmul.h"
#include "kernels/cuda/cuda_api.h"

namespace fixpoint {

// The descriptors of one shape and the algorithm for it: cuBLASLt's first choice, asked for once.
// Sums are exact in int32, so the choice changes no bit. Not thread-safe.
class Int8Matmul {
 public:
  using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;
  static Key KeyOf(const CudaMatmul& m) {
    return {m.outputs,  m.tokens,     m.depth,          m.weight_stride,
            m.x_stride, m.acc_stride, m.workspace_bytes};
  }

  // `m` keeps ValidateMatmul. `api` must outlive the result. INTERNAL when cuBLASLt refuses.
  static absl::StatusOr<std::unique_ptr<Int8Matmul>> Create(const CublasLtApi& api,
                                                            cublasLtHandle_t handle,
                                                            const CudaMatmul& m);
  Int8Matmul(const Int8Matmul&) = delete;
  Int8Matmul& operator=(const Int8Matmul&) = delete;
  ~Int8Matmul();

  // Enqueues the product; `m` has the key that this was made for.
  absl::Status Run(cublasLtHandle_t handle, cudaStream_t stream, const CudaMatmul& m) const;

 private:
  explicit Int8Matmul(const CublasLtApi& api) : api_(api) {}
  absl::Status Describe(const CudaMatmul& m);
  absl::Status ChooseAlgorithm(cublasLtHandle_t handle, const CudaMatmul& m);

  const CublasLtApi& api_;
  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t weights_ = nullptr, x_ = nullptr, acc_ = nullptr;
  cublasLtMatmulAlgo_t algorithm_ = {};
};

}  // namespace fixpoint
