// The one list of the scalar parameters of a model, with their manifest names and ranges, that
// writer, reader and validation share. visit(name, value, min, max); value is int32_t, uint64_t or
// bool, const when the model is. The ranges are those of kernels/ops.h; where a limit is narrower,
// the reason stands beside it.
#pragma once

#include <cstdint>

#include "bundle/model.h"
#include "kernels/ops.h"

namespace fixpoint {

inline constexpr int64_t kMaxLayers = 1024;
inline constexpr int64_t kMaxHeads = 1024;
// A prefix key is int16: |q . k| <= 127 * 2^15 * 256 < 2^30, so the distance of two scores fits
// int32.
inline constexpr int64_t kMaxHeadDim = 256;
inline constexpr int64_t kMaxVocabulary = 1 << 20;  // the tokenizer's limit too
inline constexpr int64_t kMaxPrefixTokens = 16;
inline constexpr int64_t kMaxHadamardBlock = 512;
inline constexpr int64_t kMaxMultiplier16 = (1 << 15) - 1;

template <typename Config, typename Visit>
void VisitConfig(Config& c, Visit&& visit) {
  visit("hidden_size", c.hidden_size, 1, kMaxHiddenSize);
  visit("intermediate_size", c.intermediate_size, 1, kMaxDepth);
  visit("num_hidden_layers", c.num_hidden_layers, 1, kMaxLayers);
  visit("num_attention_heads", c.num_attention_heads, 1, kMaxHeads);
  visit("num_key_value_heads", c.num_key_value_heads, 1, kMaxHeads);
  visit("head_dim", c.head_dim, 16, kMaxHeadDim);
  visit("vocab_size", c.vocab_size, 1, kMaxVocabulary);
  visit("max_position_embeddings", c.max_position_embeddings, 1, kMaxContext);
  visit("residual_fraction_bits", c.residual_fraction_bits, 0,
        26);                                                   // 1.0 must stay below kResidualLimit
  visit("logit_fraction_bits", c.logit_fraction_bits, 0, 29);  // 1.0 must stay below kLogitLimit
  visit("norm_epsilon", c.norm_epsilon, 0, (int64_t{1} << 60) - 1);
  visit("down_hadamard_block", c.down_hadamard_block, 1, kMaxHadamardBlock);
  visit("qk_hadamard", c.qk_hadamard, 0, 1);
}

template <typename Score, typename Visit>
void VisitScoreScale(Score& s, Visit&& visit) {
  visit("d_max", s.d_max, 1, (int64_t{1} << 30) - 1);
  visit("a", s.a, 0, 15);
  visit("c", s.c, 1, (1 << 16) - 1);
  visit("n", s.n, 1, 30);
}

template <typename Layer, typename Visit>
void VisitLayerScalars(Layer& l, Visit&& visit) {
  visit("attn_norm.fraction_bits", l.attn_norm.fraction_bits, 8, 30);
  visit("attn_norm.k", l.attn_norm.k, 1, 30);
  visit("attn_norm.wide", l.attn_norm.wide, 0, 1);
  visit("q_before.p", l.q_before.p, 0, 30);
  visit("q_before.k", l.q_before.k, 1, 30);
  visit("q_after.p", l.q_after.p, 0, 30);
  visit("q_after.k", l.q_after.k, 1, 30);
  visit("k_before.p", l.k_before.p, 0, 30);
  visit("k_before.k", l.k_before.k, 1, 30);
  visit("k_after.p", l.k_after.p, 0, 30);
  visit("k_after.k", l.k_after.k, 1, 30);
  visit("v.p", l.v.p, 0, 30);
  visit("v.k", l.v.k, 1, 30);
  visit("attn_out.p", l.attn_out.p, 0, 0);  // attention has already narrowed to 16 bits
  visit("attn_out.k", l.attn_out.k, 1, 30);
  visit("attn_out.wide", l.attn_out_wide, 0, 1);
  visit("o_proj.n", l.o_requantize.n, 1, 62);
  visit("mlp_norm.fraction_bits", l.mlp_norm.fraction_bits, 8, 30);
  visit("mlp_norm.k", l.mlp_norm.k, 1, 30);
  visit("mlp_norm.wide", l.mlp_norm.wide, 0, 1);
  visit("gate.p", l.gate.p, 0, 30);
  visit("gate.k", l.gate.k, 1, 30);
  visit("up.p", l.up.p, 0, 30);
  visit("up.k", l.up.k, 1, 30);
  visit("sigmoid_multiplier", l.sigmoid_multiplier, 1, kMaxMultiplier16);
  visit("sigmoid_shift", l.sigmoid_shift, 1, 30);
  visit("product_shift", l.product_shift, 1, 30);
  visit("down_in.p", l.down_in.p, 0, 30);
  visit("down_in.k", l.down_in.k, 1, 30);
  visit("down_in.wide", l.down_in_wide, 0, 1);
  visit("down_proj.n", l.down_requantize.n, 1, 62);
}

template <typename Model, typename Visit>
void VisitModelScalars(Model& m, Visit&& visit) {
  visit("embedding.n", m.embedding_requantize.n, 1, 62);
  visit("final_norm.fraction_bits", m.final_norm.fraction_bits, 8, 30);
  visit("final_norm.k", m.final_norm.k, 1, 30);
  visit("final_norm.wide", m.final_norm.wide, 0, 1);
  visit("head.n", m.head_requantize.n, 1, 62);
}

}  // namespace fixpoint
