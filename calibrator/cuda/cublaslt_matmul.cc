#include "calibrator/cuda/cublaslt_matmul.h"

#include <vector>

#include "absl/strings/str_format.h"
#include "base/status_macros.h"

namespace fixpoint {
namespace {

CublasLtShape ShapeOf(const DeviceShape& s) {
  const cudaDataType_t type = s.type == GemmType::kBf16 ? CUDA_R_16BF : CUDA_R_32F;
  CublasLtMatrix w{type, s.depth, s.outputs, s.w_stride};
  if (s.w_by_depth) std::swap(w.rows, w.columns);
  return {.compute = CUBLAS_COMPUTE_32F,
          .scale = CUDA_R_32F,
          .a_operation = s.w_by_depth ? CUBLAS_OP_N : CUBLAS_OP_T,
          .a = w,
          .b = {type, s.depth, s.rows, s.x_stride},
          .d = {CUDA_R_32F, s.outputs, s.rows, s.y_stride}};
}

}  // namespace

absl::StatusOr<std::unique_ptr<CublasLtMatmul>> CublasLtMatmul::Create(const CudaApi& api,
                                                                       const CublasLtQueue& queue,
                                                                       const DeviceShape& shape) {
  const auto create = [&]() -> absl::StatusOr<std::unique_ptr<CublasLtMatmul>> {
    ASSIGN_OR_RETURN(std::unique_ptr<CublasLtProduct> product,
                     CublasLtProduct::Create(api, ShapeOf(shape)));
    ASSIGN_OR_RETURN(const std::vector<cublasLtMatmulAlgo_t> candidates,
                     product->Candidates(queue, /*most=*/1));
    return std::unique_ptr<CublasLtMatmul>(
        new CublasLtMatmul(std::move(product), candidates.front()));
  };
  absl::StatusOr<std::unique_ptr<CublasLtMatmul>> matmul = create();
  if (matmul.ok()) return matmul;
  return Annotate(
      matmul.status(),
      absl::StrFormat("%s product [%d][%d] by [%d][%d]%s",
                      shape.type == GemmType::kBf16 ? "bf16" : "float32", shape.rows, shape.depth,
                      shape.outputs, shape.depth, shape.w_by_depth ? " (stored by depth)" : ""));
}

absl::Status CublasLtMatmul::Run(const CublasLtQueue& queue, const void* x, const void* w, float* y,
                                 bool accumulate) const {
  const float alpha = 1, beta = accumulate ? 1 : 0;
  return product_->Run(queue, algorithm_, &alpha, w, x, &beta, y);
}

}  // namespace fixpoint
