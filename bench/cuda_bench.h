// The parts of cuda_bench: each compares before it times, and writes one array into the JSON.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/json_writer.h"
#include "engine/cuda_device.h"

namespace fixpoint {

struct CudaBenchOptions {
  int device = 0;
  bool emulated = false;  // tiny shapes on the emulator: the program's own test
  int layers = 4;
  double bandwidth_gb = 0;  // of the datasheet; 0: unknown
  double int8_tops = 0;
};

// The linear layers of a model and its heads; head_dim is 128, or 16 of the tiny one.
struct BenchModel {
  const char* name;
  int32_t hidden, heads, kv_heads, head_dim, intermediate, vocab;
};
absl::Span<const BenchModel> BenchModels(const CudaBenchOptions& options);

absl::StatusOr<std::unique_ptr<CudaDevice>> OpenBenchDevice(const CudaBenchOptions& options);

// Seconds of one run: median of rounds, each of `runs` enqueued between two waits, after a warm-up.
// `run` gets the number of the run, for data that should not lie in a cache.
absl::StatusOr<double> BenchSeconds(const CudaBenchOptions& options, CudaDevice& device, int runs,
                                    const std::function<absl::Status(int)>& run);

// bytes, operations, microseconds, GB/s, TOPS and, where the limits are known, the share of the
// roofline: the larger of the times that bytes and operations need by the datasheet, over the time
// taken.
void WriteShares(const CudaBenchOptions& options, double bytes, double operations, double seconds,
                 JsonWriter& json);

// Fills device memory with every value of int8; the same bytes for the same seed.
absl::Status FillRandom(CudaDevice& device, int8_t* memory, int64_t bytes, uint64_t seed);

// INTERNAL when a result is not the other kernel's or the host's.
absl::Status BenchProducts(const CudaBenchOptions& options, JsonWriter& json);
absl::Status BenchAttention(const CudaBenchOptions& options, JsonWriter& json);
absl::Status BenchSteps(const CudaBenchOptions& options, JsonWriter& json);

}  // namespace fixpoint
