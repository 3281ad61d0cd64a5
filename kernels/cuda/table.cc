// The launch functions as a table; compiled once for each namespace of kernels/cuda/launchers.h.
#include "kernels/cuda/launchers.h"

namespace fixpoint {

#ifdef FIXPOINT_EMULATED_KERNELS
namespace launchers = cuda_emulated;
#define FIXPOINT_TABLE EmulatedKernels
#define FIXPOINT_TABLE_NAME "emulated"
#else
namespace launchers = cuda_device;
#define FIXPOINT_TABLE DeviceKernels
#define FIXPOINT_TABLE_NAME "cuda"
#endif

const CudaKernels& FIXPOINT_TABLE() {
  static constexpr CudaKernels kTable = {
      FIXPOINT_TABLE_NAME,     launchers::Gemm,   launchers::Embed,  launchers::Residual,
      launchers::GatherNorm,   launchers::SwiGlu, launchers::Rotate, launchers::AttendPrefill,
      launchers::AttendDecode, launchers::Logits, launchers::Sample,
  };
  return kTable;
}

}  // namespace fixpoint
