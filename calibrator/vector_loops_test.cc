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

// Half of an ulp, relative: what one float operation may lose.
constexpr double kHalfUlp = 0x1p-24;

TEST_P(VectorLoopsTest, ProductsAreThoseOfFloat) {
  for (const int64_t n : {1, 7, 33, 129}) {
    const std::vector<float> x = Gaussian(n, 2, 11), factors = Gaussian(n, 1, 12);
    std::vector<float> expected(n), out(n, -1), y = x;
    for (int64_t i = 0; i < n; ++i) expected[i] = x[i] * factors[i];
    loops().multiply(y.data(), factors.data(), n);
    EXPECT_EQ(y, expected);
    loops().scale_to(x.data(), factors.data(), n, out.data());
    EXPECT_EQ(out, expected);
    loops().scale_to(x.data(), nullptr, n, out.data());
    EXPECT_EQ(out, x);
    std::vector<uint16_t> rounded(n), expected_bits(n);
    loops().to_bf16(expected.data(), n, expected_bits.data());
    loops().scale_to_bf16(x.data(), factors.data(), n, rounded.data());
    EXPECT_EQ(rounded, expected_bits);
    loops().to_bf16(x.data(), n, expected_bits.data());
    loops().scale_to_bf16(x.data(), nullptr, n, rounded.data());
    EXPECT_EQ(rounded, expected_bits);
  }
}

// Values whose integer is beyond doubt, so that double and float round to the same one: up to twice
// the limit, so that about a third is clipped.
std::vector<float> SiteValues(int64_t n, float step, float limit) {
  Random random(n);
  std::vector<float> v(n);
  for (float& x : v) {
    const double integer = std::round(random.Normal() * limit);
    x = static_cast<float>(step * (integer + 0.7 * (random.Uniform() - 0.5)));
  }
  return v;
}

// Every combination of what may be left out. A term of the returned sum is dy * (y - v): the
// product's factors have at most four roundings, of sizes up to |y| + |v|, and n - 1 additions
// follow.
TEST_P(VectorLoopsTest, SiteBackwardIsTheStraightThroughGradient) {
  for (const int64_t n : {1, 7, 33, 577}) {
    for (const float limit : {127.0f, 32512.0f}) {
      const float step = 0.0171f;
      const std::vector<float> v = SiteValues(n, step, limit);
      const std::vector<float> dy = Gaussian(n, 1, 21), gain = Gaussian(n, 1, 22);
      const std::vector<float> before = Gaussian(n, 1, 23);
      for (const bool folded : {false, true}) {
        for (const bool has_gain : {false, true}) {
          double sum = 0, terms = 0, parts = 0;
          std::vector<double> expected_dx(n), expected_sums(n), sums_error(n);
          for (int64_t i = 0; i < n; ++i) {
            const double u = static_cast<double>(v[i]) / step;
            const bool inside = std::fabs(u) <= limit;
            const double y = step * std::round(std::clamp<double>(u, -limit, limit));
            const double term = dy[i] * (inside ? y - v[i] : y);
            sum += term;
            terms += std::fabs(term);
            parts += std::fabs(dy[i]) * (std::fabs(y) + std::fabs(v[i]));
            expected_dx[i] = inside ? static_cast<double>(dy[i]) * (has_gain ? gain[i] : 1) : 0;
            expected_sums[i] =
                before[i] + dy[i] * ((inside ? static_cast<double>(v[i]) : 0) - (folded ? y : 0));
            sums_error[i] =
                4 * kHalfUlp *
                (std::fabs(before[i]) + std::fabs(dy[i]) * (std::fabs(y) + std::fabs(v[i])));
          }
          const double sum_error = kHalfUlp * (4 * parts + static_cast<double>(n) * terms);
          for (const bool wants_sums : {false, true}) {
            std::vector<float> dx = dy, sums = before;  // dx is dy itself
            const float result = loops().site_backward(
                v.data(), dx.data(), has_gain ? gain.data() : nullptr, n, step, limit, folded,
                dx.data(), wants_sums ? sums.data() : nullptr);
            EXPECT_NEAR(result, sum, sum_error) << n << ", limit " << limit;
            for (int64_t i = 0; i < n; ++i) {
              ASSERT_NEAR(dx[i], expected_dx[i], kHalfUlp * std::fabs(expected_dx[i])) << i;
              if (!wants_sums) continue;
              ASSERT_NEAR(sums[i], expected_sums[i], sums_error[i]) << i << ", folded " << folded;
            }
          }
        }
      }
    }
  }
}

TEST_P(VectorLoopsTest, GainBackwardIsTheProductRule) {
  for (const int64_t n : {1, 31, 131}) {
    const std::vector<float> v = Gaussian(n, 3, 31), dy = Gaussian(n, 1, 32);
    const std::vector<float> gain = Gaussian(n, 1, 33), before = Gaussian(n, 1, 34);
    std::vector<float> dx = dy, sums = before;
    loops().gain_backward(v.data(), dx.data(), gain.data(), n, dx.data(), sums.data());
    for (int64_t i = 0; i < n; ++i) {
      EXPECT_EQ(dx[i], dy[i] * gain[i]);
      const double product = static_cast<double>(dy[i]) * v[i];
      EXPECT_NEAR(sums[i], before[i] + product,
                  2 * kHalfUlp * (std::fabs(before[i]) + std::fabs(product)));
    }
  }
}

// dx_i = r g_i dy_i - x_i r^3 / n * sum_j x_j g_j dy_j, r = 1 / sqrt(mean square + epsilon). Sums
// of n terms lose up to n half ulps of their terms' magnitudes.
TEST_P(VectorLoopsTest, RmsNormBackwardMatchesDouble) {
  for (const int64_t n : {1, 7, 193, 577}) {
    const std::vector<float> x = Gaussian(n, 2, 41), gain = Gaussian(n, 1, 42);
    const std::vector<float> dy = Gaussian(n, 1, 43), before = Gaussian(n, 1, 44);
    double squares = 0, product = 0, magnitudes = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double term = static_cast<double>(x[i]) * gain[i] * dy[i];
      squares += static_cast<double>(x[i]) * x[i];
      product += term;
      magnitudes += std::fabs(term);
    }
    const double nd = static_cast<double>(n);
    const double r = 1 / std::sqrt(squares / nd + static_cast<double>(1e-3f));
    std::vector<float> dx = before;
    loops().rms_norm_backward(x.data(), gain.data(), dy.data(), n, 1e-3f, dx.data());
    for (int64_t i = 0; i < n; ++i) {
      const double direct = r * gain[i] * dy[i];
      const double along = r * r * r / nd * x[i];
      const double error =
          kHalfUlp * ((nd + 10) * std::fabs(direct) +
                      (3 * nd + 16) * std::fabs(along) * magnitudes + 2 * std::fabs(before[i]));
      EXPECT_NEAR(dx[i], before[i] + direct - along * product, error) << n << ", " << i;
    }
  }
}

// exp is good to 2e-7 near zero and loses another half ulp or three per unit of its argument; some
// eight roundings follow: 1e-6 of the factors' magnitudes, and 2e-7 for each unit of x.
TEST_P(VectorLoopsTest, SiluMultiplyBackwardMatchesDouble) {
  const int64_t n = 203;
  std::vector<float> x = Gaussian(n, 4, 51);
  x[0] = 0;
  x[1] = -90;
  x[2] = 90;
  x[3] = -1000;
  x[4] = 1000;
  const std::vector<float> u = Gaussian(n, 2, 52), d = Gaussian(n, 1, 53);
  std::vector<float> d_gate(n), d_up(n);
  loops().silu_multiply_backward(x.data(), u.data(), d.data(), n, d_gate.data(), d_up.data());
  for (int64_t i = 0; i < n; ++i) {
    const double xd = x[i];
    const double sigmoid = 1 / (1 + std::exp(-xd));
    const double size = (1e-6 + 2e-7 * std::fabs(xd)) * std::fabs(d[i]) * sigmoid;
    EXPECT_NEAR(d_gate[i], d[i] * u[i] * sigmoid * (1 + xd * (1 - sigmoid)),
                size * std::fabs(u[i]) * (1 + std::fabs(xd)) + 1e-30)
        << xd;
    EXPECT_NEAR(d_up[i], d[i] * xd * sigmoid, size * std::fabs(xd) + 1e-30) << xd;
  }
  // Either result may take the place of d_out.
  std::vector<float> in_place = d, other(n);
  loops().silu_multiply_backward(x.data(), u.data(), in_place.data(), n, in_place.data(),
                                 other.data());
  EXPECT_EQ(in_place, d_gate);
  EXPECT_EQ(other, d_up);
  in_place = d;
  loops().silu_multiply_backward(x.data(), u.data(), in_place.data(), n, other.data(),
                                 in_place.data());
  EXPECT_EQ(in_place, d_up);
  EXPECT_EQ(other, d_gate);
}

TEST_P(VectorLoopsTest, SoftmaxBackwardMatchesDouble) {
  for (const int64_t n : {1, 5, 65, 211}) {
    std::vector<float> e = Gaussian(n, 1, 61);
    for (float& x : e) x = std::exp(x);
    const std::vector<float> numerators = e, d = Gaussian(n, 1, 62);
    std::vector<float> dp = d;
    const float inverse = 0.0123f, unit = 0.37f, delta = -0.21f;
    loops().softmax_backward(e.data(), dp.data(), n, inverse, unit, delta);
    for (int64_t i = 0; i < n; ++i) {
      const double p = static_cast<double>(numerators[i]) * inverse;
      EXPECT_NEAR(e[i], p, 2 * kHalfUlp * p);
      const double product = static_cast<double>(d[i]) * unit;
      EXPECT_NEAR(dp[i], p * (product - delta),
                  5 * kHalfUlp * p * (std::fabs(product) + std::fabs(delta)));
    }
  }
}

TEST_P(VectorLoopsTest, SoftmaxDifferenceMatchesDouble) {
  const auto probability = [](float x, float log_sum) {
    return std::exp(static_cast<double>(x) - log_sum);
  };
  // The argument of exp is rounded once and multiplied with a rounded log2(e): three half ulps of
  // it; and exp's own 2e-7, the difference, the weight.
  const auto error = [&](float x, float log_sum) {
    return probability(x, log_sum) * (4e-7 + 3 * kHalfUlp * std::fabs(x - log_sum)) + 1e-37;
  };
  for (const int64_t n : {1, 9, 300, 1001}) {
    const std::vector<float> a = Gaussian(n, 5, 71), b = Gaussian(n, 5, 72);
    int32_t argmax = 0;
    const float log_a = static_cast<float>(loops().log_sum_exp(a.data(), n, &argmax));
    const float log_b = static_cast<float>(loops().log_sum_exp(b.data(), n, &argmax));
    const float weight = 0.3f;
    std::vector<float> out(n), alone(n);
    loops().softmax_difference(a.data(), b.data(), n, log_a, log_b, weight, out.data());
    loops().softmax_difference(nullptr, b.data(), n, 0, log_b, weight, alone.data());
    for (int64_t i = 0; i < n; ++i) {
      const double p = probability(a[i], log_a), q = probability(b[i], log_b);
      EXPECT_NEAR(out[i], weight * (q - p), weight * (error(a[i], log_a) + error(b[i], log_b)));
      EXPECT_NEAR(alone[i], weight * q, weight * error(b[i], log_b));
    }
    std::vector<float> in_place = b;
    loops().softmax_difference(a.data(), in_place.data(), n, log_a, log_b, weight, in_place.data());
    EXPECT_EQ(in_place, out);
    loops().softmax_difference(a.data(), a.data(), n, log_a, log_a, weight, out.data());
    EXPECT_THAT(out, testing::Each(0.0f));
  }
}

INSTANTIATE_TEST_SUITE_P(Levels, VectorLoopsTest, testing::ValuesIn(SupportedVectorLoops()),
                         [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace fixpoint
