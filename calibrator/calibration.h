// What calibration knows about a model: the value types that its steps hand to one another.
//
//   import -> rotate (rotate.h) -> prefix and statistics (float_forward.h) -> scales (ranges.h)
//   -> int16 sites (site_search.h) -> integers (quantize.h) -> verification (evaluate.h) -> bundle
//
// A site is a tensor that is quantized with a static scale: the input of each linear layer (attn_in
// feeds q, k, v; o_in; mlp_in feeds gate and up; down_in; head_in), and q, k, v per head.
//   q = clamp(round(real * gain / scale), -127, 127), and whatever reads it takes it as scale * q;
// at an int16 site x = clamp(round(real * gain * 256 / scale), -32512, 32512) counts as scale / 256
// * x. A gain is a vector over the channels that training has found; without one it is 1. All sites
// are in the rotated basis of rotate.h.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace fixpoint {

struct LinearSite {
  double scale = 0;         // > 0
  bool wide = false;        // int16 input
  std::vector<float> gain;  // [channels], each > 0; empty: 1
};

// The linear sites of a layer, in the order of the forward pass.
enum class LayerSite : int32_t { kAttnIn, kOIn, kMlpIn, kDownIn };
inline constexpr int32_t kLayerLinearSites = 4;

struct LayerScales {
  LinearSite attn_in, o_in, mlp_in, down_in;
  std::vector<double> q;      // [num_attention_heads], after RoPE and Hadamard
  std::vector<double> k, v;   // [num_key_value_heads]
  std::vector<float> q_gain;  // [num_attention_heads * head_dim], after RoPE and Hadamard; empty: 1
  std::vector<float> k_gain, v_gain;  // [num_key_value_heads * head_dim]; empty: 1

  LinearSite& linear(LayerSite site) {
    return const_cast<LinearSite&>(std::as_const(*this).linear(site));
  }
  const LinearSite& linear(LayerSite site) const {
    switch (site) {
      case LayerSite::kAttnIn:
        return attn_in;
      case LayerSite::kOIn:
        return o_in;
      case LayerSite::kMlpIn:
        return mlp_in;
      case LayerSite::kDownIn:
        return down_in;
    }
    return attn_in;
  }
};

struct Scales {
  std::vector<LayerScales> layers;
  LinearSite head_in;
};

// Largest magnitudes seen on the calibration text (prefix tokens excluded): they choose shifts and
// int16 scales, which have room to spare, so maxima are good enough here.
struct LayerRanges {
  // Per channel: outputs of the projections, bias included, before RoPE.
  std::vector<float> q_out, k_out, v_out;
  std::vector<float> q_rope, k_rope;    // per head: after RoPE, before the Hadamard
  std::vector<float> gate_out, up_out;  // per channel
  float product = 0;                    // silu(gate) * up, before the Hadamard
  std::vector<float> o_out, down_out;   // per channel: what is added to the residual stream
};

struct Ranges {
  std::vector<LayerRanges> layers;
  float residual = 0;  // over all layers, the embedding included
  float logits = 0;
};

// The KV of the fixed leading tokens, computed in float: K after RoPE and Hadamard, V in the
// rotated basis.
struct FloatPrefix {
  std::vector<int32_t> token_ids;
  struct Layer {
    std::vector<float> k, v;  // [num_key_value_heads][prefix tokens][head_dim]
  };
  std::vector<Layer> layers;
  int32_t size() const { return static_cast<int32_t>(token_ids.size()); }
};

}  // namespace fixpoint
