#include "bench/gpu_facts.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace fixpoint {
namespace {

// NVIDIA's datasheets of the products (nvidia.com, "... Datasheet"; GeForce and Ada: the
// architectures' whitepapers), entered from memory and checked against third-party tables for the
// 4090 and 5090 only. They print int8 with sparsity: half of it is here. A name that contains
// another's comes first.
constexpr Datasheet kDatasheets[] = {
    {"H100 PCIe", 2000, 1513},
    {"H100 NVL", 3900, 1671},
    {"H100", 3350, 1979},  // SXM: "NVIDIA H100 80GB HBM3"
    {"H200 NVL", 4800, 1671},
    {"H200", 4800, 1979},
    {"B200", 8000, 4500},
    {"A100 80GB PCIe", 1935, 624},
    {"A100-SXM4-80GB", 2039, 624},
    {"A100", 1555, 624},  // 40 GB
    {"L40S", 864, 733},
    {"L4", 300, 242},
    {"RTX 6000 Ada", 960, 728.5},
    {"RTX 5090", 1792, 838},
    {"RTX 4090", 1008, 660.6},
};

absl::Status Check(cudaError_t error, absl::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(what, ": ", cudaGetErrorName(error)));
}

// As a word of its own: "L4" is not "L40".
bool HasWord(absl::string_view text, absl::string_view word) {
  return absl::StrContains(absl::StrCat(text, " "), absl::StrCat(" ", word, " ")) ||
         absl::StrContains(text, absl::StrCat(" ", word, "-"));
}

}  // namespace

std::optional<Datasheet> DatasheetOf(absl::string_view name) {
  for (const Datasheet& sheet : kDatasheets) {
    if (HasWord(name, sheet.name)) return sheet;
  }
  return std::nullopt;
}

absl::StatusOr<GpuFacts> ReadGpuFacts(int index) {
  cudaDeviceProp properties;
  RETURN_IF_ERROR(Check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties"));
  int driver = 0;
  RETURN_IF_ERROR(Check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion"));
  return GpuFacts{.name = properties.name,
                  .multiprocessors = properties.multiProcessorCount,
                  .l2_bytes = properties.l2CacheSize,
                  .memory_bytes = static_cast<int64_t>(properties.totalGlobalMem),
                  .driver = driver};
}

absl::StatusOr<double> MeasureCopyBytesPerSecond(int index) {
  constexpr size_t kBytes = size_t{1} << 30;
  constexpr int kRounds = 5, kCopies = 4;
  RETURN_IF_ERROR(Check(cudaSetDevice(index), "cudaSetDevice"));
  void *from = nullptr, *to = nullptr;
  cudaEvent_t start = nullptr, end = nullptr;
  const auto measure = [&]() -> absl::StatusOr<double> {
    RETURN_IF_ERROR(Check(cudaMalloc(&from, kBytes), "cudaMalloc"));
    RETURN_IF_ERROR(Check(cudaMalloc(&to, kBytes), "cudaMalloc"));
    RETURN_IF_ERROR(Check(cudaEventCreate(&start), "cudaEventCreate"));
    RETURN_IF_ERROR(Check(cudaEventCreate(&end), "cudaEventCreate"));
    std::vector<float> milliseconds(kRounds);
    for (float& taken : milliseconds) {
      RETURN_IF_ERROR(Check(cudaEventRecord(start), "cudaEventRecord"));
      for (int i = 0; i < kCopies; ++i) {
        RETURN_IF_ERROR(
            Check(cudaMemcpyAsync(to, from, kBytes, cudaMemcpyDeviceToDevice), "cudaMemcpyAsync"));
      }
      RETURN_IF_ERROR(Check(cudaEventRecord(end), "cudaEventRecord"));
      RETURN_IF_ERROR(Check(cudaEventSynchronize(end), "cudaEventSynchronize"));
      RETURN_IF_ERROR(Check(cudaEventElapsedTime(&taken, start, end), "cudaEventElapsedTime"));
    }
    std::sort(milliseconds.begin(), milliseconds.end());
    return 2.0 * kBytes * kCopies * 1000 / milliseconds[kRounds / 2];
  };
  const absl::StatusOr<double> result = measure();
  if (start != nullptr) cudaEventDestroy(start);
  if (end != nullptr) cudaEventDestroy(end);
  cudaFree(from);
  cudaFree(to);
  return result;
}

}  // namespace fixpoint
