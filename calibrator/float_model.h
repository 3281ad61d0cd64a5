// A checkpoint in float32, in Hugging Face row order, whatever file it came from. Input of the
// calibration.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "text/tokenizer_spec.h"

namespace fixpoint {

// Field names are those of Hugging Face's config.json.
struct FloatConfig {
  std::string architecture;  // "llama", or "qwen2" (llama with biases on q, k, v)
  int32_t hidden_size = 0;
  int32_t intermediate_size = 0;
  int32_t num_hidden_layers = 0;
  int32_t num_attention_heads = 0;
  int32_t num_key_value_heads = 0;
  int32_t head_dim = 0;
  int32_t vocab_size = 0;
  int32_t max_position_embeddings = 0;
  double rms_norm_eps = 0;
  double rope_theta = 0;
  bool tie_word_embeddings = false;
};

// Row-major [rows][cols]; of a linear layer rows = out_features, cols = in_features.
struct Matrix {
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<float> data;
  float* row(int64_t r) { return data.data() + r * cols; }
  const float* row(int64_t r) const { return data.data() + r * cols; }
};

struct FloatLayer {
  std::vector<float> attn_norm;               // [hidden_size]
  Matrix q_proj;                              // [num_attention_heads * head_dim][hidden_size]
  Matrix k_proj, v_proj;                      // [num_key_value_heads * head_dim][hidden_size]
  std::vector<float> q_bias, k_bias, v_bias;  // empty, or one per row
  Matrix o_proj;                              // [hidden_size][num_attention_heads * head_dim]
  std::vector<float> mlp_norm;                // [hidden_size]
  Matrix gate_proj, up_proj;                  // [intermediate_size][hidden_size]
  Matrix down_proj;                           // [hidden_size][intermediate_size]
};

struct FloatModel {
  FloatConfig config;
  // 1/lambda per rotation pair, [head_dim / 2]; pair i rotates elements i and i + head_dim / 2
  // (Hugging Face's half-split order). Any rope scaling (llama3) is already in it.
  std::vector<double> rope_inverse_frequency;
  Matrix embedding;  // [vocab_size][hidden_size]
  std::vector<FloatLayer> layers;
  std::vector<float> final_norm;  // [hidden_size]
  Matrix head;                    // [vocab_size][hidden_size]; empty when tie_word_embeddings
  const Matrix& head_or_embedding() const { return head.rows ? head : embedding; }
};

// All that the calibrator takes from a checkpoint.
struct Checkpoint {
  FloatModel model;
  TokenizerSpec tokenizer;
  std::string chat_template;  // Jinja source, empty when the checkpoint has none
  std::string source_format;  // "gguf" or "safetensors"
  std::string source_types;   // weight types found, such as "Q4_1, Q8_0, F32"; says when the source
                              // was quantized already
  std::string source_sha256;  // of the file, or of all files in name order
  // Of a checkpoint with int8 weights and static inputs (compressed-tensors): the scale of each
  // linear layer's input, by layer name ("model.layers.0.mlp.down_proj"). Not needed to run it in
  // float.
  std::map<std::string, float> input_scales;
};

}  // namespace fixpoint
