#include "server/client/bench/histogram.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

namespace fixpoint::client {
namespace {

TEST(LatencyHistogramTest, SmallValuesAreExactByNearestRank) {
  LatencyHistogram h;
  for (int64_t i = 1; i <= 100; ++i) h.Add(i);
  EXPECT_EQ(h.count(), 100u);
  EXPECT_EQ(h.Percentile(0.5), 50);
  EXPECT_EQ(h.Percentile(0.9), 90);
  EXPECT_EQ(h.Percentile(0.99), 99);
  EXPECT_EQ(h.Percentile(0.995), 100);
  EXPECT_EQ(h.Percentile(1), 100);
  EXPECT_EQ(h.Percentile(0), 1);
  EXPECT_EQ(h.max(), 100);
  EXPECT_DOUBLE_EQ(h.mean(), 50.5);
}

TEST(LatencyHistogramTest, EmptyIsZero) {
  const LatencyHistogram h;
  EXPECT_EQ(h.Percentile(0.99), 0);
  EXPECT_EQ(h.max(), 0);
  EXPECT_EQ(h.mean(), 0);
}

TEST(LatencyHistogramTest, PercentilesAreWithinOneBucketOfTheTruth) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 20; ++round) {
    LatencyHistogram h;
    std::vector<int64_t> all;
    std::lognormal_distribution<double> distribution(5 + round, 0.3 * round + 0.1);
    for (int i = 0; i < 2000; ++i) {
      const auto value = static_cast<int64_t>(
          std::min(distribution(random), static_cast<double>(LatencyHistogram::kMaxNanos)));
      all.push_back(value);
      h.Add(value);
    }
    std::sort(all.begin(), all.end());
    for (const double share : {0.01, 0.25, 0.5, 0.9, 0.99, 0.999}) {
      const int64_t truth = all[static_cast<size_t>(std::ceil(share * 2000)) - 1];
      EXPECT_GE(h.Percentile(share), truth);
      EXPECT_LE(static_cast<double>(h.Percentile(share)), static_cast<double>(truth) * 1.0079 + 1);
    }
    EXPECT_EQ(h.max(), all.back());
    EXPECT_EQ(h.Percentile(1), all.back());
  }
}

TEST(LatencyHistogramTest, MergeIsTheSameAsAddingAll) {
  LatencyHistogram all, a, b;
  for (int64_t i = 0; i < 5000; ++i) {
    all.Add(i * i);
    (i % 3 == 0 ? a : b).Add(i * i);
  }
  a.Merge(b);
  EXPECT_EQ(a.count(), all.count());
  EXPECT_EQ(a.max(), all.max());
  EXPECT_DOUBLE_EQ(a.mean(), all.mean());
  for (const double share : {0.1, 0.5, 0.77, 0.99}) {
    EXPECT_EQ(a.Percentile(share), all.Percentile(share));
  }
}

TEST(LatencyHistogramTest, WildValuesStayInBounds) {
  LatencyHistogram h;
  h.Add(-5);
  h.Add(INT64_MAX);
  EXPECT_EQ(h.Percentile(0.5), 0);
  EXPECT_EQ(h.max(), LatencyHistogram::kMaxNanos);
  EXPECT_EQ(h.Percentile(1), LatencyHistogram::kMaxNanos);
}

}  // namespace
}  // namespace fixpoint::client
