// CudaDevices in the host's memory, for tests without a GPU: kernels run on the emulator,
// cuBLASLt's products as plain loops behind ValidateMatmul, NCCL's sum as another. Slow.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "base/aligned_buffer.h"
#include "engine/cuda_collective.h"
#include "engine/cuda_device.h"

namespace fixpoint {

struct EmulatedDeviceState {
  int32_t multiprocessors = 4;
  int64_t l2_bytes = int64_t{64} << 10;
  bool has_matmul = true;
  int64_t memory_bytes = int64_t{256} << 20;
  // What is enqueued is done as late as a GPU may do it: by the next Synchronize or Download. For a
  // device without others beside it.
  bool lazy = false;
  int fail_launch_after = -1;  // counts down; at 0 every call fails from then on

  // What happened.
  int allocations = 0;
  int64_t allocated_bytes = 0;
  int launches = 0, matmuls = 0, uploads = 0;  // a graph is one launch
  int captures = 0, graph_launches = 0;
  int synchronizations = 0;                          // Download's included
  int64_t downloaded_bytes = 0, enqueued_bytes = 0;  // by Download, by EnqueueDownload
};

// Where kernels of an EmulatedDevice go: they run at once, or later, or are recorded with their
// arguments.
struct EmulatedStream {
  using Graph = std::vector<std::function<void()>>;
  void Enqueue(std::function<void()> call) {
    if (capturing) {
      captured.push_back(std::move(call));
    } else if (lazy) {
      waiting.push_back(std::move(call));
    } else {
      call();
    }
  }
  bool capturing = false;
  bool lazy = false;
  Graph captured, waiting;
};

class EmulatedDevice final : public CudaDevice {
 public:
  // `state` must outlive the device.
  explicit EmulatedDevice(EmulatedDeviceState* state) : state_(*state) {
    stream_->lazy = state->lazy;
  }

  absl::Status Use() override;
  const CudaKernels& kernels() const override;
  CudaStream* stream() const override { return reinterpret_cast<CudaStream*>(stream_.get()); }
  int32_t multiprocessors() const override { return state_.multiprocessors; }
  int64_t l2_bytes() const override { return state_.l2_bytes; }
  absl::StatusOr<int64_t> FreeBytes() override;
  absl::StatusOr<int8_t*> Allocate(int64_t bytes) override;
  absl::StatusOr<int8_t*> AllocateHost(int64_t bytes) override;
  absl::Status Upload(void* device, const void* host, int64_t bytes) override;
  absl::Status Download(void* host, const void* device, int64_t bytes) override;
  absl::Status DownloadRows(void* host, int64_t host_stride, const void* device, int64_t row_bytes,
                            int64_t rows) override;
  absl::Status EnqueueDownload(void* host, const void* device, int64_t bytes) override;
  absl::Status Synchronize() override;
  absl::Status Launched(int error, absl::string_view what) override;
  absl::Status BeginCapture() override;
  absl::StatusOr<int32_t> EndCapture() override;
  absl::Status LaunchGraph(int32_t graph) override;
  bool has_matmul() const override { return state_.has_matmul; }
  // Only remembers the shapes, and writes where a device would.
  absl::Status PrepareMatmuls(absl::Span<const CudaMatmul> matmuls, int32_t* expected) override;
  std::string MatmulName(const MatmulShape&) const override { return "emulated"; }
  absl::Status Matmul(const CudaMatmul& matmul) override;

 private:
  absl::Status UseOutsideOfCapture();
  // INTERNAL unless the bytes lie in memory of this device.
  absl::Status CheckInside(const void* at, int64_t bytes) const;
  absl::Status CheckMatmul(const CudaMatmul& matmul) const;

  EmulatedDeviceState& state_;
  bool lost_ = false;
  std::set<MatmulShape> prepared_;
  const std::unique_ptr<EmulatedStream> stream_ = std::make_unique<EmulatedStream>();
  std::vector<EmulatedStream::Graph> graphs_;
  struct Piece {
    AlignedBuffer memory;
    int8_t* begin = nullptr;  // aligned to 256
    int64_t bytes = 0;
  };
  std::vector<Piece> pieces_;
  // What EnqueueDownload has read; the host gets it at the last moment that a GPU would leave it.
  struct Copy {
    void* host;
    std::vector<int8_t> bytes;
  };
  std::vector<Copy> copies_;
};

struct EmulatedCollectiveState {
  int fail_after = -1;  // counts down; at 0 every call fails from then on

  // What happened.
  int reduces = 0;
  int64_t elements = 0;
};

class EmulatedCollective final : public CudaCollective {
 public:
  // `state` must outlive the collective.
  explicit EmulatedCollective(EmulatedCollectiveState* state) : state_(*state) {}
  absl::Status AllReduce(absl::Span<int32_t* const> buffers, int64_t count) override;

 private:
  EmulatedCollectiveState& state_;
};

}  // namespace fixpoint
