// One cuBLASLt product of described matrices: what the calibrator's float products and the engine's
// int8 products share. Compiled only where CUDA's headers are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/cuda_api.h"

namespace fixpoint {

// A matrix as cuBLAS sees it, columns first: a row-major matrix is its own transpose.
struct CublasLtMatrix {
  cudaDataType_t type = CUDA_R_32F;
  int64_t rows = 0, columns = 0;
  int64_t leading_dimension = 0;  // elements between columns, at least `rows`
};

// D = alpha op(A) B + beta D.
struct CublasLtShape {
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
  cudaDataType_t scale = CUDA_R_32F;  // type of alpha and beta
  cublasOperation_t a_operation = CUBLAS_OP_N;
  CublasLtMatrix a, b, d;
  uint32_t alignment_bytes = 256;  // that all operands' first elements have
};

// Where a product runs.
struct CublasLtQueue {
  cublasLtHandle_t handle = nullptr;
  cudaStream_t stream = nullptr;
  void* workspace = nullptr;  // aligned to 256 bytes
  size_t workspace_bytes = 0;
};

// Used by one thread at a time. A refusal is UNIMPLEMENTED: cuBLASLt has nothing for the shape, or
// the algorithm cannot do it. INTERNAL, with the status's name, for every other error.
class CublasLtProduct {
 public:
  // `api` must outlive it.
  static absl::StatusOr<std::unique_ptr<CublasLtProduct>> Create(const CublasLtApi& api,
                                                                 const CublasLtShape& shape);
  CublasLtProduct(const CublasLtProduct&) = delete;
  CublasLtProduct& operator=(const CublasLtProduct&) = delete;
  ~CublasLtProduct();

  // At most `most` algorithms within the queue's workspace, cuBLASLt's first choice first: at least
  // one.
  absl::StatusOr<std::vector<cublasLtMatmulAlgo_t>> Candidates(const CublasLtQueue& queue,
                                                               int most) const;
  // Whether `algorithm`, which may come from anywhere, can do this shape within the workspace.
  absl::Status CheckAlgorithm(const CublasLtQueue& queue,
                              const cublasLtMatmulAlgo_t& algorithm) const;
  // Enqueues the product; alpha and beta are the host's, of the scale type.
  absl::Status Run(const CublasLtQueue& queue, const cublasLtMatmulAlgo_t& algorithm,
                   const void* alpha, const void* a, const void* b, const void* beta,
                   void* d) const;

 private:
  explicit CublasLtProduct(const CublasLtApi& api) : api_(api) {}
  absl::Status Describe(const CublasLtShape& shape);
  absl::Status SetPreferences(const CublasLtQueue& queue, cublasLtMatmulPreference_t to) const;
  absl::Status Check(cublasStatus_t status, absl::string_view what) const;

  const CublasLtApi& api_;
  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t a_ = nullptr, b_ = nullptr, d_ = nullptr;
  uint32_t alignment_bytes_ = 0;
};

}  // namespace fixpoint
