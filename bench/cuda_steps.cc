// Whole steps of CudaExecutor: decode of batches at 1k of context, prefill of 1k and 8k. Random
// models with the real layers' shapes, fewer of them and a small vocabulary: the bytes and
// operations are those of what runs.
#include <algorithm>
#include <memory>
#include <numeric>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "bench/cuda_bench.h"
#include "bundle/test_model.h"
#include "engine/cuda_executor.h"

namespace fixpoint {
namespace {

constexpr int32_t kVocab = 512;

struct Case {
  const char* what;
  int32_t batch, tokens, position;
};

class Steps {
 public:
  Steps(const CudaBenchOptions& options, const BenchModel& model)
      : options_(options), model_(model), layers_(options.emulated ? 1 : options.layers) {}

  absl::Status Run(absl::Span<const Case> cases, int32_t step_tokens) {
    int32_t context = 0, batch = 1;
    for (const Case& c : cases) {
      context = std::max(context, c.position + c.tokens);
      batch = std::max(batch, c.batch);
    }
    ASSIGN_OR_RETURN(std::unique_ptr<CudaDevice> device, OpenBenchDevice(options_));
    device_ = device.get();
    ASSIGN_OR_RETURN(executor_,
                     CudaExecutor::Create(MakeModel(context), std::move(device),
                                          {.kv_cache_bytes = options_.emulated ? 1 << 20 : 0,
                                           .max_step_tokens = step_tokens,
                                           .max_step_logits = batch}));
    logits_.resize(static_cast<size_t>(batch) * kVocab);
    ids_.resize(static_cast<size_t>(context));
    for (size_t i = 0; i < ids_.size(); ++i) ids_[i] = static_cast<int32_t>(i * 37 % kVocab);
    RETURN_IF_ERROR(CheckChunks());
    for (const Case& c : cases) RETURN_IF_ERROR(RunCase(c));
    return absl::OkStatus();
  }

 private:
  IntegerModel MakeModel(int32_t context) const {
    return MakeTestModel({.layers = layers_,
                          .hidden = model_.hidden,
                          .heads = model_.heads,
                          .kv_heads = model_.kv_heads,
                          .head_dim = model_.head_dim,
                          .intermediate = model_.intermediate,
                          .vocab = kVocab,
                          .context = context,
                          .qk_hadamard = true,
                          .down_hadamard_block = options_.emulated ? 8 : 256});
  }

  // Tokens [c.position, c.position + c.tokens) of each sequence, at most a step's at once.
  absl::Status Forward(const Case& c) {
    const int32_t blocks = (c.position + c.tokens + kKvBlockTokens - 1) / kKvBlockTokens;
    for (int32_t done = 0; done < c.tokens;) {
      const int32_t now = std::min(c.tokens - done, executor_->limits().max_step_tokens / c.batch);
      const std::vector<int32_t> last = {now - 1};
      std::vector<std::vector<int32_t>> tables(static_cast<size_t>(c.batch));
      std::vector<SequenceChunk> chunks;
      for (size_t i = 0; i < tables.size(); ++i) {
        tables[i].resize(static_cast<size_t>(blocks));
        std::iota(tables[i].begin(), tables[i].end(), static_cast<int32_t>(i) * blocks);
        const auto begin = static_cast<size_t>(c.position + done);
        chunks.push_back({absl::MakeConstSpan(ids_).subspan(begin, static_cast<size_t>(now)),
                          c.position + done, tables[i], last});
      }
      RETURN_IF_ERROR(executor_->Forward(chunks, logits_.data()));
      done += now;
    }
    return absl::OkStatus();
  }

  // A prompt of 100 tokens as one chunk (cuBLASLt and the prefill kernel) and token by token (our
  // own kernels): the same logits.
  absl::Status CheckChunks() {
    constexpr int32_t kTokens = 100;
    RETURN_IF_ERROR(Forward({"", 1, kTokens, 0}));
    const std::vector<int32_t> whole(logits_.begin(), logits_.begin() + kVocab);
    for (int32_t t = 0; t < kTokens; ++t) RETURN_IF_ERROR(Forward({"", 1, 1, t}));
    if (std::equal(whole.begin(), whole.end(), logits_.begin())) return absl::OkStatus();
    return absl::InternalError(
        absl::StrCat(model_.name, ": a prompt and its tokens one by one give different logits"));
  }

  absl::Status RunCase(const Case& c) {
    const int64_t blocks = (c.position + c.tokens + kKvBlockTokens - 1) / kKvBlockTokens;
    if (executor_->limits().num_blocks < c.batch * blocks) return absl::OkStatus();  // no memory
    const bool decode = c.tokens == 1;
    ASSIGN_OR_RETURN(const double seconds, BenchSeconds(options_, *device_, decode ? 10 : 1,
                                                        [&](int) { return Forward(c); }));
    const double tokens = static_cast<double>(c.batch) * c.tokens;
    const double keys = c.position + (c.tokens + 1) / 2.0;
    const double width = static_cast<double>(model_.heads) * model_.head_dim;
    const double kv_width = static_cast<double>(model_.kv_heads) * model_.head_dim;
    const double weights = layers_ * (model_.hidden * (2 * width + 2 * kv_width) +
                                      3.0 * model_.hidden * model_.intermediate) +
                           static_cast<double>(kVocab) * model_.hidden;
    const double kv =
        static_cast<double>(c.batch) * (c.position + c.tokens) * 2 * kv_width * layers_;
    BenchLine line("steps");
    JsonWriter& json = line.json();
    json.Field("model", model_.name);
    json.Field("what", c.what);
    json.Field("batch", c.batch);
    json.Field("tokens", c.tokens);
    json.Field("context", c.position + c.tokens);
    json.Field("layers", layers_);
    json.Field("tokens_per_second", tokens / seconds);
    json.Field("tokens_per_second_of_32_layers", tokens / seconds * layers_ / 32);
    WriteShares(options_, weights + kv, 2 * tokens * weights + 4 * tokens * keys * width * layers_,
                seconds, json);
    line.Print();
    return absl::OkStatus();
  }

  const CudaBenchOptions& options_;
  const BenchModel model_;
  const int32_t layers_;
  CudaDevice* device_ = nullptr;  // the executor's
  std::unique_ptr<CudaExecutor> executor_;
  std::vector<int32_t> ids_, logits_;
};

}  // namespace

absl::Status BenchSteps(const CudaBenchOptions& options) {
  static constexpr Case kCases[] = {{"decode at 1k", 1, 1, 1023},  {"decode at 1k", 8, 1, 1023},
                                    {"decode at 1k", 64, 1, 1023}, {"decode at 1k", 256, 1, 1023},
                                    {"prefill 1k", 1, 1024, 0},    {"prefill 8k", 1, 8192, 0}};
  static constexpr Case kTiny[] = {{"decode at 100", 2, 1, 99}, {"prefill 100", 1, 100, 0}};
  for (const BenchModel& model : BenchModels(options)) {
    Steps steps(options, model);
    RETURN_IF_ERROR(options.emulated ? steps.Run(kTiny, 128) : steps.Run(kCases, 2048));
  }
  return absl::OkStatus();
}

}  // namespace fixpoint
