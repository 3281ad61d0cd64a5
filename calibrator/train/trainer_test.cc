#include "calibrator/train/trainer.h"

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <memory>
#include <numeric>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "calibrator/test_quantized_model.h"
#include "calibrator/train/checkpoint.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

using Kind = ParameterLayout::Kind;

enum class Start { kGood, kSpoiled };

// A tiny int8 model, its float teacher, windows of random tokens, and the Trainer around them.
class Bench {
 public:
  explicit Bench(Start start, int threads = 2)
      : pool_(threads),
        gemm_(CreateCpuGemm(pool_)),
        t_(MakeTestQuantized({.gains = false}, *gemm_, pool_)),
        integers_(MakeIntegerForwardModel(t_.weights, t_.rotated, t_.online, *gemm_, pool_)),
        floats_(MakeForwardModel(t_.rotated, t_.online, WeightKind::kBf16, *gemm_, pool_)),
        student_(integers_, *gemm_, pool_),
        float_forward_(floats_, *gemm_, pool_),
        layout_(t_.rotated.config, t_.prefix.size()),
        base_(t_.scales),
        train_(RandomTestWindows(10, 40, vocab(), 100)),
        held_out_(RandomTestWindows(6, 40, vocab(), 200)) {
    if (start == Start::kGood) return;
    int i = 0;
    for (LayerScales& layer : base_.layers) {
      for (int32_t site = 0; site < kLayerLinearSites; ++site)
        layer.linear(static_cast<LayerSite>(site)).scale *= i++ % 2 ? 3 : 1.0 / 3;
    }
  }

  int32_t vocab() const { return t_.rotated.config.vocab_size; }
  const ParameterLayout& layout() const { return layout_; }
  int refolds() const { return refolds_; }
  const Scales& base() const { return base_; }
  // Called after each step, when set.
  std::function<void(const TrainState&)> after_step;
  // In place of the figure on held-out text, when set.
  std::function<absl::StatusOr<double>()> judge;

  static TrainOptions Options() {
    TrainOptions options;
    options.scale_rate = 0.05;
    options.gain_rate = 0.002;
    options.steps = 60;
    options.warmup_steps = 2;
    options.average_decay = 0.7;
    options.judge_every = 10;
    options.micro_windows = 3;  // does not divide the batch
    options.seed = 1;
    return options;
  }

  TrainResult Run(const TrainOptions& options, TrainState state = {}) {
    absl::StatusOr<TrainResult> result = TryRun(options, std::move(state));
    EXPECT_TRUE(result.ok()) << result.status();
    return *std::move(result);
  }

  absl::StatusOr<TrainResult> TryRun(const TrainOptions& options, TrainState state = {}) {
    stop_ = false;
    FloatForward& forward = options.round ? student_ : float_forward_;
    std::unique_ptr<Teacher> teacher;
    if (options.objective == Objective::kKl) {
      teacher = Teacher::Create(float_forward_, t_.prefix, train_, *gemm_, pool_, [](double) {});
    }
    BackwardPass pass(forward, layout_, *gemm_, pool_);
    Trainer::Model model{.pass = &pass,
                         .layout = &layout_,
                         .base = &base_,
                         .prefix = &t_.prefix,
                         .windows = &train_,
                         .teacher = teacher.get(),
                         .pool = &pool_,
                         .vocab_size = vocab()};
    model.judge = [&](const Scales& scales, const FloatPrefix& prefix) {
      return judge ? judge() : Judge(options, scales, prefix);
    };
    if (options.vectors == Vectors::kFolded) {
      model.refold = [&](const Scales& scales) {
        ++refolds_;
        Refold(scales);
      };
    }
    model.after_step = [&](const TrainState& s, const TrainPoint&) {
      if (after_step) after_step(s);
    };
    return Trainer(options, std::move(model)).Run(std::move(state), stop_);
  }

  // KL to float on held-out text, or the loss.
  absl::StatusOr<double> Judge(const TrainOptions& options, const Scales& scales,
                               const FloatPrefix& prefix) {
    ForwardLogits model(options.round ? student_ : float_forward_,
                        {.prefix = &prefix, .scales = &scales, .round = options.round});
    if (options.objective == Objective::kCe) {
      ASSIGN_OR_RETURN(const std::vector<double> losses, WindowLosses(model, held_out_, pool_));
      return std::accumulate(losses.begin(), losses.end(), 0.0) /
             static_cast<double>(losses.size());
    }
    FloatForward other(floats_, *gemm_, pool_);
    ForwardLogits teacher(other, {.prefix = &t_.prefix});
    ASSIGN_OR_RETURN(const std::vector<Comparison> result,
                     Compare(teacher, {&model}, held_out_, pool_));
    return result[0].kl_mean;
  }

  double JudgeParameters(const TrainOptions& options, const std::vector<float>& parameters) {
    const Scales scales = MoveScales(base_, layout_, parameters);
    if (options.vectors == Vectors::kFolded) Refold(scales);
    return *Judge(options, scales, MovePrefix(t_.prefix, layout_, parameters));
  }

  void Refold(const Scales& scales) {
    const IntegerWeights weights = RoundWeights(t_.rotated, &scales, pool_);
    for (size_t i = 0; i < weights.layers.size(); ++i)
      ReplaceLayer(weights.layers[i], &integers_.layers[i], pool_);
    ReplaceLinear(weights.head, &integers_.head, pool_);
  }

  // How many parameters of a kind are not 0.
  int64_t Moved(Kind wanted, const std::vector<float>& parameters) const {
    int64_t moved = 0;
    layout_.ForEachPiece([&](Kind kind, int64_t begin, int64_t count) {
      for (int64_t i = begin; i < begin + count && kind == wanted; ++i) moved += parameters[i] != 0;
    });
    return moved;
  }

  void Stop() { stop_ = true; }

 private:
  ThreadPool pool_;
  std::unique_ptr<FloatGemm> gemm_;
  TestQuantized t_;
  ForwardModel integers_, floats_;
  FloatForward student_, float_forward_;
  ParameterLayout layout_;
  Scales base_;
  Windows train_, held_out_;
  std::atomic<bool> stop_{false};
  int refolds_ = 0;
};

void ExpectSameState(const TrainState& a, const TrainState& b) {
  EXPECT_EQ(a.step, b.step);
  EXPECT_EQ(a.parameters, b.parameters);
  EXPECT_EQ(a.average, b.average);
  EXPECT_EQ(a.adam.first, b.adam.first);
  EXPECT_EQ(a.adam.second, b.adam.second);
  EXPECT_EQ(a.best_parameters, b.best_parameters);
  EXPECT_EQ(a.best_step, b.best_step);
  EXPECT_EQ(a.best_held_out, b.best_held_out);
  EXPECT_EQ(a.looks_since_best, b.looks_since_best);
  ASSERT_EQ(a.points.size(), b.points.size());
  for (size_t i = 0; i < a.points.size(); ++i) {
    EXPECT_EQ(a.points[i].loss, b.points[i].loss) << i;
    EXPECT_EQ(a.points[i].held_out, b.points[i].held_out) << i;
    EXPECT_EQ(a.points[i].rate, b.points[i].rate) << i;
  }
}

TEST(TrainerTest, RepairsSpoiledScales) {
  Bench bench(Start::kSpoiled), good(Start::kGood);
  const TrainOptions options = Bench::Options();
  const TrainResult result = bench.Run(options);
  EXPECT_EQ(result.stop_reason, "steps");
  EXPECT_EQ(result.state.step, 60);
  EXPECT_EQ(result.tokens, 60 * 4 * 40);
  ASSERT_EQ(result.state.points.size(), 60u);
  const double untouched = good.JudgeParameters(options, std::vector<float>(good.layout().size()));
  // Factors of 3 multiply the error of half of the sites by 9 and clip the others; training must
  // undo most of it.
  EXPECT_GT(result.state.first_held_out, 5 * untouched);
  EXPECT_LT(result.state.best_held_out, 0.3 * result.state.first_held_out);
  EXPECT_EQ(bench.JudgeParameters(options, result.state.best_parameters),
            result.state.best_held_out);
  // Scales that were made too large have come down, the others up.
  const auto& p = result.state.best_parameters;
  EXPECT_GT(p[bench.layout().LinearScale(0, LayerSite::kAttnIn)], 0.3);
  EXPECT_LT(p[bench.layout().LinearScale(0, LayerSite::kOIn)], -0.3);
  // Held-out text was looked at every tenth step.
  for (const TrainPoint& point : result.state.points) {
    EXPECT_EQ(point.held_out >= 0, point.step % 10 == 0) << point.step;
    EXPECT_EQ(point.tokens, point.step * 4 * 40);
  }
  EXPECT_LT(result.state.points.back().loss, 0.5 * result.state.points.front().loss);
}

TEST(TrainerTest, SameSeedSameBitsWhateverTheThreads) {
  TrainOptions options = Bench::Options();
  options.steps = 12;
  const TrainResult one = Bench(Start::kSpoiled, 1).Run(options);
  ExpectSameState(one.state, Bench(Start::kSpoiled, 1).Run(options).state);
  ExpectSameState(one.state, Bench(Start::kSpoiled, 3).Run(options).state);
  options.seed = 2;
  EXPECT_NE(one.state.parameters, Bench(Start::kSpoiled).Run(options).state.parameters);
}

// Interrupted behind `step`, through a file, and on with another Trainer.
void ExpectResumedEqualsUninterrupted(const TrainOptions& options, int64_t step) {
  const TrainState whole = Bench(Start::kSpoiled).Run(options).state;
  const std::string path = absl::StrCat(testing::TempDir(), "/trainer_test.", getpid());
  const std::string fingerprint(64, 'f');
  int64_t size = 0;
  {
    Bench bench(Start::kSpoiled);
    size = bench.layout().size();
    bench.after_step = [&](const TrainState& state) {
      if (state.step == step) bench.Stop();
    };
    const TrainResult part = bench.Run(options);
    EXPECT_EQ(part.stop_reason, "interrupted");
    EXPECT_EQ(part.state.step, step);
    ASSERT_TRUE(WriteCheckpoint(path, fingerprint, part.state).ok());
  }
  absl::StatusOr<TrainState> state = ReadCheckpoint(path, fingerprint, size);
  ASSERT_TRUE(state.ok()) << state.status();
  const TrainResult rest = Bench(Start::kSpoiled).Run(options, *std::move(state));
  EXPECT_EQ(rest.stop_reason, "steps");
  EXPECT_EQ(rest.tokens, (options.steps - step) * 4 * 40);  // of this process alone
  ExpectSameState(rest.state, whole);
  std::filesystem::remove(path);
}

TEST(TrainerTest, ResumedRunEndsWhereAnUninterruptedOneDoes) {
  TrainOptions options = Bench::Options();
  options.steps = 14;
  options.judge_every = 4;
  options.prefix_rate = 0.01;
  for (const int64_t step : {1, 7, 13}) ExpectResumedEqualsUninterrupted(options, step);
}

TEST(TrainerTest, ResumedFoldedRunEndsWhereAnUninterruptedOneDoes) {
  TrainOptions options = Bench::Options();
  options.steps = 8;
  options.judge_every = 3;
  options.vectors = Vectors::kFolded;
  ExpectResumedEqualsUninterrupted(options, 4);
}

TEST(TrainerTest, NextTokenLossFalls) {
  Bench bench(Start::kGood);
  TrainOptions options = Bench::Options();
  options.objective = Objective::kCe;
  options.gain_rate = 0.01;
  options.steps = 40;
  const TrainResult result = bench.Run(options);
  // Random text: a model that is less sure of itself is better, and gains can make it so.
  EXPECT_LT(result.state.points.back().loss, result.state.points.front().loss - 0.2);
  EXPECT_LT(result.state.best_held_out, result.state.first_held_out - 0.2);
  EXPECT_GT(bench.Moved(Kind::kHeadGain, result.state.parameters), 0);
  // The first step's loss is that of the untrained model on those windows, near the held-out one:
  // logits of some 5 make losses of random tokens vary by about 7, so means of 160 by 0.6.
  EXPECT_NEAR(result.state.points.front().loss, result.state.first_held_out, 2);
}

TEST(TrainerTest, FloatControlTrainsGainsAndNoScales) {
  Bench bench(Start::kSpoiled);  // scales are not looked at
  TrainOptions options = Bench::Options();
  options.objective = Objective::kCe;
  options.round = false;
  options.gain_rate = 0.01;
  options.steps = 40;
  const TrainResult result = bench.Run(options);
  EXPECT_LT(result.state.points.back().loss, result.state.points.front().loss - 0.2);
  EXPECT_EQ(bench.Moved(Kind::kScale, result.state.parameters), 0);
  EXPECT_EQ(bench.Moved(Kind::kPrefix, result.state.parameters), 0);
  EXPECT_GT(bench.Moved(Kind::kLinearGain, result.state.parameters), 0);
  EXPECT_GT(bench.Moved(Kind::kHeadGain, result.state.parameters), 0);
}

TEST(TrainerTest, TensorGranularityMovesScalesAlone) {
  Bench bench(Start::kSpoiled);
  TrainOptions options = Bench::Options();
  options.granularity = Granularity::kTensor;
  options.steps = 40;
  const TrainResult result = bench.Run(options);
  EXPECT_LT(result.state.best_held_out, 0.5 * result.state.first_held_out);
  EXPECT_EQ(bench.Moved(Kind::kLinearGain, result.state.parameters), 0);
  EXPECT_EQ(bench.Moved(Kind::kHeadGain, result.state.parameters), 0);
  EXPECT_EQ(bench.Moved(Kind::kPrefix, result.state.parameters), 0);
  EXPECT_GT(bench.Moved(Kind::kScale, result.state.parameters), 10);
  for (const LayerScales& layer :
       MoveScales(bench.base(), bench.layout(), result.state.parameters).layers) {
    EXPECT_TRUE(layer.attn_in.gain.empty() && layer.down_in.gain.empty() && layer.q_gain.empty());
  }
}

TEST(TrainerTest, FoldedVectorsKeepHeadGainsAndRoundTheWeightsAgain) {
  Bench bench(Start::kSpoiled);
  TrainOptions options = Bench::Options();
  options.vectors = Vectors::kFolded;
  const TrainResult result = bench.Run(options);
  EXPECT_EQ(bench.refolds(), 1 + 60 + 6);  // the start, each step, each look
  EXPECT_LT(result.state.best_held_out, 0.3 * result.state.first_held_out);
  EXPECT_EQ(bench.Moved(Kind::kHeadGain, result.state.parameters), 0);
  EXPECT_GT(bench.Moved(Kind::kLinearGain, result.state.parameters), 0);
  EXPECT_EQ(bench.JudgeParameters(options, result.state.best_parameters),
            result.state.best_held_out);
}

TEST(TrainerTest, PrefixMovesWhenAskedTo) {
  TrainOptions options = Bench::Options();
  options.steps = 30;
  options.scale_rate = options.gain_rate = 0;
  options.prefix_rate = 0.01;
  options.patience = 100;
  Bench bench(Start::kSpoiled);  // with something to gain
  const TrainResult result = bench.Run(options);
  EXPECT_EQ(bench.Moved(Kind::kPrefix, result.state.parameters),
            bench.layout().layers() * bench.layout().prefix_per_layer());
  EXPECT_EQ(bench.Moved(Kind::kScale, result.state.parameters), 0);
  EXPECT_EQ(bench.Moved(Kind::kLinearGain, result.state.parameters), 0);
  EXPECT_LT(result.state.best_held_out, 0.99 * result.state.first_held_out);
}

TEST(TrainerTest, DivergenceStopsAndKeepsTheBest) {
  for (const double scale_rate : {0.5, 5.0, 500.0}) {
    Bench bench(Start::kGood);
    TrainOptions options = Bench::Options();
    options.scale_rate = scale_rate;
    options.warmup_steps = 0;
    options.judge_every = 2;
    options.average_decay = 0;
    const TrainResult result = bench.Run(options);
    EXPECT_EQ(result.stop_reason, "diverged") << scale_rate;
    EXPECT_LT(result.state.step, 60) << scale_rate;
    EXPECT_LE(result.state.best_held_out, result.state.first_held_out);
    EXPECT_EQ(bench.JudgeParameters(options, result.state.best_parameters),
              result.state.best_held_out);
  }
}

TEST(TrainerTest, HeldOutTextFarAboveTheStartIsDivergence) {
  Bench bench(Start::kGood);
  int looks = 0;
  bench.judge = [&] { return ++looks < 4 ? 1.0 : 2.5; };
  TrainOptions options = Bench::Options();
  options.judge_every = 1;
  options.patience = 10;  // the looks before the fall are no better than the start
  const TrainResult result = bench.Run(options);
  EXPECT_EQ(result.stop_reason, "diverged");
  EXPECT_EQ(result.state.step, 3);
  EXPECT_EQ(result.state.points.size(), 3u);
  EXPECT_EQ(result.state.points.back().held_out, 2.5);
  EXPECT_EQ(result.state.best_step, 0);
  EXPECT_THAT(result.state.best_parameters, testing::Each(0.0f));
}

TEST(TrainerTest, PatienceEndsARunThatGetsNoBetter) {
  Bench bench(Start::kGood);
  int looks = 0;
  bench.judge = [&] { return ++looks == 3 ? 0.5 : 1.0; };  // the start, step 1, step 2, ...
  TrainOptions options = Bench::Options();
  options.judge_every = 1;
  options.patience = 3;
  const TrainResult result = bench.Run(options);
  EXPECT_EQ(result.stop_reason, "patience");
  EXPECT_EQ(result.state.best_step, 2);
  EXPECT_EQ(result.state.step, 2 + 3);
  EXPECT_EQ(result.state.best_held_out, 0.5);
}

TEST(TrainerTest, PassesOnAFailedLook) {
  Bench bench(Start::kGood);
  int looks = 0;
  bench.judge = [&]() -> absl::StatusOr<double> {
    if (++looks < 2) return 1.0;
    return absl::DataLossError("lost");
  };
  TrainOptions options = Bench::Options();
  options.judge_every = 1;
  EXPECT_EQ(bench.TryRun(options).status().code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace fixpoint
