// Attention alone: decode of batches at 1k of context, prefill of 1k and 8k. Its two kernels share
// no code but the tables, so each is compared with the other before it is timed.
#include <algorithm>
#include <numeric>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "bench/cuda_bench.h"
#include "engine/cuda_plan.h"

namespace fixpoint {
namespace {

struct Case {
  const char* what;
  int32_t batch, tokens, position;  // tokens of each sequence, behind `position` cached ones
};

class Attention {
 public:
  Attention(const CudaBenchOptions& options, CudaDevice& device, const BenchModel& model)
      : options_(options), device_(device), model_(model) {}

  absl::Status Run(absl::Span<const Case> cases) {
    RETURN_IF_ERROR(Allocate(cases));
    for (const Case& c : cases) {
      BenchLine line("attention");
      line.json().Field("model", model_.name);
      line.json().Field("what", c.what);
      line.json().Field("batch", c.batch);
      line.json().Field("tokens", c.tokens);
      line.json().Field("context", c.position + c.tokens);
      RETURN_IF_ERROR(RunCase(c, line.json()));
      line.Print();
    }
    return absl::OkStatus();
  }

 private:
  int64_t Width() const { return int64_t{model_.heads} * model_.head_dim; }
  static int32_t BlocksOf(const Case& c) {
    return (c.position + c.tokens + kKvBlockTokens - 1) / kKvBlockTokens;
  }

  absl::Status Allocate(absl::Span<const Case> cases) {
    int64_t blocks = 0;
    for (const Case& c : cases) {
      shape_.max_tokens = std::max(shape_.max_tokens, c.batch * c.tokens);
      shape_.max_sequence_blocks = std::max(shape_.max_sequence_blocks, BlocksOf(c));
      blocks = std::max(blocks, int64_t{c.batch} * BlocksOf(c));
    }
    shape_.max_rows = 1;
    shape_.num_heads = model_.heads;
    shape_.kv_heads = model_.kv_heads;
    shape_.head_dim = model_.head_dim;
    shape_.multiprocessors = device_.multiprocessors();
    shape_.score_elements = options_.emulated ? 1 << 20 : 1 << 25;
    shape_.part_rows = shape_.score_elements / 64;
    const auto plan_bytes = static_cast<int64_t>(MaxPlanBytes(shape_));
    ASSIGN_OR_RETURN(host_plan_, device_.AllocateHost(plan_bytes));
    ASSIGN_OR_RETURN(plan_, device_.Allocate(plan_bytes));
    block_stride_ = int64_t{2} * model_.kv_heads * kKvBlockTokens * model_.head_dim;
    ASSIGN_OR_RETURN(cache_, device_.Allocate(blocks * block_stride_));
    RETURN_IF_ERROR(FillRandom(device_, cache_, blocks * block_stride_, /*seed=*/3));
    ASSIGN_OR_RETURN(q_, device_.Allocate(shape_.max_tokens * Width()));
    RETURN_IF_ERROR(FillRandom(device_, q_, shape_.max_tokens * Width(), /*seed=*/4));
    ASSIGN_OR_RETURN(out_, device_.Allocate(shape_.max_tokens * Width()));
    const auto take = [&](int64_t count, int32_t** to) -> absl::Status {
      ASSIGN_OR_RETURN(int8_t* const memory, device_.Allocate(4 * count));
      *to = reinterpret_cast<int32_t*>(memory);
      return absl::OkStatus();
    };
    RETURN_IF_ERROR(take(shape_.score_elements, &scores_));
    RETURN_IF_ERROR(take(shape_.part_rows, &maxima_));
    RETURN_IF_ERROR(take(shape_.part_rows, &denominators_));
    RETURN_IF_ERROR(take(shape_.part_rows * model_.head_dim, &sums_));
    return SetUpParameters();
  }

  absl::Status SetUpParameters() {
    const std::vector<ScoreParams> params(static_cast<size_t>(model_.heads),
                                          {.d_max = 1 << 20, .a = 6, .c = 40000, .n = 15});
    const std::vector<int16_t> multipliers(static_cast<size_t>(Width()), 30000);
    const auto params_bytes = static_cast<int64_t>(params.size() * sizeof(ScoreParams));
    ASSIGN_OR_RETURN(int8_t* const at, device_.Allocate(params_bytes));
    RETURN_IF_ERROR(device_.Upload(at, params.data(), params_bytes));
    params_ = reinterpret_cast<const ScoreParams*>(at);
    ASSIGN_OR_RETURN(int8_t* const other, device_.Allocate(2 * Width()));
    RETURN_IF_ERROR(device_.Upload(other, multipliers.data(), 2 * Width()));
    multipliers_ = reinterpret_cast<const int16_t*>(other);
    return device_.Synchronize();
  }

  absl::Status RunCase(const Case& c, JsonWriter& json) {
    // The last few tokens of each sequence are enough, and what both kernels can do.
    const int32_t compared = std::min(c.tokens, kDecodeChunkTokens);
    const Case last = {c.what, c.batch, compared, c.position + c.tokens - compared};
    ASSIGN_OR_RETURN(const std::vector<int8_t> decoded, OutputOf(last, /*decode=*/true));
    ASSIGN_OR_RETURN(const std::vector<int8_t> prefilled, OutputOf(last, /*decode=*/false));
    const bool constant =
        std::all_of(decoded.begin(), decoded.end(), [&](int8_t v) { return v == decoded[0]; });
    if (decoded != prefilled || constant) {
      return absl::InternalError(
          absl::StrCat("attention ", c.what, ", batch ", c.batch,
                       constant ? ": a result without contents" : ": the kernels differ"));
    }
    const bool decode = c.tokens <= kDecodeChunkTokens;
    RETURN_IF_ERROR(Plan(c, decode));
    ASSIGN_OR_RETURN(const double seconds, BenchSeconds(options_, device_, decode ? 10 : 2,
                                                        [&](int) { return Launch(); }));
    // Each query sees the keys up to its own; K and V of a sequence are read once, q once, and the
    // result written once. Scores and weighted sums: 2 operations a dimension each.
    const double keys = c.position + (c.tokens + 1) / 2.0;
    const double queries = static_cast<double>(c.batch) * c.tokens;
    const double bytes = static_cast<double>(c.batch) * (c.position + c.tokens) * 2 *
                             model_.kv_heads * model_.head_dim +
                         2 * queries * static_cast<double>(Width());
    WriteShares(options_, bytes, 4 * queries * keys * static_cast<double>(Width()), seconds, json);
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<int8_t>> OutputOf(const Case& c, bool decode) {
    RETURN_IF_ERROR(Plan(c, decode));
    const int64_t bytes = int64_t{c.batch} * c.tokens * Width();
    RETURN_IF_ERROR(FillRandom(device_, out_, bytes, decode ? 5 : 6));
    RETURN_IF_ERROR(Launch());
    std::vector<int8_t> out(static_cast<size_t>(bytes));
    RETURN_IF_ERROR(device_.Download(out.data(), out_, bytes));
    return out;
  }

  absl::Status Plan(const Case& c, bool decode) {
    const int32_t blocks = BlocksOf(c);
    std::vector<std::vector<int32_t>> tables(static_cast<size_t>(c.batch));
    const std::vector<int32_t> ids(static_cast<size_t>(c.tokens));
    std::vector<SequenceChunk> chunks;
    for (size_t i = 0; i < tables.size(); ++i) {
      tables[i].resize(static_cast<size_t>(blocks));
      std::iota(tables[i].begin(), tables[i].end(), static_cast<int32_t>(i) * blocks);
      chunks.push_back({ids, c.position, tables[i], {}});
    }
    CudaPlanShape shape = shape_;
    if (!decode) shape.score_elements = 0;
    planned_ = MakePlan(shape, chunks, host_plan_);
    const bool fits = decode ? planned_.num_prefill_tiles == 0 : planned_.num_decode_tiles == 0;
    if (!fits) return absl::InternalError(absl::StrCat("attention ", c.what, ": no room"));
    RETURN_IF_ERROR(device_.Upload(plan_, host_plan_, static_cast<int64_t>(planned_.used_bytes)));
    return device_.Synchronize();
  }

  template <typename T>
  const T* InPlan(size_t offset) const {
    return reinterpret_cast<const T*>(plan_ + offset);
  }

  absl::Status Launch() {
    const bool decode = planned_.num_decode_tiles > 0;
    const CudaAttentionArgs args = {
        .q = q_,
        .q_stride = static_cast<size_t>(Width()),
        .num_heads = model_.heads,
        .kv_heads = model_.kv_heads,
        .head_dim = model_.head_dim,
        .tiles = InPlan<AttentionTile>(decode ? planned_.decode_tiles : planned_.prefill_tiles),
        .num_tiles = decode ? planned_.num_decode_tiles : planned_.num_prefill_tiles,
        .block_tables = InPlan<int32_t>(planned_.block_tables),
        .cache = {cache_, static_cast<size_t>(block_stride_)},
        .prefix_k = nullptr,
        .prefix_v = nullptr,
        .prefix_tokens = 0,
        .scores = params_,
        .requantize = {multipliers_, 0, 14},
        .out = {out_, nullptr, static_cast<size_t>(Width())}};
    if (!decode) {
      return device_.Launched(device_.kernels().attend_prefill(args, device_.stream()),
                              "attend_prefill");
    }
    return device_.Launched(device_.kernels().attend_decode({.attention = args,
                                                             .split_blocks = planned_.split_blocks,
                                                             .splits = planned_.splits,
                                                             .row_stride = planned_.row_stride,
                                                             .score_keys = planned_.score_keys,
                                                             .scores = scores_,
                                                             .maxima = maxima_,
                                                             .denominators = denominators_,
                                                             .sums = sums_},
                                                            device_.stream()),
                            "attend_decode");
  }

  const CudaBenchOptions& options_;
  CudaDevice& device_;
  const BenchModel model_;
  CudaPlanShape shape_;
  CudaPlan planned_;
  int64_t block_stride_ = 0;
  int8_t *host_plan_ = nullptr, *plan_ = nullptr, *cache_ = nullptr, *q_ = nullptr, *out_ = nullptr;
  int32_t *scores_ = nullptr, *maxima_ = nullptr, *denominators_ = nullptr, *sums_ = nullptr;
  const ScoreParams* params_ = nullptr;
  const int16_t* multipliers_ = nullptr;
};

}  // namespace

absl::Status BenchAttention(const CudaBenchOptions& options) {
  static constexpr Case kCases[] = {{"decode at 1k", 1, 1, 1023},  {"decode at 1k", 8, 1, 1023},
                                    {"decode at 1k", 64, 1, 1023}, {"decode at 1k", 256, 1, 1023},
                                    {"prefill 1k", 1, 1024, 0},    {"prefill 8k", 1, 8192, 0}};
  static constexpr Case kTiny[] = {{"decode at 100", 3, 1, 99}, {"prefill 70", 1, 70, 0}};
  for (const BenchModel& model : BenchModels(options)) {
    ASSIGN_OR_RETURN(const std::unique_ptr<CudaDevice> device, OpenBenchDevice(options));
    RETURN_IF_ERROR(
        Attention(options, *device, model)
            .Run(options.emulated ? absl::MakeConstSpan(kTiny) : absl::MakeConstSpan(kCases)));
  }
  return absl::OkStatus();
}

}  // namespace fixpoint
