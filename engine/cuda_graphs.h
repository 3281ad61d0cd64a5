// CUDA graphs of steps that only decode. Such a step is hundreds of launches that each take the
// device a few microseconds and the host as many; a graph is one launch.
#pragma once

#include <cstdint>
#include <map>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "engine/cuda_device.h"
#include "engine/cuda_plan.h"

namespace fixpoint {

// One graph for each bucket, so as many as FindBucket says at most. A bucket's first step is not
// captured: it loads our kernels, which may not happen during a capture; cuBLASLt's have run when
// the bucket's products were prepared (CudaDevice::PrepareMatmuls). The second is captured and from
// then on replayed. At the start nothing is: most buckets never come up, and capturing all would
// take seconds and memory for nothing.
class CudaGraphs {
 public:
  // `device` must outlive this.
  explicit CudaGraphs(CudaDevice& device) : device_(device) {}

  // Runs a step of this bucket. `enqueue` makes its launches, which are the same for every step of
  // the bucket: what differs is in the device's memory. Errors are the device's: it is lost.
  absl::Status Run(const CudaBucket& bucket, absl::FunctionRef<absl::Status()> enqueue);

 private:
  absl::StatusOr<int32_t> Capture(absl::FunctionRef<absl::Status()> enqueue);

  static constexpr int32_t kNotCaptured = -1;
  CudaDevice& device_;
  std::map<CudaBucket, int32_t> graphs_;
};

}  // namespace fixpoint
