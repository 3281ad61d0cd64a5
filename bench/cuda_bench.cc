// Speed on an NVIDIA GPU, against the device's own limits: int8 products by our kernel and by
// cuBLASLt, and whole steps of CudaExecutor on a random model with the layer shapes of Llama 3 8B.
// Every product is compared between the two before it is timed. Prints one JSON object.
//   cuda_bench [--device N] [--layers N] [--bandwidth GB/S] [--int8 TOPS]
// The limits are the datasheet's and have to be named; without them no share is printed.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <iostream>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "base/json_writer.h"
#include "base/status_macros.h"
#include "bundle/test_model.h"
#include "engine/cuda_executor.h"
#include "engine/nvidia_device.h"

namespace fixpoint {
namespace {

struct Options {
  int device = 0;
  int layers = 4;
  double bandwidth_gb = 0;  // 0: not named
  double int8_tops = 0;
};

// Median time of one run, enqueued several times between two waits.
absl::StatusOr<double> Seconds(CudaDevice& device, const std::function<absl::Status(int)>& run) {
  constexpr int kRounds = 5, kRuns = 10;
  std::vector<double> times;
  RETURN_IF_ERROR(run(0));
  RETURN_IF_ERROR(device.Synchronize());
  for (int round = 0; round < kRounds; ++round) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kRuns; ++i) RETURN_IF_ERROR(run(round * kRuns + i));
    RETURN_IF_ERROR(device.Synchronize());
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    times.push_back(taken.count() / kRuns);
  }
  std::sort(times.begin(), times.end());
  return times[kRounds / 2];
}

void WriteShares(JsonWriter& json, const Options& o, double bytes, double operations,
                 double seconds) {
  json.Field("microseconds", 1e6 * seconds);
  json.Field("gb_per_second", 1e-9 * bytes / seconds);
  json.Field("tops", 1e-12 * operations / seconds);
  if (o.bandwidth_gb > 0 && o.int8_tops > 0) {
    const double least =
        std::max(bytes / (1e9 * o.bandwidth_gb), operations / (1e12 * o.int8_tops));
    json.Field("share_of_roofline", least / seconds);
  }
}

// Weights for products: as many copies as do not fit a cache, used in turn.
class Products {
 public:
  Products(const Options& options, CudaDevice& device) : options_(options), device_(device) {}

  absl::Status Run(JsonWriter& json) {
    ASSIGN_OR_RETURN(int8_t* const memory, device_.Allocate(kWeightBytes + kXBytes + 2 * kAccBytes +
                                                            kMatmulWorkspaceBytes));
    weights_ = memory;
    x_ = weights_ + kWeightBytes;
    own_ = reinterpret_cast<int32_t*>(x_ + kXBytes);
    other_ = reinterpret_cast<int32_t*>(x_ + kXBytes + kAccBytes);
    workspace_ = x_ + kXBytes + 2 * kAccBytes;
    RETURN_IF_ERROR(FillRandom());
    const struct {
      const char* name;
      int32_t outputs, depth;
    } layers[] = {
        {"qkv", 6144, 4096}, {"o", 4096, 4096}, {"gate_up", 28672, 4096}, {"down", 4096, 14336}};
    json.Key("products");
    json.BeginArray();
    for (const auto& layer : layers) {
      for (const int32_t tokens : {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048}) {
        RETURN_IF_ERROR(RunShape(json, layer.name, layer.outputs, layer.depth, tokens));
      }
    }
    json.EndArray();
    return absl::OkStatus();
  }

 private:
  static constexpr int64_t kWeightBytes = int64_t{512} << 20;
  static constexpr int64_t kXBytes = int64_t{2048} * 14336;
  static constexpr int64_t kAccBytes = int64_t{4} * 2048 * 28672;

  absl::Status FillRandom() {
    std::vector<int8_t> bytes(static_cast<size_t>(kWeightBytes));
    uint64_t state = 1;
    for (int8_t& b : bytes) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      b = static_cast<int8_t>(static_cast<int32_t>(state >> 56) - 128);
      if (b == -128) b = 0;
    }
    RETURN_IF_ERROR(device_.Upload(weights_, bytes.data(), kWeightBytes));
    x_bytes_.assign(bytes.begin() + 12345, bytes.begin() + 12345 + kXBytes);
    return FillX();
  }

  absl::Status FillX() {
    RETURN_IF_ERROR(device_.Upload(x_, x_bytes_.data(), kXBytes));
    return device_.Synchronize();
  }

  absl::Status RunShape(JsonWriter& json, const char* name, int32_t outputs, int32_t depth,
                        int32_t tokens) {
    const int64_t bytes = int64_t{outputs} * depth;
    const int64_t copies = kWeightBytes / bytes;
    const auto weights = [&](int i) { return weights_ + (i % copies) * bytes; };
    const auto own = [&](int i) {
      return device_.Launched(
          device_.kernels().gemm({.weights = weights(i),
                                  .outputs = outputs,
                                  .depth = depth,
                                  .x = {x_, nullptr, static_cast<size_t>(depth)},
                                  .tokens = tokens,
                                  .splits = 1,
                                  .acc = own_,
                                  .acc_stride = static_cast<size_t>(outputs),
                                  .split_stride = 0,
                                  .plane_stride = 0},
                                 device_.stream()),
          "gemm");
    };
    CudaMatmul matmul = {.x = x_,
                         .acc = other_,
                         .outputs = outputs,
                         .tokens = tokens,
                         .depth = depth,
                         .weight_stride = depth,
                         .x_stride = depth,
                         .acc_stride = outputs,
                         .workspace = workspace_,
                         .workspace_bytes = kMatmulWorkspaceBytes};
    const auto other = [&](int i) {
      matmul.weights = weights(i);
      return device_.Matmul(matmul);
    };
    if (device_.has_matmul()) {
      matmul.weights = weights(3);
      RETURN_IF_ERROR(device_.PrepareMatmuls({matmul}, own_));
      RETURN_IF_ERROR(FillX());
    }
    const double moved =
        static_cast<double>(bytes) + static_cast<double>(tokens) * depth + 4.0 * tokens * outputs;
    const double operations = 2.0 * tokens * static_cast<double>(bytes);
    json.BeginObject();
    json.Field("layer", name);
    json.Field("outputs", outputs);
    json.Field("depth", depth);
    json.Field("tokens", tokens);
    if (device_.has_matmul()) {
      RETURN_IF_ERROR(own(3));
      RETURN_IF_ERROR(other(3));
      ASSIGN_OR_RETURN(const bool equal, Equal(int64_t{tokens} * outputs));
      json.Field("equal", equal);
      ASSIGN_OR_RETURN(const double seconds, Seconds(device_, other));
      json.Key("cublaslt");
      json.BeginObject();
      WriteShares(json, options_, moved, operations, seconds);
      json.EndObject();
    }
    if (tokens <= 4 * kSkinnyTokens) {
      ASSIGN_OR_RETURN(const double seconds, Seconds(device_, own));
      json.Key("own");
      json.BeginObject();
      WriteShares(json, options_, moved, operations, seconds);
      json.EndObject();
    }
    json.EndObject();
    return absl::OkStatus();
  }

  absl::StatusOr<bool> Equal(int64_t elements) {
    std::vector<int32_t> a(static_cast<size_t>(elements)), b(a.size());
    RETURN_IF_ERROR(device_.Download(a.data(), own_, 4 * elements));
    RETURN_IF_ERROR(device_.Download(b.data(), other_, 4 * elements));
    return a == b;
  }

  const Options& options_;
  CudaDevice& device_;
  int8_t *weights_ = nullptr, *x_ = nullptr, *workspace_ = nullptr;
  int32_t *own_ = nullptr, *other_ = nullptr;
  std::vector<int8_t> x_bytes_;
};

// Steps of a model with Llama 3 8B's layers, fewer of them, and a small vocabulary: the bytes and
// operations of the roofline are those of what runs.
absl::Status RunSteps(const Options& o, JsonWriter& json) {
  constexpr int32_t kContext = 1088, kPrompt = 1024, kVocab = 512;
  const TestModelOptions model = {.layers = o.layers,
                                  .hidden = 4096,
                                  .heads = 32,
                                  .kv_heads = 8,
                                  .head_dim = 128,
                                  .intermediate = 14336,
                                  .vocab = kVocab,
                                  .context = kContext,
                                  .qk_hadamard = true,
                                  .down_hadamard_block = 512};
  constexpr int64_t kLayerWeights =
      int64_t{4096} * 6144 + int64_t{4096} * 4096 + int64_t{3} * 4096 * 14336;
  constexpr int64_t kKvBytes = 2 * 8 * 128;  // of a token and layer
  ASSIGN_OR_RETURN(std::unique_ptr<CudaDevice> device, CreateNvidiaDevice(o.device));
  CudaDevice& timed = *device;
  ASSIGN_OR_RETURN(const std::unique_ptr<CudaExecutor> executor,
                   CudaExecutor::Create(MakeTestModel(model), std::move(device),
                                        {.max_step_tokens = kPrompt, .max_step_logits = 256}));
  std::vector<int32_t> ids(kPrompt);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i * 37 % kVocab);
  const int32_t blocks = (kContext + kKvBlockTokens - 1) / kKvBlockTokens;
  const std::vector<int32_t> first = {0}, last = {kPrompt - 1};
  std::vector<int32_t> logits(static_cast<size_t>(256) * kVocab);
  json.Key("steps");
  json.BeginArray();
  for (const int32_t batch : {0, 1, 8, 64, 256}) {  // 0: the prompt
    if (executor->limits().num_blocks < std::max(batch, 1) * blocks) continue;
    std::vector<std::vector<int32_t>> tables(static_cast<size_t>(std::max(batch, 1)));
    std::vector<SequenceChunk> chunks;
    for (size_t i = 0; i < tables.size(); ++i) {
      tables[i].resize(static_cast<size_t>(blocks));
      std::iota(tables[i].begin(), tables[i].end(), static_cast<int32_t>(i) * blocks);
      if (batch == 0) {
        chunks.push_back({ids, 0, tables[i], last});
      } else {
        chunks.push_back({absl::MakeConstSpan(ids).subspan(i, 1), kPrompt, tables[i], first});
      }
    }
    ASSIGN_OR_RETURN(const double seconds,
                     Seconds(timed, [&](int) { return executor->Forward(chunks, logits.data()); }));
    const double tokens = batch == 0 ? kPrompt : batch;
    const double keys = batch == 0 ? kPrompt / 2.0 : kPrompt;
    const double kv = (batch == 0 ? kPrompt : batch * double{kPrompt}) * kKvBytes * o.layers;
    const double weights = static_cast<double>(kLayerWeights) * o.layers;
    json.BeginObject();
    json.Field("what", batch == 0 ? "prefill 1k" : "decode at 1k");
    json.Field("batch", std::max(batch, 1));
    json.Field("layers", o.layers);
    json.Field("tokens_per_second_of_32_layers", tokens / seconds * o.layers / 32);
    WriteShares(json, o, weights + kv, 2 * tokens * (weights + keys * 2 * 4096 * o.layers),
                seconds);
    json.EndObject();
  }
  json.EndArray();
  return absl::OkStatus();
}

absl::Status Run(const Options& o) {
  JsonWriter json;
  json.BeginObject();
  json.Field("bandwidth_gb_named", o.bandwidth_gb);
  json.Field("int8_tops_named", o.int8_tops);
  {
    ASSIGN_OR_RETURN(const std::unique_ptr<CudaDevice> device, CreateNvidiaDevice(o.device));
    json.Field("multiprocessors", device->multiprocessors());
    json.Field("cublaslt", device->has_matmul());
    RETURN_IF_ERROR(Products(o, *device).Run(json));
  }
  RETURN_IF_ERROR(RunSteps(o, json));
  json.EndObject();
  std::cout << json.Take() << std::endl;
  return absl::OkStatus();
}

}  // namespace
}  // namespace fixpoint

int main(int argc, char** argv) {
  fixpoint::Options o;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    const bool ok = flag == "--device"      ? absl::SimpleAtoi(argv[i + 1], &o.device)
                    : flag == "--layers"    ? absl::SimpleAtoi(argv[i + 1], &o.layers)
                    : flag == "--bandwidth" ? absl::SimpleAtod(argv[i + 1], &o.bandwidth_gb)
                    : flag == "--int8"      ? absl::SimpleAtod(argv[i + 1], &o.int8_tops)
                                            : false;
    if (!ok) {
      std::cerr << "cuda_bench: wrong argument " << flag << " " << argv[i + 1] << std::endl;
      return 2;
    }
  }
  const absl::Status status = fixpoint::Run(o);
  if (!status.ok()) std::cerr << "cuda_bench: " << status.message() << std::endl;
  return status.ok() ? 0 : 1;
}
