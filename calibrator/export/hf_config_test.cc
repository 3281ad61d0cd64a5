#include "calibrator/export/hf_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "calibrator/import/hf_checkpoint.h"
#include "calibrator/import/rope.h"
#include "calibrator/test_float_model.h"

namespace fixpoint {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

TokenizerSpec Tokens() {
  TokenizerSpec spec;
  spec.bos_id = 1;
  spec.eos_ids = {2, 7};
  return spec;
}

// As it comes back from our own reader.
HfConfig ReadBack(const FloatModel& model) {
  const absl::StatusOr<std::string> text =
      ConfigFromModel(model, Tokens(), QuantizationConfigJson({"lm_head"}));
  EXPECT_TRUE(text.ok()) << text.status();
  const absl::StatusOr<HfConfig> config = ParseHfConfig(*text, "config.json");
  EXPECT_TRUE(config.ok()) << config.status();
  return *config;
}

TEST(HfConfigTest, OurReaderGetsTheModelBack) {
  FloatModel model = MakeTestFloatModel({.tied = false});
  for (const char* architecture : {"llama", "qwen2"}) {
    model.config.architecture = architecture;
    const HfConfig back = ReadBack(model);
    EXPECT_TRUE(back.compressed_tensors);
    EXPECT_EQ(back.config.architecture, architecture);
    EXPECT_EQ(back.config.hidden_size, model.config.hidden_size);
    EXPECT_EQ(back.config.intermediate_size, model.config.intermediate_size);
    EXPECT_EQ(back.config.num_hidden_layers, model.config.num_hidden_layers);
    EXPECT_EQ(back.config.num_attention_heads, model.config.num_attention_heads);
    EXPECT_EQ(back.config.num_key_value_heads, model.config.num_key_value_heads);
    EXPECT_EQ(back.config.head_dim, model.config.head_dim);
    EXPECT_EQ(back.config.vocab_size, model.config.vocab_size);
    EXPECT_EQ(back.config.max_position_embeddings, model.config.max_position_embeddings);
    EXPECT_EQ(back.config.rms_norm_eps, model.config.rms_norm_eps);
    EXPECT_FALSE(back.config.tie_word_embeddings);
    EXPECT_EQ(back.rope.theta, 10000);
    EXPECT_EQ(back.rope.scaling, RopeSpec::Scaling::kNone);
    EXPECT_THAT(back.eos_ids, ElementsAre(2, 7));
  }
}

TEST(HfConfigTest, RopeScalingIsRecognisedFromTheFrequencies) {
  FloatModel model = MakeTestFloatModel({.head_dim = 64, .tied = false});
  model.config.rope_theta = 500000;
  RopeSpec rope{.theta = 500000, .scaling = RopeSpec::Scaling::kLinear, .factor = 4};
  model.rope_inverse_frequency = InverseFrequencies(rope, 64);
  EXPECT_EQ(ReadBack(model).rope, rope);

  rope = {.theta = 500000,
          .scaling = RopeSpec::Scaling::kLlama3,
          .factor = 32,
          .low_frequency_factor = 1,
          .high_frequency_factor = 4,
          .original_context = 8192};
  model.rope_inverse_frequency = InverseFrequencies(rope, 64);
  // As a GGUF file has them: divisors in float32.
  const std::vector<double> plain = InverseFrequencies({.theta = 500000}, 64);
  for (size_t i = 0; i < plain.size(); ++i) {
    const float divisor = static_cast<float>(plain[i] / model.rope_inverse_frequency[i]);
    model.rope_inverse_frequency[i] = plain[i] / static_cast<double>(divisor);
  }
  EXPECT_EQ(ReadBack(model).rope, rope);

  model.rope_inverse_frequency[5] *= 1.01;
  const absl::Status status = ConfigFromModel(model, Tokens(), "{}").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("RoPE"));
}

TEST(HfConfigTest, AnOriginalConfigKeepsItsKeys) {
  const absl::StatusOr<std::string> text = ConfigFromOriginal(
      R"({"architectures":["LlamaForCausalLM"],"big":12345678901234,"eps":1e-05,"deep":{"a":[1,null,"\u00e9"]},
          "tie_word_embeddings":true,"torch_dtype":"float16","_name_or_path":"x"})",
      "config.json", R"({"q":1})");
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_THAT(*text, HasSubstr(R"("architectures":["LlamaForCausalLM"],"big":12345678901234)"));
  EXPECT_THAT(*text, HasSubstr("\"deep\":{\"a\":[1,null,\"\u00e9\"]}"));
  EXPECT_THAT(*text, HasSubstr(R"("tie_word_embeddings":false)"));
  EXPECT_THAT(*text, HasSubstr(R"("torch_dtype":"bfloat16")"));
  EXPECT_THAT(*text, HasSubstr(R"("quantization_config":{"q":1})"));
  EXPECT_THAT(*text, Not(HasSubstr("\"float16\"")));
  EXPECT_THAT(*text, Not(HasSubstr("_name_or_path")));
  EXPECT_FALSE(ConfigFromOriginal("[]", "config.json", "{}").ok());
}

}  // namespace
}  // namespace fixpoint
