#include "calibrator/train/optimizer.h"

#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

using testing::ElementsAre;
using testing::FloatNear;

// Moments and parameters are float32: 1e-6 of values near 1 is some sixteen half ulps.
TEST(AdamTest, StepsAreThoseComputedByHand) {
  AdamState state;
  std::vector<float> parameters = {1, -2, 5};
  const std::vector<float> rates = {0.1f, 0.01f, 0};
  // The first step is the full rate against the sign, whatever the gradient's size: the bias
  // corrections turn the moments into g and g^2.
  AdamStep({3, -1e-3, 7}, rates, 1, &state, &parameters);
  EXPECT_EQ(state.steps, 1);
  EXPECT_THAT(parameters, ElementsAre(FloatNear(0.9f, 1e-6f), FloatNear(-1.99f, 1e-6f), 5));
  EXPECT_THAT(state.first, ElementsAre(FloatNear(0.3f, 1e-6f), FloatNear(-1e-4f, 1e-9f), 0));
  EXPECT_THAT(state.second, ElementsAre(FloatNear(0.09f, 1e-7f), FloatNear(1e-8f, 1e-13f), 0));
  // Second step, gradient -1 and half the rate: first = 0.9 * 0.3 - 0.1 = 0.17, over 1 - 0.81;
  // second = 0.99 * 0.09 + 0.01 = 0.0991, over 1 - 0.9801.
  AdamStep({-1, 0, 7}, rates, 0.5, &state, &parameters);
  const double direction = (0.17 / 0.19) / std::sqrt(0.0991 / 0.0199);
  EXPECT_NEAR(parameters[0], 0.9 - 0.5 * 0.1 * direction, 1e-6);
  // Without a gradient the first moment still moves the parameter: -9e-5 / 0.19 over
  // sqrt(9.9e-9 / 0.0199) + 1e-8.
  const double coasting = (-9e-5 / 0.19) / (std::sqrt(9.9e-9 / 0.0199) + 1e-8);
  EXPECT_NEAR(parameters[1], -1.99 - 0.5 * 0.01 * coasting, 1e-6);
  EXPECT_EQ(parameters[2], 5);
  EXPECT_EQ(state.steps, 2);
}

TEST(AdamTest, GradientOfZeroFromTheStartMovesNothing) {
  AdamState state;
  std::vector<float> parameters = {0.25f};
  for (int i = 0; i < 3; ++i) AdamStep({0}, {0.1f}, 1, &state, &parameters);
  EXPECT_EQ(parameters[0], 0.25f);
}

TEST(ClipNormTest, ScalesDownToTheLimitAndCountsOnlyWhatIsTrained) {
  std::vector<double> gradient = {3, 100, -4};
  EXPECT_DOUBLE_EQ(ClipNorm({0.1f, 0, 0.2f}, 1, &gradient), 5);
  EXPECT_THAT(gradient, ElementsAre(testing::DoubleEq(0.6), 0, testing::DoubleEq(-0.8)));
  gradient = {3, 100, -4};
  EXPECT_DOUBLE_EQ(ClipNorm({0.1f, 0, 0.2f}, 5, &gradient), 5);  // at the limit: as it is
  EXPECT_THAT(gradient, ElementsAre(3, 0, -4));
}

TEST(ClipNormTest, TellsOfAGradientThatIsNotFinite) {
  std::vector<double> gradient = {1, NAN};
  EXPECT_TRUE(std::isnan(ClipNorm({1, 1}, 1, &gradient)));
  gradient = {1, NAN};
  EXPECT_DOUBLE_EQ(ClipNorm({1, 0}, 1, &gradient), 1);  // of a parameter that is not trained
}

TEST(CosineRateTest, RisesThenFallsToTwoPercent) {
  EXPECT_NEAR(CosineRate(0, 100, 9), 0.1, 1e-12);
  EXPECT_NEAR(CosineRate(4, 100, 9), 0.5 * CosineRate(4, 100, 0), 1e-12);
  EXPECT_NEAR(CosineRate(0, 100, 0), 1, 1e-12);
  EXPECT_NEAR(CosineRate(50, 100, 9), 0.51, 1e-12);
  EXPECT_NEAR(CosineRate(100, 100, 9), 0.02, 1e-12);
  EXPECT_NEAR(CosineRate(1000, 100, 9), 0.02, 1e-12);
  for (int step = 9; step < 99; ++step)
    EXPECT_GT(CosineRate(step, 100, 9), CosineRate(step + 1, 100, 9)) << step;
  // A run shorter than its warm-up still has finite, positive rates.
  EXPECT_GT(CosineRate(0, 1, 10), 0);
}

}  // namespace
}  // namespace fixpoint
