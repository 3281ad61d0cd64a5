#include "kernels/cuda/cuda_api.h"

#include <dlfcn.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"

namespace fixpoint {
namespace {

absl::StatusOr<void*> OpenLibrary(const std::string& name) {
  void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return absl::FailedPreconditionError(dlerror());
  return library;
}

template <typename Function>
absl::Status FindFunction(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  if (*function != nullptr) return absl::OkStatus();
  return absl::FailedPreconditionError(dlerror());
}

absl::Status LoadCublasLtVersion(int version, CublasLtApi* api) {
  ASSIGN_OR_RETURN(void* const library, OpenLibrary(absl::StrCat("libcublasLt.so.", version)));
#define FIXPOINT_FIND(name) RETURN_IF_ERROR(FindFunction(library, #name, &api->name));
  FIXPOINT_CUBLASLT_FUNCTIONS(FIXPOINT_FIND)
#undef FIXPOINT_FIND
  return absl::OkStatus();
}

// Both libraries of one version; a mix would share no contexts.
absl::Status LoadVersion(int version, CudaApi* api) {
  ASSIGN_OR_RETURN(void* const runtime, OpenLibrary(absl::StrCat("libcudart.so.", version)));
#define FIXPOINT_FIND(name) RETURN_IF_ERROR(FindFunction(runtime, #name, &api->name));
  FIXPOINT_CUDA_RUNTIME_FUNCTIONS(FIXPOINT_FIND)
#undef FIXPOINT_FIND
  return LoadCublasLtVersion(version, api);
}

absl::StatusOr<CublasLtApi> LoadOwnCublasLt() {
  CublasLtApi api;
  RETURN_IF_ERROR(LoadCublasLtVersion(CUDART_VERSION / 1000, &api));
  return api;
}

absl::StatusOr<NcclApi> LoadNcclFunctions() {
  NcclApi api;
  absl::StatusOr<void*> library = OpenLibrary("libnccl.so.2");
  if (!library.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("several GPUs need NCCL 2: ", library.status().message(),
                     "; install it, or name its folder in LD_LIBRARY_PATH"));
  }
#define FIXPOINT_FIND(name) RETURN_IF_ERROR(FindFunction(*library, #name, &api.name));
  FIXPOINT_NCCL_FUNCTIONS(FIXPOINT_FIND)
#undef FIXPOINT_FIND
  return api;
}

absl::StatusOr<CudaApi> LoadAnyVersion() {
  CudaApi api;
  std::string failures;
  for (const int version : {13, 12}) {
    const absl::Status status = LoadVersion(version, &api);
    if (status.ok()) return api;
    absl::StrAppend(&failures, failures.empty() ? "" : "; ", status.message());
  }
  return absl::FailedPreconditionError(
      absl::StrCat("no CUDA runtime with cuBLASLt (", failures,
                   "); install CUDA 12 or 13, or name its folder in LD_LIBRARY_PATH"));
}

}  // namespace

absl::Status CudaApi::Check(cudaError_t error, absl::string_view what) const {
  if (error == cudaSuccess) return absl::OkStatus();
  cudaGetLastError();  // an error that is not sticky should not turn up at the next call
  const std::string message =
      absl::StrFormat("%s: %s (%s)", what, cudaGetErrorName(error), cudaGetErrorString(error));
  return error == cudaErrorMemoryAllocation ? absl::ResourceExhaustedError(message)
                                            : absl::InternalError(message);
}

absl::Status CublasLtApi::Check(cublasStatus_t status, absl::string_view what) const {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(what, ": ", cublasLtGetStatusName(status)));
}

absl::Status NcclApi::Check(int result, absl::string_view what) const {
  if (result == 0) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(what, ": ", ncclGetErrorString(result)));
}

absl::StatusOr<const CudaApi*> LoadCudaApi() {
  static const absl::StatusOr<CudaApi>& api = *new absl::StatusOr<CudaApi>(LoadAnyVersion());
  if (!api.ok()) return api.status();
  return &*api;
}

absl::StatusOr<const CublasLtApi*> LoadCublasLt() {
  static const absl::StatusOr<CublasLtApi>& api =
      *new absl::StatusOr<CublasLtApi>(LoadOwnCublasLt());
  if (!api.ok()) return api.status();
  return &*api;
}

absl::StatusOr<const NcclApi*> LoadNccl() {
  static const absl::StatusOr<NcclApi>& api = *new absl::StatusOr<NcclApi>(LoadNcclFunctions());
  if (!api.ok()) return api.status();
  return &*api;
}

}  // namespace fixpoint
