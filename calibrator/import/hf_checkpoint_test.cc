#include "calibrator/import/hf_checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace fixpoint {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Llama 3.2 1B's sizes. `more` are further keys, each with a comma behind it.
std::string Config(const std::string& more, const std::string& architecture = "LlamaForCausalLM") {
  return absl::StrCat(R"({"architectures": [")", architecture, R"("], )", more, R"(
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-05,
    "use_cache": true, "initializer_range": 0.02, "pad_token_id": null})");
}

HfConfig MustParse(const std::string& text) {
  const absl::StatusOr<HfConfig> config = ParseHfConfig(text, "config.json");
  EXPECT_TRUE(config.ok()) << config.status();
  return config.value_or(HfConfig());
}

void ExpectRefused(const std::string& text, const std::string& key,
                   const std::string& message = "") {
  const absl::Status status = ParseHfConfig(text, "dir/config.json").status();
  ASSERT_FALSE(status.ok()) << text;
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("dir/config.json"), HasSubstr(key), HasSubstr(message)));
}

TEST(HfConfigTest, ReadsSizesAndDefaults) {
  const HfConfig parsed = MustParse(Config(""));
  const FloatConfig& config = parsed.config;
  EXPECT_EQ(config.architecture, "llama");
  EXPECT_EQ(config.hidden_size, 2048);
  EXPECT_EQ(config.intermediate_size, 8192);
  EXPECT_EQ(config.num_hidden_layers, 16);
  EXPECT_EQ(config.num_attention_heads, 32);
  EXPECT_EQ(config.num_key_value_heads, 8);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.vocab_size, 128256);
  EXPECT_EQ(config.max_position_embeddings, 131072);
  EXPECT_EQ(config.rms_norm_eps, 1e-5);
  EXPECT_EQ(config.rope_theta, 10000);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_EQ(parsed.rope, RopeSpec());
  EXPECT_TRUE(parsed.eos_ids.empty());
}

TEST(HfConfigTest, ReadsOptionalKeys) {
  const HfConfig parsed = MustParse(Config(
      R"("head_dim": 128, "tie_word_embeddings": true, "rope_theta": 500000, "eos_token_id": [1, 2],
         "model_type": "llama", "hidden_act": "silu", "attention_bias": false, "mlp_bias": false,)"));
  EXPECT_EQ(parsed.config.head_dim, 128);
  EXPECT_TRUE(parsed.config.tie_word_embeddings);
  EXPECT_EQ(parsed.config.rope_theta, 500000);
  EXPECT_THAT(parsed.eos_ids, ElementsAre(1, 2));
}

TEST(HfConfigTest, KeyValueHeadsDefaultToHeads) {
  const std::string text = absl::StrReplaceAll(Config(""), {{R"("num_key_value_heads": 8, )", ""}});
  EXPECT_EQ(MustParse(text).config.num_key_value_heads, 32);
}

TEST(HfConfigTest, ArchitecturesAreKnownByName) {
  EXPECT_EQ(MustParse(Config("", "MistralForCausalLM")).config.architecture, "llama");
  EXPECT_EQ(MustParse(Config("", "Qwen2ForCausalLM")).config.architecture, "qwen2");
  ExpectRefused(Config("", "Qwen3ForCausalLM"), "architectures", "Qwen3ForCausalLM");
  ExpectRefused(Config(R"("model_type": "mixtral",)"), "model_type", "mixtral");
  ExpectRefused(R"({"hidden_size": 8})", "architectures");
  ExpectRefused(R"({"architectures": ["LlamaForCausalLM", "X"]})", "architectures");
}

TEST(HfConfigTest, RopeScalingInOldAndNewSpelling) {
  RopeSpec llama3;
  llama3.theta = 500000;
  llama3.scaling = RopeSpec::Scaling::kLlama3;
  llama3.factor = 32;
  llama3.low_frequency_factor = 1;
  llama3.high_frequency_factor = 4;
  llama3.original_context = 8192;
  const std::string body =
      R"("factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192)";
  for (const char* type : {"type", "rope_type"}) {
    EXPECT_EQ(MustParse(Config(absl::StrCat(R"("rope_theta": 500000.0, "rope_scaling": {")", type,
                                            R"(": "llama3", )", body, "},")))
                  .rope,
              llama3);
  }
  EXPECT_EQ(MustParse(Config(absl::StrCat(
                          R"("rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3", )",
                          body, "},")))
                .rope,
            llama3);
  EXPECT_EQ(
      MustParse(Config(R"("rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},)"))
          .config.rope_theta,
      500000);
  EXPECT_EQ(MustParse(Config(R"("rope_scaling": null,)")).rope, RopeSpec());
  const RopeSpec linear =
      MustParse(Config(R"("rope_scaling": {"type": "linear", "factor": 2.0},)")).rope;
  EXPECT_EQ(linear.scaling, RopeSpec::Scaling::kLinear);
  EXPECT_EQ(linear.factor, 2);
}

TEST(HfConfigTest, RopeThatIsNotUnderstoodIsRefused) {
  ExpectRefused(Config(R"("rope_scaling": {"type": "yarn", "factor": 4.0},)"), "rope_type",
                "\"yarn\"");
  ExpectRefused(Config(R"("rope_scaling": {"type": "dynamic", "factor": 4.0},)"), "rope_type",
                "\"dynamic\"");
  ExpectRefused(Config(R"("rope_scaling": {"type": "linear"},)"), "rope_scaling: factor",
                "missing");
  ExpectRefused(Config(R"("rope_scaling": {"type": "linear", "factor": 0},)"), "factor");
  ExpectRefused(
      Config(R"("rope_scaling": {"type": "linear", "rope_type": "llama3", "factor": 2},)"),
      "rope_type", "contradicts");
  ExpectRefused(Config(R"("rope_parameters": {"full_attention": {"rope_theta": 1e6}},)"),
                "rope_parameters: full_attention");
  ExpectRefused(Config(R"("rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6},)"),
                "rope_parameters", "contradicts");
  ExpectRefused(Config(R"("rope_parameters": {"rope_type": "default"},
                          "rope_scaling": {"type": "linear", "factor": 2},)"),
                "rope_scaling", "contradicts");
  ExpectRefused(Config(R"("rope_scaling": 3,)"), "rope_scaling", "not an object");
  ExpectRefused(Config(R"("rope_theta": -1,)"), "RoPE base");
}

TEST(HfConfigTest, VariantsAreRefusedByName) {
  ExpectRefused(Config(R"("attention_bias": true,)"), "attention_bias");
  ExpectRefused(Config(R"("mlp_bias": true,)"), "mlp_bias");
  ExpectRefused(Config(R"("hidden_act": "gelu",)"), "hidden_act", "\"gelu\"");
  ExpectRefused(Config(R"("quantization_config": {"quant_method": "gptq"},)"),
                "quantization_config");
  ExpectRefused(Config(R"("partial_rotary_factor": 0.5,)"), "partial_rotary_factor", "0.5");
  ExpectRefused(Config(R"("rope_interleaved": true,)"), "rope_interleaved");
  ExpectRefused(Config(R"("num_local_experts": 8,)"), "num_local_experts");
  ExpectRefused(Config(R"("layer_types": ["full_attention", "sliding_attention"],)"), "layer_types",
                "sliding_attention");
}

TEST(HfConfigTest, SlidingWindowsCountOnlyWhenInUse) {
  ExpectRefused(Config(R"("sliding_window": 4096,)", "MistralForCausalLM"), "sliding_window",
                "4096");
  MustParse(Config(R"("sliding_window": null,)", "MistralForCausalLM"));
  MustParse(Config(R"("sliding_window": 131072,)", "MistralForCausalLM"));
  MustParse(Config(R"("sliding_window": 4096, "use_sliding_window": false,)", "Qwen2ForCausalLM"));
  ExpectRefused(
      Config(R"("sliding_window": 4096, "use_sliding_window": true,)", "Qwen2ForCausalLM"),
      "use_sliding_window");
}

TEST(HfConfigTest, SizesAreBounded) {
  ExpectRefused(Config(R"("head_dim": 63,)"), "head_dim is 63");
  ExpectRefused(Config(R"("head_dim": 0,)"), "head_dim");
  ExpectRefused(absl::StrReplaceAll(Config(""), {{"2048", "1e3"}}), "hidden_size", "integer");
  ExpectRefused(absl::StrReplaceAll(Config(""), {{"2048", "2049"}}), "head_dim", "2049");
  ExpectRefused(absl::StrReplaceAll(Config(""), {{"2048", "4294967296"}}), "hidden_size");
  ExpectRefused(absl::StrReplaceAll(Config(""), {{"128256", "2000000000"}}),
                "vocab_size is 2000000000");
  ExpectRefused(absl::StrReplaceAll(Config(""),
                                    {{"\"num_key_value_heads\": 8", "\"num_key_value_heads\": 5"}}),
                "32 attention heads");
  ExpectRefused(absl::StrReplaceAll(Config(""), {{"1e-05", "0"}}), "rms_norm_eps");
  ExpectRefused(absl::StrReplaceAll(Config(""), {{"\"rms_norm_eps\": 1e-05,", ""}}), "rms_norm_eps",
                "missing");
}

TEST(HfConfigTest, BrokenJsonIsRefused) {
  ExpectRefused("", "not valid JSON");
  ExpectRefused("[1]", "not an object");
  ExpectRefused(Config(R"("x": 1, "x": 2,)"), "\"x\" appears twice");
  ExpectRefused(Config(R"("x": {"deep": [{"y": 1, "y": 2}]},)"), "\"y\" appears twice");
  ExpectRefused(
      Config(absl::StrCat("\"x\": ", std::string(10'000, '['), std::string(10'000, ']'), ",")),
      "not valid JSON");
}

TEST(HfEosIdsTest, OneOrMany) {
  EXPECT_THAT(*ParseHfEosIds(R"({"eos_token_id": 5})", "g"), ElementsAre(5));
  EXPECT_THAT(*ParseHfEosIds(R"({"eos_token_id": [128001, 128008]})", "g"),
              ElementsAre(128001, 128008));
  EXPECT_TRUE(ParseHfEosIds(R"({"eos_token_id": null})", "g")->empty());
  for (const char* bad :
       {R"({"eos_token_id": -1})", R"({"eos_token_id": "x"})", R"({"eos_token_id": [1.5]})",
        R"({"eos_token_id": 4294967296})", R"({"eos_token_id": [[1]]})"}) {
    EXPECT_THAT(std::string(ParseHfEosIds(bad, "g.json").status().message()),
                HasSubstr("g.json: eos_token_id"));
  }
}

TEST(HfChatTemplateTest, StringListOrNothing) {
  EXPECT_EQ(*ParseHfChatTemplate(R"({"chat_template": "{{ x }}"})", "t"), "{{ x }}");
  EXPECT_EQ(*ParseHfChatTemplate(R"({"chat_template": [{"name": "tool_use", "template": "T"},
                                                       {"name": "default", "template": "D"}]})",
                                 "t"),
            "D");
  EXPECT_EQ(*ParseHfChatTemplate("{}", "t"), "");
  EXPECT_FALSE(
      ParseHfChatTemplate(R"({"chat_template": [{"name": "tool_use", "template": "T"}]})", "t")
          .ok());
  EXPECT_FALSE(ParseHfChatTemplate(R"({"chat_template": 5})", "t").ok());
}

}  // namespace
}  // namespace fixpoint
