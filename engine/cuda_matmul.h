// One int8 product by cuBLASLt, and the rules that it must keep. Plain data, so that the rules are
// checked where there is neither a GPU nor cuBLAS.
#pragma once

#include <cstdint>

#include "absl/status/status.h"

namespace fixpoint {

// acc[t][c] = sum_k x[t][k] * weights[c][k], exact in int32. cuBLASLt sees columns first: the
// row-major acc [tokens][outputs] is its D [outputs x tokens] = A^T B with A = weights as they lie
// [depth x outputs] and B = x as it lies [depth x tokens] ("TN", the only int8 form of its regular
// layouts); CUBLAS_COMPUTE_32I, scale type int32, alpha 1, beta 0, host pointers.
struct CudaMatmul {
  const int8_t* weights = nullptr;  // [outputs][depth], rows weight_stride bytes apart
  const int8_t* x = nullptr;        // [tokens][depth], rows x_stride bytes apart
  int32_t* acc = nullptr;           // [tokens][outputs], rows acc_stride elements apart
  int64_t outputs = 0, tokens = 0, depth = 0;
  int64_t weight_stride = 0, x_stride = 0, acc_stride = 0;
  void* workspace = nullptr;
  int64_t workspace_bytes = 0;
};

inline constexpr int64_t kMatmulWorkspaceBytes = int64_t{32}
                                                 << 20;  // what NVIDIA advises on Hopper

// INVALID_ARGUMENT names the rule that is broken. cuBLAS's own rules for int8 (manual of CUDA 13,
// cublasLtMatmul, regular layouts): pointers and leading dimensions are multiples of 4 bytes, m and
// k multiples of 4, n is free. Ours are those of its fast kernels: operands and leading dimensions
// at multiples of 16 bytes, the workspace at 256; leading dimensions at least a row; no overlap of
// output and inputs; sizes that stay in int32, and sums too: |x| <= 128, |w| <= 127.
absl::Status ValidateMatmul(const CudaMatmul& matmul);

}  // namespace fixpoint
