#include "engine/cuda_rank.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
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

}  // namespace

absl::StatusOr<std::unique_ptr<CudaRank>> CudaRank::Create(IntegerModel model,
                                                           std::unique_ptr<CudaDevice> device,
                                                           const CudaPlanShape& shape,
                                                           const CudaRankOptions& options) {
  std::unique_ptr<CudaRank> rank(
      new CudaRank(std::move(device), model.config, shape, options.partial_sums));
  rank->use_matmul_ = options.use_matmul && rank->device_->has_matmul();
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
  return device_->Synchronize();
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
  const int64_t tokens = shape_.max_tokens, rows = shape_.max_rows;
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
  s.workspace_bytes = use_matmul_ ? kMatmulWorkspaceBytes : 0;
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
  } else {
    // The last layer's norm is that of the rows which are wanted: Head.
    RETURN_IF_ERROR(Residual(plan, m.layers[index - 1].down_requantize,
                             index == m.num_layers ? nullptr : &m.layers[index].attn_norm));
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

absl::Status CudaRank::Residual(const CudaPlan& plan, const WideParams& requantize,
                                const LlamaNorm* norm) {
  return device_->Launched(
      device_->kernels().residual(
          {sums_, plan.tokens, cuda_model_.llama.hidden_size, requantize, scratch_.h,
           norm == nullptr ? CudaNorm{} : NormInto(*norm, scratch_.normed)},
          device_->stream()),
      "residual");
}

absl::Status CudaRank::Attention(const CudaPlan& plan, int32_t index) {
  const LlamaModel& m = cuda_model_.llama;
  const LlamaLayer& layer = m.layers[index];
  const KvLayer cache = {kv_base_ + index * layer_bytes_, static_cast<size_t>(block_bytes_)};
  RETURN_IF_ERROR(
      Linear(layer.qkv, scratch_.normed, layer.attn_norm.wide, plan.tokens, SumOver::kThisRank));
  RETURN_IF_ERROR(
      device_->Launched(device_->kernels().rotate({.acc = sums_,
                                                   .tokens = plan.tokens,
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
                                                   .positions = InPlan<int32_t>(plan.positions),
                                                   .blocks = InPlan<int32_t>(plan.blocks),
                                                   .q = scratch_.q,
                                                   .q_stride = scratch_.q_stride,
                                                   .cache = cache},
                                                  device_->stream()),
                        "rotate"));
  RETURN_IF_ERROR(Attend(plan, layer, cache));
  return Linear(layer.o_proj, scratch_.attended, layer.attn_out_wide, plan.tokens,
                SumOver::kAllRanks);
}

absl::Status CudaRank::Mlp(const CudaPlan& plan, int32_t index) {
  const LlamaModel& m = cuda_model_.llama;
  const LlamaLayer& layer = m.layers[index];
  RETURN_IF_ERROR(Residual(plan, layer.o_requantize, &layer.mlp_norm));
  RETURN_IF_ERROR(
      Linear(layer.gate_up, scratch_.normed, layer.mlp_norm.wide, plan.tokens, SumOver::kThisRank));
  RETURN_IF_ERROR(device_->Launched(
      device_->kernels().swiglu(
          {sums_, plan.tokens, m.intermediate_size, layer.gate, layer.up, layer.sigmoid_multiplier,
           layer.sigmoid_shift, layer.product_shift, m.down_hadamard_block, layer.down_in,
           Site(scratch_.activated, layer.down_in_wide)},
          device_->stream()),
      "swiglu"));
  return Linear(layer.down_proj, scratch_.activated, layer.down_in_wide, plan.tokens,
                SumOver::kAllRanks);
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
  if (partial_sums_) return absl::OkStatus();
  // Also where all logits are wanted: a graph serves steps of either kind.
  return device_->Launched(kernels.sample({scratch_.logits, plan.num_rows, m.vocab_size,
                                           InPlan<CudaSampleRow>(plan.choices), scratch_.tokens},
                                          device_->stream()),
                           "sample");
}

absl::Status CudaRank::Linear(const LlamaLinear& linear, const ActivationPlanes& x, bool wide,
                              int32_t tokens, SumOver sum_over) {
  const ActivationPlanes site = Site(x, wide);
  const int32_t planes = wide ? 2 : 1;
  tokens_ = tokens;
  if (use_matmul_ && tokens * planes > kSkinnyTokens) return LargeLinear(linear, site, tokens);
  const auto stride = static_cast<size_t>(linear.outputs);
  // What crosses ranks is not split again: their parts of the depth are splits already, and each
  // further one would cross too.
  const bool crosses = partial_sums_ && sum_over == SumOver::kAllRanks;
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

absl::Status CudaRank::LargeLinear(const LlamaLinear& linear, const ActivationPlanes& x,
                                   int32_t tokens) {
  const auto stride = static_cast<size_t>(linear.outputs);
  const size_t plane_stride = static_cast<size_t>(tokens) * stride;
  CudaMatmul matmul = {.weights = static_cast<const int8_t*>(linear.packed),
                       .x = x.hi,
                       .acc = scratch_.acc,
                       .outputs = linear.outputs,
                       .tokens = tokens,
                       .depth = linear.depth,
                       .weight_stride = linear.depth,
                       .x_stride = static_cast<int64_t>(x.stride),
                       .acc_stride = linear.outputs,
                       .workspace = scratch_.workspace,
                       .workspace_bytes = scratch_.workspace_bytes};
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
