// The launch functions that kernels/cuda/table.cc puts into CudaKernels, once for each namespace
// that the sources are compiled into (kernels/cuda/device.cuh). Contracts: kernels/cuda/kernels.h.
#pragma once

#include "kernels/cuda/kernels.h"

#define FIXPOINT_CUDA_LAUNCHERS                             \
  int Gemm(const CudaGemmArgs&, CudaStream*);               \
  int Embed(const CudaEmbedArgs&, CudaStream*);             \
  int Residual(const CudaResidualArgs&, CudaStream*);       \
  int GatherNorm(const CudaGatherNormArgs&, CudaStream*);   \
  int SwiGlu(const CudaSwiGluArgs&, CudaStream*);           \
  int Rotate(const CudaRotateArgs&, CudaStream*);           \
  int AttendPrefill(const CudaAttentionArgs&, CudaStream*); \
  int AttendDecode(const CudaDecodeArgs&, CudaStream*);     \
  int Logits(const CudaLogitsArgs&, CudaStream*);           \
  int Sample(const CudaSampleArgs&, CudaStream*);

namespace fixpoint {
namespace cuda_device {
FIXPOINT_CUDA_LAUNCHERS
}
namespace cuda_emulated {
FIXPOINT_CUDA_LAUNCHERS
}
}  // namespace fixpoint
