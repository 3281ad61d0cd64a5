// One prepared cuBLASLt product of row-major matrices on the device.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "calibrator/gemm.h"
#include "kernels/cuda/cublaslt_product.h"

namespace fixpoint {

// Strides are in elements; their rows start at multiples of 16 bytes (gemm_plan.h).
struct DeviceShape {
  GemmType type = GemmType::kFloat32;
  int64_t rows = 0, outputs = 0, depth = 0;
  int64_t x_stride = 0, w_stride = 0, y_stride = 0;
  bool w_by_depth = false;

  friend bool operator==(const DeviceShape&, const DeviceShape&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const DeviceShape& s) {
    return H::combine(std::move(h), s.type, s.rows, s.outputs, s.depth, s.x_stride, s.w_stride,
                      s.y_stride, s.w_by_depth);
  }
};

// y = (accumulate ? y : 0) + x w^T with float32 sums (CUBLAS_COMPUTE_32F) of float32 or bf16
// operands. cuBLAS sees columns first: the row-major y [rows][outputs] is its [outputs x rows], so
//   y^T = op(w) x^T,  x^T [depth x rows] as it lies,
//   w [outputs][depth] lies as [depth x outputs] and is transposed, w [depth][outputs] is not.
// The algorithm is cuBLASLt's first choice for the shape, asked for once: the same shape gives the
// same bits on the same device and cuBLAS version.
class CublasLtMatmul {
 public:
  // `api` must outlive it. UNIMPLEMENTED when cuBLASLt refuses the shape.
  static absl::StatusOr<std::unique_ptr<CublasLtMatmul>> Create(const CudaApi& api,
                                                                const CublasLtQueue& queue,
                                                                const DeviceShape& shape);

  // Pointers are the device's, aligned to 256 bytes. Returns before the product is done.
  absl::Status Run(const CublasLtQueue& queue, const void* x, const void* w, float* y,
                   bool accumulate) const;

 private:
  CublasLtMatmul(std::unique_ptr<CublasLtProduct> product, const cublasLtMatmulAlgo_t& algorithm)
      : product_(std::move(product)), algorithm_(algorithm) {}

  const std::unique_ptr<CublasLtProduct> product_;
  const cublasLtMatmulAlgo_t algorithm_;
};

}  // namespace fixpoint
