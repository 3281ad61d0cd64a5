#include "engine/emulated_device.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace fixpoint {
namespace {
constexpr int64_t kAlignBytes = 256;
constexpr int kJunk = 0x5a;

// As with CUDA, kernels go to the device that the thread has used last; a sum over all devices may
// leave any.
thread_local const EmulatedDevice* used_device = nullptr;

template <typename Args, int (*CudaKernels::*kKernel)(const Args&, CudaStream*)>
int Enqueue(const Args& args, CudaStream* stream) {
  auto& to = *reinterpret_cast<EmulatedStream*>(stream);
  if (!to.capturing && !to.lazy) return (EmulatedKernels().*kKernel)(args, nullptr);
  to.Enqueue([args] { (EmulatedKernels().*kKernel)(args, nullptr); });
  return 0;
}

void Multiply(const CudaMatmul& m) {
  for (int64_t t = 0; t < m.tokens; ++t) {
    for (int64_t c = 0; c < m.outputs; ++c) {
      const int8_t* x = m.x + t * m.x_stride;
      const int8_t* w = m.weights + c * m.weight_stride;
      int32_t sum = 0;
      for (int64_t k = 0; k < m.depth; ++k) sum += x[k] * w[k];
      m.acc[t * m.acc_stride + c] = sum;
    }
  }
}

}  // namespace

const CudaKernels& EmulatedDevice::kernels() const {
  static constexpr CudaKernels kTable = {
      .name = "emulated",
      .gemm = Enqueue<CudaGemmArgs, &CudaKernels::gemm>,
      .embed = Enqueue<CudaEmbedArgs, &CudaKernels::embed>,
      .residual = Enqueue<CudaResidualArgs, &CudaKernels::residual>,
      .gather_norm = Enqueue<CudaGatherNormArgs, &CudaKernels::gather_norm>,
      .swiglu = Enqueue<CudaSwiGluArgs, &CudaKernels::swiglu>,
      .rotate = Enqueue<CudaRotateArgs, &CudaKernels::rotate>,
      .attend_prefill = Enqueue<CudaAttentionArgs, &CudaKernels::attend_prefill>,
      .attend_decode = Enqueue<CudaDecodeArgs, &CudaKernels::attend_decode>,
      .logits = Enqueue<CudaLogitsArgs, &CudaKernels::logits>,
      .sample = Enqueue<CudaSampleArgs, &CudaKernels::sample>,
  };
  return kTable;
}

absl::Status EmulatedDevice::Use() {
  used_device = this;
  return lost_ ? absl::InternalError("emulated device: lost") : absl::OkStatus();
}

absl::Status EmulatedDevice::UseOutsideOfCapture() {
  RETURN_IF_ERROR(Use());
  if (!stream_->capturing) return absl::OkStatus();
  return absl::InternalError("emulated device: not while a graph is captured");
}

absl::Status EmulatedDevice::CheckInside(const void* at, int64_t bytes) const {
  const auto* begin = static_cast<const int8_t*>(at);
  for (const Piece& piece : pieces_) {
    if (begin >= piece.begin && begin + bytes <= piece.begin + piece.bytes) return absl::OkStatus();
  }
  return absl::InternalError(
      absl::StrCat("emulated device: ", bytes, " bytes outside of its memory"));
}

absl::StatusOr<int64_t> EmulatedDevice::FreeBytes() {
  return state_.memory_bytes - state_.allocated_bytes;
}

absl::StatusOr<int8_t*> EmulatedDevice::Allocate(int64_t bytes) {
  RETURN_IF_ERROR(UseOutsideOfCapture());
  if (bytes > state_.memory_bytes - state_.allocated_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("emulated device: no memory for ", bytes, " bytes"));
  }
  ++state_.allocations;
  state_.allocated_bytes += bytes;
  Piece piece{.memory = AlignedBuffer(static_cast<size_t>(bytes + kAlignBytes)), .bytes = bytes};
  const auto start = reinterpret_cast<uintptr_t>(piece.memory.data());
  piece.begin = reinterpret_cast<int8_t*>((start + kAlignBytes - 1) / kAlignBytes * kAlignBytes);
  std::memset(piece.begin, 0, static_cast<size_t>(bytes));
  pieces_.push_back(std::move(piece));
  return pieces_.back().begin;
}

absl::StatusOr<int8_t*> EmulatedDevice::AllocateHost(int64_t bytes) { return Allocate(bytes); }

absl::Status EmulatedDevice::Upload(void* device, const void* host, int64_t bytes) {
  RETURN_IF_ERROR(UseOutsideOfCapture());
  RETURN_IF_ERROR(CheckInside(device, bytes));
  ++state_.uploads;
  const auto* begin = static_cast<const int8_t*>(host);
  if (CheckInside(host, bytes).ok()) {  // page-locked: read when its turn comes
    stream_->Enqueue([=] { std::memcpy(device, begin, static_cast<size_t>(bytes)); });
  } else {
    stream_->Enqueue([device, copy = std::vector<int8_t>(begin, begin + bytes)] {
      std::memcpy(device, copy.data(), copy.size());
    });
  }
  return absl::OkStatus();
}

absl::Status EmulatedDevice::Download(void* host, const void* device, int64_t bytes) {
  RETURN_IF_ERROR(Synchronize());
  RETURN_IF_ERROR(CheckInside(device, bytes));
  state_.downloaded_bytes += bytes;
  std::memcpy(host, device, static_cast<size_t>(bytes));
  return absl::OkStatus();
}

absl::Status EmulatedDevice::DownloadRows(void* host, int64_t host_stride, const void* device,
                                          int64_t row_bytes, int64_t rows) {
  for (int64_t row = 0; row < rows; ++row) {
    RETURN_IF_ERROR(Download(static_cast<int8_t*>(host) + row * host_stride,
                             static_cast<const int8_t*>(device) + row * row_bytes, row_bytes));
  }
  return absl::OkStatus();
}

absl::Status EmulatedDevice::EnqueueDownload(void* host, const void* device, int64_t bytes) {
  RETURN_IF_ERROR(UseOutsideOfCapture());
  RETURN_IF_ERROR(CheckInside(device, bytes));
  RETURN_IF_ERROR(CheckInside(host, bytes));
  state_.enqueued_bytes += bytes;
  const auto* begin = static_cast<const int8_t*>(device);
  stream_->Enqueue([=, this] { copies_.push_back({host, {begin, begin + bytes}}); });
  return absl::OkStatus();
}

absl::Status EmulatedDevice::Synchronize() {
  RETURN_IF_ERROR(UseOutsideOfCapture());
  ++state_.synchronizations;
  for (const auto& call : std::exchange(stream_->waiting, {})) call();
  for (const Copy& copy : copies_) std::memcpy(copy.host, copy.bytes.data(), copy.bytes.size());
  copies_.clear();
  return absl::OkStatus();
}

absl::Status EmulatedDevice::Launched(int error, absl::string_view what) {
  ++state_.launches;
  if (state_.fail_launch_after >= 0 && state_.fail_launch_after-- == 0) lost_ = true;
  if (lost_) return absl::InternalError(absl::StrCat("emulated device: ", what, " failed"));
  if (error != 0) return absl::InternalError(absl::StrCat(what, ": error ", error));
  if (used_device != this) {
    return absl::InternalError(absl::StrCat("emulated device: ", what, " on another device"));
  }
  return absl::OkStatus();
}

absl::Status EmulatedDevice::BeginCapture() {
  RETURN_IF_ERROR(UseOutsideOfCapture());
  stream_->capturing = true;
  return absl::OkStatus();
}

absl::StatusOr<int32_t> EmulatedDevice::EndCapture() {
  stream_->capturing = false;
  graphs_.push_back(std::exchange(stream_->captured, {}));
  RETURN_IF_ERROR(Use());
  ++state_.captures;
  return static_cast<int32_t>(graphs_.size() - 1);
}

absl::Status EmulatedDevice::LaunchGraph(int32_t graph) {
  RETURN_IF_ERROR(UseOutsideOfCapture());
  RETURN_IF_ERROR(Launched(0, "graph"));
  ++state_.graph_launches;
  for (const auto& call : graphs_[static_cast<size_t>(graph)]) stream_->Enqueue(call);
  return absl::OkStatus();
}

absl::Status EmulatedDevice::CheckMatmul(const CudaMatmul& m) const {
  RETURN_IF_ERROR(ValidateMatmul(m));
  RETURN_IF_ERROR(CheckInside(m.weights, (m.outputs - 1) * m.weight_stride + m.depth));
  RETURN_IF_ERROR(CheckInside(m.x, (m.tokens - 1) * m.x_stride + m.depth));
  RETURN_IF_ERROR(CheckInside(m.acc, 4 * ((m.tokens - 1) * m.acc_stride + m.outputs)));
  return CheckInside(m.workspace, m.workspace_bytes);
}

absl::Status EmulatedDevice::PrepareMatmuls(absl::Span<const CudaMatmul> matmuls,
                                            int32_t* expected) {
  RETURN_IF_ERROR(UseOutsideOfCapture());
  for (const CudaMatmul& m : matmuls) {
    RETURN_IF_ERROR(CheckMatmul(m));
    RETURN_IF_ERROR(CheckOwnKernelCanDo(m));
    const int64_t acc_bytes = 4 * ((m.tokens - 1) * m.acc_stride + m.outputs);
    RETURN_IF_ERROR(CheckInside(expected, acc_bytes));
    RETURN_IF_ERROR(CheckInside(m.x, m.tokens * m.x_stride));
    std::memset(m.acc, kJunk, static_cast<size_t>(acc_bytes));
    std::memset(expected, kJunk, static_cast<size_t>(acc_bytes));
    std::memset(const_cast<int8_t*>(m.x), 0, static_cast<size_t>(m.tokens * m.x_stride));
    prepared_.insert(ShapeOf(m));
  }
  return absl::OkStatus();
}

absl::Status EmulatedDevice::Matmul(const CudaMatmul& m) {
  RETURN_IF_ERROR(Use());
  RETURN_IF_ERROR(CheckMatmul(m));
  if (!prepared_.contains(ShapeOf(m))) {
    return absl::InvalidArgumentError(
        absl::StrCat("emulated device: ", Describe(ShapeOf(m)), " was not prepared"));
  }
  ++state_.matmuls;
  stream_->Enqueue([m] { Multiply(m); });
  return absl::OkStatus();
}

absl::Status EmulatedCollective::AllReduce(absl::Span<int32_t* const> buffers, int64_t count) {
  if (state_.fail_after >= 0 && state_.fail_after-- == 0) {
    state_.fail_after = 0;
    return absl::InternalError("emulated collective: failed");
  }
  used_device = nullptr;
  ++state_.reduces;
  state_.elements += count;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t sum = 0;
    for (const int32_t* buffer : buffers) sum += static_cast<uint32_t>(buffer[i]);
    for (int32_t* buffer : buffers) buffer[i] = static_cast<int32_t>(sum);
  }
  return absl::OkStatus();
}

}  // namespace fixpoint
