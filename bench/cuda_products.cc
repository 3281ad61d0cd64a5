// int8 products of the models' layers: our kernel and cuBLASLt.
#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "bench/cuda_bench.h"

namespace fixpoint {
namespace {

constexpr int32_t kMostTokens = 2048;
constexpr int32_t kMostHeadTokens = 256;  // rows of logits
constexpr int32_t kMostSplits = 8;

struct Layer {
  std::string name;
  int64_t outputs, depth;
  int32_t most_tokens;
};

class Products {
 public:
  Products(const CudaBenchOptions& options, CudaDevice& device, std::vector<Layer> layers)
      : options_(options), device_(device), layers_(std::move(layers)) {}

  absl::Status Run() {
    RETURN_IF_ERROR(Allocate());
    for (const Layer& layer : layers_) {
      for (int32_t tokens = 1; tokens <= layer.most_tokens; tokens *= 2) {
        BenchLine line("products");
        line.json().Field("layer", layer.name);
        line.json().Field("outputs", layer.outputs);
        line.json().Field("depth", layer.depth);
        line.json().Field("tokens", tokens);
        RETURN_IF_ERROR(RunShape(layer, tokens, line.json()));
        line.Print();
      }
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Allocate() {
    for (const Layer& layer : layers_) {
      weight_bytes_ = std::max(weight_bytes_, layer.outputs * layer.depth);
      x_bytes_ = std::max(x_bytes_, layer.most_tokens * layer.depth);
      acc_elements_ = std::max(acc_elements_, layer.most_tokens * layer.outputs);
    }
    // As many copies of a layer as no cache holds, used in turn.
    if (!options_.emulated) weight_bytes_ = std::max(weight_bytes_, int64_t{512} << 20);
    ASSIGN_OR_RETURN(weights_, device_.Allocate(weight_bytes_));
    ASSIGN_OR_RETURN(x_, device_.Allocate(x_bytes_));
    ASSIGN_OR_RETURN(int8_t* const own, device_.Allocate(4 * acc_elements_));
    ASSIGN_OR_RETURN(int8_t* const other, device_.Allocate(4 * acc_elements_));
    ASSIGN_OR_RETURN(workspace_, device_.Allocate(kMatmulWorkspaceBytes));
    own_ = reinterpret_cast<int32_t*>(own);
    other_ = reinterpret_cast<int32_t*>(other);
    return FillRandom(device_, weights_, weight_bytes_, /*seed=*/1);
  }

  absl::Status RunShape(const Layer& layer, int32_t tokens, JsonWriter& json) {
    const int64_t bytes = layer.outputs * layer.depth;
    moved_ = static_cast<double>(bytes + tokens * layer.depth) +
             4.0 * static_cast<double>(tokens * layer.outputs);
    operations_ = 2.0 * tokens * static_cast<double>(bytes);
    matmul_ = {.weights = weights_,
               .x = x_,
               .acc = other_,
               .outputs = layer.outputs,
               .tokens = tokens,
               .depth = layer.depth,
               .weight_stride = layer.depth,
               .x_stride = layer.depth,
               .acc_stride = layer.outputs,
               .workspace = workspace_,
               .workspace_bytes = kMatmulWorkspaceBytes};
    if (device_.has_matmul()) RETURN_IF_ERROR(device_.PrepareMatmuls({matmul_}, own_));
    RETURN_IF_ERROR(FillRandom(device_, x_, tokens * layer.depth, /*seed=*/2));
    RETURN_IF_ERROR(RunOwn(0, 1));
    ASSIGN_OR_RETURN(const std::vector<int32_t> right, Sums(own_, 1));
    RETURN_IF_ERROR(SpotCheck(right));
    if (device_.has_matmul()) RETURN_IF_ERROR(TimeCublasLt(right, json));
    return tokens <= 4 * kSkinnyTokens ? TimeOwn(right, json) : absl::OkStatus();
  }

  absl::Status TimeCublasLt(const std::vector<int32_t>& right, JsonWriter& json) {
    RETURN_IF_ERROR(device_.Matmul(matmul_));
    ASSIGN_OR_RETURN(const std::vector<int32_t> sums, Sums(other_, 1));
    if (sums != right) return Different("cuBLASLt and our kernel differ");
    ASSIGN_OR_RETURN(const double seconds, BenchSeconds(options_, device_, 10, [&](int i) {
                       CudaMatmul matmul = matmul_;
                       matmul.weights = Weights(i);
                       return device_.Matmul(matmul);
                     }));
    Write("cublaslt", seconds, json);
    json.Field("cublaslt_algorithm", device_.MatmulName(ShapeOf(matmul_)));
    return absl::OkStatus();
  }

  // With the best split of the depth; the engine's own choice depends on the device.
  absl::Status TimeOwn(const std::vector<int32_t>& right, JsonWriter& json) {
    double least = 0;
    int32_t best = 0;
    for (int32_t splits = 1; splits <= kMostSplits; splits *= 2) {
      if (splits * matmul_.tokens * matmul_.outputs > acc_elements_) break;
      RETURN_IF_ERROR(RunOwn(0, splits));
      ASSIGN_OR_RETURN(const std::vector<int32_t> sums, Sums(own_, splits));
      if (sums != right) return Different(absl::StrCat("our kernel with ", splits, " splits"));
      ASSIGN_OR_RETURN(const double seconds, BenchSeconds(options_, device_, 10, [&](int i) {
                         return RunOwn(i, splits);
                       }));
      if (best != 0 && seconds >= least) continue;
      best = splits;
      least = seconds;
    }
    Write("own", least, json);
    json.Field("own_splits", best);
    return absl::OkStatus();
  }

  void Write(const char* name, double seconds, JsonWriter& json) {
    json.Key(name);
    json.BeginObject();
    WriteShares(options_, moved_, operations_, seconds, json);
    json.EndObject();
  }

  const int8_t* Weights(int i) const {
    const int64_t bytes = matmul_.outputs * matmul_.depth;
    return weights_ + i % (weight_bytes_ / bytes) * bytes;
  }

  absl::Status RunOwn(int i, int32_t splits) {
    const auto plane = static_cast<size_t>(matmul_.tokens * matmul_.outputs);
    return device_.Launched(
        device_.kernels().gemm({.weights = Weights(i),
                                .outputs = static_cast<int32_t>(matmul_.outputs),
                                .depth = static_cast<int32_t>(matmul_.depth),
                                .x = {x_, nullptr, static_cast<size_t>(matmul_.depth)},
                                .tokens = static_cast<int32_t>(matmul_.tokens),
                                .splits = splits,
                                .acc = own_,
                                .acc_stride = static_cast<size_t>(matmul_.outputs),
                                .split_stride = plane,
                                .plane_stride = 0},
                               device_.stream()),
        "gemm");
  }

  // [tokens][outputs], partial sums of the splits put together.
  absl::StatusOr<std::vector<int32_t>> Sums(const int32_t* acc, int32_t splits) {
    const auto plane = static_cast<size_t>(matmul_.tokens * matmul_.outputs);
    std::vector<int32_t> sums(plane * static_cast<size_t>(splits));
    RETURN_IF_ERROR(device_.Download(sums.data(), acc, 4 * static_cast<int64_t>(sums.size())));
    for (size_t i = plane; i < sums.size(); ++i) sums[i % plane] += sums[i];
    sums.resize(plane);
    return sums;
  }

  // Some elements by the definition, on the host.
  absl::Status SpotCheck(const std::vector<int32_t>& sums) {
    const auto depth = static_cast<size_t>(matmul_.depth);
    std::vector<int8_t> x(depth), w(depth);
    for (int64_t i = 0; i < 16; ++i) {
      const int64_t t = i * 7919 % matmul_.tokens, c = (i * 104729 + 5) % matmul_.outputs;
      RETURN_IF_ERROR(device_.Download(x.data(), x_ + t * matmul_.depth, matmul_.depth));
      RETURN_IF_ERROR(device_.Download(w.data(), weights_ + c * matmul_.depth, matmul_.depth));
      const int32_t sum = std::inner_product(x.begin(), x.end(), w.begin(), int32_t{0});
      if (sums[static_cast<size_t>(t * matmul_.outputs + c)] != sum) {
        return Different(absl::StrCat("our kernel and the host differ at [", t, "][", c, "]"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status Different(absl::string_view what) const {
    return absl::InternalError(absl::StrCat("product ", Describe(ShapeOf(matmul_)), ": ", what));
  }

  const CudaBenchOptions& options_;
  CudaDevice& device_;
  const std::vector<Layer> layers_;
  int64_t weight_bytes_ = 0, x_bytes_ = 0, acc_elements_ = 0;
  int8_t *weights_ = nullptr, *x_ = nullptr, *workspace_ = nullptr;
  int32_t *own_ = nullptr, *other_ = nullptr;

  // Of the shape at hand.
  CudaMatmul matmul_;
  double moved_ = 0, operations_ = 0;
};

std::vector<Layer> LayersOf(const CudaBenchOptions& options) {
  std::vector<Layer> layers;
  const int32_t most = options.emulated ? 128 : kMostTokens;
  for (const BenchModel& m : BenchModels(options)) {
    const int64_t q = int64_t{m.heads} * m.head_dim, kv = int64_t{m.kv_heads} * m.head_dim;
    const std::string model = m.name;
    layers.push_back({model + " qkv", q + 2 * kv, m.hidden, most});
    layers.push_back({model + " o", m.hidden, q, most});
    layers.push_back({model + " gate_up", int64_t{2} * m.intermediate, m.hidden, most});
    layers.push_back({model + " down", m.hidden, m.intermediate, most});
    layers.push_back({model + " head", m.vocab, m.hidden, std::min(most, kMostHeadTokens)});
  }
  return layers;
}

}  // namespace

absl::Status BenchProducts(const CudaBenchOptions& options) {
  ASSIGN_OR_RETURN(const std::unique_ptr<CudaDevice> device, OpenBenchDevice(options));
  return Products(options, *device, LayersOf(options)).Run();
}

}  // namespace fixpoint
