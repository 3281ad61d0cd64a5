#include "calibrator/train/backward_pass.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "calibrator/random.h"
#include "calibrator/rotate.h"
#include "calibrator/test_float_model.h"
#include "calibrator/train/float32_gemm.h"
#include "calibrator/train/optimizer.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

// A small model in the rotated basis with a prefix of two tokens, random gains and an own loss:
// the sum of random factors times logits.
class SmallModel {
 public:
  explicit SmallModel(WeightKind kind, bool qkv_bias = false)
      : pool_(2), cpu_(CreateCpuGemm(pool_)), gemm_(*cpu_) {
    model_ = MakeTestFloatModel({.qkv_bias = qkv_bias});
    online_ = FoldAndRotate(model_, {.seed = 3}, gemm_, pool_);
    forward_model_ = MakeForwardModel(model_, online_, kind, gemm_, pool_);
    forward_.emplace(forward_model_, gemm_, pool_);
    const ForwardModel plain =
        MakeForwardModel(model_, online_, WeightKind::kFloat32, gemm_, pool_);
    prefix_ = FloatForward(plain, gemm_, pool_).ComputePrefix(std::vector<int32_t>{1, 2});
    layout_.emplace(model_.config, prefix_.size());
    pass_.emplace(*forward_, *layout_, gemm_, pool_);
    Random random(5);
    for (int i = 0; i < kSequences * kTokens; ++i)
      ids_.push_back(static_cast<int32_t>(random.Below(model_.config.vocab_size)));
    for (int i = 0; i < kSequences * kTokens * model_.config.vocab_size; ++i)
      factors_.push_back(static_cast<float>(random.Normal() / (kSequences * kTokens)));
    scales_.layers.resize(model_.config.num_hidden_layers);
    for (LayerScales& layer : scales_.layers) {
      for (int32_t i = 0; i < kLayerLinearSites; ++i)
        layer.linear(static_cast<LayerSite>(i)).scale = 0.02;
      layer.q.assign(model_.config.num_attention_heads, 0.02);
      layer.k.assign(model_.config.num_key_value_heads, 0.03);
      layer.v.assign(model_.config.num_key_value_heads, 0.015);
    }
    scales_.head_in.scale = 0.02;
    parameters_.resize(layout_->size());
    // Log gains of every channel of linear sites and heads; scales and prefix stay.
    layout_->ForEachPiece([&](ParameterLayout::Kind kind, int64_t begin, int64_t count) {
      if (kind != ParameterLayout::Kind::kLinearGain && kind != ParameterLayout::Kind::kHeadGain)
        return;
      for (int64_t i = begin; i < begin + count; ++i)
        parameters_[i] = static_cast<float>(random.Normal() * 0.2);
    });
  }

  double Loss(const std::vector<float>& parameters, bool round, bool with_gradient) {
    const Scales scales = MoveScales(scales_, *layout_, parameters);
    const FloatPrefix prefix = MovePrefix(prefix_, *layout_, parameters);
    pass_->Forward({.token_ids = ids_.data(), .sequences = kSequences, .tokens = kTokens},
                   {.prefix = &prefix, .scales = &scales, .round = round}, /*folded=*/false);
    const int64_t vocab = model_.config.vocab_size;
    double loss = 0;
    std::vector<float> logits(kBlock * vocab);
    for (int64_t row = 0; row < kSequences * kTokens; row += kBlock) {
      const int64_t end = std::min<int64_t>(row + kBlock, kSequences * kTokens);
      pass_->Logits(row, end, logits.data());
      for (int64_t i = 0; i < (end - row) * vocab; ++i) {
        loss += static_cast<double>(logits[i]) * factors_[row * vocab + i];
        logits[i] = factors_[row * vocab + i];
      }
      if (with_gradient) pass_->AddLogitGradient(row, end, logits.data());
    }
    if (with_gradient) {
      std::fill(pass_->gradient().begin(), pass_->gradient().end(), 0.0);
      pass_->Backward();
    }
    return loss;
  }

  static constexpr int32_t kSequences = 2, kTokens = 70;  // more than one block of queries
  static constexpr int64_t kBlock = 35;
  ThreadPool pool_;
  std::unique_ptr<FloatGemm> cpu_;
  Float32Gemm gemm_;
  FloatModel model_;
  OnlineTransforms online_;
  ForwardModel forward_model_;
  std::optional<FloatForward> forward_;
  FloatPrefix prefix_;
  std::optional<ParameterLayout> layout_;
  std::optional<BackwardPass> pass_;
  std::vector<int32_t> ids_;
  std::vector<float> factors_;
  Scales scales_;
  std::vector<float> parameters_;
};

// Without rounding the loss is smooth. Central differences along a random direction inside each
// piece: the error of the difference is about h^2 (0.01^2 times third derivatives of order 1) plus
// float32 noise of the loss (1e-6 of its terms) over h. 1 % covers both.
TEST(BackwardPassTest, GradientIsThatOfFiniteDifferences) {
  SmallModel small(WeightKind::kFloat32, /*qkv_bias=*/true);
  small.Loss(small.parameters_, /*round=*/false, /*with_gradient=*/true);
  const std::vector<double> gradient = small.pass_->gradient();
  double largest = 0;
  for (const double g : gradient) largest = std::max(largest, std::fabs(g));
  ASSERT_GT(largest, 0);
  int checked = 0;
  small.layout_->ForEachPiece([&](ParameterLayout::Kind kind, int64_t begin, int64_t count) {
    if (kind == ParameterLayout::Kind::kScale) {  // nothing is rounded: no effect
      for (int64_t i = begin; i < begin + count; ++i) EXPECT_EQ(gradient[i], 0) << i;
      return;
    }
    Random random(17, begin);
    // A few directions in each piece: the whole piece, and thirds of it.
    for (int part = 0; part < 4; ++part) {
      const int64_t first = part == 0 ? begin : begin + count * (part - 1) / 3;
      const int64_t last = part == 0 ? begin + count : begin + count * part / 3;
      std::vector<float> up = small.parameters_, down = small.parameters_;
      double expected = 0;
      constexpr double kStep = 0.01;
      for (int64_t i = first; i < last; ++i) {
        const double direction = random.Normal() + (gradient[i] > 0 ? 1 : -1);
        up[i] += static_cast<float>(kStep * direction);
        down[i] -= static_cast<float>(kStep * direction);
        expected += gradient[i] * direction;
      }
      const double difference =
          (small.Loss(up, false, false) - small.Loss(down, false, false)) / (2 * kStep);
      EXPECT_NEAR(difference / expected, 1, 0.01)
          << "piece at " << begin << " of " << count << ", part " << part << ", kind "
          << static_cast<int>(kind) << ": " << difference << " for " << expected;
      ++checked;
    }
  });
  EXPECT_EQ(checked, 4 * (2 * 3 + 1));
}

// With rounding the same gradient must come out of one run and three threads, bit for bit, twice.
TEST(BackwardPassTest, SameGradientTwice) {
  SmallModel small(WeightKind::kInt8);
  small.Loss(small.parameters_, /*round=*/true, true);
  const std::vector<double> first = small.pass_->gradient();
  small.Loss(small.parameters_, true, true);
  EXPECT_EQ(first, small.pass_->gradient());
  for (int64_t layer = 0; layer < small.layout_->layers(); ++layer)
    EXPECT_NE(first[small.layout_->LinearScale(static_cast<int32_t>(layer), LayerSite::kDownIn)],
              0);
}

// A step against the gradient must lower the loss of a rounded model too: straight-through
// gradients are not exact, but they point down.
TEST(BackwardPassTest, DescendsWithRounding) {
  SmallModel small(WeightKind::kInt8);
  const double before = small.Loss(small.parameters_, true, true);
  std::vector<double> gradient = small.pass_->gradient();
  double squares = 0;
  for (const double g : gradient) squares += g * g;
  std::vector<float> moved = small.parameters_;
  const double step = 0.05 / std::sqrt(squares);
  for (size_t i = 0; i < moved.size(); ++i) moved[i] -= static_cast<float>(step * gradient[i]);
  const double after = small.Loss(moved, true, false);
  const double promised = step * squares;
  EXPECT_LT(after, before - 0.5 * promised) << "promised " << promised;
  EXPECT_GT(after, before - 1.5 * promised) << "promised " << promised;
}

}  // namespace
}  // namespace fixpoint
