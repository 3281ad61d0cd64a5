#include "calibrator/provenance.h"

#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

using testing::HasSubstr;

class ProvenanceTest : public testing::Test {
 protected:
  ProvenanceTest() {
    checkpoint_.source_sha256 = std::string(64, 'b');
    corpus_.train = {.tokens = 2, .token_ids = {1, 2}};
    corpus_.held_out = corpus_.train;
    LayerScales& s = scales_.layers.emplace_back();
    s.attn_in = {.scale = 0.25, .gain = {1.5f, 0.75f}};
    s.o_in.scale = s.mlp_in.scale = 0.5;
    s.down_in = {.scale = 0.125, .wide = true};
    s.q = {0.1, 0.2};
    s.k = s.v = {0.3};
    scales_.head_in.scale = 2;
  }

  std::string Write(const Method& method, const TrainingSummary* training) const {
    return WriteProvenance({.checkpoint = &checkpoint_,
                            .source_name = "m.gguf",
                            .settings = &settings_,
                            .corpus = &corpus_,
                            .scales = &scales_,
                            .head_clip = "mse",
                            .method = method,
                            .training = training,
                            .sites = &sites_,
                            .figures = &figures_});
  }

  Checkpoint checkpoint_;
  CalibrationSettings settings_;
  Corpus corpus_;
  Scales scales_;
  SiteSearchResult sites_;
  HeldOutFigures figures_;
};

TEST_F(ProvenanceTest, MethodAndScalesReadBackAndGainsAreNotWritten) {
  const Method method{
      .objective = "ce", .granularity = "channel", .vectors = "folded", .rounding = "gptq"};
  const std::string text = Write(method, nullptr);
  EXPECT_THAT(text, testing::Not(HasSubstr("\"training\"")));
  EXPECT_THAT(text, testing::Not(HasSubstr("0.75")));
  const auto source = ReadProvenance(text);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(source->method.objective, "ce");
  EXPECT_EQ(source->method.granularity, "channel");
  EXPECT_EQ(source->method.vectors, "folded");
  EXPECT_EQ(source->method.rounding, "gptq");
  ASSERT_EQ(source->scales.layers.size(), 1u);
  const LayerScales& s = source->scales.layers[0];
  EXPECT_EQ(s.attn_in.scale, 0.25);
  EXPECT_TRUE(s.attn_in.gain.empty());
  EXPECT_FALSE(s.attn_in.wide);
  EXPECT_TRUE(s.down_in.wide);
  EXPECT_EQ(s.q, scales_.layers[0].q);
}

TEST_F(ProvenanceTest, TrainingIsTold) {
  TrainingSummary training{.scale_learning_rate = 0.005,
                           .gain_learning_rate = 0.001,
                           .steps = 30,
                           .planned_steps = 40,
                           .best_step = 24,
                           .tokens = 61440,
                           .step_windows = 4,
                           .micro_batch_windows = 2,
                           .window_tokens = 512,
                           .seed = 9,
                           .stopped_by = "held_out",
                           .loss_first = 0.014,
                           .loss_last = 0.0105,
                           .held_out_kl_before = 0.0141,
                           .held_out_kl_after = 0.011};
  const Method method{.objective = "kl", .granularity = "channel"};
  const std::string neutral = Write(method, &training);
  EXPECT_THAT(neutral, HasSubstr("\"best_step\":24"));
  EXPECT_THAT(neutral, HasSubstr("\"stopped_by\":\"held_out\""));
  EXPECT_THAT(neutral, HasSubstr("\"loss_first\":0.014,\"loss_last\":0.0105"));
  EXPECT_THAT(neutral, HasSubstr("\"held_out_kl_before\":0.0141,\"held_out_kl_after\":0.011"));
  EXPECT_THAT(neutral, testing::Not(HasSubstr("float_control")));
  EXPECT_TRUE(ReadProvenance(neutral).ok());
  training.control = FloatControl{.perplexity = 20.5,
                                  .relative_percent = -21,
                                  .standard_error_percent = 0.5,
                                  .gap_percent = 0.6};
  const std::string adapted = Write({.objective = "ce"}, &training);
  EXPECT_THAT(adapted,
              HasSubstr("\"float_control\":{\"perplexity\":20.5,\"relative_percent\":-21"));
}

TEST_F(ProvenanceTest, OlderProvenanceHasDefaults) {
  const std::string older =
      absl::StrReplaceAll(Write({}, nullptr), {{"\"objective\":\"none\",", ""},
                                               {"\"vectors\":\"gain\",", ""},
                                               {"\"rounding\":\"nearest\",", ""},
                                               {"\"granularity\":\"tensor\",", ""}});
  EXPECT_THAT(older, testing::Not(HasSubstr("objective")));
  const auto source = ReadProvenance(older);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(source->method.objective, "none");
  EXPECT_EQ(source->method.granularity, "tensor");
  EXPECT_EQ(source->method.vectors, "gain");
  EXPECT_EQ(source->method.rounding, "nearest");
}

TEST_F(ProvenanceTest, UnknownMethodsAreRefusedByName) {
  const std::string text =
      absl::StrReplaceAll(Write({}, nullptr), {{"\"vectors\":\"gain\"", "\"vectors\":\"magic\""}});
  const auto source = ReadProvenance(text);
  EXPECT_EQ(source.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(source.status().message()),
              testing::AllOf(HasSubstr("vectors"), HasSubstr("magic"), HasSubstr("folded")));
}

}  // namespace
}  // namespace fixpoint
