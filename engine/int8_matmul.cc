#include "engine/int8_matmul.h"

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace fixpoint {
namespace {

// A row-major matrix as cuBLASLt sees it: its rows are columns.
absl::StatusOr<cublasLtMatrixLayout_t> Layout(const CublasLtApi& api, cudaDataType_t type,
                                              int64_t columns, int64_t rows, int64_t stride) {
  cublasLtMatrixLayout_t layout = nullptr;
  RETURN_IF_ERROR(
      api.Check(api.cublasLtMatrixLayoutCreate(&layout, type, static_cast<uint64_t>(columns),
                                               static_cast<uint64_t>(rows), stride),
                "cublasLtMatrixLayoutCreate"));
  return layout;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Int8Matmul>> Int8Matmul::Create(const CublasLtApi& api,
                                                               cublasLtHandle_t handle,
                                                               const CudaMatmul& m) {
  std::unique_ptr<Int8Matmul> matmul(new Int8Matmul(api));
  absl::Status status = matmul->Describe(m);
  if (status.ok()) status = matmul->ChooseAlgorithm(handle, m);
  if (!status.ok()) {
    return Annotate(status, absl::StrCat("int8 product [", m.tokens, "][", m.depth, "] by [",
                                         m.outputs, "][", m.depth, "]"));
  }
  return matmul;
}

absl::Status Int8Matmul::Describe(const CudaMatmul& m) {
  RETURN_IF_ERROR(
      api_.Check(api_.cublasLtMatmulDescCreate(&operation_, CUBLAS_COMPUTE_32I, CUDA_R_32I),
                 "cublasLtMatmulDescCreate"));
  const cublasOperation_t transposed = CUBLAS_OP_T;
  RETURN_IF_ERROR(
      api_.Check(api_.cublasLtMatmulDescSetAttribute(operation_, CUBLASLT_MATMUL_DESC_TRANSA,
                                                     &transposed, sizeof(transposed)),
                 "cublasLtMatmulDescSetAttribute"));
  ASSIGN_OR_RETURN(weights_, Layout(api_, CUDA_R_8I, m.depth, m.outputs, m.weight_stride));
  ASSIGN_OR_RETURN(x_, Layout(api_, CUDA_R_8I, m.depth, m.tokens, m.x_stride));
  ASSIGN_OR_RETURN(acc_, Layout(api_, CUDA_R_32I, m.outputs, m.tokens, m.acc_stride));
  return absl::OkStatus();
}

absl::Status Int8Matmul::ChooseAlgorithm(cublasLtHandle_t handle, const CudaMatmul& m) {
  cublasLtMatmulPreference_t preference = nullptr;
  RETURN_IF_ERROR(api_.Check(api_.cublasLtMatmulPreferenceCreate(&preference),
                             "cublasLtMatmulPreferenceCreate"));
  const auto workspace = static_cast<uint64_t>(m.workspace_bytes);
  cublasLtMatmulHeuristicResult_t result = {};
  int found = 0;
  absl::Status status = api_.Check(
      api_.cublasLtMatmulPreferenceSetAttribute(
          preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof(workspace)),
      "cublasLtMatmulPreferenceSetAttribute");
  if (status.ok()) {
    status = api_.Check(
        api_.cublasLtMatmulAlgoGetHeuristic(handle, operation_, weights_, x_, acc_, acc_,
                                            preference, /*requestedAlgoCount=*/1, &result, &found),
        "cublasLtMatmulAlgoGetHeuristic");
  }
  api_.cublasLtMatmulPreferenceDestroy(preference);
  RETURN_IF_ERROR(status);
  if (found < 1) return absl::InternalError("cuBLASLt has no algorithm");
  RETURN_IF_ERROR(api_.Check(result.state, "cuBLASLt's algorithm"));
  algorithm_ = result.algo;
  return absl::OkStatus();
}

Int8Matmul::~Int8Matmul() {
  for (const cublasLtMatrixLayout_t layout : {weights_, x_, acc_}) {
    if (layout != nullptr) api_.cublasLtMatrixLayoutDestroy(layout);
  }
  if (operation_ != nullptr) api_.cublasLtMatmulDescDestroy(operation_);
}

absl::Status Int8Matmul::Run(cublasLtHandle_t handle, cudaStream_t stream,
                             const CudaMatmul& m) const {
  const int32_t alpha = 1, beta = 0;  // of the scale type, on the host
  return api_.Check(api_.cublasLtMatmul(handle, operation_, &alpha, m.weights, weights_, m.x, x_,
                                        &beta, m.acc, acc_, m.acc, acc_, &algorithm_, m.workspace,
                                        static_cast<size_t>(m.workspace_bytes), stream),
                    "cublasLtMatmul");
}

}  // namespace fixpoint
