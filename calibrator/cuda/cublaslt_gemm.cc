#include "calibrator/cuda/cublaslt_gemm.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <iterator>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "calibrator/cuda/cublaslt_matmul.h"
#include "calibrator/cuda/weight_cache.h"
#include "calibrator/gemm_plan.h"
#include "calibrator/vector_loops.h"

namespace fixpoint {
namespace {

// Shapes kept prepared, as on the CPU.
constexpr size_t kMaxPrepared = 4096;

class CudaMemory : public DeviceMemory {
 public:
  explicit CudaMemory(const CudaApi& api) : api_(api) {}
  absl::StatusOr<void*> Allocate(int64_t bytes) override {
    void* memory = nullptr;
    RETURN_IF_ERROR(api_.Check(api_.cudaMalloc(&memory, static_cast<size_t>(bytes)),
                               absl::StrFormat("cudaMalloc of %d bytes", bytes)));
    return memory;
  }
  // Waits for work on the device that may still use it.
  void Free(void* memory) override { api_.cudaFree(memory); }

 private:
  const CudaApi& api_;
};

// A buffer that only grows.
class GrowingBuffer {
 public:
  explicit GrowingBuffer(DeviceMemory& memory) : memory_(memory) {}
  GrowingBuffer(const GrowingBuffer&) = delete;
  GrowingBuffer& operator=(const GrowingBuffer&) = delete;
  ~GrowingBuffer() { Drop(); }

  absl::StatusOr<void*> Reserve(int64_t bytes) {
    if (bytes <= bytes_) return data_;
    Drop();
    ASSIGN_OR_RETURN(data_, memory_.Allocate(bytes));
    bytes_ = bytes;
    return data_;
  }

 private:
  void Drop() {
    if (data_ != nullptr) memory_.Free(data_);
    data_ = nullptr;
    bytes_ = 0;
  }

  DeviceMemory& memory_;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

class CublasLtGemm : public FloatGemm {
 public:
  CublasLtGemm(const CudaApi& api, int device, std::unique_ptr<FloatGemm> cpu,
               const CublasLtOptions& options, int64_t kept_bytes)
      : api_(api),
        device_(device),
        cpu_(std::move(cpu)),
        tile_bytes_(options.tile_bytes),
        memory_(api),
        kept_(kept_bytes, memory_),
        x_(memory_),
        w_(memory_),
        y_(memory_),
        workspace_(memory_) {}
  ~CublasLtGemm() override;

  absl::Status Initialise(const CublasLtOptions& options);

  bool fast_bf16() const override { return true; }
  void Multiply(const GemmArgs& args) override {
    const absl::Status status = TryMultiply(args);
    // Arguments are our own, and after most errors the device is of no more use to this process.
    CHECK(status.ok()) << "cuda:" << device_ << ": " << status.message();
  }
  void MultiplyHere(const GemmArgs& args) override;
  void ForgetWeights() override {
    kept_.Clear();
    cpu_->ForgetWeights();
  }

 private:
  // A rectangle of the host's memory and its dense copy on the device.
  struct Rows {
    int64_t count = 0, bytes = 0;  // rows, and bytes of each
    int64_t host_stride_bytes = 0, device_stride_bytes = 0;
  };

  absl::Status TryMultiply(const GemmArgs& args);
  absl::StatusOr<void*> Reserve(GrowingBuffer& buffer, int64_t bytes);
  absl::Status MultiplyTile(const GemmArgs& tile, const GemmPlan& plan, void* x, const void* w,
                            void* y);
  absl::StatusOr<const void*> BringWeights(const GemmArgs& tile, const GemmPlan& plan);
  absl::StatusOr<const CublasLtMatmul*> Prepare(const DeviceShape& shape);
  absl::Status Upload(const Rows& rows, const void* host, void* device) const;
  absl::Status Download(const Rows& rows, const void* device, void* host) const;
  absl::Status SelfTest(GemmType type);

  const CudaApi& api_;
  const int device_;
  const std::unique_ptr<FloatGemm> cpu_;
  const int64_t tile_bytes_;
  CudaMemory memory_;
  WeightCache kept_;
  GrowingBuffer x_, w_, y_, workspace_;
  CublasLtQueue queue_;
  absl::flat_hash_map<DeviceShape, std::unique_ptr<CublasLtMatmul>> prepared_;
};

absl::Status CublasLtGemm::Initialise(const CublasLtOptions& options) {
  RETURN_IF_ERROR(api_.Check(api_.cudaStreamCreateWithFlags(&queue_.stream, cudaStreamNonBlocking),
                             "cudaStreamCreateWithFlags"));
  RETURN_IF_ERROR(api_.Check(api_.cublasLtCreate(&queue_.handle), "cublasLtCreate"));
  ASSIGN_OR_RETURN(queue_.workspace, workspace_.Reserve(options.workspace_bytes));
  queue_.workspace_bytes = static_cast<size_t>(options.workspace_bytes);
  RETURN_IF_ERROR(SelfTest(GemmType::kFloat32));
  return SelfTest(GemmType::kBf16);
}

CublasLtGemm::~CublasLtGemm() {
  api_.cudaSetDevice(device_);
  prepared_.clear();
  if (queue_.handle != nullptr) api_.cublasLtDestroy(queue_.handle);
  if (queue_.stream != nullptr) api_.cudaStreamDestroy(queue_.stream);
}

absl::Status CublasLtGemm::TryMultiply(const GemmArgs& args) {
  if (args.rows == 0 || args.outputs == 0) return absl::OkStatus();
  ASSIGN_OR_RETURN(const GemmPlan plan, PlanGemm(args, tile_bytes_));
  RETURN_IF_ERROR(api_.Check(api_.cudaSetDevice(device_), "cudaSetDevice"));
  ASSIGN_OR_RETURN(void* const x, Reserve(x_, plan.x_bytes));
  ASSIGN_OR_RETURN(void* const y, Reserve(y_, plan.y_bytes));
  const int64_t bytes = BytesOf(args.type);
  for (int64_t output = 0; output < args.outputs; output += plan.outputs_per_tile) {
    GemmArgs tile = args;
    tile.outputs = std::min(plan.outputs_per_tile, args.outputs - output);
    tile.w = static_cast<const std::byte*>(args.w) +
             output * (args.w_by_depth ? 1 : args.w_stride) * bytes;
    ASSIGN_OR_RETURN(const void* const w, BringWeights(tile, plan));
    for (int64_t row = 0; row < args.rows; row += plan.rows_per_tile) {
      tile.rows = std::min(plan.rows_per_tile, args.rows - row);
      tile.x = static_cast<const std::byte*>(args.x) + row * args.x_stride * bytes;
      tile.y = args.y + row * args.y_stride + output;
      RETURN_IF_ERROR(MultiplyTile(tile, plan, x, w, y));
    }
  }
  return api_.Check(api_.cudaStreamSynchronize(queue_.stream), "cudaStreamSynchronize");
}

// Other programs may have taken the device's memory since the start: copies then make room.
absl::StatusOr<void*> CublasLtGemm::Reserve(GrowingBuffer& buffer, int64_t bytes) {
  absl::StatusOr<void*> memory = buffer.Reserve(bytes);
  if (!absl::IsResourceExhausted(memory.status())) return memory;
  kept_.Clear();
  return buffer.Reserve(bytes);
}

// Everything goes through one stream, so the next tile's copies wait for this one's product.
absl::Status CublasLtGemm::MultiplyTile(const GemmArgs& tile, const GemmPlan& plan, void* x,
                                        const void* w, void* y) {
  const int64_t bytes = BytesOf(tile.type);
  ASSIGN_OR_RETURN(const CublasLtMatmul* const matmul, Prepare({.type = tile.type,
                                                                .rows = tile.rows,
                                                                .outputs = tile.outputs,
                                                                .depth = tile.depth,
                                                                .x_stride = plan.x_stride,
                                                                .w_stride = plan.w_stride,
                                                                .y_stride = plan.y_stride,
                                                                .w_by_depth = tile.w_by_depth}));
  const Rows x_rows{tile.rows, tile.depth * bytes, tile.x_stride * bytes, plan.x_stride * bytes};
  const Rows y_rows{tile.rows, tile.outputs * int64_t{sizeof(float)},
                    tile.y_stride * int64_t{sizeof(float)}, plan.y_stride * int64_t{sizeof(float)}};
  RETURN_IF_ERROR(Upload(x_rows, tile.x, x));
  if (tile.accumulate) RETURN_IF_ERROR(Upload(y_rows, tile.y, y));
  RETURN_IF_ERROR(matmul->Run(queue_, x, w, static_cast<float*>(y), tile.accumulate));
  return Download(y_rows, y, tile.y);
}

absl::StatusOr<const void*> CublasLtGemm::BringWeights(const GemmArgs& tile, const GemmPlan& plan) {
  const int64_t bytes = BytesOf(tile.type);
  const int64_t count = tile.w_by_depth ? tile.depth : tile.outputs;
  const Rows rows{count, (tile.w_by_depth ? tile.outputs : tile.depth) * bytes,
                  tile.w_stride * bytes, plan.w_stride * bytes};
  const int64_t size = rows.count * rows.device_stride_bytes;
  if (!tile.keep_w || !kept_.Fits(size)) {
    ASSIGN_OR_RETURN(void* const w, Reserve(w_, plan.w_bytes));
    RETURN_IF_ERROR(Upload(rows, tile.w, w));
    return w;
  }
  const WeightKey key{tile.w,        tile.type,     tile.outputs,   tile.depth,
                      tile.w_stride, plan.w_stride, tile.w_by_depth};
  if (const void* const kept = kept_.Find(key)) return kept;
  ASSIGN_OR_RETURN(void* const w, kept_.Insert(key, size));
  const absl::Status status = Upload(rows, tile.w, w);
  if (!status.ok()) {
    kept_.Erase(key);
    return status;
  }
  return w;
}

absl::StatusOr<const CublasLtMatmul*> CublasLtGemm::Prepare(const DeviceShape& shape) {
  const auto found = prepared_.find(shape);
  if (found != prepared_.end()) return found->second.get();
  if (prepared_.size() >= kMaxPrepared) prepared_.clear();
  ASSIGN_OR_RETURN(std::unique_ptr<CublasLtMatmul> matmul,
                   CublasLtMatmul::Create(api_, queue_, shape));
  return prepared_.emplace(shape, std::move(matmul)).first->second.get();
}

absl::Status CublasLtGemm::Upload(const Rows& rows, const void* host, void* device) const {
  return api_.Check(
      api_.cudaMemcpy2DAsync(device, static_cast<size_t>(rows.device_stride_bytes), host,
                             static_cast<size_t>(rows.host_stride_bytes),
                             static_cast<size_t>(rows.bytes), static_cast<size_t>(rows.count),
                             cudaMemcpyHostToDevice, queue_.stream),
      "cudaMemcpy2DAsync to the device");
}

absl::Status CublasLtGemm::Download(const Rows& rows, const void* device, void* host) const {
  return api_.Check(
      api_.cudaMemcpy2DAsync(host, static_cast<size_t>(rows.host_stride_bytes), device,
                             static_cast<size_t>(rows.device_stride_bytes),
                             static_cast<size_t>(rows.bytes), static_cast<size_t>(rows.count),
                             cudaMemcpyDeviceToHost, queue_.stream),
      "cudaMemcpy2DAsync from the device");
}

// Callers take bf16 for granted when fast_bf16() says so, also where the CPU has none: then in
// float32, which holds the same values.
void CublasLtGemm::MultiplyHere(const GemmArgs& args) {
  if (args.type == GemmType::kFloat32 || cpu_->fast_bf16()) return cpu_->MultiplyHere(args);
  static thread_local std::vector<float> x, w;
  const auto widen = [](const void* from, int64_t rows, int64_t columns, int64_t stride,
                        std::vector<float>* to) {
    if (static_cast<int64_t>(to->size()) < rows * columns) to->resize(rows * columns);
    for (int64_t row = 0; row < rows; ++row) {
      Vec().from_bf16(static_cast<const uint16_t*>(from) + row * stride, columns,
                      to->data() + row * columns);
    }
  };
  const int64_t w_rows = args.w_by_depth ? args.depth : args.outputs;
  const int64_t w_columns = args.w_by_depth ? args.outputs : args.depth;
  widen(args.x, args.rows, args.depth, args.x_stride, &x);
  widen(args.w, w_rows, w_columns, args.w_stride, &w);
  GemmArgs wide = args;
  wide.type = GemmType::kFloat32;
  wide.x = x.data();
  wide.x_stride = args.depth;
  wide.w = w.data();
  wide.w_stride = w_columns;
  cpu_->MultiplyHere(wide);
}

// y = 1 + x w^T with the integers -4 to 4: exact in every type.
absl::Status CublasLtGemm::SelfTest(GemmType type) {
  constexpr int64_t kRows = 19, kOutputs = 21, kDepth = 23;
  const auto value = [](int64_t i) { return static_cast<float>(i * 7 % 9 - 4); };
  std::vector<float> x, w, y(kRows * kOutputs, 1);
  std::vector<uint16_t> x16, w16;
  for (int64_t i = 0; i < kRows * kDepth; ++i) x.push_back(value(i));
  for (int64_t i = 0; i < kOutputs * kDepth; ++i) w.push_back(value(3 * i + 1));
  const auto narrow = [](float v) {
    return static_cast<uint16_t>(std::bit_cast<uint32_t>(v) >> 16);
  };
  std::transform(x.begin(), x.end(), std::back_inserter(x16), narrow);
  std::transform(w.begin(), w.end(), std::back_inserter(w16), narrow);
  const bool bf16 = type == GemmType::kBf16;
  RETURN_IF_ERROR(TryMultiply({.type = type,
                               .rows = kRows,
                               .outputs = kOutputs,
                               .depth = kDepth,
                               .x = bf16 ? static_cast<const void*>(x16.data()) : x.data(),
                               .x_stride = kDepth,
                               .w = bf16 ? static_cast<const void*>(w16.data()) : w.data(),
                               .w_stride = kDepth,
                               .y = y.data(),
                               .y_stride = kOutputs,
                               .accumulate = true}));
  for (int64_t m = 0; m < kRows; ++m) {
    for (int64_t n = 0; n < kOutputs; ++n) {
      float expected = 1;
      for (int64_t k = 0; k < kDepth; ++k) expected += x[m * kDepth + k] * w[n * kDepth + k];
      if (y[m * kOutputs + n] == expected) continue;
      return absl::InternalError(
          absl::StrFormat("a trial product of %s matrices is wrong: %g instead of %g at (%d, %d)",
                          bf16 ? "bf16" : "float32", y[m * kOutputs + n], expected, m, n));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckDevice(const CudaApi& api, int device) {
  int count = 0;
  if (const cudaError_t error = api.cudaGetDeviceCount(&count); error != cudaSuccess) {
    return absl::FailedPreconditionError(
        absl::StrCat(error == cudaErrorNoDevice ? "no CUDA device: " : "no CUDA driver: ",
                     api.Check(error, "cudaGetDeviceCount").message()));
  }
  if (device < 0 || device >= count) {
    return absl::FailedPreconditionError(
        absl::StrFormat("this machine has %d device%s", count, count == 1 ? "" : "s"));
  }
  RETURN_IF_ERROR(api.Check(api.cudaSetDevice(device), "cudaSetDevice"));
  int major = 0, minor = 0;
  RETURN_IF_ERROR(
      api.Check(api.cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
                "cudaDeviceGetAttribute"));
  RETURN_IF_ERROR(
      api.Check(api.cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
                "cudaDeviceGetAttribute"));
  if (major < 8) {
    return absl::FailedPreconditionError(
        absl::StrFormat("compute capability %d.%d; bf16 products need 8.0 or above", major, minor));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<FloatGemm>> Create(const CudaApi& api, int device,
                                                  std::unique_ptr<FloatGemm> cpu,
                                                  const CublasLtOptions& options) {
  RETURN_IF_ERROR(CheckDevice(api, device));
  size_t free_bytes = 0, total_bytes = 0;
  RETURN_IF_ERROR(api.Check(api.cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo"));
  const int64_t own_bytes = 3 * options.tile_bytes + options.workspace_bytes;
  if (static_cast<int64_t>(free_bytes) < own_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("%d MiB of device memory are free, %d MiB are needed at least",
                        free_bytes >> 20, own_bytes >> 20));
  }
  const auto kept_bytes = static_cast<int64_t>(
      options.kept_share * static_cast<double>(static_cast<int64_t>(free_bytes) - own_bytes));
  auto gemm = std::make_unique<CublasLtGemm>(api, device, std::move(cpu), options, kept_bytes);
  RETURN_IF_ERROR(gemm->Initialise(options));
  return gemm;
}

}  // namespace

absl::StatusOr<std::unique_ptr<FloatGemm>> CreateCublasLtGemm(const CudaApi& api, int device,
                                                              std::unique_ptr<FloatGemm> cpu,
                                                              const CublasLtOptions& options) {
  absl::StatusOr<std::unique_ptr<FloatGemm>> gemm = Create(api, device, std::move(cpu), options);
  if (!gemm.ok()) return Annotate(gemm.status(), absl::StrFormat("cuda:%d", device));
  return gemm;
}

}  // namespace fixpoint
