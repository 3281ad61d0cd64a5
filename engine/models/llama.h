// The forward pass of the Llama family (SmolLM2, Llama 2 and 3, TinyLlama, Qwen2 with its biases)
// on integers. It knows pointers and shapes only: no allocation, no locks, no clock, no floating
// point; it also builds with -mgeneral-regs-only (engine/general_regs_test.cc). CpuExecutor owns
// the memory, the threads and the packed weights.
//
// One layer, T = tokens of all chunks of a step, one flat batch (shapes in LlamaScratch):
//   h         -> rms_norm -> normed    -> linear qkv     -> acc
//   acc       -> rotate_heads q, k; narrow v -> K, V into the cache -> attention -> attended
//   attended  -> linear o_proj         -> acc -> residual_add -> h
//   h         -> rms_norm -> normed    -> linear gate_up -> acc -> swiglu -> activated
//   activated -> linear down_proj      -> acc -> residual_add -> h
// At the end only rows whose logits are wanted pass through the last norm and the head.
//
// A step of many tokens works in tiles of kTileTokens rows instead: each linear layer is followed
// at once by what consumes its accumulators, while they and the weights are in the core's cache,
// and acc never exists as a whole.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/ops.h"

namespace fixpoint {

struct LlamaNorm {
  int32_t fraction_bits = 0;
  int32_t k = 0;
  bool wide = false;                     // feeds an int16 site
  const int16_t* multipliers = nullptr;  // [hidden_size]
};

struct LlamaLinear {
  const void* packed = nullptr;  // Ops::pack_weights of [outputs][depth]
  int32_t outputs = 0;
  int32_t depth = 0;
  const int32_t* bias = nullptr;  // [outputs] or nullptr
};

struct LlamaLayer {
  LlamaNorm attn_norm;
  LlamaLinear qkv;  // rows: q heads, k heads, v heads
  NarrowParams q_before, q_after, k_before, k_after, v;
  const ScoreParams* scores = nullptr;  // [num_attention_heads]
  NarrowParams attn_out;
  bool attn_out_wide = false;
  LlamaLinear o_proj;
  WideParams o_requantize;
  LlamaNorm mlp_norm;
  LlamaLinear gate_up;  // rows: gate, then up
  NarrowParams gate, up;
  int32_t sigmoid_multiplier = 0, sigmoid_shift = 0;
  int32_t product_shift = 0;
  NarrowParams down_in;
  bool down_in_wide = false;
  LlamaLinear down_proj;
  WideParams down_requantize;
  const int16_t* prefix_k = nullptr;  // [num_key_value_heads][prefix_tokens][head_dim]
  const int16_t* prefix_v = nullptr;
};

// A checked model (bundle/model.h ValidateModel) with packed weights. Points into memory of the
// executor.
struct LlamaModel {
  const Ops* ops = nullptr;
  int32_t hidden_size = 0;
  int32_t intermediate_size = 0;
  int32_t num_layers = 0;
  int32_t num_attention_heads = 0;
  int32_t num_key_value_heads = 0;
  int32_t head_dim = 0;
  int32_t vocab_size = 0;
  int32_t prefix_tokens = 0;
  uint64_t norm_epsilon = 0;
  int32_t down_hadamard_block = 1;
  bool qk_hadamard = false;
  const int16_t* rope_cos = nullptr;  // [max_position_embeddings][head_dim / 2]
  const int16_t* rope_sin = nullptr;
  const int8_t* embedding = nullptr;  // [vocab_size][hidden_size]
  WideParams embedding_requantize;
  const LlamaLayer* layers = nullptr;  // [num_layers]
  LlamaNorm final_norm;
  LlamaLinear head;
  WideParams head_requantize;
};

// KV memory: block b holds all layers, one behind the other, so that a block is one piece of
// block_bytes.
struct LlamaKvCache {
  int8_t* base = nullptr;  // [blocks][num_layers][layer_bytes], 64-byte aligned
  size_t layer_bytes = 0;  // num_key_value_heads * 2 * kKvBlockTokens * head_dim
  size_t block_bytes = 0;  // num_layers * layer_bytes
};

// SequenceChunk of engine/executor.h as plain pointers.
struct LlamaChunk {
  const int32_t* token_ids = nullptr;  // [tokens]
  int32_t tokens = 0;
  int32_t position = 0;
  const int32_t* block_table = nullptr;
  const int32_t* logit_indices = nullptr;  // [num_logits]
  int32_t num_logits = 0;
};

// Parts of a step, for whoever wants to know where its time goes.
enum class StepPart : int32_t {
  kEmbed,
  kQkv,
  kAttention,
  kO,
  kGateUp,
  kSwiGlu,
  kDown,
  kAddNorm,
  kHead,
  kNumParts
};

constexpr const char* StepPartName(StepPart part) {
  constexpr const char* kNames[] = {"embed",  "qkv",  "attention", "o",   "gate_up",
                                    "swiglu", "down", "add, norm", "head"};
  static_assert(sizeof(kNames) / sizeof(kNames[0]) == static_cast<size_t>(StepPart::kNumParts));
  return kNames[static_cast<int>(part)];
}

// Time of each part as the calling thread, which waits for all workers, sees it. In a step by tiles
// kQkv, kO, kGateUp and kDown contain what follows the product.
struct StepClock {
  int64_t (*now)() = nullptr;  // any unit
  int64_t taken[static_cast<int>(StepPart::kNumParts)] = {};
};

// Runs task(argument, index, worker) for index in [0, tasks), worker in [0, workers), and returns
// when all are done. Each worker number is in use by one thread at a time. What a task wrote is
// visible to tasks of the next run.
struct ParallelHook {
  void (*run)(void* context, int32_t tasks,
              void (*task)(void* argument, int32_t index, int32_t worker),
              void* argument) = nullptr;
  void* context = nullptr;
  int32_t workers = 1;
  StepClock* clock = nullptr;
};

// Largest step that the scratch is made for.
struct LlamaStepLimits {
  int32_t max_tokens = 0;           // in a step, over all chunks
  int32_t max_logits = 0;           // wanted rows in a step
  int32_t max_sequence_tokens = 0;  // cache positions of one sequence
  int32_t workers = 1;
};

// Tokens [first, first + count) of a chunk: the unit of work of attention.
struct LlamaSegment {
  int32_t chunk = 0;
  int32_t first = 0;
  int32_t count = 0;
  int32_t row = 0;  // of the flat batch
};

inline constexpr int32_t kTileTokens = 64;

// Working memory of one step. T = max_tokens, R = max_logits; strides are in elements.
struct LlamaScratch {
  int32_t* token_ids = nullptr;      // [T]
  int32_t* wanted_rows = nullptr;    // [R] rows of the flat batch
  LlamaSegment* segments = nullptr;  // [T]
  int32_t* h = nullptr;              // [T][hidden_size] residual stream
  ActivationPlanes normed;           // [T][hidden_size]
  int32_t* acc = nullptr;  // [T][widest of qkv, o, gate_up, down rounded up to kLinearAlign]
  int8_t* q = nullptr;     // [T][q_stride]
  int8_t* k = nullptr;     // [T][kv_stride]
  int8_t* v = nullptr;     // [T][kv_stride]
  size_t q_stride = 0, kv_stride = 0;
  ActivationPlanes attended;    // [T][num_attention_heads * head_dim]
  ActivationPlanes activated;   // [T][intermediate_size]
  ActivationPlanes head_in;     // [R][hidden_size]
  int32_t* head_acc = nullptr;  // [R][vocab_size rounded up to kLinearAlign]
  int8_t* attention = nullptr;  // [workers][attention_stride]
  size_t attention_stride = 0;
  int32_t* swiglu = nullptr;  // [workers][swiglu_stride]
  size_t swiglu_stride = 0;
  int32_t* tile_segments = nullptr;  // [tiles + 1] first segment of each tile
  int32_t* tile_acc = nullptr;       // [workers][kTileTokens][tile_stride]
  size_t tile_stride = 0;            // 0: this model's shapes do not work in tiles
  int32_t segment_tokens = 1;        // most tokens of a segment
};

// Lays the scratch out from `memory` (64-byte aligned and zero) and returns its size in bytes; with
// memory == nullptr it only counts. Only the fields of `model` that say sizes are read, and ops.
// The caller has bounded the limits so that no product overflows size_t.
size_t LayOutLlamaScratch(const LlamaModel& model, const LlamaStepLimits& limits, int8_t* memory,
                          LlamaScratch* scratch);

// One step over all chunks: appends K and V to the cache, writes wanted logit rows in order of
// chunk and index to logits [rows][vocab_size]. The chunks fit the limits of the scratch, ids and
// positions are in range (CpuExecutor checks).
void LlamaForward(const LlamaModel& model, const LlamaKvCache& cache, const LlamaScratch& scratch,
                  const ParallelHook& hook, const LlamaChunk* chunks, int32_t num_chunks,
                  int32_t* logits);

}  // namespace fixpoint
