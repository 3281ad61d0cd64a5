#include "calibrator/weight_rounding.h"

#include <cmath>
#include <memory>

#include "calibrator/test_quantized_model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

using testing::HasSubstr;

class WeightRoundingTest : public testing::Test {
 protected:
  absl::StatusOr<IntegerWeights> Round(const TestQuantized& t, const Windows& windows,
                                       const GptqOptions& gptq = {}) {
    warnings_.clear();
    shares_.clear();
    return RoundWithStaticInputs(
        {.rotated = &t.rotated,
         .online = t.online,
         .scales = &t.scales,
         .prefix = &t.prefix,
         .windows = &windows,
         .gptq = gptq},
        *gemm_, pool_, [&](double share) { shares_.push_back(share); },
        [&](const std::string& line) { warnings_.push_back(line); });
  }

  // KL of the static model to float.
  double Kl(const TestQuantized& t, const IntegerWeights& weights, const Windows& windows) {
    const ForwardModel floats =
        MakeForwardModel(t.rotated, t.online, WeightKind::kFloat32, *gemm_, pool_);
    const ForwardModel integers =
        MakeIntegerForwardModel(weights, t.rotated, t.online, *gemm_, pool_);
    FloatForward float_forward(floats, *gemm_, pool_), forward(integers, *gemm_, pool_);
    ForwardLogits teacher(float_forward, {.prefix = &t.prefix});
    ForwardLogits model(forward, {.prefix = &t.prefix, .scales = &t.scales});
    const auto result = Compare(teacher, {&model}, windows, pool_);
    EXPECT_TRUE(result.ok());
    return (*result)[0].kl_mean;
  }

  static void ExpectValid(const IntegerLinear& linear, const Matrix& w) {
    EXPECT_EQ(linear.outputs, w.rows);
    EXPECT_EQ(linear.depth, w.cols);
    ASSERT_EQ(linear.values.size(), w.data.size());
    for (const int8_t q : linear.values) ASSERT_GE(q, -127);
  }

  ThreadPool pool_{2};
  std::unique_ptr<FloatGemm> gemm_ = CreateCpuGemm(pool_);
  std::vector<std::string> warnings_;
  std::vector<double> shares_;
};

// GPTQ lowers the error of each layer's output, so on average it lowers the KL; a single model may
// be unlucky. Without gains, which would make another function of the student.
TEST_F(WeightRoundingTest, LowersTheKlOfSmallModels) {
  double nearest = 0, rounded = 0;
  for (const uint64_t seed : {1, 2, 3, 4}) {
    const TestQuantized t =
        MakeTestQuantized({.seed = seed, .gains = false, .wide = seed > 2}, *gemm_, pool_);
    const int32_t vocab = t.rotated.config.vocab_size;
    const absl::StatusOr<IntegerWeights> weights =
        Round(t, RandomTestWindows(30, 96, vocab, 50 + seed));
    ASSERT_TRUE(weights.ok()) << weights.status();
    EXPECT_THAT(warnings_, testing::IsEmpty());
    const Windows held_out = RandomTestWindows(8, 96, vocab, 90 + seed);
    nearest += Kl(t, t.weights, held_out);
    rounded += Kl(t, *weights, held_out);

    bool differs = false;
    ASSERT_EQ(weights->layers.size(), t.rotated.layers.size());
    for (size_t i = 0; i < weights->layers.size(); ++i) {
      for (const LayerLinear& linear : kLayerLinears) {
        const IntegerLinear& result = weights->layers[i].*linear.integers;
        ExpectValid(result, t.rotated.layers[i].*linear.weights);
        EXPECT_EQ(result.steps, (t.weights.layers[i].*linear.integers).steps) << linear.name;
        differs |= result.values != (t.weights.layers[i].*linear.integers).values;
      }
    }
    EXPECT_TRUE(differs);
    ExpectValid(weights->head, t.rotated.head_or_embedding());
    EXPECT_NE(weights->head.values, t.weights.head.values);
    EXPECT_EQ(weights->embedding.values, t.weights.embedding.values);  // rows are looked up
    EXPECT_TRUE(std::is_sorted(shares_.begin(), shares_.end()));
  }
  RecordProperty("kl_nearest", std::to_string(nearest / 4));
  RecordProperty("kl_gptq", std::to_string(rounded / 4));
  EXPECT_LT(rounded, nearest);
}

// Eight tokens cannot span 64 channels: without damping the moments are singular.
TEST_F(WeightRoundingTest, SingularMomentsAreRoundedToNearestAndSaid) {
  const TestQuantized t = MakeTestQuantized({.gains = false}, *gemm_, pool_);
  const Windows windows = RandomTestWindows(1, 8, t.rotated.config.vocab_size, 3);
  const absl::StatusOr<IntegerWeights> weights = Round(t, windows, {.damping = 0});
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_THAT(warnings_,
              testing::Contains(testing::StartsWith("layers.0.q_proj: rounded to nearest: ")));
  EXPECT_THAT(warnings_, testing::Contains(testing::StartsWith("head: rounded to nearest: ")));
  for (const LayerLinear& linear : kLayerLinears) {
    EXPECT_EQ((weights->layers[0].*linear.integers).values,
              (t.weights.layers[0].*linear.integers).values)
        << linear.name;
  }
}

TEST_F(WeightRoundingTest, ABadOptionIsAnErrorThatNamesTheLinear) {
  const TestQuantized t = MakeTestQuantized({.gains = false}, *gemm_, pool_);
  const Windows windows = RandomTestWindows(1, 64, t.rotated.config.vocab_size, 3);
  const absl::Status status = Round(t, windows, {.damping = -1}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("layers.0.q_proj"));
}

}  // namespace
}  // namespace fixpoint
