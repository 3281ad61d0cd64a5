#include "engine/cuda_rank.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "engine/cpu_executor.h"

namespace fixpoint {
namespace {

constexpr int64_t kAlignBytes = 256;

int64_t RoundUp(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

class Carver {
 public:
  explicit Carver(int8_t* memory) : memory_(memory) {}
  template <typename T>
  T* Take(int64_t count) {
    int8_t* at = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += RoundUp(count * static_cast<int64_t>(sizeof(T)), kAlignBytes);
    return reinterpret_cast<T*>(at);
  }
  ActivationPlanes TakePlanes(int64_t rows, int64_t width) {
    const int64_t stride = RoundUp(width, kGemmDepthStep);
    int8_t* hi = Take<int8_t>(rows * stride);
    return {hi, Take<int8_t>(rows * stride), static_cast<size_t>(stride)};
  }
  int64_t used() const { return used_; }

 private:
  int8_t* const memory_;
  int64_t used_ = 0;
};

ActivationPlanes Site(const ActivationPlanes& planes, bool wide) {
  return {planes.hi, wide ? planes.lo : nullptr, planes.stride};
}

ActivationPlanes RowsFrom(const ActivationPlanes& planes, int32_t first) {
  const size_t offset = static_cast<size_t>(first) * planes.stride;
  return {planes.hi + offset, planes.lo == nullptr ? nullptr : planes.lo + offset, planes.stride};
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaRank>> CudaRank::Create(IntegerModel model,
                                                           std::unique_ptr<CudaDevice> device,
                                                           const CudaPlanShape& shape,
                                                           const CudaRankOptions& options) {
  CudaRankOptions possible = options;
  possible.use_matmul = options.use_matmul && device->has_matmul();
  std::unique_ptr<CudaRank> rank(new CudaRank(std::move(device), model.config, shape, possible));
  RETURN_IF_ERROR(rank->SetUp(std::move(model)));
  return rank;
}

absl::Status CudaRank::SetUp(IntegerModel model) {
  block_bytes_ = KvBlockBytes(config_);
  layer_bytes_ = block_bytes_ / config_.num_hidden_layers;
  const int64_t model_bytes = CudaModelBytes(model);
  const int64_t bytes = model_bytes + LayOutScratch(nullptr);
  ASSIGN_OR_RETURN(const int64_t free_bytes, device_->FreeBytes());
  if (free_bytes < bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the device has ", free_bytes, " bytes free; the model and a step need ", bytes));
  }
  ASSIGN_OR_RETURN(int8_t* const memory, device_->Allocate(bytes));
  LayOutScratch(memory + model_bytes);
  RETURN_IF_ERROR(UploadModel(model, *device_, memory, &cuda_model_));
  if (options_.use_matmul) RETURN_IF_ERROR(PrepareMatmuls());
  return device_->Synchronize();
}

// Every product that LargeLinear can ask for: the layers' four, of one shape in all layers, and the
// head's, with each padded number of rows.
absl::Status CudaRank::PrepareMatmuls() {
  std::vector<CudaMatmul> matmuls;
  const auto add = [&](const LlamaLinear& linear, const ActivationPlanes& x, int64_t most_rows) {
    const int64_t most = PaddedTokens(most_rows);
    for (int64_t rows = PaddedTokens(kSkinnyTokens / 2 + 1); rows <= most;
         rows = PaddedTokens(rows + 1)) {
      matmuls.push_back(MatmulOf(linear, x, rows));
    }
  };
  // A slice of one plane has at least the tokens of one of two.
  const auto add_sliced = [&](const LlamaLinear& linear, const ActivationPlanes& x) {
    add(linear, x, SliceTokens(linear, /*wide=*/false, shape_.max_tokens));
  };
  // What crosses ranks is not cut into slices.
  const auto add_crossing = [&](const LlamaLinear& linear, const ActivationPlanes& x) {
    if (!options_.partial_sums) return add_sliced(linear, x);
    add(linear, x, shape_.max_tokens);
  };
  const LlamaModel& m = cuda_model_.llama;
  add_sliced(m.layers[0].qkv, scratch_.normed);
  add_crossing(m.layers[0].o_proj, scratch_.attended);
  add_sliced(m.layers[0].gate_up, scratch_.normed);
  add_crossing(m.layers[0].down_proj, scratch_.activated);
  add(m.head, scratch_.head_in, shape_.max_rows);
  // One plane takes the lower half of the accumulators at most.
  return device_->PrepareMatmuls(matmuls, scratch_.acc + scratch_.acc_elements / 2);
}

absl::StatusOr<int64_t> CudaRank::FreeBlocks() {
  ASSIGN_OR_RETURN(const int64_t free_bytes, device_->FreeBytes());
  const int64_t blocks = free_bytes / 10 * 9 / block_bytes_;
  if (blocks > 0) return blocks;
  return absl::ResourceExhaustedError(
      absl::StrCat("the device has ", free_bytes,
                   " bytes free behind model and step; one KV block needs ", block_bytes_));
}

absl::Status CudaRank::AllocateCache(int64_t blocks) {
  ASSIGN_OR_RETURN(kv_base_, device_->Allocate(blocks * block_bytes_));
  return absl::OkStatus();
}

int64_t CudaRank::LayOutScratch(int8_t* memory) {
  const ModelConfig& c = config_;
  // Products are done with some rows more (PaddedTokens); what they read there is of no account.
  const int64_t tokens = PaddedTokens(shape_.max_tokens), rows = PaddedTokens(shape_.max_rows);
  const int64_t q_width = int64_t{c.num_attention_heads} * c.head_dim;
  const int64_t kv_width = int64_t{c.num_key_value_heads} * c.head_dim;
  const int64_t widest =
      std::max({q_width + 2 * kv_width, int64_t{2} * c.intermediate_size, int64_t{c.hidden_size}});
  Scratch& s = scratch_;
  Carver carver(memory);
  s.plan = carver.Take<int8_t>(static_cast<int64_t>(MaxPlanBytes(shape_)));
  s.h = carver.Take<int32_t>(tokens * c.hidden_size);
  s.normed = carver.TakePlanes(tokens, c.hidden_size);
  s.attended = carver.TakePlanes(tokens, q_width);
  s.activated = carver.TakePlanes(tokens, c.intermediate_size);
  s.head_in = carver.TakePlanes(rows, c.hidden_size);
  s.q_stride = static_cast<size_t>(RoundUp(q_width, kGemmDepthStep));
  s.q = carver.Take<int8_t>(tokens * static_cast<int64_t>(s.q_stride));
  // Both planes of the largest step; steps of few tokens use what is left for splits.
  s.acc_elements = 2 * std::max(tokens * RoundUp(widest, kGemmOutputStep),
                                rows * RoundUp(c.vocab_size, kGemmOutputStep));
  s.acc = carver.Take<int32_t>(s.acc_elements);
  s.logits = carver.Take<int32_t>(rows * c.vocab_size);
  s.tokens = carver.Take<int32_t>(rows);
  s.scores = carver.Take<int32_t>(shape_.score_elements);
  s.maxima = carver.Take<int32_t>(shape_.part_rows);
  s.denominators = carver.Take<int32_t>(shape_.part_rows);
  s.sums = carver.Take<int32_t>(shape_.part_rows * c.head_dim);
  s.workspace_bytes = options_.use_matmul ? kMatmulWorkspaceBytes : 0;
  s.workspace = carver.Take<int8_t>(s.workspace_bytes);
  return carver.used();
}

absl::Status CudaRank::Upload(const CudaPlan& plan, const int8_t* host_plan) {
  return device_->Upload(scratch_.plan, host_plan, static_cast<int64_t>(plan.used_bytes));
}

absl::Status CudaRank::Run(const CudaPlan& plan, int32_t part) {
  const LlamaModel& m = cuda_model_.llama;
  const int32_t index = part / 2;
  RETURN_IF_ERROR(device_->Use());
  if (part % 2 == 1) return Mlp(plan, index);
  if (index == 0) {
    RETURN_IF_ERROR(Embed(plan));
  } else if (options_.partial_sums) {
    RETURN_IF_ERROR(AfterMlp(index - 1, 0, plan.tokens));
  }
  if (index < m.num_layers) return Attention(plan, index);
  return plan.num_rows > 0 ? Head(plan) : absl::OkStatus();
}

absl::Span<int32_t> CudaRank::partial_sums() {
  const size_t plane = static_cast<size_t>(tokens_) * sums_.stride;
  return {scratch_.acc, sums_.plane_stride == 0 ? plane : 2 * plane};
}

absl::Status CudaRank::DownloadLogits(int32_t first, int32_t rows, int64_t stride,
                                      int32_t* logits) {
  const int64_t row_bytes = config_.vocab_size * static_cast<int64_t>(sizeof(int32_t));
  return device_->DownloadRows(logits, stride * static_cast<int64_t>(sizeof(int32_t)),
                               scratch_.logits + int64_t{first} * config_.vocab_size, row_bytes,
                               rows);
}

absl::Status CudaRank::EnqueueTokens(int32_t rows, int32_t* tokens) {
  return device_->EnqueueDownload(tokens, scratch_.tokens,
                                  rows * static_cast<int64_t>(sizeof(int32_t)));
}

absl::Status CudaRank::Embed(const CudaPlan& plan) {
  const LlamaModel& m = cuda_model_.llama;
  const EmbedArgs embed = {.table = m.embedding,
                           .requantize = m.embedding_requantize,
                           .token_ids = InPlan<int32_t>(plan.token_ids),
                           .tokens = plan.tokens,
                           .hidden = m.hidden_size,
                           .h = scratch_.h};
  return device_->Launched(
      device_->kernels().embed({embed, NormInto(m.layers[0].attn_norm, scratch_.normed)},
                               device_->stream()),
      "embed");
}

absl::Status CudaRank::Residual(const WideParams& requantize, const LlamaNorm* norm, int32_t first,
                                int32_t tokens) {
  const int32_t hidden = cuda_model_.llama.hidden_size;
  return device_->Launched(
      device_->kernels().residual(
          {sums_, tokens, hidden, requantize, scratch_.h + int64_t{first} * hidden,
           norm == nullptr ? CudaNorm{} : NormInto(*norm, RowsFrom(scratch_.normed, first))},
          device_->stream()),
      "residual");
}

absl::Status CudaRank::AfterAttention(int32_t index, int32_t first, int32_t tokens) {
  const LlamaLayer& layer = cuda_model_.llama.layers[index];
  return Residual(layer.o_requantize, &layer.mlp_norm, first, tokens);
}

// The last layer's norm is that of the rows which are wanted: Head.
absl::Status CudaRank::AfterMlp(int32_t index, int32_t first, int32_t tokens) {
  const LlamaModel& m = cuda_model_.llama;
  const bool last = index + 1 == m.num_layers;
  return Residual(m.layers[index].down_requantize, last ? nullptr : &m.layers[index + 1].attn_norm,
                  first, tokens);
}

absl::Status CudaRank::Attention(const CudaPlan& plan, int32_t index) {
  const LlamaModel& m = cuda_model_.llama;
  const LlamaLayer& layer = m.layers[index];
  const KvLayer cache = {kv_base_ + index * layer_bytes_, static_cast<size_t>(block_bytes_)};
  const auto rotate = [&](int32_t first, int32_t tokens) {
    return device_->Launched(
        device_->kernels().rotate({.acc = sums_,
                                   .tokens = tokens,
                                   .num_heads = m.num_attention_heads,
                                   .kv_heads = m.num_key_value_heads,
                                   .head_dim = m.head_dim,
                                   .q_before = layer.q_before,
                                   .q_after = layer.q_after,
                                   .k_before = layer.k_before,
                                   .k_after = layer.k_after,
                                   .v = layer.v,
                                   .cos = m.rope_cos,
                                   .sin = m.rope_sin,
                                   .rope_begin = m.prefix_tokens,
                                   .hadamard = m.qk_hadamard,
                                   .positions = InPlan<int32_t>(plan.positions) + first,
                                   .blocks = InPlan<int32_t>(plan.blocks) + first,
                                   .q = scratch_.q + static_cast<size_t>(first) * scratch_.q_stride,
                                   .q_stride = scratch_.q_stride,
                                   .cache = cache},
                                  device_->stream()),
        "rotate");
  };
  RETURN_IF_ERROR(InSlices(layer.qkv, scratch_.normed, layer.attn_norm.wide, plan.tokens, rotate));
  RETURN_IF_ERROR(Attend(plan, layer, cache));
  if (options_.partial_sums) {
    return Linear(layer.o_proj, scratch_.attended, layer.attn_out_wide, plan.tokens,
                  SumOver::kAllRanks);
  }
  return InSlices(
      layer.o_proj, scratch_.attended, layer.attn_out_wide, plan.tokens,
      [&](int32_t first, int32_t tokens) { return AfterAttention(index, first, tokens); });
}

absl::Status CudaRank::Mlp(const CudaPlan& plan, int32_t index) {
  const LlamaModel& m = cuda_model_.llama;
  const LlamaLayer& layer = m.layers[index];
  if (options_.partial_sums) RETURN_IF_ERROR(AfterAttention(index, 0, plan.tokens));
  const auto swiglu = [&](int32_t first, int32_t tokens) {
    return device_->Launched(
        device_->kernels().swiglu(
            {sums_, tokens, m.intermediate_size, layer.gate, layer.up, layer.sigmoid_multiplier,
             layer.sigmoid_shift, layer.product_shift, m.down_hadamard_block, layer.down_in,
             RowsFrom(Site(scratch_.activated, layer.down_in_wide), first)},
            device_->stream()),
        "swiglu");
  };
  RETURN_IF_ERROR(
      InSlices(layer.gate_up, scratch_.normed, layer.mlp_norm.wide, plan.tokens, swiglu));
  if (options_.partial_sums) {
    return Linear(layer.down_proj, scratch_.activated, layer.down_in_wide, plan.tokens,
                  SumOver::kAllRanks);
  }
  return InSlices(layer.down_proj, scratch_.activated, layer.down_in_wide, plan.tokens,
                  [&](int32_t first, int32_t tokens) { return AfterMlp(index, first, tokens); });
}

absl::Status CudaRank::Attend(const CudaPlan& plan, const LlamaLayer& layer, const KvLayer& cache) {
  const LlamaModel& m = cuda_model_.llama;
  CudaAttentionArgs args = {.q = scratch_.q,
                            .q_stride = scratch_.q_stride,
                            .num_heads = m.num_attention_heads,
                            .kv_heads = m.num_key_value_heads,
                            .head_dim = m.head_dim,
                            .tiles = InPlan<AttentionTile>(plan.prefill_tiles),
                            .num_tiles = plan.num_prefill_tiles,
                            .block_tables = InPlan<int32_t>(plan.block_tables),
                            .cache = cache,
                            .prefix_k = layer.prefix_k,
                            .prefix_v = layer.prefix_v,
                            .prefix_tokens = m.prefix_tokens,
                            .scores = layer.scores,
                            .requantize = layer.attn_out,
                            .out = Site(scratch_.attended, layer.attn_out_wide)};
  if (plan.num_prefill_tiles > 0) {
    RETURN_IF_ERROR(device_->Launched(device_->kernels().attend_prefill(args, device_->stream()),
                                      "attend_prefill"));
  }
  if (plan.num_decode_tiles == 0) return absl::OkStatus();
  args.tiles = InPlan<AttentionTile>(plan.decode_tiles);
  args.num_tiles = plan.num_decode_tiles;
  return device_->Launched(device_->kernels().attend_decode({.attention = args,
                                                             .split_blocks = plan.split_blocks,
                                                             .splits = plan.splits,
                                                             .row_stride = plan.row_stride,
                                                             .score_keys = plan.score_keys,
                                                             .scores = scratch_.scores,
                                                             .maxima = scratch_.maxima,
                                                             .denominators = scratch_.denominators,
                                                             .sums = scratch_.sums},
                                                            device_->stream()),
                           "attend_decode");
}

absl::Status CudaRank::Head(const CudaPlan& plan) {
  const LlamaModel& m = cuda_model_.llama;
  const CudaKernels& kernels = device_->kernels();
  RETURN_IF_ERROR(device_->Launched(
      kernels.gather_norm({scratch_.h, InPlan<int32_t>(plan.rows), plan.num_rows, m.hidden_size,
                           NormInto(m.final_norm, scratch_.head_in)},
                          device_->stream()),
      "gather_norm"));
  RETURN_IF_ERROR(
      Linear(m.head, scratch_.head_in, m.final_norm.wide, plan.num_rows, SumOver::kThisRank));
  RETURN_IF_ERROR(device_->Launched(
      kernels.logits({sums_, plan.num_rows, m.vocab_size, m.head_requantize, scratch_.logits},
                     device_->stream()),
      "logits"));
  if (options_.partial_sums) return absl::OkStatus();
  // Also where all logits are wanted: a graph serves steps of either kind.
  return device_->Launched(kernels.sample({scratch_.logits, plan.num_rows, m.vocab_size,
                                           InPlan<CudaSampleRow>(plan.choices), scratch_.tokens},
                                          device_->stream()),
                           "sample");
}

template <typename Consume>
absl::Status CudaRank::InSlices(const LlamaLinear& linear, const ActivationPlanes& x, bool wide,
                                int32_t tokens, Consume consume) {
  const int32_t slice = SliceTokens(linear, wide, tokens);
  for (int32_t first = 0; first < tokens; first += slice) {
    const int32_t count = std::min(slice, tokens - first);
    RETURN_IF_ERROR(Linear(linear, RowsFrom(x, first), wide, count, SumOver::kThisRank));
    RETURN_IF_ERROR(consume(first, count));
  }
  return absl::OkStatus();
}

// Slices of a padded count: the steps of PaddedTokens are powers of two, so that the last slice's
// padding ends no later than the whole step's would.
int32_t CudaRank::SliceTokens(const LlamaLinear& linear, bool wide, int32_t tokens) const {
  const int64_t row_bytes =
      int64_t{wide ? 2 : 1} * linear.outputs * static_cast<int64_t>(sizeof(int32_t));
  const int64_t fitting = device_->l2_bytes() / 4 * 3 / row_bytes;
  if (PaddedTokens(tokens) <= fitting) return tokens;
  int64_t slice = PaddedTokens(options_.least_slice_tokens);
  while (PaddedTokens(slice + 1) <= fitting) slice = PaddedTokens(slice + 1);
  return static_cast<int32_t>(std::min<int64_t>(slice, tokens));
}

absl::Status CudaRank::Linear(const LlamaLinear& linear, const ActivationPlanes& x, bool wide,
                              int32_t tokens, SumOver sum_over) {
  const ActivationPlanes site = Site(x, wide);
  const int32_t planes = wide ? 2 : 1;
  tokens_ = tokens;
  if (options_.use_matmul && tokens * planes > kSkinnyTokens)
    return LargeLinear(linear, site, tokens);
  const auto stride = static_cast<size_t>(linear.outputs);
  // What crosses ranks is not split again: their parts of the depth are splits already, and each
  // further one would cross too.
  const bool crosses = options_.partial_sums && sum_over == SumOver::kAllRanks;
  const int32_t splits = crosses ? 1 : Splits(linear, tokens, planes);
  const size_t split_stride = static_cast<size_t>(tokens) * stride;
  const size_t plane_stride = split_stride * static_cast<size_t>(splits);
  sums_ = {.data = scratch_.acc,
           .stride = stride,
           .split_stride = split_stride,
           .plane_stride = wide ? plane_stride : 0,
           .splits = splits,
           .bias = linear.bias};
  return device_->Launched(
      device_->kernels().gemm({.weights = static_cast<const int8_t*>(linear.packed),
                               .outputs = linear.outputs,
                               .depth = linear.depth,
                               .x = site,
                               .tokens = tokens,
                               .splits = splits,
                               .acc = scratch_.acc,
                               .acc_stride = stride,
                               .split_stride = split_stride,
                               .plane_stride = plane_stride},
                              device_->stream()),
      "gemm");
}

CudaMatmul CudaRank::MatmulOf(const LlamaLinear& linear, const ActivationPlanes& x,
                              int64_t rows) const {
  return {.weights = static_cast<const int8_t*>(linear.packed),
          .x = x.hi,
          .acc = scratch_.acc,
          .outputs = linear.outputs,
          .tokens = rows,
          .depth = linear.depth,
          .weight_stride = linear.depth,
          .x_stride = static_cast<int64_t>(x.stride),
          .acc_stride = linear.outputs,
          .workspace = scratch_.workspace,
          .workspace_bytes = scratch_.workspace_bytes};
}

// The second plane begins in the padding of the first, which nobody reads: so no padding crosses
// ranks (partial_sums).
absl::Status CudaRank::LargeLinear(const LlamaLinear& linear, const ActivationPlanes& x,
                                   int32_t tokens) {
  const int64_t rows = PaddedTokens(tokens);
  const auto stride = static_cast<size_t>(linear.outputs);
  const size_t plane_stride = static_cast<size_t>(tokens) * stride;
  CHECK_LE((rows + (x.lo == nullptr ? 0 : tokens)) * linear.outputs, scratch_.acc_elements);
  CudaMatmul matmul = MatmulOf(linear, x, rows);
  RETURN_IF_ERROR(device_->Matmul(matmul));
  if (x.lo != nullptr) {
    matmul.x = x.lo;
    matmul.acc = scratch_.acc + plane_stride;
    RETURN_IF_ERROR(device_->Matmul(matmul));
  }
  sums_ = {.data = scratch_.acc,
           .stride = stride,
           .split_stride = plane_stride,
           .plane_stride = x.lo == nullptr ? 0 : plane_stride,
           .splits = 1,
           .bias = linear.bias};
  return absl::OkStatus();
}

// Ranges of the depth, so that each multiprocessor has two blocks of the grid to work on: a matrix
// of 4096 outputs has 256 rows of tiles only. A range has a step for each of the block's warps at
// least, and the partial sums have to fit.
int32_t CudaRank::Splits(const LlamaLinear& linear, int32_t tokens, int32_t planes) const {
  constexpr int64_t kStepsOfBlock = 8;
  const int64_t columns = int64_t{tokens} * planes;
  const int64_t rows = columns <= 16 ? 16 : columns <= 32 ? 32 : 48;  // of kernels/cuda/gemm.cu
  const int64_t blocks = CeilDiv(linear.outputs, rows) * CeilDiv(columns, kSkinnyTokens);
  const int64_t wanted = CeilDiv(int64_t{2} * device_->multiprocessors(), blocks);
  const int64_t steps = linear.depth / kGemmDepthStep;
  const int64_t fitting = scratch_.acc_elements / (columns * linear.outputs);
  return static_cast<int32_t>(
      std::clamp<int64_t>(std::min({wanted, steps / kStepsOfBlock, fitting}), 1, 64));
}

CudaNorm CudaRank::NormInto(const LlamaNorm& norm, const ActivationPlanes& out) const {
  return {cuda_model_.llama.norm_epsilon, norm.fraction_bits, norm.multipliers, norm.k,
          Site(out, norm.wide)};
}

}  // namespace fixpoint
