// The runtime is linked statically with the kernels; cuBLASLt is loaded, as it is large and not
// needed for every use. Both work in the device's primary context.
#include "engine/nvidia_device.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "engine/int8_matmuls.h"

namespace fixpoint {
namespace {

constexpr int kMinCapabilityMajor = 8;  // mma.sync of int8 with 32 of depth

class NvidiaDevice final : public CudaDevice {
 public:
  NvidiaDevice(int index, NvidiaDeviceOptions options)
      : index_(index), options_(std::move(options)) {
    if (options_.log == nullptr) {
      options_.log = [](const std::string& line) { std::cerr << line << std::endl; };
    }
  }
  NvidiaDevice(const NvidiaDevice&) = delete;
  NvidiaDevice& operator=(const NvidiaDevice&) = delete;
  // Errors while everything ends are nobody's any more.
  ~NvidiaDevice() override {
    cudaSetDevice(index_);
    if (stream_ != nullptr) cudaStreamSynchronize(stream_);
    for (cudaGraphExec_t graph : graphs_) cudaGraphExecDestroy(graph);
    matmuls_.reset();
    if (handle_ != nullptr) cublaslt_->cublasLtDestroy(handle_);
    for (void* memory : device_memory_) cudaFree(memory);
    for (void* memory : host_memory_) cudaFreeHost(memory);
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  absl::Status Open() {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) {
      return absl::FailedPreconditionError(
          absl::StrCat("cuda:", index_, ": no CUDA driver or device (", cudaGetErrorName(error),
                       ": ", cudaGetErrorString(error), ")"));
    }
    if (index_ < 0 || index_ >= count) {
      return absl::FailedPreconditionError(
          absl::StrCat("cuda:", index_, ": this machine has ", count, " CUDA devices"));
    }
    RETURN_IF_ERROR(Check(cudaSetDevice(index_), "cudaSetDevice"));
    int major = 0;
    RETURN_IF_ERROR(Check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index_),
                          "cudaDeviceGetAttribute"));
    if (major < kMinCapabilityMajor) {
      return absl::FailedPreconditionError(absl::StrCat("cuda:", index_, ": compute capability ",
                                                        major, ", at least 8.0 is needed"));
    }
    RETURN_IF_ERROR(
        Check(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, index_),
              "cudaDeviceGetAttribute"));
    RETURN_IF_ERROR(Check(cudaDeviceGetAttribute(&l2_bytes_, cudaDevAttrL2CacheSize, index_),
                          "cudaDeviceGetAttribute"));
    RETURN_IF_ERROR(Check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
                          "cudaStreamCreateWithFlags"));
    return OpenCublasLt();
  }

  absl::Status Use() override { return Check(cudaSetDevice(index_), "cudaSetDevice"); }
  const CudaKernels& kernels() const override { return DeviceKernels(); }
  CudaStream* stream() const override { return reinterpret_cast<CudaStream*>(stream_); }
  int32_t multiprocessors() const override { return multiprocessors_; }
  int64_t l2_bytes() const override { return l2_bytes_; }
  bool has_matmul() const override { return handle_ != nullptr; }

  absl::StatusOr<int64_t> FreeBytes() override {
    RETURN_IF_ERROR(Use());
    size_t free_bytes = 0, all_bytes = 0;
    RETURN_IF_ERROR(Check(cudaMemGetInfo(&free_bytes, &all_bytes), "cudaMemGetInfo"));
    return static_cast<int64_t>(free_bytes);
  }

  absl::StatusOr<int8_t*> Allocate(int64_t bytes) override {
    RETURN_IF_ERROR(Use());
    void* memory = nullptr;
    RETURN_IF_ERROR(Check(cudaMalloc(&memory, static_cast<size_t>(bytes)), "cudaMalloc"));
    device_memory_.push_back(memory);
    RETURN_IF_ERROR(
        Check(cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), stream_), "cudaMemsetAsync"));
    return static_cast<int8_t*>(memory);
  }

  absl::StatusOr<int8_t*> AllocateHost(int64_t bytes) override {
    RETURN_IF_ERROR(Use());
    void* memory = nullptr;
    RETURN_IF_ERROR(Check(cudaMallocHost(&memory, static_cast<size_t>(bytes)), "cudaMallocHost"));
    host_memory_.push_back(memory);
    auto* begin = static_cast<int8_t*>(memory);
    std::fill(begin, begin + bytes, int8_t{0});
    return begin;
  }

  absl::Status Upload(void* device, const void* host, int64_t bytes) override {
    RETURN_IF_ERROR(Use());
    return Check(
        cudaMemcpyAsync(device, host, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream_),
        "cudaMemcpyAsync to the device");
  }

  absl::Status Download(void* host, const void* device, int64_t bytes) override {
    RETURN_IF_ERROR(EnqueueDownload(host, device, bytes));
    return Synchronize();
  }

  absl::Status EnqueueDownload(void* host, const void* device, int64_t bytes) override {
    RETURN_IF_ERROR(Use());
    return Check(
        cudaMemcpyAsync(host, device, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream_),
        "cudaMemcpyAsync from the device");
  }

  absl::Status DownloadRows(void* host, int64_t host_stride, const void* device, int64_t row_bytes,
                            int64_t rows) override {
    if (host_stride == row_bytes) return Download(host, device, rows * row_bytes);
    RETURN_IF_ERROR(Use());
    const auto width = static_cast<size_t>(row_bytes);
    RETURN_IF_ERROR(
        Check(cudaMemcpy2DAsync(host, static_cast<size_t>(host_stride), device, width, width,
                                static_cast<size_t>(rows), cudaMemcpyDeviceToHost, stream_),
              "cudaMemcpy2DAsync from the device"));
    return Synchronize();
  }

  absl::Status Synchronize() override {
    RETURN_IF_ERROR(Use());
    return Check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  }

  absl::Status Launched(int error, absl::string_view what) override {
    return Check(static_cast<cudaError_t>(error), what);
  }

  absl::Status BeginCapture() override {
    RETURN_IF_ERROR(Use());
    // Other threads' calls are none of this capture's business.
    return Check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal),
                 "cudaStreamBeginCapture");
  }

  absl::StatusOr<int32_t> EndCapture() override {
    RETURN_IF_ERROR(Use());
    cudaGraph_t graph = nullptr;
    RETURN_IF_ERROR(Check(cudaStreamEndCapture(stream_, &graph), "cudaStreamEndCapture"));
    cudaGraphExec_t executable = nullptr;
    const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
    cudaGraphDestroy(graph);
    RETURN_IF_ERROR(Check(error, "cudaGraphInstantiate"));
    graphs_.push_back(executable);
    return static_cast<int32_t>(graphs_.size() - 1);
  }

  absl::Status LaunchGraph(int32_t graph) override {
    RETURN_IF_ERROR(Use());
    return Check(cudaGraphLaunch(graphs_[static_cast<size_t>(graph)], stream_), "cudaGraphLaunch");
  }

  absl::Status PrepareMatmuls(absl::Span<const CudaMatmul> matmuls, int32_t* expected) override {
    RETURN_IF_ERROR(Use());
    ASSIGN_OR_RETURN(const std::string identity, Identity());
    return matmuls_->Prepare(matmuls, expected, identity, options_.algorithm_cache);
  }

  std::string MatmulName(const MatmulShape& shape) const override {
    return matmuls_->NameOf(shape);
  }

  absl::Status Matmul(const CudaMatmul& m) override {
    RETURN_IF_ERROR(Use());
    return matmuls_->Run(m);
  }

 private:
  absl::Status OpenCublasLt() {
    const absl::StatusOr<const CublasLtApi*> api = LoadCublasLt();
    if (!api.ok()) return absl::OkStatus();  // our own kernel does what it would do
    cublaslt_ = *api;
    RETURN_IF_ERROR(cublaslt_->Check(cublaslt_->cublasLtCreate(&handle_), "cublasLtCreate"));
    const MatmulLog log = [this](const std::string& line) {
      options_.log(absl::StrCat("cuda:", index_, ": ", line));
    };
    matmuls_ = std::make_unique<Int8Matmuls>(*this, *cublaslt_, handle_, log);
    return absl::OkStatus();
  }

  // Of the device, as far as a choice of algorithms depends on it.
  absl::StatusOr<std::string> Identity() const {
    cudaDeviceProp properties;
    RETURN_IF_ERROR(Check(cudaGetDeviceProperties(&properties, index_), "cudaGetDeviceProperties"));
    int driver = 0;
    RETURN_IF_ERROR(Check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion"));
    return absl::StrCat(properties.name, ", ", multiprocessors_, " multiprocessors, driver ",
                        driver);
  }

  absl::Status Check(cudaError_t error, absl::string_view what) const {
    if (error == cudaSuccess) return absl::OkStatus();
    cudaGetLastError();  // one that is not sticky should not turn up at the next call
    const std::string message =
        absl::StrCat("cuda:", index_, ": ", what, ": ", cudaGetErrorName(error), " (",
                     cudaGetErrorString(error), ")");
    return error == cudaErrorMemoryAllocation ? absl::ResourceExhaustedError(message)
                                              : absl::InternalError(message);
  }

  const int index_;
  NvidiaDeviceOptions options_;
  int multiprocessors_ = 0, l2_bytes_ = 0;
  cudaStream_t stream_ = nullptr;
  const CublasLtApi* cublaslt_ = nullptr;
  cublasLtHandle_t handle_ = nullptr;
  std::unique_ptr<Int8Matmuls> matmuls_;  // null without cuBLASLt
  std::vector<cudaGraphExec_t> graphs_;
  std::vector<void*> device_memory_, host_memory_;
};

}  // namespace

bool BuiltWithCuda() { return true; }

absl::StatusOr<std::unique_ptr<CudaDevice>> CreateNvidiaDevice(int index,
                                                               const NvidiaDeviceOptions& options) {
  auto device = std::make_unique<NvidiaDevice>(index, options);
  RETURN_IF_ERROR(device->Open());
  return device;
}

}  // namespace fixpoint
