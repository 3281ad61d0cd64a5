#include "calibrator/ranges.h"

#include <cmath>

#include "calibrator/random.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

template <typename Draw>
MagnitudeHistogram Sampled(int64_t n, Draw&& draw) {
  std::vector<float> x(n);
  for (float& value : x) value = static_cast<float>(draw());
  std::vector<uint32_t> counts(kHistogramBins);
  Vec().histogram(x.data(), n, counts.data());
  return {.counts = {counts.begin(), counts.end()}, .largest = Vec().abs_max(x.data(), n)};
}

TEST(RangesTest, UniformValuesAreNotClipped) {
  Random random(1);
  const MagnitudeHistogram h = Sampled(200000, [&] { return random.Uniform() * 2 - 1; });
  double error = 0;
  // Bins are 1/32 octave wide: the last one decides where the clip may stop.
  EXPECT_NEAR(MseClip(h, &error), 1, 0.04);
  EXPECT_NEAR(error, 1.0 / (127 * 127 * 12), 0.08 / (127 * 127 * 12));
  EXPECT_NEAR(MeanSquare(h), 1.0 / 3, 0.001);
}

TEST(RangesTest, GaussianClipIsNearTheKnownOptimum) {
  // The clip with the least squared error of a 255-level quantizer of a unit Gaussian lies near 3.9
  // (3.92 for 256 levels).
  Random random(2);
  const MagnitudeHistogram h = Sampled(2000000, [&] { return random.Normal(); });
  EXPECT_GT(h.largest, 4.5);
  EXPECT_NEAR(MseClip(h), 3.92, 0.15);
}

TEST(RangesTest, OneFarOutlierIsGivenUp) {
  Random random(3);
  MagnitudeHistogram h = Sampled(1000000, [&] { return random.Normal(); });
  const float far = 30;
  Vec().histogram(&far, 1, std::vector<uint32_t>(kHistogramBins).data());
  h.largest = far;
  h.counts[static_cast<size_t>((4 + 16) * kBinsPerOctave + 28)] += 1;  // 30 = 2^4 * 1.875
  EXPECT_LT(MseClip(h), 8);
}

TEST(RangesTest, WideSitesHaveRoomAboveTheLargestValue) {
  Random random(4);
  const MagnitudeHistogram h = Sampled(10000, [&] { return random.Normal(); });
  const LinearSite site = ScaleSite(h, true);
  EXPECT_TRUE(site.wide);
  EXPECT_NEAR(site.scale * 127, 1.5 * h.largest, 1e-6);
}

TEST(RangesTest, AnAllZeroSiteGetsAPositiveScale) {
  const MagnitudeHistogram h{.counts = std::vector<double>(kHistogramBins), .largest = 0};
  EXPECT_GT(ScaleSite(h, false).scale, 0);
  EXPECT_GT(ScaleSite(h, true).scale, 0);
}

TEST(RangesTest, ShareAboveCountsTheTail) {
  Random random(5);
  const MagnitudeHistogram h = Sampled(1000000, [&] { return random.Normal(); });
  EXPECT_NEAR(h.ShareAbove(2), std::erfc(2 / std::sqrt(2.0)), 0.004);
}

}  // namespace
}  // namespace fixpoint
