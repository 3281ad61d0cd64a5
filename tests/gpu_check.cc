// Everything that must be equal on a GPU, in one program without a test framework: each kernel
// against the reference, the golden digests of small models and, with --bundle, of a real one.
// scripts/gpu_check.sh runs it. Exit status 0: all equal; 1: a difference or a lost device; 2: no
// usable device.
//   gpu_check [--device N | --emulated] [--bundle FILE]
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "bundle/bundle.h"
#include "bundle/test_model.h"
#include "engine/cpu_executor.h"
#include "engine/cuda_executor.h"
#include "engine/emulated_device.h"
#include "engine/golden.h"
#include "engine/nvidia_device.h"
#include "kernels/cuda/kernel_cases.h"

namespace fixpoint {
namespace {

// The memory of the cases: one piece, used from its beginning again when nothing of it is in use.
class ArenaCaseDevice final : public CaseDevice {
 public:
  ArenaCaseDevice(CudaDevice& device, int8_t* arena, int64_t bytes)
      : device_(device), arena_(arena), bytes_(bytes) {}
  const CudaKernels& kernels() const override { return device_.kernels(); }
  CudaStream* stream() override { return device_.stream(); }
  void* Allocate(size_t bytes) override {
    if (live_++ == 0) used_ = 0;
    int8_t* at = arena_ + used_;
    used_ += static_cast<int64_t>((bytes + 511) / 256 * 256);
    CHECK_LE(used_, bytes_) << "the cases need more memory";
    return at;
  }
  void Free(void*) override { --live_; }
  void Upload(void* device, const void* host, size_t bytes) override {
    Must(device_.Upload(device, host, static_cast<int64_t>(bytes)));
  }
  void Download(void* host, const void* device, size_t bytes) override {
    Must(device_.Download(host, device, static_cast<int64_t>(bytes)));
  }

 private:
  static void Must(const absl::Status& status) {
    if (status.ok()) return;
    std::cerr << "gpu_check: " << status.message() << std::endl;
    std::exit(1);
  }
  CudaDevice& device_;
  int8_t* const arena_;
  const int64_t bytes_;
  int64_t used_ = 0;
  int live_ = 0;
};

struct Options {
  int device = 0;
  bool emulated = false;
  std::string bundle;
};

EmulatedDeviceState& EmulatedState() {
  static EmulatedDeviceState state{.memory_bytes = int64_t{2} << 30};
  return state;
}

absl::StatusOr<std::unique_ptr<CudaDevice>> Open(const Options& options) {
  if (!options.emulated) return CreateNvidiaDevice(options.device);
  return std::make_unique<EmulatedDevice>(&EmulatedState());
}

absl::StatusOr<int> RunCases(const Options& options) {
  constexpr int64_t kArenaBytes = int64_t{256} << 20;
  ASSIGN_OR_RETURN(const std::unique_ptr<CudaDevice> device, Open(options));
  ASSIGN_OR_RETURN(int8_t* const arena, device->Allocate(kArenaBytes));
  ArenaCaseDevice memory(*device, arena, kArenaBytes);
  int failed = 0;
  for (const KernelCase& c : KernelCases()) {
    const std::string difference = c.run(memory);
    RETURN_IF_ERROR(device->Synchronize());
    std::cout << "kernel " << c.name << ": " << (difference.empty() ? "equal" : difference)
              << std::endl;
    failed += !difference.empty();
  }
  return failed;
}

absl::StatusOr<bool> SameDigest(const Options& options, IntegerModel model, const std::string& what,
                                absl::Span<const std::vector<int32_t>> prompts,
                                const std::string& expected, bool use_matmul, int32_t chunk) {
  ASSIGN_OR_RETURN(std::unique_ptr<CudaDevice> device, Open(options));
  ASSIGN_OR_RETURN(const std::unique_ptr<CudaExecutor> executor,
                   CudaExecutor::Create(std::move(model), std::move(device),
                                        {.kv_cache_bytes = int64_t{64} << 20,
                                         .max_step_tokens = 512,
                                         .max_step_logits = 64,
                                         .decode_bytes = int64_t{16} << 20,
                                         .use_matmul = use_matmul}));
  ASSIGN_OR_RETURN(const std::string digest, GoldenDigest(*executor, prompts, chunk));
  std::cout << "golden " << what << (use_matmul ? ", cuBLASLt" : ", own kernels") << ", chunks of "
            << chunk << ": " << (digest == expected ? "equal" : "DIFFERENT") << std::endl;
  return digest == expected;
}

// Small models with every option on and off; the CPU says what is right.
absl::StatusOr<int> RunModels(const Options& options) {
  const TestModelOptions models[] = {{.context = 400},
                                     {.seed = 3,
                                      .hidden = 72,
                                      .heads = 6,
                                      .kv_heads = 2,
                                      .head_dim = 16,
                                      .intermediate = 104,
                                      .vocab = 301,
                                      .context = 400,
                                      .prefix_tokens = 3,
                                      .wide_sites = kWideAttnNorm | kWideDownIn,
                                      .odd_layer_wide_sites = kWideAll,
                                      .qkv_bias = true,
                                      .qk_hadamard = true,
                                      .down_hadamard_block = 8},
                                     {.seed = 4,
                                      .hidden = 256,
                                      .heads = 4,
                                      .kv_heads = 1,
                                      .head_dim = 128,
                                      .intermediate = 512,
                                      .context = 400,
                                      .prefix_tokens = 1,
                                      .down_hadamard_block = 512}};
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                   Tokenizer::Create(MakeTestTokenizer()));
  const std::vector<std::vector<int32_t>> prompts = GoldenPrompts(*tokenizer);
  int failed = 0;
  for (const TestModelOptions& model : models) {
    ASSIGN_OR_RETURN(const std::unique_ptr<CpuExecutor> cpu,
                     CpuExecutor::Create(MakeTestModel(model), {.kv_cache_bytes = 1 << 23}));
    ASSIGN_OR_RETURN(const std::string expected, GoldenDigest(*cpu, prompts));
    for (const bool use_matmul : {true, false}) {
      for (const int32_t chunk : {0, 3}) {
        ASSIGN_OR_RETURN(const bool same, SameDigest(options, MakeTestModel(model),
                                                     "tiny " + std::to_string(model.seed), prompts,
                                                     expected, use_matmul, chunk));
        failed += !same;
      }
    }
  }
  return failed;
}

absl::StatusOr<int> RunBundle(const Options& options) {
  if (options.bundle.empty()) return 0;
  int failed = 0;
  for (const bool use_matmul : {true, false}) {
    ASSIGN_OR_RETURN(Bundle bundle, ReadBundle(options.bundle));
    if (bundle.golden_digest.empty()) {
      return absl::FailedPreconditionError(options.bundle + " has no golden digest");
    }
    ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                     Tokenizer::Create(std::move(bundle.tokenizer)));
    ASSIGN_OR_RETURN(const bool same,
                     SameDigest(options, std::move(bundle.model), options.bundle,
                                GoldenPrompts(*tokenizer), bundle.golden_digest, use_matmul, 0));
    failed += !same;
  }
  return failed;
}

int Run(const Options& options) {
  if (const auto device = Open(options); !device.ok()) {
    std::cerr << "gpu_check: " << device.status().message() << std::endl;
    return 2;
  }
  int failed = 0;
  for (const auto& part : {&RunCases, &RunModels, &RunBundle}) {
    const absl::StatusOr<int> result = part(options);
    if (!result.ok()) {
      std::cerr << "gpu_check: " << result.status().message() << std::endl;
      return 1;
    }
    failed += *result;
  }
  std::cout << (failed == 0 ? "all equal" : std::to_string(failed) + " different") << std::endl;
  return failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace fixpoint

int main(int argc, char** argv) {
  fixpoint::Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--emulated") {
      options.emulated = true;
    } else if (flag == "--bundle" && i + 1 < argc) {
      options.bundle = argv[++i];
    } else if (flag == "--device" && i + 1 < argc &&
               absl::SimpleAtoi(argv[i + 1], &options.device)) {
      ++i;
    } else {
      std::cerr << "usage: gpu_check [--device N | --emulated] [--bundle FILE]" << std::endl;
      return 2;
    }
  }
  return fixpoint::Run(options);
}
