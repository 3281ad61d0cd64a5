// The parts of cuda_bench: each compares before it times, and prints a line for each figure.
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

// One figure: a JSON object that begins with its part, on a line of its own.
class BenchLine {
 public:
  explicit BenchLine(absl::string_view part) {
    json_.BeginObject();
    json_.Field("part", part);
  }
  JsonWriter& json() { return json_; }  // fields of the object
  // To stdout at once, so that a run which is stopped keeps what it has measured.
  void Print();

 private:
  JsonWriter json_;
};

// INTERNAL when a result is not the other kernel's or the host's.
absl::Status BenchProducts(const CudaBenchOptions& options);
absl::Status BenchAttention(const CudaBenchOptions& options);
absl::Status BenchSteps(const CudaBenchOptions& options);

}  // namespace fixpoint
