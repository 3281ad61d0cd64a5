// A model in integers, as the bundle stores it and the engine runs it. The calibrator fills it,
// WriteBundle saves it, ReadBundle returns it checked: after that nothing needs to be validated
// again, and no floating-point number is in it. The meaning of every parameter is in kernels/ops.h;
// shapes are [rows][columns], row-major.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace fixpoint {

// Names are those of Hugging Face's config.json where it has them.
struct ModelConfig {
  int32_t hidden_size = 0;
  int32_t intermediate_size = 0;
  int32_t num_hidden_layers = 0;
  int32_t num_attention_heads = 0;
  int32_t num_key_value_heads = 0;
  int32_t head_dim = 0;
  int32_t vocab_size = 0;
  int32_t max_position_embeddings = 0;  // prefix + prompt + answer; rows of the RoPE tables
  int32_t residual_fraction_bits = 0;   // real = h * 2^-bits
  int32_t logit_fraction_bits = 0;      // real = logit * 2^-bits, natural-log units
  uint64_t norm_epsilon = 0;            // epsilon * hidden_size in squared units of the residual
  int32_t down_hadamard_block = 1;      // Walsh-Hadamard block in front of down_proj
  bool qk_hadamard = false;             // Walsh-Hadamard over head_dim on q and k after RoPE
};

struct Norm {
  int32_t fraction_bits = 0;
  int32_t k = 0;
  bool wide = false;                 // feeds an int16 site
  std::vector<int16_t> multipliers;  // [hidden_size]
};

struct NarrowRequantize {
  int32_t p = 0;
  int32_t k = 0;
  std::vector<int16_t> multipliers;  // [channels]
};

struct WideRequantize {
  int32_t n = 0;
  std::vector<int32_t> multipliers;  // [channels]
};

// int8 weights [outputs][depth]. Executors may move `weights` out once they have packed them.
struct LinearWeights {
  int32_t outputs = 0;
  int32_t depth = 0;
  std::vector<int8_t> weights;
  std::vector<int32_t> bias;  // [outputs] in accumulator units, or empty
};

struct ScoreScale {  // kernels/ops.h ScoreParams
  int32_t d_max = 0, a = 0, c = 0, n = 0;
};

struct ModelLayer {
  Norm attn_norm;
  LinearWeights qkv;                   // rows: q heads, k heads, v heads
  NarrowRequantize q_before, q_after;  // [num_attention_heads * head_dim]
  NarrowRequantize k_before, k_after;  // [num_key_value_heads * head_dim]
  NarrowRequantize v;                  // [num_key_value_heads * head_dim]
  std::vector<ScoreScale> scores;      // [num_attention_heads]
  NarrowRequantize attn_out;           // [num_attention_heads * head_dim], p = 0
  bool attn_out_wide = false;          // o_proj's input is an int16 site
  LinearWeights o_proj;
  WideRequantize o_requantize;  // [hidden_size]

  Norm mlp_norm;
  LinearWeights gate_up;      // rows: gate, then up
  NarrowRequantize gate, up;  // [intermediate_size]
  int32_t sigmoid_multiplier = 0, sigmoid_shift = 0;
  int32_t product_shift = 0;
  NarrowRequantize down_in;  // [intermediate_size]
  bool down_in_wide = false;
  LinearWeights down_proj;
  WideRequantize down_requantize;  // [hidden_size]

  std::vector<int16_t> prefix_k;  // [num_key_value_heads][prefix tokens][head_dim]
  std::vector<int16_t> prefix_v;
};

struct IntegerModel {
  ModelConfig config;
  std::vector<int32_t>
      prefix_token_ids;  // every sequence starts with them; their KV is in the layers
  std::vector<int16_t> rope_cos, rope_sin;  // Q14 [max_position_embeddings][head_dim / 2]
  std::vector<int8_t> embedding;            // [vocab_size][hidden_size]
  WideRequantize embedding_requantize;      // [vocab_size]
  std::vector<ModelLayer> layers;
  Norm final_norm;
  LinearWeights head;              // [vocab_size][hidden_size]
  WideRequantize head_requantize;  // [vocab_size]
};

// The config alone: ranges of all fields and how they fit together. Until it holds, VisitTensors
// may overflow.
absl::Status ValidateConfig(const ModelConfig& config);

// Every range that kernels/ops.h asks for, every shape against the config. Names the tensor or
// field, limit and value.
absl::Status ValidateModel(const IntegerModel& model);

// Calls visit(name, vector, rows, columns, optional) for each tensor in file order: the one list of
// names and shapes that writer, reader and validation share. Model is IntegerModel or const
// IntegerModel; visit takes vectors of int8_t, int16_t, int32_t. Tensors that may be absent
// (biases) are visited with rows = 0 when empty and `optional` = true.
template <typename Model, typename Visit>
void VisitTensors(Model& model, Visit&& visit);

}  // namespace fixpoint

#include "bundle/visit_tensors.inc"
