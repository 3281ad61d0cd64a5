#include "calibrator/gptq.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "calibrator/random.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

using testing::HasSubstr;

Matrix GaussianWeights(int64_t rows, int64_t cols, uint64_t seed) {
  Random random(seed);
  Matrix w{rows, cols, std::vector<float>(rows * cols)};
  for (float& x : w.data) x = static_cast<float>(0.05 * random.Normal());
  return w;
}

std::vector<float> StepsOfMaxima(const Matrix& w, float limit = 127) {
  std::vector<float> steps;
  for (int64_t r = 0; r < w.rows; ++r) {
    float largest = 0;
    for (int64_t i = 0; i < w.cols; ++i) largest = std::max(largest, std::abs(w.row(r)[i]));
    steps.push_back(largest / limit);
  }
  return steps;
}

// Inputs are a few strong directions and noise, with channels of different size.
SecondMoments CorrelatedMoments(int64_t depth, int64_t directions, double noise, uint64_t seed) {
  Random random(seed);
  std::vector<double> d(directions * depth), size(depth);
  for (double& x : d) x = random.Normal();
  for (double& x : size) x = std::exp(random.Normal());
  SecondMoments moments{.depth = depth, .sums = std::vector<float>(depth * depth)};
  for (int64_t i = 0; i < depth; ++i) {
    for (int64_t j = 0; j < depth; ++j) {
      double sum = i == j ? noise : 0;
      for (int64_t k = 0; k < directions; ++k) sum += d[k * depth + i] * d[k * depth + j];
      moments.sums[i * depth + j] = static_cast<float>(1000 * sum * size[i] * size[j]);
    }
  }
  return moments;
}

IntegerLinear RoundToNearest(const Matrix& w, const std::vector<float>& steps) {
  IntegerLinear result{.outputs = w.rows, .depth = w.cols, .steps = steps};
  for (int64_t r = 0; r < w.rows; ++r) {
    const float inverse = 1 / steps[r];
    for (int64_t i = 0; i < w.cols; ++i) {
      result.values.push_back(
          static_cast<int8_t>(std::nearbyint(std::clamp(w.row(r)[i] * inverse, -127.0f, 127.0f))));
    }
  }
  return result;
}

double Loss(const Matrix& w, const IntegerLinear& q, const SecondMoments& moments) {
  double loss = 0;
  for (int64_t r = 0; r < w.rows; ++r) {
    std::vector<double> d(w.cols);
    for (int64_t i = 0; i < w.cols; ++i)
      d[i] = w.row(r)[i] - static_cast<double>(q.steps[r]) * q.values[r * w.cols + i];
    for (int64_t i = 0; i < w.cols; ++i) {
      for (int64_t j = 0; j < w.cols; ++j) loss += d[i] * moments.sums[i * w.cols + j] * d[j];
    }
  }
  return loss;
}

// Optimal brain surgery by the textbook, in double: the inverse by Gauss and Jordan, and after each
// column the inverse of what is left.
IntegerLinear TextbookRounding(const Matrix& w, const std::vector<float>& steps,
                               const SecondMoments& moments, double damping) {
  const int64_t n = w.cols;
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return moments.sums[a * n + a] > moments.sums[b * n + b];
  });
  std::vector<double> h(moments.sums.begin(), moments.sums.end()), inverse(n * n);
  double mean = 0;
  for (int64_t i = 0; i < n; ++i) mean += h[i * n + i] / static_cast<double>(n);
  for (int64_t i = 0; i < n; ++i) {
    h[i * n + i] += damping * mean;
    inverse[i * n + i] = 1;
  }
  for (int64_t c = 0; c < n; ++c) {
    const double pivot = h[c * n + c];
    for (int64_t j = 0; j < n; ++j) {
      h[c * n + j] /= pivot;
      inverse[c * n + j] /= pivot;
    }
    for (int64_t r = 0; r < n; ++r) {
      const double factor = h[r * n + c];
      if (r == c) continue;
      for (int64_t j = 0; j < n; ++j) {
        h[r * n + j] -= factor * h[c * n + j];
        inverse[r * n + j] -= factor * inverse[c * n + j];
      }
    }
  }
  std::vector<double> v(w.data.begin(), w.data.end());
  IntegerLinear result{.outputs = w.rows, .depth = n, .steps = steps};
  result.values.resize(w.rows * n);
  for (const int64_t c : order) {
    const double pivot = inverse[c * n + c];
    for (int64_t r = 0; r < w.rows; ++r) {
      const double q = std::nearbyint(std::clamp(v[r * n + c] / steps[r], -127.0, 127.0));
      const double error = (v[r * n + c] - steps[r] * q) / pivot;
      result.values[r * n + c] = static_cast<int8_t>(q);
      for (int64_t j = 0; j < n; ++j) v[r * n + j] -= error * inverse[c * n + j];
    }
    const std::vector<double> row(inverse.begin() + c * n, inverse.begin() + (c + 1) * n);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) inverse[i * n + j] -= row[i] * row[j] / pivot;
    }
  }
  return result;
}

class GptqTest : public testing::TestWithParam<int> {
 protected:
  IntegerLinear Round(const Matrix& w, const std::vector<float>& steps,
                      const SecondMoments& moments, const GptqOptions& options = {}) {
    auto result = RoundWithMoments(w, steps, moments, options, pool_);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *std::move(result) : IntegerLinear();
  }
  ThreadPool pool_{GetParam()};
};

TEST_P(GptqTest, IntegersAreThoseOfTheTextbook) {
  struct Case {
    int64_t rows, cols;
    int32_t block;
    double damping;
  };
  // One column, one block, several blocks with a tail, blocks of one, more rows than a chunk.
  for (const Case& c : {Case{3, 1, 128, 0.01}, Case{8, 24, 128, 0.01}, Case{8, 37, 8, 0.1},
                        Case{5, 20, 1, 0.003}, Case{130, 70, 32, 0.01}}) {
    const Matrix w = GaussianWeights(c.rows, c.cols, 1);
    const std::vector<float> steps = StepsOfMaxima(w, 20);
    const SecondMoments moments = CorrelatedMoments(c.cols, 3, 0.05, 2);
    const IntegerLinear rounded =
        Round(w, steps, moments, {.damping = c.damping, .block = c.block});
    EXPECT_EQ(rounded.outputs, c.rows);
    EXPECT_EQ(rounded.depth, c.cols);
    EXPECT_EQ(rounded.steps, steps);
    EXPECT_EQ(rounded.values, TextbookRounding(w, steps, moments, c.damping).values)
        << c.rows << " x " << c.cols << " in blocks of " << c.block;
  }
}

TEST_P(GptqTest, LossOnCorrelatedInputsFallsWellBelowRoundingToNearest) {
  const Matrix w = GaussianWeights(64, 192, 3);
  const std::vector<float> steps = StepsOfMaxima(w);
  const SecondMoments moments = CorrelatedMoments(192, 12, 0.1, 4);
  const IntegerLinear rounded = Round(w, steps, moments, {.damping = 0.01});
  const double nearest = Loss(w, RoundToNearest(w, steps), moments);
  EXPECT_LT(Loss(w, rounded, moments), 0.2 * nearest);
}

TEST_P(GptqTest, UncorrelatedInputsGiveRoundingToNearest) {
  const Matrix w = GaussianWeights(60, 150, 5);
  std::vector<float> steps = StepsOfMaxima(w, 190);  // clips
  SecondMoments moments{.depth = 150, .sums = std::vector<float>(150 * 150)};
  for (int64_t i = 0; i < 150; ++i) moments.sums[i * 151] = static_cast<float>(1 + i * 7 % 150);
  const IntegerLinear nearest = RoundToNearest(w, steps);
  EXPECT_EQ(Round(w, steps, moments).values, nearest.values);
  EXPECT_EQ(Round(w, steps, moments, {.damping = 0}).values, nearest.values);
  std::fill(moments.sums.begin(), moments.sums.end(), 0.0f);  // a site that saw no input
  EXPECT_EQ(Round(w, steps, moments).values, nearest.values);
}

TEST_P(GptqTest, ChannelsWithoutInputAreRoundedToNearestAndChangeNoOther) {
  const Matrix w = GaussianWeights(10, 40, 6);
  const std::vector<float> steps = StepsOfMaxima(w, 30);
  SecondMoments moments = CorrelatedMoments(40, 3, 0.05, 7);
  // The same without channels 0, 17 and 39; the mean of the diagonal, hence the damping, is that of
  // all 40.
  std::vector<int64_t> left;
  for (int64_t i = 0; i < 40; ++i) {
    if (i != 0 && i != 17 && i != 39) left.push_back(i);
  }
  Matrix w_left{10, 37, {}};
  SecondMoments moments_left{.depth = 37, .sums = {}};
  for (int64_t r = 0; r < 10; ++r) {
    for (const int64_t i : left) w_left.data.push_back(w.row(r)[i]);
  }
  for (const int64_t i : left) {
    for (const int64_t j : left) moments_left.sums.push_back(moments.sums[i * 40 + j]);
  }
  for (const int64_t dead : {0, 17, 39}) {
    for (int64_t i = 0; i < 40; ++i) moments.sums[dead * 40 + i] = moments.sums[i * 40 + dead] = 0;
  }
  for (const double damping : {0.0, 0.01}) {
    const IntegerLinear all = Round(w, steps, moments, {.damping = damping});
    const IntegerLinear without =
        Round(w_left, steps, moments_left, {.damping = damping * 37 / 40});
    const IntegerLinear nearest = RoundToNearest(w, steps);
    for (int64_t r = 0; r < 10; ++r) {
      for (size_t k = 0; k < left.size(); ++k)
        EXPECT_EQ(all.values[r * 40 + left[k]], without.values[r * 37 + static_cast<int64_t>(k)]);
      for (const int64_t dead : {0, 17, 39})
        EXPECT_EQ(all.values[r * 40 + dead], nearest.values[r * 40 + dead]);
    }
  }
}

TEST_P(GptqTest, ValuesStayWithin127) {
  Matrix w = GaussianWeights(50, 64, 8);
  const std::vector<float> steps = StepsOfMaxima(w, 400);  // most of the range is clipped
  const IntegerLinear rounded = Round(w, steps, CorrelatedMoments(64, 4, 0.01, 9));
  EXPECT_EQ(*std::max_element(rounded.values.begin(), rounded.values.end()), 127);
  EXPECT_EQ(*std::min_element(rounded.values.begin(), rounded.values.end()), -127);
}

TEST_P(GptqTest, SingularMomentsNeedDamping) {
  const Matrix w = GaussianWeights(20, 90, 10);
  const std::vector<float> steps = StepsOfMaxima(w);
  const SecondMoments moments = CorrelatedMoments(90, 5, 0, 11);  // rank 5
  const IntegerLinear rounded = Round(w, steps, moments, {.damping = 0.001});
  EXPECT_LT(Loss(w, rounded, moments), 0.05 * Loss(w, RoundToNearest(w, steps), moments));

  SecondMoments singular{.depth = 2, .sums = {4, 4, 4, 4}};
  const Matrix two = GaussianWeights(1, 2, 12);
  const auto failed = RoundWithMoments(two, StepsOfMaxima(two), singular, {.damping = 0}, pool_);
  EXPECT_EQ(failed.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(failed.status().message(), HasSubstr("not positive definite"));
}

TEST_P(GptqTest, BadMomentsOptionsAndWeightsAreNamed) {
  Matrix w = GaussianWeights(2, 3, 13);
  const std::vector<float> steps = StepsOfMaxima(w);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto status = [&](std::vector<float> sums, const GptqOptions& options = {}) {
    return RoundWithMoments(w, steps, {.depth = 3, .sums = std::move(sums)}, options, pool_)
        .status();
  };
  EXPECT_THAT(status({1, 9, 0, 9, 1, 0, 0, 0, 1}).message(), HasSubstr("not positive definite"));
  EXPECT_THAT(status({1, 0, 0, 0, -1, 0, 0, 0, 1}).message(),
              HasSubstr("-1 on the diagonal at channel 1"));
  EXPECT_THAT(status({1, 0, 0, 0, 1, 0, 0, 0, nan}).message(), HasSubstr("at channel 2"));
  EXPECT_THAT(status({1, nan, 0, nan, 1, 0, 0, 0, 1}).message(),
              HasSubstr("not positive definite"));
  EXPECT_THAT(status({1, 1, 0, 1, 0, 0, 0, 0, 1}).message(),
              HasSubstr("channel 1 has 0 on the diagonal"));
  for (const absl::Status& s :
       {status({1, 9, 0, 9, 1, 0, 0, 0, 1}), status({1, 0, 0, 0, -1, 0, 0, 0, 1}),
        status({1, nan, 0, nan, 1, 0, 0, 0, 1}), status({1, 1, 0, 1, 0, 0, 0, 0, 1})}) {
    EXPECT_EQ(s.code(), absl::StatusCode::kFailedPrecondition) << s;
  }
  const std::vector<float> unit = {1, 0, 0, 0, 1, 0, 0, 0, 1};
  EXPECT_EQ(status(unit, {.damping = -0.1}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status(unit, {.damping = nan}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status(unit, {.block = 0}).code(), absl::StatusCode::kInvalidArgument);
  w.data[4] = nan;
  EXPECT_EQ(status(unit).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status(unit).message(), HasSubstr("rows 0 to 1 is not finite"));
}

INSTANTIATE_TEST_SUITE_P(Threads, GptqTest, testing::Values(1, 2, 3));

TEST(GptqThreadsTest, AnyNumberOfThreadsGivesTheSameIntegers) {
  const Matrix w = GaussianWeights(150, 300, 14);
  const std::vector<float> steps = StepsOfMaxima(w);
  const SecondMoments moments = CorrelatedMoments(300, 10, 0.05, 15);
  std::vector<int8_t> expected;
  for (const int threads : {1, 2, 3}) {
    ThreadPool pool(threads);
    const auto rounded = RoundWithMoments(w, steps, moments, {}, pool);
    ASSERT_TRUE(rounded.ok()) << rounded.status();
    if (expected.empty()) expected = rounded->values;
    EXPECT_EQ(rounded->values, expected) << threads;
  }
}

}  // namespace
}  // namespace fixpoint
