#include "calibrator/train/training_run.h"

#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "calibrator/test_quantized_model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

using testing::Contains;
using testing::HasSubstr;

class TrainingRunTest : public testing::Test {
 protected:
  TrainingRunTest() {
    options_.steps = 6;
    options_.judge_every = 2;
    options_.warmup_steps = 1;
    options_.scale_rate = 0.02;
    std::filesystem::remove(path_);
  }
  ~TrainingRunTest() override { std::filesystem::remove(path_); }

  absl::StatusOr<TrainingRunResult> Run(bool resume = false, int64_t stop_behind = -1) {
    lines_.clear();
    stop_ = stop_behind == 0;
    FloatForward teacher_forward(floats_, *gemm_, pool_);
    ForwardLogits teacher(teacher_forward, {.prefix = &t_.prefix});
    weights_ = t_.weights;
    ForwardModel student = MakeIntegerForwardModel(weights_, t_.rotated, t_.online, *gemm_, pool_);
    const TrainingRunInput input{.rotated = &t_.rotated,
                                 .online = t_.online,
                                 .student = &student,
                                 .weights = &weights_,
                                 .base = &t_.scales,
                                 .prefix = &t_.prefix,
                                 .teacher_prefix = &t_.prefix,
                                 .train = &train_,
                                 .held_out = &held_out_,
                                 .held_out_teacher = &teacher,
                                 .checkpoint_path = path_,
                                 .fingerprint = fingerprint_,
                                 .resume = resume};
    return RunTraining(
        input, options_, *gemm_, pool_, stop_, [&](std::string line) { lines_.push_back(line); },
        [&](double share, const TrainPoint& point, const std::string&) {
          EXPECT_TRUE(share >= 0 && share <= 1) << share;
          if (point.step == stop_behind) stop_ = true;
        });
  }

  ThreadPool pool_{2};
  std::unique_ptr<FloatGemm> gemm_ = CreateCpuGemm(pool_);
  TestQuantized t_ = MakeTestQuantized({.gains = false}, *gemm_, pool_);
  ForwardModel floats_ = MakeForwardModel(t_.rotated, t_.online, WeightKind::kBf16, *gemm_, pool_);
  IntegerWeights weights_;
  Windows train_ = RandomTestWindows(8, 32, t_.rotated.config.vocab_size, 5);
  Windows held_out_ = RandomTestWindows(3, 32, t_.rotated.config.vocab_size, 6);
  TrainOptions options_;
  std::string path_ = absl::StrCat(testing::TempDir(), "/training_run_test.", getpid());
  std::string fingerprint_ = std::string(64, '7');
  std::vector<std::string> lines_;
  std::atomic<bool> stop_{false};
};

TEST_F(TrainingRunTest, InterruptedAndResumedEqualsUninterrupted) {
  const std::string keep = path_;
  path_.clear();  // no checkpoint
  const auto whole = Run();
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_EQ(whole->details.stop_reason, "steps");
  EXPECT_GT(whole->tokens_per_second, 0);
  EXPECT_GT(whole->flops_per_second, whole->tokens_per_second);
  path_ = keep;
  const auto part = Run(/*resume=*/true, /*stop_behind=*/4);
  ASSERT_TRUE(part.ok()) << part.status();
  EXPECT_THAT(lines_, testing::ElementsAre(HasSubstr("no checkpoint")));
  EXPECT_EQ(part->details.stop_reason, "interrupted");
  const auto rest = Run(true);
  ASSERT_TRUE(rest.ok()) << rest.status();
  EXPECT_THAT(lines_, testing::ElementsAre("resumed behind step 4 of 6"));
  EXPECT_EQ(rest->details.state.parameters, whole->details.state.parameters);
  EXPECT_EQ(rest->details.state.best_parameters, whole->details.state.best_parameters);
  EXPECT_EQ(rest->scales.layers[1].q, whole->scales.layers[1].q);
  // A finished run does nothing more.
  const auto again = Run(true);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->details.tokens, 0);
  EXPECT_EQ(again->details.state.parameters, whole->details.state.parameters);
}

TEST_F(TrainingRunTest, ACheckpointOfAnotherRunIsRefused) {
  ASSERT_TRUE(Run().ok());
  fingerprint_ = std::string(64, '8');
  EXPECT_EQ(Run(/*resume=*/true).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(Run(/*resume=*/false).ok());  // not asked to go on: written over
  EXPECT_TRUE(Run(true).ok());
}

TEST_F(TrainingRunTest, GoesOnWhenTheCheckpointCannotBeWritten) {
  path_ += "/no_such_folder/x";
  const auto result = Run();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->details.stop_reason, "steps");
  EXPECT_THAT(lines_, Contains(HasSubstr("checkpoint not written, training goes on")));
}

TEST_F(TrainingRunTest, StoppedBeforeTheFirstStepGivesTheStart) {
  const auto result = Run(false, /*stop_behind=*/0);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->details.stop_reason, "interrupted");
  EXPECT_EQ(result->scales.layers[0].q, t_.scales.layers[0].q);
  EXPECT_EQ(result->scales.head_in.scale, t_.scales.head_in.scale);
  EXPECT_EQ(result->prefix.layers[0].k, t_.prefix.layers[0].k);
}

TEST_F(TrainingRunTest, FoldedWeightsAreThoseOfTheBestGains) {
  options_.vectors = Vectors::kFolded;
  options_.gain_rate = 0.02;
  options_.average_decay = 0;
  const auto result = Run();
  ASSERT_TRUE(result.ok()) << result.status();
  const IntegerWeights expected = RoundWeights(t_.rotated, &result->scales, pool_);
  for (const LayerLinear& linear : kLayerLinears) {
    EXPECT_EQ((weights_.layers[1].*linear.integers).values,
              (expected.layers[1].*linear.integers).values)
        << linear.name;
    EXPECT_EQ((weights_.layers[1].*linear.integers).steps,
              (expected.layers[1].*linear.integers).steps);
  }
  EXPECT_EQ(weights_.head.values, expected.head.values);
}

TEST_F(TrainingRunTest, FloatControlRunsWithoutTheStudent) {
  options_.objective = Objective::kCe;
  options_.round = false;
  options_.gain_rate = 0.02;
  const auto result = Run();
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_LT(result->details.state.best_held_out, result->details.state.first_held_out);
  EXPECT_EQ(result->scales.head_in.scale, t_.scales.head_in.scale);
  EXPECT_FALSE(result->scales.head_in.gain.empty());
  EXPECT_EQ(weights_.head.values, t_.weights.head.values);
}

}  // namespace
}  // namespace fixpoint
