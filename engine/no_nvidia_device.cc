// engine/nvidia_device.h and engine/nvidia_group.h in builds without CUDA.
#include "absl/strings/str_cat.h"
#include "engine/nvidia_device.h"
#include "engine/nvidia_group.h"

namespace fixpoint {

bool BuiltWithCuda() { return false; }

absl::StatusOr<std::unique_ptr<CudaDevice>> CreateNvidiaDevice(int index,
                                                               const NvidiaDeviceOptions&) {
  return absl::FailedPreconditionError(absl::StrCat("cuda:", index, ": built without CUDA"));
}

absl::StatusOr<CudaDeviceGroup> CreateNvidiaGroup(int first, int,
                                                  const NvidiaDeviceOptions& options) {
  return CreateNvidiaDevice(first, options).status();
}

}  // namespace fixpoint
