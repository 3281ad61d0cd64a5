#include "calibrator/vector_loops.h"

#include <cmath>
#include <numeric>
#include <string>

#include "calibrator/random.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

std::vector<float> Gaussian(int64_t n, double scale, uint64_t seed) {
  Random random(seed);
  std::vector<float> x(n);
  for (float& value : x) value = static_cast<float>(random.Normal() * scale);
  return x;
}

float FromBf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

class VectorLoopsTest : public testing::TestWithParam<const VectorLoops*> {
 protected:
  const VectorLoops& loops() const { return *GetParam(); }
};

TEST_P(VectorLoopsTest, SoftmaxSumsMatchDouble) {
  // exp is good to 2e-7 and so are sums of positive floats in pieces: 1e-6 leaves room for both.
  for (const int64_t n : {1, 7, 64, 513, 5000}) {
    const std::vector<float> x = Gaussian(n, 10, n);
    const float max = *std::max_element(x.begin(), x.end());
    double expected = 0;
    for (const float value : x) expected += std::exp(static_cast<double>(value) - max);
    std::vector<float> out(n);
    EXPECT_NEAR(loops().exp_row(x.data(), n, max, 1, out.data()) / expected, 1, 1e-6) << n;
    int32_t argmax = -1;
    EXPECT_NEAR(loops().log_sum_exp(x.data(), n, &argmax), max + std::log(expected), 2e-6) << n;
    EXPECT_EQ(argmax, std::max_element(x.begin(), x.end()) - x.begin());
  }
}

TEST_P(VectorLoopsTest, ExpOfVeryNegativeIsZeroAndOfZeroIsOne) {
  const std::vector<float> x = {0, -1000, -std::numeric_limits<float>::infinity(), -88};
  std::vector<float> out(4);
  loops().exp_row(x.data(), 4, 0, 1, out.data());
  EXPECT_THAT(out, testing::ElementsAre(1, 0, 0, 0));
}

TEST_P(VectorLoopsTest, CompareRowsGivesKlAndBothSums) {
  const int64_t n = 3001;
  const std::vector<float> a = Gaussian(n, 4, 1);
  std::vector<float> b = a;
  const std::vector<float> noise = Gaussian(n, 0.3, 2);
  for (int64_t i = 0; i < n; ++i) b[i] += noise[i] + 5;  // a common offset changes nothing
  double sum_a = 0, sum_b = 0;
  for (int64_t i = 0; i < n; ++i) {
    sum_a += std::exp(static_cast<double>(a[i]));
    sum_b += std::exp(static_cast<double>(b[i]));
  }
  double kl = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double p = std::exp(static_cast<double>(a[i])) / sum_a;
    kl += p * ((a[i] - std::log(sum_a)) - (b[i] - std::log(sum_b)));
  }
  const RowComparison result = loops().compare_rows(a.data(), b.data(), n);
  EXPECT_NEAR(result.log_sum_a, std::log(sum_a), 1e-5);
  EXPECT_NEAR(result.log_sum_b, std::log(sum_b), 1e-5);
  EXPECT_NEAR(result.kl, kl,
              1e-5);  // differences of logits near 5 carry float rounding of 5e-7, times a few
  EXPECT_NEAR(loops().compare_rows(a.data(), a.data(), n).kl, 0, 1e-12);
}

TEST_P(VectorLoopsTest, QuantizeRoundsToNearestAndClips) {
  const std::vector<float> x = {0.49f, 0.51f, -0.51f, 126.6f, 127.4f, 1000, -1000, 2.5f, 3.5f, NAN};
  std::vector<uint16_t> out(x.size());
  loops().quantize_bf16(x.data(), 10, 1, 127, out.data());
  std::vector<float> values;
  for (const uint16_t bits : out) values.push_back(FromBf16(bits));
  EXPECT_THAT(values, testing::ElementsAre(0, 1, -1, 127, 127, 127, -127, 2, 4,
                                           testing::AnyOf(-127.0f, 127.0f)));
}

TEST_P(VectorLoopsTest, WidePlanesAreInInt8AndAddUp) {
  std::vector<float> x;
  for (int32_t q = -32600; q <= 32600; q += 7) x.push_back(static_cast<float>(q) * 0.25f);
  x.insert(x.end(), {128 * 0.25f, -128 * 0.25f, 127 * 0.25f, 384 * 0.25f, -384 * 0.25f});
  std::vector<uint16_t> hi(x.size()), lo(x.size());
  loops().quantize_wide_bf16(x.data(), static_cast<int64_t>(x.size()), 4, hi.data(), lo.data());
  for (size_t i = 0; i < x.size(); ++i) {
    const float expected = std::clamp(x[i] * 4, -32512.0f, 32512.0f);
    const float high = FromBf16(hi[i]), low = FromBf16(lo[i]) * 256;
    EXPECT_EQ(high * 256 + low, expected);
    EXPECT_TRUE(high >= -128 && high <= 127 && low >= -128 && low <= 127) << high << ", " << low;
    EXPECT_EQ(high, std::floor(high));
  }
}

TEST_P(VectorLoopsTest, SplitKeepsSixteenBits) {
  const std::vector<float> x = Gaussian(1000, 3, 3);
  std::vector<uint16_t> hi(1000), lo(1000);
  loops().split_bf16(x.data(), 1000, hi.data(), lo.data());
  for (int i = 0; i < 1000; ++i)
    EXPECT_NEAR(FromBf16(hi[i]) + FromBf16(lo[i]), x[i], std::fabs(x[i]) * 0x1p-16);
}

TEST_P(VectorLoopsTest, HadamardIsTheSylvesterMatrix) {
  for (const int64_t block : {1, 2, 8, 16, 64, 512}) {
    const std::vector<float> x = Gaussian(2 * block, 1, 5);
    std::vector<float> y = x;
    loops().hadamard(y.data(), 2 * block, block);
    for (int64_t i = 0; i < 2 * block; ++i) {
      double expected = 0;
      for (int64_t j = 0; j < block; ++j) {
        expected += (std::popcount(static_cast<uint64_t>(i % block & j)) % 2 ? -1 : 1) *
                    x[i / block * block + j];
      }
      EXPECT_NEAR(y[i], expected / std::sqrt(block), 1e-5) << block << ", " << i;
    }
  }
}

TEST_P(VectorLoopsTest, NormSiluAndRopeMatchDouble) {
  const int64_t n = 193;
  const std::vector<float> x = Gaussian(n, 2, 6), u = Gaussian(n, 2, 7), gain = Gaussian(n, 1, 8);
  std::vector<float> out(n);
  loops().rms_norm(x.data(), gain.data(), n, 1e-5f, out.data());
  double square = 0;
  for (const float value : x) square += static_cast<double>(value) * value;
  for (int64_t i = 0; i < n; ++i)
    EXPECT_NEAR(out[i], x[i] / std::sqrt(square / n + 1e-5) * gain[i], 1e-5);
  loops().silu_multiply(x.data(), u.data(), n, out.data());
  for (int64_t i = 0; i < n; ++i)
    EXPECT_NEAR(out[i], x[i] / (1 + std::exp(-static_cast<double>(x[i]))) * u[i], 1e-5);
  std::vector<float> pair = {1, 2, 3, 4};
  const float cos[] = {0.6f, 1}, sin[] = {0.8f, 0};
  loops().rope(pair.data(), cos, sin, 2);
  EXPECT_THAT(pair, testing::ElementsAre(testing::FloatNear(0.6f - 2.4f, 1e-6f), 2,
                                         testing::FloatNear(1.8f + 0.8f, 1e-6f), 4));
}

TEST_P(VectorLoopsTest, HistogramPutsValuesNearTheirBinsMagnitude) {
  for (const float x : {1e-4f, 0.003f, 1.0f, 1.49f, 7.0f, 3084.0f}) {
    std::vector<uint32_t> counts(kHistogramBins);
    const float values[] = {x, -x};
    loops().histogram(values, 2, counts.data());
    const int32_t bin =
        static_cast<int32_t>(std::find(counts.begin(), counts.end(), 2u) - counts.begin());
    ASSERT_LT(bin, kHistogramBins) << x;
    EXPECT_NEAR(BinMagnitude(bin) / x, 1, 0.5 / kBinsPerOctave + 1e-6);
  }
  std::vector<uint32_t> counts(kHistogramBins);
  const float extremes[] = {0, -0.0f, 1e-30f, 1e30f};
  loops().histogram(extremes, 4, counts.data());
  EXPECT_EQ(counts.front(), 3u);
  EXPECT_EQ(counts.back(), 1u);
}

TEST_P(VectorLoopsTest, BelowMaxSurvivesTheRoundTrip) {
  const std::vector<float> x = Gaussian(777, 5, 9);
  const float max = *std::max_element(x.begin(), x.end());
  std::vector<uint16_t> stored(777);
  std::vector<float> back(777);
  loops().store_below_max(x.data(), 777, max, 65535 / 60.0f, stored.data());
  loops().load_below_max(stored.data(), 777, 60.0f / 65535, back.data());
  for (int i = 0; i < 777; ++i) EXPECT_NEAR(back[i], x[i] - max, 0.5 * 60 / 65535 + 1e-5);
}

INSTANTIATE_TEST_SUITE_P(Levels, VectorLoopsTest, testing::ValuesIn(SupportedVectorLoops()),
                         [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace fixpoint
