// GPUs that work on one model together, and what they do together. Implementations: NCCL
// (engine/nvidia_group.h) and, for tests, EmulatedCollective (engine/emulated_device.h).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/cuda_device.h"

namespace fixpoint {

// Used by the thread that uses the devices. Any error means that all of them are lost.
class CudaCollective {
 public:
  virtual ~CudaCollective() = default;
  // Enqueues on every device's stream: buffers[r][i] = sum over all r of buffers[r][i], for i in
  // [0, count), modulo 2^32 and so in any order. buffers[r] is memory of device r, aligned to 16.
  virtual absl::Status AllReduce(absl::Span<int32_t* const> buffers, int64_t count) = 0;
};

struct CudaDeviceGroup {
  std::vector<std::unique_ptr<CudaDevice>> devices;
  std::unique_ptr<CudaCollective> collective;  // null for one device; ends before the devices
};

}  // namespace fixpoint
