// One int8 product by cuBLASLt, and the rules that it must keep. Plain data, so that the rules are
// checked where there is neither a GPU nor cuBLAS.
#pragma once

#include <algorithm>
#include <bit>
#include <compare>
#include <cstdint>
#include <string>

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

// What an algorithm is chosen for: everything but the pointers.
struct MatmulShape {
  int64_t outputs = 0, tokens = 0, depth = 0;
  int64_t weight_stride = 0, x_stride = 0, acc_stride = 0;
  int64_t workspace_bytes = 0;

  friend auto operator<=>(const MatmulShape&, const MatmulShape&) = default;
};
MatmulShape ShapeOf(const CudaMatmul& matmul);
std::string Describe(const MatmulShape& shape);  // "[tokens][depth] by [outputs][depth]"

// Products are prepared for some token counts only and done with rows up to the next of them: the
// rows behind the wanted ones give sums that nobody reads. Four counts to an octave, at least 32
// apart: 32, 64, 96, ... 256, 320, 384, 448, 512, 640, ... More than 256 tokens grow by less than a
// quarter, which the tiles of a product would mostly pad themselves.
constexpr int64_t PaddedTokens(int64_t tokens) {
  const auto octave = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(tokens)));
  const int64_t step = std::max<int64_t>(32, octave / 8);
  return (tokens + step - 1) / step * step;
}

inline constexpr int64_t kMatmulWorkspaceBytes = int64_t{32}
                                                 << 20;  // what NVIDIA advises on Hopper

// INVALID_ARGUMENT names the rule that is broken. cuBLAS's own rules for int8 (manual of CUDA 13,
// cublasLtMatmul, regular layouts): pointers and leading dimensions are multiples of 4 bytes, m and
// k multiples of 4, n is free. Ours are those of its fast kernels: operands and leading dimensions
// at multiples of 16 bytes, the workspace at 256; leading dimensions at least a row; no overlap of
// output and inputs; sizes that stay in int32, and sums too: |x| <= 128, |w| <= 127.
absl::Status ValidateMatmul(const CudaMatmul& matmul);

inline constexpr int64_t kMatmulAlignBytes = 16;  // of operands and leading dimensions

// OK for what kernels/cuda/gemm.cu can do in cuBLASLt's place too: rows of weights without a gap,
// outputs and depth in its steps. INVALID_ARGUMENT else.
absl::Status CheckOwnKernelCanDo(const CudaMatmul& matmul);

}  // namespace fixpoint
