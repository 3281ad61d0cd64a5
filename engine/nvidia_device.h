// The CudaDevice that is one: an NVIDIA GPU. Can be called in any build; whether CUDA is there is
// found out when the program runs.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/cuda_device.h"
#include "engine/matmul_tuner.h"

namespace fixpoint {

// Whether this build has the kernels (FIXPOINT_CUDA, docs/GPU.md).
bool BuiltWithCuda();

struct NvidiaDeviceOptions {
  std::string algorithm_cache;  // file of engine/algorithm_cache.h; "": every start times anew
  MatmulLog log;                // empty: lines on stderr
};

// Device `index` (0, 1, ... as the driver counts), one stream on it, and cuBLASLt where its library
// is found: without it large products run on our own kernel. From one thread at a time; the thread
// may change between calls. Messages begin with "cuda:N: ".
//   FAILED_PRECONDITION  built without CUDA, no driver, no such device, one before compute
//                        capability 8.0
//   INTERNAL             any other CUDA error, with its name
absl::StatusOr<std::unique_ptr<CudaDevice>> CreateNvidiaDevice(
    int index, const NvidiaDeviceOptions& options = {});

}  // namespace fixpoint
