// A GPU as CudaExecutor sees it: memory, copies, kernels and one stream. Implementations:
// NvidiaDevice (engine/nvidia_device.h) and, for tests, EmulatedDevice (engine/emulated_device.h).
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/cuda_matmul.h"
#include "kernels/cuda/kernels.h"

namespace fixpoint {

// Used by one thread at a time. Everything enqueued runs in order. Any error but
// RESOURCE_EXHAUSTED of an allocation means that the device is lost.
class CudaDevice {
 public:
  virtual ~CudaDevice() = default;
  // Makes this the calling thread's device, as every other function that can fail does: comes
  // before functions of kernels() where another device was used in between.
  virtual absl::Status Use() = 0;
  virtual const CudaKernels& kernels() const = 0;
  virtual CudaStream* stream() const = 0;
  virtual int32_t multiprocessors() const = 0;
  virtual int64_t l2_bytes() const = 0;  // of the cache that all multiprocessors share
  virtual absl::StatusOr<int64_t> FreeBytes() = 0;

  // Zeroed memory, aligned to 256 bytes, that lives as long as the device. Called at the start
  // only. RESOURCE_EXHAUSTED when there is not enough.
  virtual absl::StatusOr<int8_t*> Allocate(int64_t bytes) = 0;
  // The same of page-locked memory of the host.
  virtual absl::StatusOr<int8_t*> AllocateHost(int64_t bytes) = 0;

  // Enqueues a copy to the device. Ordinary host memory may be reused at once, page-locked memory
  // after Synchronize.
  virtual absl::Status Upload(void* device, const void* host, int64_t bytes) = 0;
  // Copies to the host and waits for everything enqueued before.
  virtual absl::Status Download(void* host, const void* device, int64_t bytes) = 0;
  // The same of rows that lie one behind the other on the device and host_stride bytes apart here.
  virtual absl::Status DownloadRows(void* host, int64_t host_stride, const void* device,
                                    int64_t row_bytes, int64_t rows) = 0;
  // Enqueues a copy to page-locked memory of the host, which has it behind Synchronize.
  virtual absl::Status EnqueueDownload(void* host, const void* device, int64_t bytes) = 0;
  // Waits for everything enqueued; errors of kernels turn up here.
  virtual absl::Status Synchronize() = 0;

  // OK for 0, else the error that a function of kernels() has returned.
  virtual absl::Status Launched(int error, absl::string_view what) = 0;

  // A CUDA graph: what is enqueued between BeginCapture and EndCapture is not done but recorded,
  // with the arguments that it has then. Only functions of kernels(), and Matmul; all others are
  // errors. EndCapture comes after a failure in between, too. It
  // returns the number of the graph, which lives as long as the device.
  virtual absl::Status BeginCapture() = 0;
  virtual absl::StatusOr<int32_t> EndCapture() = 0;
  // Enqueues what a graph has recorded.
  virtual absl::Status LaunchGraph(int32_t graph) = 0;

  // Whether Matmul works: cuBLASLt was found.
  virtual bool has_matmul() const = 0;
  // Makes `matmuls` ready for Matmul, at the start: Matmul neither allocates nor chooses. What is
  // ready already costs nothing. Weights are read; x ([tokens][x_stride]), acc and `expected` (as
  // large as the largest acc, apart from it) are overwritten, and x is zero afterwards.
  // INVALID_ARGUMENT for what ValidateMatmul or CheckOwnKernelCanDo refuses.
  virtual absl::Status PrepareMatmuls(absl::Span<const CudaMatmul> matmuls, int32_t* expected) = 0;
  // What runs a prepared product, to go with figures: an algorithm or "own kernel".
  virtual std::string MatmulName(const MatmulShape& shape) const = 0;
  // Enqueues a product of a prepared shape; INVALID_ARGUMENT for others.
  virtual absl::Status Matmul(const CudaMatmul& matmul) = 0;
};

}  // namespace fixpoint
