#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "bundle/model.h"
#include "bundle/test_model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

using ::testing::HasSubstr;

struct Case {
  const char* named;  // what the message must name
  std::function<void(IntegerModel&)> change;
};

void ExpectRefused(const std::vector<Case>& cases) {
  TestModelOptions options;
  options.prefix_tokens = 2;
  options.qkv_bias = true;
  options.odd_layer_wide_sites = kWideAttnNorm;
  const IntegerModel good = MakeTestModel(options);
  ASSERT_TRUE(ValidateModel(good).ok()) << ValidateModel(good);
  for (const Case& c : cases) {
    IntegerModel model = good;
    c.change(model);
    const absl::Status status = ValidateModel(model);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.named;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.named));
  }
}

using M = IntegerModel;

TEST(ValidateModelTest, ConfigOutOfRange) {
  ExpectRefused({
      {"config.hidden_size is 0", [](M& m) { m.config.hidden_size = 0; }},
      {"config.hidden_size is 16385, allowed is 1 to 16384",
       [](M& m) { m.config.hidden_size = 16385; }},
      {"config.intermediate_size", [](M& m) { m.config.intermediate_size = 131073; }},
      {"config.num_hidden_layers", [](M& m) { m.config.num_hidden_layers = -1; }},
      {"config.num_hidden_layers is 3", [](M& m) { m.config.num_hidden_layers = 3; }},
      {"config.num_attention_heads", [](M& m) { m.config.num_attention_heads = 1025; }},
      {"config.num_attention_heads is 5", [](M& m) { m.config.num_attention_heads = 5; }},
      {"num_attention_heads * head_dim is 262144",
       [](M& m) { m.config.num_attention_heads = 1024, m.config.head_dim = 256; }},
      {"config.num_key_value_heads", [](M& m) { m.config.num_key_value_heads = 0; }},
      {"config.head_dim is 24", [](M& m) { m.config.head_dim = 24; }},
      {"config.head_dim is 272", [](M& m) { m.config.head_dim = 272; }},
      {"config.head_dim is 0", [](M& m) { m.config.head_dim = 0; }},
      {"config.vocab_size", [](M& m) { m.config.vocab_size = (1 << 20) + 1; }},
      {"config.max_position_embeddings", [](M& m) { m.config.max_position_embeddings = 131073; }},
      {"no position is left", [](M& m) { m.config.max_position_embeddings = 2; }},
      {"config.residual_fraction_bits", [](M& m) { m.config.residual_fraction_bits = 27; }},
      {"config.logit_fraction_bits", [](M& m) { m.config.logit_fraction_bits = 30; }},
      {"config.norm_epsilon is 1152921504606846976",
       [](M& m) { m.config.norm_epsilon = uint64_t{1} << 60; }},
      {"config.norm_epsilon is 18446744073709551615",
       [](M& m) { m.config.norm_epsilon = ~uint64_t{0}; }},
      {"config.down_hadamard_block is 96", [](M& m) { m.config.down_hadamard_block = 96; }},
      {"config.down_hadamard_block is 256", [](M& m) { m.config.down_hadamard_block = 256; }},
      {"config.down_hadamard_block is 1024", [](M& m) { m.config.down_hadamard_block = 1024; }},
      {"config.qk_hadamard", [](M& m) { m.config.head_dim = 48, m.config.qk_hadamard = true; }},
      {"prefix_token_ids holds 300", [](M& m) { m.prefix_token_ids[1] = 300; }},
      {"prefix_token_ids holds -1", [](M& m) { m.prefix_token_ids[0] = -1; }},
      {"prefix_token_ids has 17", [](M& m) { m.prefix_token_ids.resize(17); }},
  });
}

TEST(ValidateModelTest, ScalarsOutOfRange) {
  ExpectRefused({
      {"embedding.n is 63", [](M& m) { m.embedding_requantize.n = 63; }},
      {"head.n is 0", [](M& m) { m.head_requantize.n = 0; }},
      {"final_norm.fraction_bits is 31", [](M& m) { m.final_norm.fraction_bits = 31; }},
      {"final_norm.k is 0", [](M& m) { m.final_norm.k = 0; }},
      {"layers.1.attn_norm.fraction_bits is 7",
       [](M& m) { m.layers[1].attn_norm.fraction_bits = 7; }},
      {"layers.0.attn_norm.k", [](M& m) { m.layers[0].attn_norm.k = 31; }},
      {"layers.0.mlp_norm.fraction_bits", [](M& m) { m.layers[0].mlp_norm.fraction_bits = 31; }},
      {"layers.0.mlp_norm.k", [](M& m) { m.layers[0].mlp_norm.k = 0; }},
      {"layers.0.q_before.p", [](M& m) { m.layers[0].q_before.p = 31; }},
      {"layers.0.q_before.k", [](M& m) { m.layers[0].q_before.k = 0; }},
      {"layers.0.q_after.p", [](M& m) { m.layers[0].q_after.p = -1; }},
      {"layers.0.q_after.k", [](M& m) { m.layers[0].q_after.k = 31; }},
      {"layers.0.k_before.p", [](M& m) { m.layers[0].k_before.p = 31; }},
      {"layers.0.k_before.k", [](M& m) { m.layers[0].k_before.k = 0; }},
      {"layers.0.k_after.p", [](M& m) { m.layers[0].k_after.p = -1; }},
      {"layers.0.k_after.k", [](M& m) { m.layers[0].k_after.k = 31; }},
      {"layers.1.v.p", [](M& m) { m.layers[1].v.p = 31; }},
      {"layers.1.v.k", [](M& m) { m.layers[1].v.k = 0; }},
      {"layers.0.attn_out.p is 1", [](M& m) { m.layers[0].attn_out.p = 1; }},
      {"layers.0.attn_out.k", [](M& m) { m.layers[0].attn_out.k = 0; }},
      {"layers.0.o_proj.n", [](M& m) { m.layers[0].o_requantize.n = 63; }},
      {"layers.0.gate.p", [](M& m) { m.layers[0].gate.p = 31; }},
      {"layers.0.gate.k", [](M& m) { m.layers[0].gate.k = 0; }},
      {"layers.0.up.p", [](M& m) { m.layers[0].up.p = 31; }},
      {"layers.0.up.k", [](M& m) { m.layers[0].up.k = 0; }},
      {"layers.0.sigmoid_multiplier is 32768",
       [](M& m) { m.layers[0].sigmoid_multiplier = 32768; }},
      {"layers.0.sigmoid_shift", [](M& m) { m.layers[0].sigmoid_shift = 0; }},
      {"layers.0.product_shift", [](M& m) { m.layers[0].product_shift = 31; }},
      {"layers.0.down_in.p", [](M& m) { m.layers[0].down_in.p = 31; }},
      {"layers.0.down_in.k", [](M& m) { m.layers[0].down_in.k = 0; }},
      {"layers.0.down_proj.n", [](M& m) { m.layers[0].down_requantize.n = 0; }},
      {"layers.0.scores.3.d_max is 0", [](M& m) { m.layers[0].scores[3].d_max = 0; }},
      {"layers.0.scores.0.d_max", [](M& m) { m.layers[0].scores[0].d_max = 1 << 30; }},
      {"layers.0.scores.0.a is 16", [](M& m) { m.layers[0].scores[0].a = 16; }},
      {"layers.0.scores.0.c is 65536", [](M& m) { m.layers[0].scores[0].c = 65536; }},
      {"layers.0.scores.0.n is 31", [](M& m) { m.layers[0].scores[0].n = 31; }},
      {"layers.0.scores.1: rs(d_max, a) * c",
       [](M& m) {
         m.layers[0].scores[1] = {1 << 16, 0, 1 << 15, 1};
       }},
      {"layers.0.scores has 3", [](M& m) { m.layers[0].scores.pop_back(); }},
  });
}

TEST(ValidateModelTest, TensorsOutOfRange) {
  ExpectRefused({
      {"'rope.cos': element 9 is 16385", [](M& m) { m.rope_cos[9] = 16385; }},
      {"'rope.sin': element 0 is -16385", [](M& m) { m.rope_sin[0] = -16385; }},
      {"'embedding.weight': element 5 is -128", [](M& m) { m.embedding[5] = -128; }},
      {"'embedding.multiplier'", [](M& m) { m.embedding_requantize.multipliers[299] = 0; }},
      {"'layers.1.attn_norm.multiplier': element 63 is 0",
       [](M& m) { m.layers[1].attn_norm.multipliers[63] = 0; }},
      {"'layers.0.qkv.weight'", [](M& m) { m.layers[0].qkv.weights.back() = -128; }},
      {"'layers.0.q_before.multiplier'", [](M& m) { m.layers[0].q_before.multipliers[1] = -1; }},
      {"'layers.0.q_after.multiplier'", [](M& m) { m.layers[0].q_after.multipliers[1] = 0; }},
      {"'layers.0.k_before.multiplier'", [](M& m) { m.layers[0].k_before.multipliers[1] = 0; }},
      {"'layers.0.k_after.multiplier'", [](M& m) { m.layers[0].k_after.multipliers[1] = 0; }},
      {"'layers.0.v.multiplier'", [](M& m) { m.layers[0].v.multipliers[1] = 0; }},
      {"'layers.0.attn_out.multiplier'", [](M& m) { m.layers[0].attn_out.multipliers[1] = 0; }},
      {"'layers.0.o_proj.weight'", [](M& m) { m.layers[0].o_proj.weights[0] = -128; }},
      {"'layers.0.o_proj.multiplier'", [](M& m) { m.layers[0].o_requantize.multipliers[0] = -5; }},
      {"'layers.0.mlp_norm.multiplier'", [](M& m) { m.layers[0].mlp_norm.multipliers[0] = -5; }},
      {"'layers.0.gate_up.weight'", [](M& m) { m.layers[0].gate_up.weights[0] = -128; }},
      {"'layers.0.gate.multiplier'", [](M& m) { m.layers[0].gate.multipliers[0] = 0; }},
      {"'layers.0.up.multiplier'", [](M& m) { m.layers[0].up.multipliers[0] = 0; }},
      {"'layers.0.down_in.multiplier'", [](M& m) { m.layers[0].down_in.multipliers[0] = 0; }},
      {"'layers.0.down_proj.weight'", [](M& m) { m.layers[0].down_proj.weights[0] = -128; }},
      {"'layers.0.down_proj.multiplier'",
       [](M& m) { m.layers[0].down_requantize.multipliers[0] = 0; }},
      {"'layers.0.prefix_k': element 1 is -32768", [](M& m) { m.layers[0].prefix_k[1] = -32768; }},
      {"'layers.1.prefix_v'", [](M& m) { m.layers[1].prefix_v[1] = -32768; }},
      {"'final_norm.multiplier'", [](M& m) { m.final_norm.multipliers[0] = 0; }},
      {"'head.weight'", [](M& m) { m.head.weights[1] = -128; }},
      {"'head.multiplier'", [](M& m) { m.head_requantize.multipliers[0] = 0; }},
  });
}

TEST(ValidateModelTest, ShapesThatDoNotFit) {
  ExpectRefused({
      {"'rope.cos' has 4095 elements", [](M& m) { m.rope_cos.pop_back(); }},
      {"'embedding.weight'", [](M& m) { m.embedding.clear(); }},
      {"'layers.0.qkv.bias' has 127 elements, its shape [1, 128] needs 128",
       [](M& m) { m.layers[0].qkv.bias.pop_back(); }},
      {"'layers.1.prefix_k'", [](M& m) { m.layers[1].prefix_k.clear(); }},
      {"layers.0.qkv has shape [127, 64]", [](M& m) { m.layers[0].qkv.outputs = 127; }},
      {"layers.0.gate_up has shape", [](M& m) { m.layers[0].gate_up.depth = 65; }},
      {"layers.1.o_proj has shape", [](M& m) { m.layers[1].o_proj.depth = 63; }},
      {"layers.1.down_proj has shape", [](M& m) { m.layers[1].down_proj.outputs = 0; }},
      {"head has shape", [](M& m) { m.head.outputs = 299; }},
      {"layers.1.o_proj has a bias", [](M& m) { m.layers[1].o_proj.bias.resize(64); }},
      {"layers.1.gate_up has a bias", [](M& m) { m.layers[1].gate_up.bias.resize(256); }},
      {"layers.1.down_proj has a bias", [](M& m) { m.layers[1].down_proj.bias.resize(64); }},
      {"head has a bias", [](M& m) { m.head.bias.resize(300); }},
      {"layers has 1 entries", [](M& m) { m.layers.pop_back(); }},
  });
}

// 127 * 127 * 64 at an int8 site, 128 * 127 * 64 and a 256th of it at an int16 site.
TEST(ValidateModelTest, BiasLeavesRoomForTheSum) {
  TestModelOptions options;
  options.qkv_bias = true;
  options.odd_layer_wide_sites = kWideAttnNorm;
  IntegerModel model = MakeTestModel(options);
  for (const auto& [layer, limit] : std::vector<std::pair<int, int32_t>>{
           {0, 2147483647 - 1032256}, {1, 2147483647 - 1040384 - 4064}}) {
    int32_t& bias = model.layers[layer].qkv.bias[3];
    bias = limit;
    EXPECT_TRUE(ValidateModel(model).ok()) << ValidateModel(model);
    bias = -limit;
    EXPECT_TRUE(ValidateModel(model).ok()) << ValidateModel(model);
    bias = limit + 1;
    EXPECT_THAT(std::string(ValidateModel(model).message()), HasSubstr("qkv.bias': element 3"));
    bias = std::numeric_limits<int32_t>::min();
    EXPECT_FALSE(ValidateModel(model).ok());
    bias = 0;
  }
}

}  // namespace
}  // namespace fixpoint
