// The functions of cuBLASLt (for engine and calibrator), of NCCL (for the engine) and of the CUDA
// runtime (for the calibrator) as tables that are filled when the program runs: a binary that was
// built with CUDA starts on a machine without it. Compiled only where CUDA's headers are
// (FIXPOINT_CUDA, cmake/cuda.cmake).
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

// Only functions whose signature is the same in CUDA 12 and 13.
#define FIXPOINT_CUDA_RUNTIME_FUNCTIONS(F) \
  F(cudaDeviceGetAttribute)                \
  F(cudaFree)                              \
  F(cudaGetDeviceCount)                    \
  F(cudaGetErrorName)                      \
  F(cudaGetErrorString)                    \
  F(cudaGetLastError)                      \
  F(cudaMalloc)                            \
  F(cudaMemGetInfo)                        \
  F(cudaMemcpy2DAsync)                     \
  F(cudaSetDevice)                         \
  F(cudaStreamCreateWithFlags)             \
  F(cudaStreamDestroy)                     \
  F(cudaStreamSynchronize)

#define FIXPOINT_CUBLASLT_FUNCTIONS(F)    \
  F(cublasLtCreate)                       \
  F(cublasLtDestroy)                      \
  F(cublasLtGetStatusName)                \
  F(cublasLtGetVersion)                   \
  F(cublasLtMatmul)                       \
  F(cublasLtMatmulAlgoCheck)              \
  F(cublasLtMatmulAlgoConfigGetAttribute) \
  F(cublasLtMatmulAlgoGetHeuristic)       \
  F(cublasLtMatmulDescCreate)             \
  F(cublasLtMatmulDescDestroy)            \
  F(cublasLtMatmulDescSetAttribute)       \
  F(cublasLtMatmulPreferenceCreate)       \
  F(cublasLtMatmulPreferenceDestroy)      \
  F(cublasLtMatmulPreferenceSetAttribute) \
  F(cublasLtMatrixLayoutCreate)           \
  F(cublasLtMatrixLayoutDestroy)

#define FIXPOINT_NCCL_FUNCTIONS(F) \
  F(ncclAllReduce)                 \
  F(ncclCommAbort)                 \
  F(ncclCommInitAll)               \
  F(ncclGetErrorString)            \
  F(ncclGroupEnd)                  \
  F(ncclGroupStart)

namespace fixpoint {

struct CublasLtApi {
#define FIXPOINT_MEMBER(name) decltype(&::name) name = nullptr;
  FIXPOINT_CUBLASLT_FUNCTIONS(FIXPOINT_MEMBER)
#undef FIXPOINT_MEMBER

  // OK for success, else INTERNAL with the status's name.
  absl::Status Check(cublasStatus_t status, absl::string_view what) const;
};

struct CudaApi : CublasLtApi {
#define FIXPOINT_MEMBER(name) decltype(&::name) name = nullptr;
  FIXPOINT_CUDA_RUNTIME_FUNCTIONS(FIXPOINT_MEMBER)
#undef FIXPOINT_MEMBER

  using CublasLtApi::Check;
  // OK for success; RESOURCE_EXHAUSTED for a lack of device memory, which leaves the device usable;
  // INTERNAL, with the error's name, for the rest, most of which do not.
  absl::Status Check(cudaError_t error, absl::string_view what) const;
};

// NCCL is no part of CUDA's toolkit, so what is used of nccl.h (the same in all versions 2) is
// declared here; its enumerations are ints.
struct NcclComm;                      // ncclComm_t points to it
struct CudaStream;                    // cudaStream_t points to it
inline constexpr int kNcclInt32 = 2;  // ncclDataType_t
inline constexpr int kNcclSum = 0;    // ncclRedOp_t
struct NcclApi {
  int (*ncclAllReduce)(const void* from, void* to, size_t count, int data_type, int operation,
                       NcclComm* comm, CudaStream* stream) = nullptr;
  int (*ncclCommAbort)(NcclComm* comm) = nullptr;
  int (*ncclCommInitAll)(NcclComm** comms, int count, const int* devices) = nullptr;
  const char* (*ncclGetErrorString)(int result) = nullptr;
  int (*ncclGroupEnd)() = nullptr;
  int (*ncclGroupStart)() = nullptr;

  // OK for 0, else INTERNAL in NCCL's words.
  absl::Status Check(int result, absl::string_view what) const;
};

// Loads libcudart and libcublasLt, version 13 or else 12, at the first call; they stay loaded.
// FAILED_PRECONDITION says which was not found. Thread-safe.
absl::StatusOr<const CudaApi*> LoadCudaApi();
// The same of libcublasLt alone, of the version that this was compiled with: for programs that
// contain the CUDA runtime.
absl::StatusOr<const CublasLtApi*> LoadCublasLt();
// The same of libnccl.so.2.
absl::StatusOr<const NcclApi*> LoadNccl();

}  // namespace fixpoint
