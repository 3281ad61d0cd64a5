#include "calibrator/gemm_cuda.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#ifdef FIXPOINT_WITH_CUDA
#include "calibrator/cuda/cublaslt_gemm.h"
#include "kernels/cuda/cuda_api.h"
#endif

namespace fixpoint {

#ifdef FIXPOINT_WITH_CUDA

absl::StatusOr<std::unique_ptr<FloatGemm>> CreateCudaGemm(int device,
                                                          std::unique_ptr<FloatGemm> cpu) {
  const absl::StatusOr<const CudaApi*> api = LoadCudaApi();
  if (!api.ok()) return Annotate(api.status(), absl::StrFormat("cuda:%d", device));
  return CreateCublasLtGemm(**api, device, std::move(cpu), {});
}

#else

absl::StatusOr<std::unique_ptr<FloatGemm>> CreateCudaGemm(int device, std::unique_ptr<FloatGemm>) {
  return absl::FailedPreconditionError(absl::StrFormat("cuda:%d: built without CUDA", device));
}

#endif

}  // namespace fixpoint
