#include "calibrator/cuda/cublaslt_matmul.h"

#include <utility>

#include "absl/strings/str_format.h"
#include "base/status_macros.h"

namespace fixpoint {
namespace {

absl::StatusOr<cublasLtMatrixLayout_t> Layout(const CudaApi& api, cudaDataType_t type, int64_t rows,
                                              int64_t columns, int64_t leading_dimension) {
  cublasLtMatrixLayout_t layout = nullptr;
  RETURN_IF_ERROR(
      api.Check(api.cublasLtMatrixLayoutCreate(&layout, type, static_cast<uint64_t>(rows),
                                               static_cast<uint64_t>(columns), leading_dimension),
                "cublasLtMatrixLayoutCreate"));
  return layout;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CublasLtMatmul>> CublasLtMatmul::Create(const CudaApi& api,
                                                                       const CublasLtQueue& queue,
                                                                       const DeviceShape& shape) {
  std::unique_ptr<CublasLtMatmul> matmul(new CublasLtMatmul(api));
  absl::Status status = matmul->Describe(shape);
  if (status.ok()) status = matmul->ChooseAlgorithm(queue);
  if (!status.ok()) {
    return Annotate(status, absl::StrFormat("%s product [%d][%d] by [%d][%d]%s",
                                            shape.type == GemmType::kBf16 ? "bf16" : "float32",
                                            shape.rows, shape.depth, shape.outputs, shape.depth,
                                            shape.w_by_depth ? " (stored by depth)" : ""));
  }
  return matmul;
}

absl::Status CublasLtMatmul::Describe(const DeviceShape& s) {
  RETURN_IF_ERROR(
      api_.Check(api_.cublasLtMatmulDescCreate(&operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                 "cublasLtMatmulDescCreate"));
  const cublasOperation_t w_operation = s.w_by_depth ? CUBLAS_OP_N : CUBLAS_OP_T;
  RETURN_IF_ERROR(
      api_.Check(api_.cublasLtMatmulDescSetAttribute(operation_, CUBLASLT_MATMUL_DESC_TRANSA,
                                                     &w_operation, sizeof(w_operation)),
                 "cublasLtMatmulDescSetAttribute"));
  const cudaDataType_t type = s.type == GemmType::kBf16 ? CUDA_R_16BF : CUDA_R_32F;
  ASSIGN_OR_RETURN(w_, Layout(api_, type, s.w_by_depth ? s.outputs : s.depth,
                              s.w_by_depth ? s.depth : s.outputs, s.w_stride));
  ASSIGN_OR_RETURN(x_, Layout(api_, type, s.depth, s.rows, s.x_stride));
  ASSIGN_OR_RETURN(y_, Layout(api_, CUDA_R_32F, s.outputs, s.rows, s.y_stride));
  return absl::OkStatus();
}

absl::Status CublasLtMatmul::ChooseAlgorithm(const CublasLtQueue& queue) {
  cublasLtMatmulPreference_t preference = nullptr;
  RETURN_IF_ERROR(api_.Check(api_.cublasLtMatmulPreferenceCreate(&preference),
                             "cublasLtMatmulPreferenceCreate"));
  cublasLtMatmulHeuristicResult_t result = {};
  int found = 0;
  absl::Status status = api_.Check(api_.cublasLtMatmulPreferenceSetAttribute(
                                       preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                       &queue.workspace_bytes, sizeof(queue.workspace_bytes)),
                                   "cublasLtMatmulPreferenceSetAttribute");
  if (status.ok()) {
    status = api_.Check(
        api_.cublasLtMatmulAlgoGetHeuristic(queue.handle, operation_, w_, x_, y_, y_, preference,
                                            /*requestedAlgoCount=*/1, &result, &found),
        "cublasLtMatmulAlgoGetHeuristic");
  }
  api_.cublasLtMatmulPreferenceDestroy(preference);
  RETURN_IF_ERROR(status);
  if (found < 1) return absl::InternalError("cuBLASLt has no algorithm");
  RETURN_IF_ERROR(api_.Check(result.state, "cuBLASLt's algorithm"));
  algorithm_ = result.algo;
  return absl::OkStatus();
}

CublasLtMatmul::~CublasLtMatmul() {
  for (const cublasLtMatrixLayout_t layout : {x_, w_, y_}) {
    if (layout != nullptr) api_.cublasLtMatrixLayoutDestroy(layout);
  }
  if (operation_ != nullptr) api_.cublasLtMatmulDescDestroy(operation_);
}

absl::Status CublasLtMatmul::Run(const CublasLtQueue& queue, const void* x, const void* w, float* y,
                                 bool accumulate) const {
  const float alpha = 1, beta = accumulate ? 1 : 0;
  return api_.Check(
      api_.cublasLtMatmul(queue.handle, operation_, &alpha, w, w_, x, x_, &beta, y, y_, y, y_,
                          &algorithm_, queue.workspace, queue.workspace_bytes, queue.stream),
      "cublasLtMatmul");
}

}  // namespace fixpoint
