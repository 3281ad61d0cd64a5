// One thread drives all devices: NCCL asks for group calls around what is enqueued on more than
// one. https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/usage/groups.html
#include "engine/nvidia_group.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kernels/cuda/cuda_api.h"

namespace fixpoint {
namespace {

class NcclCollective final : public CudaCollective {
 public:
  explicit NcclCollective(const NcclApi& api) : api_(api) {}
  NcclCollective(const NcclCollective&) = delete;
  NcclCollective& operator=(const NcclCollective&) = delete;
  // Abort rather than destroy: when a device is lost, the others' kernels wait for it for ever.
  ~NcclCollective() override {
    for (NcclComm* comm : comms_) {
      if (comm != nullptr) api_.ncclCommAbort(comm);
    }
  }

  absl::Status Open(int first, absl::Span<const std::unique_ptr<CudaDevice>> devices) {
    std::vector<int> indices;
    for (const auto& device : devices) {
      indices.push_back(first + static_cast<int>(indices.size()));
      streams_.push_back(device->stream());
    }
    comms_.resize(devices.size());
    return api_.Check(
        api_.ncclCommInitAll(comms_.data(), static_cast<int>(comms_.size()), indices.data()),
        "ncclCommInitAll");
  }

  absl::Status AllReduce(absl::Span<int32_t* const> buffers, int64_t count) override {
    RETURN_IF_ERROR(api_.Check(api_.ncclGroupStart(), "ncclGroupStart"));
    absl::Status status;
    for (size_t r = 0; r < comms_.size() && status.ok(); ++r) {
      status = api_.Check(api_.ncclAllReduce(buffers[r], buffers[r], static_cast<size_t>(count),
                                             kNcclInt32, kNcclSum, comms_[r], streams_[r]),
                          "ncclAllReduce");
    }
    const absl::Status end = api_.Check(api_.ncclGroupEnd(), "ncclGroupEnd");
    return status.ok() ? end : status;
  }

 private:
  const NcclApi& api_;
  std::vector<NcclComm*> comms_;  // of each device
  std::vector<CudaStream*> streams_;
};

}  // namespace

absl::StatusOr<CudaDeviceGroup> CreateNvidiaGroup(int first, int count,
                                                  const NvidiaDeviceOptions& options) {
  CudaDeviceGroup group;
  for (int i = 0; i < count; ++i) {
    ASSIGN_OR_RETURN(std::unique_ptr<CudaDevice> device, CreateNvidiaDevice(first + i, options));
    group.devices.push_back(std::move(device));
  }
  if (count > 1) {
    ASSIGN_OR_RETURN(const NcclApi* const api, LoadNccl());
    auto collective = std::make_unique<NcclCollective>(*api);
    RETURN_IF_ERROR(collective->Open(first, group.devices));
    group.collective = std::move(collective);
  }
  return group;
}

}  // namespace fixpoint
