#include "calibrator/import/rope.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace fixpoint {
namespace {

using ::testing::HasSubstr;

RopeSpec Llama31() {
  RopeSpec rope;
  rope.theta = 500'000;
  rope.scaling = RopeSpec::Scaling::kLlama3;
  rope.factor = 8;
  rope.low_frequency_factor = 1;
  rope.high_frequency_factor = 4;
  rope.original_context = 8192;
  return rope;
}

TEST(InverseFrequenciesTest, PlainPowersOfTheBase) {
  RopeSpec rope;
  rope.theta = 10'000;
  EXPECT_THAT(InverseFrequencies(rope, 8),
              ::testing::ElementsAre(1.0, ::testing::DoubleEq(0.1), ::testing::DoubleEq(0.01),
                                     ::testing::DoubleEq(0.001)));
}

TEST(InverseFrequenciesTest, LinearScalingDividesAll) {
  RopeSpec rope;
  rope.scaling = RopeSpec::Scaling::kLinear;
  rope.factor = 4;
  EXPECT_THAT(InverseFrequencies(rope, 4),
              ::testing::ElementsAre(0.25, ::testing::DoubleEq(0.0025)));
}

// Llama 3.1 with head_dim 128. Wavelength of pair i is 2 pi 500000^(i / 64): 2,048 is passed
// between pairs 28 and 29, 8,192 between 34 and 35.
TEST(InverseFrequenciesTest, Llama3KeepsShortStretchesLongAndBlendsBetween) {
  const std::vector<double> scaled = InverseFrequencies(Llama31(), 128);
  ASSERT_EQ(scaled.size(), 64u);
  for (int i = 0; i < 64; ++i) {
    const double plain = std::pow(500'000.0, -i / 64.0);
    if (i <= 28) {
      EXPECT_DOUBLE_EQ(scaled[i], plain) << i;
    } else if (i >= 35) {
      EXPECT_DOUBLE_EQ(scaled[i], plain / 8) << i;
    } else {
      EXPECT_LT(scaled[i], plain) << i;
      EXPECT_GT(scaled[i], plain / 8) << i;
    }
  }
  // Pair 32: frequency f = 1 / sqrt(500000), 8192 f / 2 pi = 1.844, so (1.844 - 1) / (4 - 1) of f
  // is kept.
  const double f = 1 / std::sqrt(500'000.0);
  const double kept = (8192 * f / (2 * M_PI) - 1) / 3;
  EXPECT_NEAR(kept, 0.2813, 1e-4);
  EXPECT_NEAR(scaled[32], f * (kept + (1 - kept) / 8), 1e-15);
}

TEST(ValidateRopeTest, NamesTheValueThatIsOutOfRange) {
  EXPECT_TRUE(ValidateRope(Llama31(), "config.json").ok());
  RopeSpec rope = Llama31();
  rope.theta = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(std::string(ValidateRope(rope, "config.json").message()),
              HasSubstr("config.json: RoPE base"));
  rope = Llama31();
  rope.factor = 0.5;
  EXPECT_THAT(std::string(ValidateRope(rope, "").message()), HasSubstr("is 0.5"));
  rope = Llama31();
  rope.high_frequency_factor = 1;
  EXPECT_THAT(std::string(ValidateRope(rope, "").message()), HasSubstr("high_freq_factor"));
  rope = Llama31();
  rope.original_context = 0;
  EXPECT_FALSE(ValidateRope(rope, "").ok());
}

}  // namespace
}  // namespace fixpoint
