#include "engine/cpu_executor.h"

#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/available_cpus.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "engine/step_check.h"
#include "kernels/cpu/dispatch.h"

namespace fixpoint {
namespace {

// A piece of packing: large enough that handing it out costs nothing, small enough to share any
// matrix.
constexpr int64_t kPackOutputs = 8 * kLinearAlign;

int32_t MaxSequenceTokens(const IntegerModel& model) {
  return model.config.max_position_embeddings - static_cast<int32_t>(model.prefix_token_ids.size());
}

int64_t BlocksFor(int64_t tokens) { return (tokens + kKvBlockTokens - 1) / kKvBlockTokens; }

int64_t Nanoseconds() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

NarrowParams View(const NarrowRequantize& r) { return {r.multipliers.data(), r.p, r.k}; }
WideParams View(const WideRequantize& r) { return {r.multipliers.data(), r.n}; }
LlamaNorm View(const Norm& n) { return {n.fraction_bits, n.k, n.wide, n.multipliers.data()}; }

}  // namespace

int64_t KvBlockBytes(const ModelConfig& config) {
  return int64_t{2} * kKvBlockTokens * config.head_dim * config.num_key_value_heads *
         config.num_hidden_layers;
}

int64_t KvSequenceBytes(const IntegerModel& model) {
  return BlocksFor(MaxSequenceTokens(model)) * KvBlockBytes(model.config);
}

int64_t DefaultKvCacheBytes(const IntegerModel& model) {
  constexpr int64_t kSequences = 8;
  constexpr int64_t kLimitBytes = int64_t{2} << 30;
  const int64_t sequence_bytes = KvSequenceBytes(model);
  return std::max(sequence_bytes, std::min(kSequences * sequence_bytes, kLimitBytes));
}

absl::StatusOr<std::unique_ptr<CpuExecutor>> CpuExecutor::Create(
    IntegerModel model, const CpuExecutorOptions& options) {
  RETURN_IF_ERROR(CheckRange("threads", options.threads, 0, kMaxThreads));
  RETURN_IF_ERROR(CheckRange("max_step_tokens", options.max_step_tokens, 1, kMaxStepTokens));
  RETURN_IF_ERROR(
      CheckRange("max_step_logits", options.max_step_logits, 1, options.max_step_tokens));
  RETURN_IF_ERROR(
      CheckRange("kv_cache_bytes", options.kv_cache_bytes, 0, std::numeric_limits<int64_t>::max()));
  RETURN_IF_ERROR(CheckRange("max_position_embeddings behind the prefix", MaxSequenceTokens(model),
                             1, kMaxContext));
  const Ops* ops = options.ops;
  if (ops == nullptr) {
    ASSIGN_OR_RETURN(ops, SelectOps());
  }
  const int32_t threads =
      options.threads > 0 ? options.threads : std::min(AvailableCpuCount(), kMaxThreads);
  try {
    std::unique_ptr<CpuExecutor> executor(
        new CpuExecutor(std::move(model), ops, threads, options.pin_threads));
    RETURN_IF_ERROR(executor->SetUp(options));
    return executor;
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(
        "not enough memory for the model, its KV cache and scratch");
  }
}

CpuExecutor::CpuExecutor(IntegerModel model, const Ops* ops, int32_t threads, bool pin_threads)
    : model_(std::move(model)), ops_(ops), pool_(threads, {.pin_threads = pin_threads}) {}

absl::Status CpuExecutor::SetUp(const CpuExecutorOptions& options) {
  const int64_t block_bytes = KvBlockBytes(model_.config);
  const int64_t kv_bytes =
      options.kv_cache_bytes > 0 ? options.kv_cache_bytes : DefaultKvCacheBytes(model_);
  const int64_t num_blocks =
      std::min<int64_t>(kv_bytes / block_bytes, std::numeric_limits<int32_t>::max());
  if (num_blocks < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("kv_cache_bytes is ", kv_bytes, ", one KV block needs ", block_bytes));
  }
  limits_.vocab_size = model_.config.vocab_size;
  limits_.num_blocks = static_cast<int32_t>(num_blocks);
  limits_.block_tokens = kKvBlockTokens;
  limits_.block_bytes = block_bytes;
  limits_.max_sequence_tokens = MaxSequenceTokens(model_);
  limits_.max_step_tokens = options.max_step_tokens;
  limits_.max_step_logits = options.max_step_logits;

  kv_memory_ = AlignedBuffer(static_cast<size_t>(num_blocks * block_bytes));
  kv_memory_.AdviseHugePages();
  cache_.base = kv_memory_.as<int8_t>();
  cache_.block_bytes = static_cast<size_t>(block_bytes);
  cache_.layer_bytes = cache_.block_bytes / static_cast<size_t>(model_.config.num_hidden_layers);

  PackModel();
  const LlamaStepLimits step = {.max_tokens = limits_.max_step_tokens,
                                .max_logits = limits_.max_step_logits,
                                .max_sequence_tokens = limits_.max_sequence_tokens,
                                .workers = pool_.thread_count()};
  scratch_memory_ = AlignedBuffer(LayOutLlamaScratch(llama_, step, nullptr, &scratch_));
  std::memset(scratch_memory_.data(), 0, scratch_memory_.size_bytes());
  LayOutLlamaScratch(llama_, step, scratch_memory_.as<int8_t>(), &scratch_);
  chunks_.reserve(static_cast<size_t>(limits_.max_step_tokens));
  if (options.profile) clock_.now = &Nanoseconds;
  // Freed matrices below malloc's (growing) mmap threshold would stay in the heap.
  malloc_trim(0);
  return absl::OkStatus();
}

void CpuExecutor::PackModel() {
  const ModelConfig& c = model_.config;
  llama_.ops = ops_;
  llama_.hidden_size = c.hidden_size;
  llama_.intermediate_size = c.intermediate_size;
  llama_.num_layers = c.num_hidden_layers;
  llama_.num_attention_heads = c.num_attention_heads;
  llama_.num_key_value_heads = c.num_key_value_heads;
  llama_.head_dim = c.head_dim;
  llama_.vocab_size = c.vocab_size;
  llama_.prefix_tokens = static_cast<int32_t>(model_.prefix_token_ids.size());
  llama_.norm_epsilon = c.norm_epsilon;
  llama_.down_hadamard_block = c.down_hadamard_block;
  llama_.qk_hadamard = c.qk_hadamard;
  llama_.rope_cos = model_.rope_cos.data();
  llama_.rope_sin = model_.rope_sin.data();
  llama_.embedding = model_.embedding.data();
  llama_.embedding_requantize = View(model_.embedding_requantize);
  // One buffer for all matrices: a little model's is smaller than a huge page.
  size_t bytes = PackedBytes(model_.head);
  for (const ModelLayer& layer : model_.layers) {
    for (const LinearWeights* linear :
         {&layer.qkv, &layer.o_proj, &layer.gate_up, &layer.down_proj})
      bytes += PackedBytes(*linear);
  }
  packed_ = AlignedBuffer(bytes);
  packed_.AdviseHugePages();
  layers_.reserve(model_.layers.size());
  scores_.reserve(model_.layers.size());
  for (ModelLayer& layer : model_.layers) layers_.push_back(PackLayer(layer));
  llama_.layers = layers_.data();
  llama_.final_norm = View(model_.final_norm);
  llama_.head = Pack(model_.head);
  llama_.head_requantize = View(model_.head_requantize);
}

LlamaLayer CpuExecutor::PackLayer(ModelLayer& layer) {
  std::vector<ScoreParams> scores;
  scores.reserve(layer.scores.size());
  for (const ScoreScale& s : layer.scores) scores.push_back({s.d_max, s.a, s.c, s.n});
  scores_.push_back(std::move(scores));
  LlamaLayer view;
  view.attn_norm = View(layer.attn_norm);
  view.qkv = Pack(layer.qkv);
  view.q_before = View(layer.q_before);
  view.q_after = View(layer.q_after);
  view.k_before = View(layer.k_before);
  view.k_after = View(layer.k_after);
  view.v = View(layer.v);
  view.scores = scores_.back().data();
  view.attn_out = View(layer.attn_out);
  view.attn_out_wide = layer.attn_out_wide;
  view.o_proj = Pack(layer.o_proj);
  view.o_requantize = View(layer.o_requantize);
  view.mlp_norm = View(layer.mlp_norm);
  view.gate_up = Pack(layer.gate_up);
  view.gate = View(layer.gate);
  view.up = View(layer.up);
  view.sigmoid_multiplier = layer.sigmoid_multiplier;
  view.sigmoid_shift = layer.sigmoid_shift;
  view.product_shift = layer.product_shift;
  view.down_in = View(layer.down_in);
  view.down_in_wide = layer.down_in_wide;
  view.down_proj = Pack(layer.down_proj);
  view.down_requantize = View(layer.down_requantize);
  view.prefix_k = layer.prefix_k.data();
  view.prefix_v = layer.prefix_v.data();
  return view;
}

size_t CpuExecutor::PackedBytes(const LinearWeights& linear) const {
  constexpr size_t kAlign = AlignedBuffer::kAlignment;
  const size_t bytes = ops_->packed_weight_bytes(linear.outputs, linear.depth);
  return (bytes + kAlign - 1) / kAlign * kAlign;
}

LlamaLinear CpuExecutor::Pack(LinearWeights& linear) {
  std::byte* const packed = packed_.data() + packed_bytes_;
  packed_bytes_ += PackedBytes(linear);
  CHECK_LE(packed_bytes_, packed_.size_bytes());
  pool_.ParallelFor(linear.outputs, kPackOutputs, [&](int64_t begin, int64_t end, int) {
    ops_->pack_weights(linear.weights.data(), linear.outputs, linear.depth,
                       static_cast<int32_t>(begin), static_cast<int32_t>(end), packed);
  });
  std::vector<int8_t>().swap(linear.weights);
  return {.packed = packed,
          .outputs = linear.outputs,
          .depth = linear.depth,
          .bias = linear.bias.empty() ? nullptr : linear.bias.data()};
}

absl::Status CpuExecutor::Forward(absl::Span<const SequenceChunk> chunks, int32_t* logits) {
  RETURN_IF_ERROR(CheckStep(chunks, limits_));
  if (chunks.empty()) return absl::OkStatus();
  chunks_.clear();
  for (const SequenceChunk& chunk : chunks) {
    chunks_.push_back({.token_ids = chunk.token_ids.data(),
                       .tokens = static_cast<int32_t>(chunk.token_ids.size()),
                       .position = chunk.position,
                       .block_table = chunk.block_table.data(),
                       .logit_indices = chunk.logit_indices.data(),
                       .num_logits = static_cast<int32_t>(chunk.logit_indices.size())});
  }
  PrepareThread();
  const ParallelHook hook = {&RunParallel, this, pool_.thread_count(),
                             clock_.now == nullptr ? nullptr : &clock_};
  LlamaForward(llama_, cache_, scratch_, hook, chunks_.data(), static_cast<int32_t>(chunks_.size()),
               logits);
  return absl::OkStatus();
}

void CpuExecutor::PrepareThread() const {
  thread_local const Ops* prepared = nullptr;
  if (prepared == ops_) return;
  prepared = ops_;
  if (ops_->thread_init != nullptr) ops_->thread_init();
}

void CpuExecutor::RunParallel(void* context, int32_t tasks,
                              void (*task)(void* argument, int32_t index, int32_t worker),
                              void* argument) {
  auto* self = static_cast<CpuExecutor*>(context);
  self->pool_.ParallelFor(tasks, 1, [&](int64_t begin, int64_t, int thread) {
    self->PrepareThread();
    task(argument, static_cast<int32_t>(begin), thread);
  });
}

}  // namespace fixpoint
