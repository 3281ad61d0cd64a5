#include "calibrator/inverse_cholesky.h"

#include <cmath>
#include <limits>
#include <vector>

#include "calibrator/random.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

using testing::HasSubstr;

// G G^T / n + ridge * I for a Gaussian G: eigenvalues between ridge and about 4 + ridge.
std::vector<double> RandomPositive(int64_t n, double ridge, uint64_t seed) {
  Random random(seed);
  std::vector<double> g(n * n), a(n * n);
  for (double& x : g) x = random.Normal();
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < n; ++k) sum += g[i * n + k] * g[j * n + k];
      a[i * n + j] = a[j * n + i] = sum / static_cast<double>(n) + (i == j ? ridge : 0);
    }
  }
  return a;
}

class InverseCholeskyTest : public testing::TestWithParam<int64_t> {};

TEST_P(InverseCholeskyTest, InverseOfTheFactorTurnsTheMatrixIntoTheUnitMatrix) {
  const int64_t n = GetParam();
  const std::vector<double> a = RandomPositive(n, 0.01, 7);
  std::vector<double> x = a;
  ThreadPool pool(2);
  ASSERT_TRUE(InvertCholeskyFactor(x.data(), n, pool).ok());
  // X A X^T = 1 for X = L^-1, and a lower triangular X with a positive diagonal that does this is
  // unique. Condition about 400, so errors stay near 400 * n * 2^-53 < 1e-10.
  std::vector<double> product(n * n);  // X A
  for (int64_t i = 0; i < n; ++i) {
    EXPECT_GT(x[i * n + i], 0);
    for (int64_t k = 0; k <= i; ++k) {
      for (int64_t j = 0; j < n; ++j) product[i * n + j] += x[i * n + k] * a[k * n + j];
    }
  }
  double worst = 0;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = i == j ? -1 : 0;
      for (int64_t k = 0; k <= j; ++k) sum += product[i * n + k] * x[j * n + k];
      worst = std::max(worst, std::abs(sum));
    }
  }
  EXPECT_LT(worst, 1e-10);
}

// One tile, two, and more than a depth block of 256.
INSTANTIATE_TEST_SUITE_P(Sides, InverseCholeskyTest, testing::Values(64, 128, 448));

TEST(InverseCholeskyThreadsTest, AnyNumberOfThreadsGivesTheSameBits) {
  const int64_t n = 448;
  const std::vector<double> a = RandomPositive(n, 0.01, 8);
  std::vector<double> expected;
  for (const int threads : {1, 2, 3}) {
    ThreadPool pool(threads);
    std::vector<double> x = a;
    ASSERT_TRUE(InvertCholeskyFactor(x.data(), n, pool).ok());
    if (expected.empty()) expected = x;
    EXPECT_EQ(x, expected) << threads;
  }
}

TEST(InverseCholeskyErrorTest, MatricesThatAreNotPositiveDefiniteAreNamed) {
  const int64_t n = 128;
  ThreadPool pool(2);
  std::vector<double> a = RandomPositive(n, 0.1, 9);
  for (int64_t j = 0; j < n; ++j) a[100 * n + j] = a[j * n + 100] = a[j * n + 3];
  a[100 * n + 100] = a[3 * n + 3];  // row 100 repeats row 3: singular
  std::vector<double> x = a;
  absl::Status status = InvertCholeskyFactor(x.data(), n, pool);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("at row 100"));

  for (const double bad : {-1.0, 0.0, std::numeric_limits<double>::quiet_NaN(),
                           std::numeric_limits<double>::infinity()}) {
    x = RandomPositive(n, 0.1, 9);
    x[70 * n + 70] = bad;
    status = InvertCholeskyFactor(x.data(), n, pool);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << bad;
    EXPECT_THAT(status.message(), HasSubstr("at row 70")) << bad;
  }
}

}  // namespace
}  // namespace fixpoint
