// FloatGemm on cuBLASLt. Compiled only where CUDA's headers are; gemm_cuda.h is the way in.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "calibrator/gemm.h"
#include "kernels/cuda/cuda_api.h"

namespace fixpoint {

struct CublasLtOptions {
  // Limit of each operand's piece on the device (gemm_plan.h), at least 1 KiB; three such buffers
  // grow as needed.
  int64_t tile_bytes = int64_t{512} << 20;
  int64_t workspace_bytes = int64_t{32} << 20;  // what cuBLAS asks for on Hopper
  // Of the device's free memory that the buffers leave, for operands with keep_w.
  double kept_share = 0.8;
};

// Creates a stream, a handle and the workspace on `device`, and multiplies two small matrices of
// each type to see that it works. `api` must outlive the result. Errors begin with "cuda:N: ".
//   FAILED_PRECONDITION  no driver, no such device, compute capability below 8.0 (no bf16)
//   RESOURCE_EXHAUSTED   the device has too little free memory
//   INTERNAL             any other CUDA or cuBLAS error, with its name
absl::StatusOr<std::unique_ptr<FloatGemm>> CreateCublasLtGemm(const CudaApi& api, int device,
                                                              std::unique_ptr<FloatGemm> cpu,
                                                              const CublasLtOptions& options);

}  // namespace fixpoint
