// engine/nvidia_device.h in builds without CUDA.
#include "absl/strings/str_cat.h"
#include "engine/nvidia_device.h"

namespace fixpoint {

bool BuiltWithCuda() { return false; }

absl::StatusOr<std::unique_ptr<CudaDevice>> CreateNvidiaDevice(int index,
                                                               const NvidiaDeviceOptions&) {
  return absl::FailedPreconditionError(absl::StrCat("cuda:", index, ": built without CUDA"));
}

}  // namespace fixpoint
