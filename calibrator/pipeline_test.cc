#include "calibrator/pipeline.h"

#include <filesystem>
#include <fstream>

#include "bundle/bundle.h"
#include "bundle/test_model.h"
#include "calibrator/provenance.h"
#include "calibrator/test_float_model.h"
#include "calibrator/verbs.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

Checkpoint TinyCheckpoint() {
  Checkpoint checkpoint;
  checkpoint.model = MakeTestFloatModel({.seed = 21, .qkv_bias = true});
  checkpoint.tokenizer = MakeTestTokenizer(300);
  checkpoint.tokenizer.bos_id = 298;
  checkpoint.chat_template =
      "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% "
      "endfor %}";
  checkpoint.source_format = "gguf";
  checkpoint.source_types = "F32";
  checkpoint.source_sha256 = std::string(64, 'a');
  return checkpoint;
}

CalibrationSettings SmallSettings() {
  CalibrationSettings settings;
  settings.seed = 5;
  settings.rotation.seed = 5;
  settings.own_windows = {.max_train = 4, .max_held_out = 2};
  settings.sites.candidates = 6;
  settings.training.steps = 6;
  settings.training.judge_every = 3;
  settings.training.warmup_steps = 1;
  return settings;
}

absl::StatusOr<CalibrationResult> CalibrateTiny(const CalibrationSettings& settings,
                                                Checkpoint checkpoint = TinyCheckpoint()) {
  ThreadPool pool(2);
  const std::unique_ptr<Progress> progress =
      CreateProgress(ProgressKind::kNone, CalibrationStages(settings));
  StopSignal stop;
  return Calibrate(std::move(checkpoint), "tiny.gguf", settings, pool, *progress, 0, stop);
}

TEST(PipelineTest, FromCheckpointToVerifiedBundle) {
  const absl::StatusOr<CalibrationResult> result = CalibrateTiny(SmallSettings());
  ASSERT_TRUE(result.ok()) << result.status();
  const Bundle& bundle = result->bundle;
  EXPECT_TRUE(ValidateModel(bundle.model).ok());
  EXPECT_THAT(bundle.model.prefix_token_ids, testing::ElementsAre(298));
  EXPECT_EQ(bundle.model.config.down_hadamard_block, 128);
  EXPECT_TRUE(bundle.model.config.qk_hadamard);
  EXPECT_EQ(bundle.golden_digest.size(), 64u);
  EXPECT_EQ(bundle.sites.size(), 2u * 7 + 1);

  const HeldOutFigures& f = result->figures;
  EXPECT_EQ(f.tokens, 1024);
  const auto& integer = f.Find("integer");
  const auto& simulation = f.Find("static");
  // int8 rounding of a random two-layer model: KL of some 0.001, far from 0 and from a broken
  // model's 1 and more.
  EXPECT_GT(integer.kl_mean, 1e-5);
  EXPECT_LT(integer.kl_mean, 0.02);
  EXPECT_LT(f.Find("int8_weights").kl_mean, integer.kl_mean);
  // What the simulation leaves out (14-bit softmax, 16-bit intermediates) is small beside what it
  // has.
  // Two random models with the same noise differ by its own statistical spread too, and what the
  // engine adds (some 1e-5) does not shrink with it.
  EXPECT_NEAR(integer.kl_mean, simulation.kl_mean, 0.1 * simulation.kl_mean + 3e-5);
  EXPECT_NEAR(integer.perplexity / simulation.perplexity, 1, 0.002);
}

TEST(PipelineTest, TheSameSeedGivesTheSameIntegers) {
  const auto a = CalibrateTiny(SmallSettings());
  const auto b = CalibrateTiny(SmallSettings());
  CalibrationSettings other = SmallSettings();
  other.seed = other.rotation.seed = 6;
  const auto c = CalibrateTiny(other);
  ASSERT_TRUE(a.ok() && b.ok() && c.ok());
  EXPECT_EQ(a->bundle.golden_digest, b->bundle.golden_digest);
  EXPECT_NE(a->bundle.golden_digest, c->bundle.golden_digest);
}

TEST(PipelineTest, ProvenanceReadsBack) {
  const auto result = CalibrateTiny(SmallSettings());
  ASSERT_TRUE(result.ok());
  const absl::StatusOr<ProvenanceSource> source = ReadProvenance(result->bundle.provenance_json);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(source->name, "tiny.gguf");
  EXPECT_EQ(source->sha256, std::string(64, 'a'));
  EXPECT_EQ(source->rotation.seed, 5u);
  EXPECT_EQ(source->rotation.max_down_block, 128);
  ASSERT_EQ(source->scales.layers.size(), 2u);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(source->scales.layers[i].down_in.scale, result->sites.scales.layers[i].down_in.scale);
    EXPECT_EQ(source->scales.layers[i].q, result->sites.scales.layers[i].q);
  }
  EXPECT_FALSE(ReadProvenance("{}").ok());
  EXPECT_FALSE(ReadProvenance("not json").ok());
}

TEST(PipelineTest, ABundleWithoutBosHasNoPrefixUnlessTheTemplateStartsWithAControlToken) {
  Checkpoint checkpoint = TinyCheckpoint();
  checkpoint.tokenizer.bos_id = -1;
  const auto without = CalibrateTiny(SmallSettings(), checkpoint);
  ASSERT_TRUE(without.ok()) << without.status();
  EXPECT_TRUE(without->bundle.model.prefix_token_ids.empty());
  checkpoint.chat_template = "<|im_start|>{{ messages[0]['content'] }}";
  const auto with = CalibrateTiny(SmallSettings(), checkpoint);
  ASSERT_TRUE(with.ok()) << with.status();
  EXPECT_THAT(with->bundle.model.prefix_token_ids, testing::ElementsAre(298));
}

TEST(PipelineTest, AWindowThatDoesNotFitTheContextIsRefused) {
  Checkpoint checkpoint = TinyCheckpoint();
  checkpoint.model.config.max_position_embeddings = 300;
  const auto result = CalibrateTiny(SmallSettings(), checkpoint);
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(result.status().message()), testing::HasSubstr("299"));
}

TEST(PipelineTest, WrittenBundlesVerifyAndForgedDigestsDoNot) {
  auto result = CalibrateTiny(SmallSettings());
  ASSERT_TRUE(result.ok());
  const std::string path = testing::TempDir() + "/pipeline_test.fixpoint";
  ASSERT_TRUE(WriteBundle(result->bundle, path).ok());
  EXPECT_TRUE(RunVerify({.bundle = path, .threads = 2, .chunk = 7}).ok());
  result->bundle.golden_digest[0] = result->bundle.golden_digest[0] == '0' ? '1' : '0';
  ASSERT_TRUE(WriteBundle(result->bundle, path).ok());
  EXPECT_EQ(RunVerify({.bundle = path}).code(), absl::StatusCode::kDataLoss);
  std::filesystem::remove(path);
}

TEST(PipelineTest, BudgetsAreParsedStrictly) {
  EXPECT_NEAR(*ParseBudget("1%"), 0.01, 1e-12);
  EXPECT_NEAR(*ParseBudget("0.5 %"), 0.005, 1e-12);
  EXPECT_NEAR(*ParseBudget("0.02"), 0.02, 1e-12);
  for (const char* bad : {"", "%", "-1%", "nan", "1%%", "101%", "x"}) {
    EXPECT_FALSE(ParseBudget(bad).ok()) << bad;
  }
}

}  // namespace
}  // namespace fixpoint
