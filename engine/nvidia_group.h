// Several NVIDIA GPUs of one machine, joined by NCCL. Can be called in any build, like
// engine/nvidia_device.h.
#pragma once

#include "absl/status/statusor.h"
#include "engine/cuda_collective.h"
#include "engine/nvidia_device.h"

namespace fixpoint {

// Devices first .. first + count - 1 as CreateNvidiaDevice makes them and, for more than one, an
// NCCL communicator over them. libnccl.so.2 is loaded when it is needed. A file of algorithms is
// read by each device when its products are prepared, so that the first one's choices spare equal
// devices the timing. Beside the errors of
// CreateNvidiaDevice:
//   FAILED_PRECONDITION  no libnccl.so.2
//   INTERNAL             any other error of NCCL, in its words
absl::StatusOr<CudaDeviceGroup> CreateNvidiaGroup(int first, int count,
                                                  const NvidiaDeviceOptions& options = {});

}  // namespace fixpoint
