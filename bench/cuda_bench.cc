// Speed on an NVIDIA GPU, against the device's own limits: int8 products by our kernel and by
// cuBLASLt, attention alone, and whole steps of CudaExecutor on random models with the layer shapes
// of Llama 3 8B and Llama 2 7B. Everything is compared before it is timed. Prints a JSON object a
// line, as soon as it is known: one of "part":"facts", the figures of "products", "attention" and
// "steps", one of "end".
//   cuda_bench [--device N] [--layers N] [--bandwidth GB/S] [--int8 TOPS] | --emulated
// The limits are the datasheet's, known for some cards (bench/gpu_facts.cc); others have to be
// named, or no share is printed. --emulated runs tiny shapes on the emulator and times nothing of
// interest.
#include "bench/cuda_bench.h"

#include <algorithm>
#include <chrono>
#include <iostream>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "base/status_macros.h"
#include "bench/gpu_facts.h"
#include "engine/emulated_device.h"
#include "engine/nvidia_device.h"

namespace fixpoint {

absl::Span<const BenchModel> BenchModels(const CudaBenchOptions& options) {
  static constexpr BenchModel kModels[] = {{"llama-3-8b", 4096, 32, 8, 128, 14336, 128256},
                                           {"llama-2-7b", 4096, 32, 32, 128, 11008, 32000}};
  static constexpr BenchModel kTiny[] = {{"tiny", 64, 4, 2, 16, 128, 304}};
  if (options.emulated) return kTiny;
  return kModels;
}

absl::StatusOr<std::unique_ptr<CudaDevice>> OpenBenchDevice(const CudaBenchOptions& options) {
  if (!options.emulated) return CreateNvidiaDevice(options.device);
  static EmulatedDeviceState state{.memory_bytes = int64_t{4} << 30};
  return std::make_unique<EmulatedDevice>(&state);
}

absl::StatusOr<double> BenchSeconds(const CudaBenchOptions& options, CudaDevice& device, int runs,
                                    const std::function<absl::Status(int)>& run) {
  const int rounds = options.emulated ? 1 : 5;
  if (options.emulated) runs = 1;
  std::vector<double> times;
  RETURN_IF_ERROR(run(0));
  RETURN_IF_ERROR(device.Synchronize());
  for (int round = 0; round < rounds; ++round) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < runs; ++i) RETURN_IF_ERROR(run(round * runs + i));
    RETURN_IF_ERROR(device.Synchronize());
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    times.push_back(taken.count() / runs);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void WriteShares(const CudaBenchOptions& options, double bytes, double operations, double seconds,
                 JsonWriter& json) {
  json.Field("bytes", bytes);
  json.Field("operations", operations);
  json.Field("microseconds", 1e6 * seconds);
  json.Field("gb_per_second", 1e-9 * bytes / seconds);
  json.Field("tops", 1e-12 * operations / seconds);
  if (options.bandwidth_gb > 0 && options.int8_tops > 0) {
    const double least =
        std::max(bytes / (1e9 * options.bandwidth_gb), operations / (1e12 * options.int8_tops));
    json.Field("share_of_roofline", least / seconds);
  }
}

absl::Status FillRandom(CudaDevice& device, int8_t* memory, int64_t bytes, uint64_t seed) {
  constexpr int64_t kPiece = int64_t{64} << 20;  // repeated: only the addresses have to differ
  std::vector<int8_t> piece(static_cast<size_t>(std::min(bytes, kPiece)));
  for (int8_t& b : piece) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    b = static_cast<int8_t>(static_cast<int32_t>(seed >> 56) - 128);
    if (b == -128) b = 0;  // no weight is
  }
  for (int64_t at = 0; at < bytes; at += kPiece) {
    RETURN_IF_ERROR(device.Upload(memory + at, piece.data(), std::min(kPiece, bytes - at)));
  }
  return device.Synchronize();
}

void BenchLine::Print() {
  json_.EndObject();
  std::cout << json_.Take() << std::endl;
}

namespace {

// The device, and its limits where the caller named none.
absl::Status WriteFacts(CudaBenchOptions* o, JsonWriter& json) {
  json.Field("emulated", o->emulated);
  if (o->emulated) return absl::OkStatus();
  ASSIGN_OR_RETURN(const GpuFacts facts, ReadGpuFacts(o->device));
  const std::optional<Datasheet> sheet = DatasheetOf(facts.name);
  json.Field("limits", o->bandwidth_gb > 0 && o->int8_tops > 0 ? "named by the caller"
                       : sheet.has_value()                     ? "datasheet"
                                                               : "unknown: name them");
  if (sheet.has_value() && o->bandwidth_gb == 0) o->bandwidth_gb = sheet->bandwidth_gb;
  if (sheet.has_value() && o->int8_tops == 0) o->int8_tops = sheet->int8_tops;
  json.Field("device", facts.name);
  json.Field("driver", facts.driver);
  json.Field("multiprocessors", facts.multiprocessors);
  json.Field("l2_bytes", facts.l2_bytes);
  json.Field("memory_bytes", facts.memory_bytes);
  json.Field("datasheet_gb_per_second", o->bandwidth_gb);
  json.Field("datasheet_int8_tops", o->int8_tops);
  ASSIGN_OR_RETURN(const double copied, MeasureCopyBytesPerSecond(o->device));
  json.Field("copy_gb_per_second", 1e-9 * copied);
  return absl::OkStatus();
}

absl::Status Run(CudaBenchOptions o) {
  BenchLine facts("facts");
  {
    // Refuses machines without a GPU before anything else asks for one.
    ASSIGN_OR_RETURN(const std::unique_ptr<CudaDevice> device, OpenBenchDevice(o));
    facts.json().Field("cublaslt", device->has_matmul());
  }
  RETURN_IF_ERROR(WriteFacts(&o, facts.json()));
  facts.Print();
  const struct {
    const char* name;
    absl::Status (*run)(const CudaBenchOptions& options);
  } parts[] = {{"products", BenchProducts}, {"attention", BenchAttention}, {"steps", BenchSteps}};
  for (const auto& part : parts) {
    std::cerr << "cuda_bench: " << part.name << std::endl;
    RETURN_IF_ERROR(part.run(o));
  }
  BenchLine("end").Print();
  return absl::OkStatus();
}

bool Parse(int argc, char** argv, CudaBenchOptions* o) {
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--emulated") {
      o->emulated = true;
      continue;
    }
    const char* value = i + 1 < argc ? argv[++i] : "";
    const bool ok = flag == "--device"      ? absl::SimpleAtoi(value, &o->device)
                    : flag == "--layers"    ? absl::SimpleAtoi(value, &o->layers) && o->layers > 0
                    : flag == "--bandwidth" ? absl::SimpleAtod(value, &o->bandwidth_gb)
                    : flag == "--int8"      ? absl::SimpleAtod(value, &o->int8_tops)
                                            : false;
    if (!ok) {
      std::cerr << "cuda_bench: wrong argument " << flag << " " << value << std::endl;
      return false;
    }
  }
  return true;
}

}  // namespace
}  // namespace fixpoint

int main(int argc, char** argv) {
  fixpoint::CudaBenchOptions options;
  if (!fixpoint::Parse(argc, argv, &options)) return 2;
  const absl::Status status = fixpoint::Run(options);
  if (!status.ok()) std::cerr << "cuda_bench: " << status.message() << std::endl;
  return status.ok() ? 0 : 1;
}
