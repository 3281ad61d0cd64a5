#include "calibrator/window_statistics.h"

#include <cmath>

#include "calibrator/random.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

TEST(WindowStatisticsTest, MeansAreWeighted) {
  EXPECT_EQ(WeightedMean({}), 0);
  EXPECT_EQ(WeightedMean({1, 2, 6}), 3);
  EXPECT_EQ(WeightedMean({1, 5}, {3, 1}), 2);
  EXPECT_NEAR(Perplexity({1, 3}), std::exp(2), 1e-12);
  EXPECT_NEAR(Perplexity({1, 5}, {3, 1}), std::exp(2), 1e-12);
}

TEST(WindowStatisticsTest, PercentilesLieBetweenRanks) {
  EXPECT_EQ(Percentile({}, 0.5), 0);
  EXPECT_EQ(Percentile({7}, 0.99), 7);
  EXPECT_EQ(Percentile({3, 1, 2}, 0.5), 2);
  EXPECT_EQ(Percentile({4, 1, 3, 2}, 0.5), 2.5);
  EXPECT_EQ(Percentile({4, 1, 3, 2}, 0), 1);
  EXPECT_EQ(Percentile({4, 1, 3, 2}, 1), 4);
  // 101 values 0 .. 100: rank 99 exactly; 11 values 0 .. 10: rank 9.9.
  std::vector<float> values;
  for (int i = 100; i >= 0; --i) values.push_back(static_cast<float>(i));
  EXPECT_NEAR(Percentile(values, 0.99), 99, 1e-9);
  values.resize(11);  // 100 .. 90
  EXPECT_NEAR(Percentile(values, 0.99), 99.9, 1e-9);
}

TEST(WindowStatisticsTest, RelativePerplexityIsPaired) {
  const RelativePerplexity same = RelativeTo({1, 5, 9}, {1.01, 5.01, 9.01});
  EXPECT_NEAR(same.percent, 100 * (std::exp(0.01) - 1), 1e-9);
  EXPECT_NEAR(same.standard_error_percent, 0, 1e-9);  // windows differ, differences do not
  const RelativePerplexity spread = RelativeTo({0, 0}, {0.01, 0.03});
  EXPECT_NEAR(spread.standard_error_percent, 100 * 0.01, 1e-9);
  EXPECT_EQ(RelativeTo({1}, {2}).standard_error_percent, 0);
  // By hand: mean (3 * 0.01 + 0.05) / 4 = 0.02; distances 3 * -0.01 and 0.03; sqrt(2 * 0.0018) / 4.
  const RelativePerplexity weighted = RelativeTo({0, 0}, {0.01, 0.05}, {3, 1});
  EXPECT_NEAR(weighted.percent, 100 * std::expm1(0.02), 1e-9);
  EXPECT_NEAR(weighted.standard_error_percent, 100 * std::sqrt(0.0036) / 4, 1e-9);
}

TEST(WindowStatisticsTest, BootstrapOfTwoWindowsIsTheTableOfFourDraws) {
  // Differences 0 and 4: resampled means are 0, 2, 2, 4 with equal chance, so of 10,000 a quarter
  // each is 0 and 4: the 95 % interval is [0, 4], the 40 % interval [2, 2].
  const PairedDifference wide = PairedBootstrap({1, 1}, {1, 5});
  EXPECT_EQ(wide.mean, 2);
  EXPECT_EQ(wide.low, 0);
  EXPECT_EQ(wide.high, 4);
  EXPECT_FALSE(wide.significant);
  const PairedDifference narrow = PairedBootstrap({1, 1}, {1, 5}, {}, {.confidence = 0.4});
  EXPECT_EQ(narrow.low, 2);
  EXPECT_EQ(narrow.high, 2);
  EXPECT_TRUE(narrow.significant);
}

TEST(WindowStatisticsTest, BootstrapIntervalsAreThoseOfTheNormalLaw) {
  // 400 differences with mean 0.03 and deviation 0.2: the standard error is 0.01, so 95 % are
  // mean +- 1.96 * 0.01. The percentiles of 10,000 resamples scatter by about 2 % of that.
  Random random(11);
  std::vector<double> a(400), b(400);
  double sum = 0, squares = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    a[i] = 3 + random.Normal();  // windows differ far more than the pairs do
    const double difference = 0.03 + 0.2 * random.Normal();
    b[i] = a[i] + difference;
    sum += difference;
    squares += difference * difference;
  }
  const double mean = sum / 400;
  const double error = std::sqrt((squares / 400 - mean * mean) / 400);
  const PairedDifference result = PairedBootstrap(a, b);
  EXPECT_NEAR(result.mean, mean, 1e-12);
  EXPECT_NEAR(result.low, mean - 1.96 * error, 0.1 * error);
  EXPECT_NEAR(result.high, mean + 1.96 * error, 0.1 * error);
  const PairedDifference back = PairedBootstrap(b, a);
  EXPECT_NEAR(back.mean, -result.mean, 1e-12);
  EXPECT_NEAR(back.low, -result.high, 1e-12);  // the same draws
}

TEST(WindowStatisticsTest, BootstrapRepeatsAndHearsItsSeed) {
  const std::vector<double> a = {1, 2, 3, 4, 5}, b = {1.1, 1.9, 3.4, 4.2, 5};
  const PairedDifference first = PairedBootstrap(a, b), second = PairedBootstrap(a, b);
  EXPECT_EQ(first.low, second.low);
  EXPECT_EQ(first.high, second.high);
  const PairedDifference few = PairedBootstrap(a, b, {}, {.resamples = 3, .seed = 1});
  const PairedDifference other = PairedBootstrap(a, b, {}, {.resamples = 3, .seed = 2});
  EXPECT_NE(few.low, other.low);
}

TEST(WindowStatisticsTest, EqualModelsAndSingleWindowsAreNeverSignificant) {
  const PairedDifference same = PairedBootstrap({1, 2, 3}, {1, 2, 3});
  EXPECT_EQ(same.mean, 0);
  EXPECT_FALSE(same.significant);
  const PairedDifference one = PairedBootstrap({1}, {2});
  EXPECT_EQ(one.mean, 1);
  EXPECT_FALSE(one.significant);
  EXPECT_FALSE(PairedBootstrap({}, {}).significant);
  // The same difference everywhere is as sure as it can be.
  EXPECT_TRUE(PairedBootstrap({1, 2}, {1.5, 2.5}).significant);
}

TEST(WindowStatisticsTest, WeightsCountInTheBootstrap) {
  // (9 * 0 + 1 * 10) / 10
  EXPECT_NEAR(PairedBootstrap({0, 0}, {0, 10}, {9, 1}).mean, 1, 1e-12);
}

TEST(WindowStatisticsTest, ManyWindowsAreJoinedIntoRuns) {
  // 10,000 windows in 4,096 runs: the mean is still that of all windows.
  std::vector<double> a(10000, 1), b(10000);
  double sum = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    b[i] = 1 + static_cast<double>(i % 7);
    sum += b[i] - 1;
  }
  const PairedDifference result = PairedBootstrap(a, b, {}, {.resamples = 200});
  EXPECT_NEAR(result.mean, sum / 10000, 1e-9);
  EXPECT_LT(result.low, result.mean);
  EXPECT_GT(result.high, result.mean);
  EXPECT_TRUE(result.significant);
}

}  // namespace
}  // namespace fixpoint
