#include "engine/cuda_executor.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "engine/cpu_executor.h"
#include "engine/step_check.h"

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

absl::StatusOr<std::unique_ptr<CudaExecutor>> CudaExecutor::Create(
    IntegerModel model, std::unique_ptr<CudaDevice> device, const CudaExecutorOptions& options) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max() / 4;  // sums of it do not overflow
  RETURN_IF_ERROR(CheckRange("max_step_tokens", options.max_step_tokens, 1, kMaxCudaStepTokens));
  RETURN_IF_ERROR(CheckRange("max_step_logits", options.max_step_logits, 1,
                             std::min(options.max_step_tokens, kMaxCudaStepLogits)));
  RETURN_IF_ERROR(CheckRange("kv_cache_bytes", options.kv_cache_bytes, 0, kMost));
  RETURN_IF_ERROR(
      CheckRange("least_slice_tokens", options.least_slice_tokens, 1, kMaxCudaStepTokens));
  // Element counts of the scores stay in int32.
  RETURN_IF_ERROR(CheckRange("decode_bytes", options.decode_bytes, 0, int64_t{8} << 30));
  std::unique_ptr<CudaExecutor> executor(new CudaExecutor(std::move(model), std::move(device)));
  RETURN_IF_ERROR(executor->SetUp(options));
  return executor;
}

absl::Status CudaExecutor::SetUp(const CudaExecutorOptions& options) {
  const ModelConfig& c = model_.config;
  limits_.vocab_size = c.vocab_size;
  limits_.block_tokens = kKvBlockTokens;
  limits_.block_bytes = KvBlockBytes(c);
  limits_.max_sequence_tokens =
      c.max_position_embeddings - static_cast<int32_t>(model_.prefix_token_ids.size());
  RETURN_IF_ERROR(CheckRange("max_position_embeddings behind the prefix",
                             limits_.max_sequence_tokens, 1, kMaxContext));
  limits_.max_step_tokens = options.max_step_tokens;
  limits_.max_step_logits = options.max_step_logits;
  layer_bytes_ = limits_.block_bytes / c.num_hidden_layers;
  least_slice_tokens_ = options.least_slice_tokens;
  use_matmul_ = options.use_matmul && device_->has_matmul();
  plan_shape_ = {.max_tokens = options.max_step_tokens,
                 .max_rows = options.max_step_logits,
                 .max_sequence_blocks =
                     static_cast<int32_t>(CeilDiv(limits_.max_sequence_tokens, kKvBlockTokens)),
                 .num_heads = c.num_attention_heads,
                 .kv_heads = c.num_key_value_heads,
                 .head_dim = c.head_dim,
                 .multiprocessors = device_->multiprocessors(),
                 // Half for the scores, half for sums, maxima and denominators.
                 .score_elements = options.decode_bytes / 2 / static_cast<int64_t>(sizeof(int32_t)),
                 .part_rows = options.decode_bytes / 2 / static_cast<int64_t>(sizeof(int32_t)) /
                              (c.head_dim + 2)};

  const int64_t model_bytes = CudaModelBytes(model_);
  const int64_t scratch_bytes = LayOutScratch(nullptr);
  ASSIGN_OR_RETURN(const int64_t blocks,
                   KvBlocks(model_bytes + scratch_bytes, options.kv_cache_bytes));
  limits_.num_blocks = static_cast<int32_t>(blocks);
  ASSIGN_OR_RETURN(int8_t* const arena,
                   device_->Allocate(model_bytes + scratch_bytes + blocks * limits_.block_bytes));
  ASSIGN_OR_RETURN(host_plan_,
                   device_->AllocateHost(static_cast<int64_t>(MaxPlanBytes(plan_shape_))));
  LayOutScratch(arena + model_bytes);
  kv_base_ = arena + model_bytes + scratch_bytes;
  RETURN_IF_ERROR(UploadModel(model_, *device_, arena, &cuda_model_));
  if (use_matmul_) RETURN_IF_ERROR(PrepareMatmuls());
  return device_->Synchronize();
}

// Every product that LargeLinear can ask for: the layers' four, of one shape in all layers, and the
// head's, with each padded number of rows.
absl::Status CudaExecutor::PrepareMatmuls() {
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
    add(linear, x, SliceTokens(linear, /*wide=*/false, limits_.max_step_tokens));
  };
  const LlamaModel& m = cuda_model_.llama;
  add_sliced(m.layers[0].qkv, scratch_.normed);
  add_sliced(m.layers[0].o_proj, scratch_.attended);
  add_sliced(m.layers[0].gate_up, scratch_.normed);
  add_sliced(m.layers[0].down_proj, scratch_.activated);
  add(m.head, scratch_.head_in, limits_.max_step_logits);
  // One plane takes the lower half of the accumulators at most.
  return device_->PrepareMatmuls(matmuls, scratch_.acc + scratch_.acc_elements / 2);
}

absl::StatusOr<int64_t> CudaExecutor::KvBlocks(int64_t other_bytes, int64_t kv_bytes) {
  if (kv_bytes == 0) {
    ASSIGN_OR_RETURN(const int64_t free_bytes, device_->FreeBytes());
    kv_bytes = (free_bytes - other_bytes) / 10 * 9;
    if (kv_bytes < limits_.block_bytes) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the device has ", free_bytes, " bytes free; the model and a step need ",
                       other_bytes, ", one KV block ", limits_.block_bytes));
    }
  }
  const int64_t blocks =
      std::min<int64_t>(kv_bytes / limits_.block_bytes, std::numeric_limits<int32_t>::max());
  if (blocks < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("kv_cache_bytes is ", kv_bytes, ", one KV block needs ", limits_.block_bytes));
  }
  return blocks;
}

int64_t CudaExecutor::LayOutScratch(int8_t* memory) {
  const ModelConfig& c = model_.config;
  // Products are done with some rows more (PaddedTokens); what they read there is of no account.
  const int64_t tokens = PaddedTokens(limits_.max_step_tokens);
  const int64_t rows = PaddedTokens(limits_.max_step_logits);
  const int64_t q_width = int64_t{c.num_attention_heads} * c.head_dim;
  const int64_t kv_width = int64_t{c.num_key_value_heads} * c.head_dim;
  const int64_t widest =
      std::max({q_width + 2 * kv_width, int64_t{2} * c.intermediate_size, int64_t{c.hidden_size}});
  Scratch& s = scratch_;
  Carver carver(memory);
  s.plan = carver.Take<int8_t>(static_cast<int64_t>(MaxPlanBytes(plan_shape_)));
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
  s.scores = carver.Take<int32_t>(plan_shape_.score_elements);
  s.maxima = carver.Take<int32_t>(plan_shape_.part_rows);
  s.denominators = carver.Take<int32_t>(plan_shape_.part_rows);
  s.sums = carver.Take<int32_t>(plan_shape_.part_rows * c.head_dim);
  s.workspace_bytes = use_matmul_ ? kMatmulWorkspaceBytes : 0;
  s.workspace = carver.Take<int8_t>(s.workspace_bytes);
  return carver.used();
}

absl::Status CudaExecutor::Forward(absl::Span<const SequenceChunk> chunks, int32_t* logits) {
  RETURN_IF_ERROR(lost_);
  RETURN_IF_ERROR(CheckStep(chunks, limits_));
  if (chunks.empty()) return absl::OkStatus();
  const CudaPlan plan = MakePlan(plan_shape_, chunks, host_plan_);
  lost_ = Step(plan);
  if (lost_.ok() && plan.num_rows > 0) {
    lost_ = device_->Download(
        logits, scratch_.logits,
        int64_t{plan.num_rows} * limits_.vocab_size * static_cast<int64_t>(sizeof(int32_t)));
  }
  // The plan's memory is written again by the next step.
  if (lost_.ok()) lost_ = device_->Synchronize();
  return lost_;
}

absl::Status CudaExecutor::Step(const CudaPlan& plan) {
  const LlamaModel& m = cuda_model_.llama;
  RETURN_IF_ERROR(
      device_->Upload(scratch_.plan, host_plan_, static_cast<int64_t>(plan.used_bytes)));
  const EmbedArgs embed = {.table = m.embedding,
                           .requantize = m.embedding_requantize,
                           .token_ids = InPlan<int32_t>(plan.token_ids),
                           .tokens = plan.tokens,
                           .hidden = m.hidden_size,
                           .h = scratch_.h};
  RETURN_IF_ERROR(device_->Launched(
      device_->kernels().embed({embed, NormInto(m.layers[0].attn_norm, scratch_.normed)},
                               device_->stream()),
      "embed"));
  for (int32_t i = 0; i < m.num_layers; ++i) RETURN_IF_ERROR(Layer(plan, i));
  return plan.num_rows > 0 ? Head(plan) : absl::OkStatus();
}

absl::Status CudaExecutor::Layer(const CudaPlan& plan, int32_t index) {
  const LlamaModel& m = cuda_model_.llama;
  const LlamaLayer& layer = m.layers[index];
  const CudaKernels& kernels = device_->kernels();
  CudaStream* const stream = device_->stream();
  const KvLayer cache = {kv_base_ + index * layer_bytes_, static_cast<size_t>(limits_.block_bytes)};

  const auto rotate = [&](const Accumulators& qkv, int32_t first, int32_t tokens) {
    return device_->Launched(
        kernels.rotate({.acc = qkv,
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
                       stream),
        "rotate");
  };
  RETURN_IF_ERROR(InSlices(layer.qkv, scratch_.normed, layer.attn_norm.wide, plan.tokens, rotate));
  RETURN_IF_ERROR(Attend(plan, layer, cache));

  const auto residual = [&](const WideParams& requantize, const CudaNorm& norm) {
    return [&, requantize, norm](const Accumulators& acc, int32_t first, int32_t tokens) {
      CudaNorm rows = norm;
      if (norm.multipliers != nullptr) rows.out = RowsFrom(norm.out, first);
      return device_->Launched(
          kernels.residual({acc, tokens, m.hidden_size, requantize,
                            scratch_.h + static_cast<size_t>(first) * m.hidden_size, rows},
                           stream),
          "residual");
    };
  };
  RETURN_IF_ERROR(
      InSlices(layer.o_proj, scratch_.attended, layer.attn_out_wide, plan.tokens,
               residual(layer.o_requantize, NormInto(layer.mlp_norm, scratch_.normed))));

  const auto swiglu = [&](const Accumulators& gate_up, int32_t first, int32_t tokens) {
    return device_->Launched(
        kernels.swiglu(
            {gate_up, tokens, m.intermediate_size, layer.gate, layer.up, layer.sigmoid_multiplier,
             layer.sigmoid_shift, layer.product_shift, m.down_hadamard_block, layer.down_in,
             RowsFrom(Site(scratch_.activated, layer.down_in_wide), first)},
            stream),
        "swiglu");
  };
  RETURN_IF_ERROR(
      InSlices(layer.gate_up, scratch_.normed, layer.mlp_norm.wide, plan.tokens, swiglu));

  const bool last = index + 1 == m.num_layers;
  return InSlices(
      layer.down_proj, scratch_.activated, layer.down_in_wide, plan.tokens,
      residual(layer.down_requantize,
               last ? CudaNorm{} : NormInto(m.layers[index + 1].attn_norm, scratch_.normed)));
}

absl::Status CudaExecutor::Attend(const CudaPlan& plan, const LlamaLayer& layer,
                                  const KvLayer& cache) {
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

absl::Status CudaExecutor::Head(const CudaPlan& plan) {
  const LlamaModel& m = cuda_model_.llama;
  const CudaKernels& kernels = device_->kernels();
  RETURN_IF_ERROR(device_->Launched(
      kernels.gather_norm({scratch_.h, InPlan<int32_t>(plan.rows), plan.num_rows, m.hidden_size,
                           NormInto(m.final_norm, scratch_.head_in)},
                          device_->stream()),
      "gather_norm"));
  ASSIGN_OR_RETURN(const Accumulators acc,
                   Linear(m.head, scratch_.head_in, m.final_norm.wide, plan.num_rows));
  return device_->Launched(
      kernels.logits({acc, plan.num_rows, m.vocab_size, m.head_requantize, scratch_.logits},
                     device_->stream()),
      "logits");
}

template <typename Consume>
absl::Status CudaExecutor::InSlices(const LlamaLinear& linear, const ActivationPlanes& x, bool wide,
                                    int32_t tokens, Consume consume) {
  const int32_t slice = SliceTokens(linear, wide, tokens);
  for (int32_t first = 0; first < tokens; first += slice) {
    const int32_t count = std::min(slice, tokens - first);
    ASSIGN_OR_RETURN(const Accumulators acc, Linear(linear, RowsFrom(x, first), wide, count));
    RETURN_IF_ERROR(consume(acc, first, count));
  }
  return absl::OkStatus();
}

// Slices of a padded count: the steps of PaddedTokens are powers of two, so that the last slice's
// padding ends no later than the whole step's would.
int32_t CudaExecutor::SliceTokens(const LlamaLinear& linear, bool wide, int32_t tokens) const {
  const int64_t row_bytes =
      int64_t{wide ? 2 : 1} * linear.outputs * static_cast<int64_t>(sizeof(int32_t));
  const int64_t fitting = device_->l2_bytes() / 4 * 3 / row_bytes;
  if (PaddedTokens(tokens) <= fitting) return tokens;
  int64_t slice = PaddedTokens(least_slice_tokens_);
  while (PaddedTokens(slice + 1) <= fitting) slice = PaddedTokens(slice + 1);
  return static_cast<int32_t>(std::min<int64_t>(slice, tokens));
}

absl::StatusOr<Accumulators> CudaExecutor::Linear(const LlamaLinear& linear,
                                                  const ActivationPlanes& x, bool wide,
                                                  int32_t tokens) {
  const ActivationPlanes site = Site(x, wide);
  const int32_t planes = wide ? 2 : 1;
  if (use_matmul_ && tokens * planes > kSkinnyTokens) return LargeLinear(linear, site, tokens);
  const auto stride = static_cast<size_t>(linear.outputs);
  const int32_t splits = Splits(linear, tokens, planes);
  const size_t split_stride = static_cast<size_t>(tokens) * stride;
  const size_t plane_stride = split_stride * static_cast<size_t>(splits);
  RETURN_IF_ERROR(device_->Launched(
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
      "gemm"));
  return Accumulators{.data = scratch_.acc,
                      .stride = stride,
                      .split_stride = split_stride,
                      .plane_stride = wide ? plane_stride : 0,
                      .splits = splits,
                      .bias = linear.bias};
}

CudaMatmul CudaExecutor::MatmulOf(const LlamaLinear& linear, const ActivationPlanes& x,
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

absl::StatusOr<Accumulators> CudaExecutor::LargeLinear(const LlamaLinear& linear,
                                                       const ActivationPlanes& x, int32_t tokens) {
  const int64_t rows = PaddedTokens(tokens);
  const auto stride = static_cast<size_t>(linear.outputs);
  const size_t plane_stride = static_cast<size_t>(rows) * stride;
  CHECK_LE((x.lo == nullptr ? 1 : 2) * rows * linear.outputs, scratch_.acc_elements);
  CudaMatmul matmul = MatmulOf(linear, x, rows);
  RETURN_IF_ERROR(device_->Matmul(matmul));
  if (x.lo != nullptr) {
    matmul.x = x.lo;
    matmul.acc = scratch_.acc + plane_stride;
    RETURN_IF_ERROR(device_->Matmul(matmul));
  }
  return Accumulators{.data = scratch_.acc,
                      .stride = stride,
                      .split_stride = plane_stride,
                      .plane_stride = x.lo == nullptr ? 0 : plane_stride,
                      .splits = 1,
                      .bias = linear.bias};
}

// Ranges of the depth, so that each multiprocessor has two blocks of the grid to work on: a matrix
// of 4096 outputs has 256 rows of tiles only. A range has a step for each of the block's warps at
// least, and the partial sums have to fit.
int32_t CudaExecutor::Splits(const LlamaLinear& linear, int32_t tokens, int32_t planes) const {
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

CudaNorm CudaExecutor::NormInto(const LlamaNorm& norm, const ActivationPlanes& out) const {
  return {cuda_model_.llama.norm_epsilon, norm.fraction_bits, norm.multipliers, norm.k,
          Site(out, norm.wide)};
}

}  // namespace fixpoint
