#include "kernels/cuda/cublaslt_product.h"

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace fixpoint {

absl::StatusOr<std::unique_ptr<CublasLtProduct>> CublasLtProduct::Create(
    const CublasLtApi& api, const CublasLtShape& shape) {
  std::unique_ptr<CublasLtProduct> product(new CublasLtProduct(api));
  RETURN_IF_ERROR(product->Describe(shape));
  return product;
}

absl::Status CublasLtProduct::Describe(const CublasLtShape& s) {
  alignment_bytes_ = s.alignment_bytes;
  RETURN_IF_ERROR(Check(api_.cublasLtMatmulDescCreate(&operation_, s.compute, s.scale),
                        "cublasLtMatmulDescCreate"));
  RETURN_IF_ERROR(Check(api_.cublasLtMatmulDescSetAttribute(operation_, CUBLASLT_MATMUL_DESC_TRANSA,
                                                            &s.a_operation, sizeof(s.a_operation)),
                        "cublasLtMatmulDescSetAttribute"));
  const auto layout = [&](const CublasLtMatrix& m, cublasLtMatrixLayout_t* to) {
    return Check(
        api_.cublasLtMatrixLayoutCreate(to, m.type, static_cast<uint64_t>(m.rows),
                                        static_cast<uint64_t>(m.columns), m.leading_dimension),
        "cublasLtMatrixLayoutCreate");
  };
  RETURN_IF_ERROR(layout(s.a, &a_));
  RETURN_IF_ERROR(layout(s.b, &b_));
  return layout(s.d, &d_);
}

CublasLtProduct::~CublasLtProduct() {
  for (const cublasLtMatrixLayout_t layout : {a_, b_, d_}) {
    if (layout != nullptr) api_.cublasLtMatrixLayoutDestroy(layout);
  }
  if (operation_ != nullptr) api_.cublasLtMatmulDescDestroy(operation_);
}

absl::Status CublasLtProduct::Check(cublasStatus_t status, absl::string_view what) const {
  if (status != CUBLAS_STATUS_NOT_SUPPORTED && status != CUBLAS_STATUS_INVALID_VALUE &&
      status != CUBLAS_STATUS_ARCH_MISMATCH) {
    return api_.Check(status, what);
  }
  return absl::UnimplementedError(api_.Check(status, what).message());
}

absl::Status CublasLtProduct::SetPreferences(const CublasLtQueue& queue,
                                             cublasLtMatmulPreference_t to) const {
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    return Check(api_.cublasLtMatmulPreferenceSetAttribute(to, attribute, &value, sizeof(value)),
                 "cublasLtMatmulPreferenceSetAttribute");
  };
  RETURN_IF_ERROR(
      set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(queue.workspace_bytes)));
  for (const auto operand :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    RETURN_IF_ERROR(set(operand, alignment_bytes_));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<cublasLtMatmulAlgo_t>> CublasLtProduct::Candidates(
    const CublasLtQueue& queue, int most) const {
  cublasLtMatmulPreference_t preference = nullptr;
  RETURN_IF_ERROR(
      Check(api_.cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate"));
  std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(most));
  int found = 0;
  absl::Status status = SetPreferences(queue, preference);
  if (status.ok()) {
    status = Check(api_.cublasLtMatmulAlgoGetHeuristic(queue.handle, operation_, a_, b_, d_, d_,
                                                       preference, most, results.data(), &found),
                   "cublasLtMatmulAlgoGetHeuristic");
  }
  api_.cublasLtMatmulPreferenceDestroy(preference);
  RETURN_IF_ERROR(status);
  std::vector<cublasLtMatmulAlgo_t> algorithms;
  for (int i = 0; i < found; ++i) {
    const auto& result = results[static_cast<size_t>(i)];
    if (result.state == CUBLAS_STATUS_SUCCESS) algorithms.push_back(result.algo);
  }
  if (algorithms.empty()) return absl::UnimplementedError("cuBLASLt has no algorithm");
  return algorithms;
}

absl::Status CublasLtProduct::CheckAlgorithm(const CublasLtQueue& queue,
                                             const cublasLtMatmulAlgo_t& algorithm) const {
  cublasLtMatmulHeuristicResult_t result = {};
  RETURN_IF_ERROR(Check(
      api_.cublasLtMatmulAlgoCheck(queue.handle, operation_, a_, b_, d_, d_, &algorithm, &result),
      "cublasLtMatmulAlgoCheck"));
  RETURN_IF_ERROR(Check(result.state, "cuBLASLt's algorithm"));
  if (result.workspaceSize > queue.workspace_bytes) {
    return absl::UnimplementedError(absl::StrCat("the algorithm needs ", result.workspaceSize,
                                                 " bytes of workspace, there are ",
                                                 queue.workspace_bytes));
  }
  return absl::OkStatus();
}

absl::Status CublasLtProduct::Run(const CublasLtQueue& queue, const cublasLtMatmulAlgo_t& algorithm,
                                  const void* alpha, const void* a, const void* b, const void* beta,
                                  void* d) const {
  return Check(
      api_.cublasLtMatmul(queue.handle, operation_, alpha, a, a_, b, b_, beta, d, d_, d, d_,
                          &algorithm, queue.workspace, queue.workspace_bytes, queue.stream),
      "cublasLtMatmul");
}

}  // namespace fixpoint
