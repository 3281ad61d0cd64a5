// A CudaDevice in the host's memory, for tests without a GPU: kernels run on the emulator,
// cuBLASLt's products as plain loops behind ValidateMatmul. Slow.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <vector>

#include "base/aligned_buffer.h"
#include "engine/cuda_device.h"

namespace fixpoint {

struct EmulatedDeviceState {
  int32_t multiprocessors = 4;
  int64_t l2_bytes = int64_t{64} << 10;
  bool has_matmul = true;
  int64_t memory_bytes = int64_t{256} << 20;
  int fail_launch_after = -1;  // counts down; at 0 every call fails from then on

  // What happened.
  int allocations = 0;
  int64_t allocated_bytes = 0;
  int launches = 0, matmuls = 0, uploads = 0;
};

class EmulatedDevice final : public CudaDevice {
 public:
  // `state` must outlive the device.
  explicit EmulatedDevice(EmulatedDeviceState* state) : state_(*state) {}

  const CudaKernels& kernels() const override { return EmulatedKernels(); }
  CudaStream* stream() const override { return nullptr; }
  int32_t multiprocessors() const override { return state_.multiprocessors; }
  int64_t l2_bytes() const override { return state_.l2_bytes; }
  absl::StatusOr<int64_t> FreeBytes() override;
  absl::StatusOr<int8_t*> Allocate(int64_t bytes) override;
  absl::StatusOr<int8_t*> AllocateHost(int64_t bytes) override;
  absl::Status Upload(void* device, const void* host, int64_t bytes) override;
  absl::Status Download(void* host, const void* device, int64_t bytes) override;
  absl::Status Synchronize() override { return Lost(); }
  absl::Status Launched(int error, absl::string_view what) override;
  bool has_matmul() const override { return state_.has_matmul; }
  // Only remembers the shapes, and writes where a device would.
  absl::Status PrepareMatmuls(absl::Span<const CudaMatmul> matmuls, int32_t* expected) override;
  absl::Status Matmul(const CudaMatmul& matmul) override;

 private:
  absl::Status Lost() const;
  // INTERNAL unless the bytes lie in memory of this device.
  absl::Status CheckInside(const void* at, int64_t bytes) const;
  absl::Status CheckMatmul(const CudaMatmul& matmul) const;

  EmulatedDeviceState& state_;
  bool lost_ = false;
  std::set<MatmulShape> prepared_;
  struct Piece {
    AlignedBuffer memory;
    int8_t* begin = nullptr;  // aligned to 256
    int64_t bytes = 0;
  };
  std::vector<Piece> pieces_;
};

}  // namespace fixpoint
