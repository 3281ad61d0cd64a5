#include "calibrator/second_moments.h"

#include <cmath>
#include <memory>
#include <vector>

#include "calibrator/gemm_test_util.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

std::vector<double> Naive(const std::vector<float>& x, int64_t rows, int64_t stride,
                          int64_t depth) {
  std::vector<double> sums(depth * depth);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < depth; ++i) {
      for (int64_t j = 0; j < depth; ++j) {
        sums[i * depth + j] +=
            static_cast<double>(x[row * stride + i]) * static_cast<double>(x[row * stride + j]);
      }
    }
  }
  return sums;
}

std::vector<double> Doubles(const SecondMoments& moments) {
  return std::vector<double>(moments.sums.begin(), moments.sums.end());
}

class MomentsCollectorTest : public testing::TestWithParam<int> {
 protected:
  ThreadPool pool_{GetParam()};
  const std::unique_ptr<FloatGemm> gemm_ = CreateCpuGemm(pool_);
  MomentsCollector collector_{*gemm_, pool_};
};

// Wider than a panel, more rows than a batch, odd everything. Totals stay below 2^24: exact.
TEST_P(MomentsCollectorTest, SumsOfIntegersAreExactInFloat32) {
  const int64_t rows = 1100, depth = 301, stride = 305;
  const std::vector<float> x = Integers(rows * stride, 100, 1);
  SecondMoments moments{.depth = depth};
  collector_.Add(x.data(), rows, stride, &moments);
  EXPECT_EQ(Doubles(moments), Naive(x, rows, stride, depth));
}

TEST_P(MomentsCollectorTest, SumsOfIntegersAreExactInBf16) {
  if (!gemm_->fast_bf16()) GTEST_SKIP() << "this CPU has no AMX";
  const int64_t rows = 1100, depth = 301, stride = 305;
  const std::vector<float> x = Integers(rows * stride, 100, 2);
  SecondMoments moments{.depth = depth};
  collector_.Add(Bf16(x).data(), nullptr, rows, stride, &moments);
  EXPECT_EQ(Doubles(moments), Naive(x, rows, stride, depth));
}

TEST_P(MomentsCollectorTest, BatchesAndSitesAddUp) {
  const int64_t rows = 70;
  SecondMoments narrow{.depth = 5}, wide{.depth = 80};
  const std::vector<float> x = Integers(rows * 80, 127, 3), y = Integers(rows * 5, 127, 4);
  collector_.Add(x.data(), 30, 80, &wide);
  collector_.Add(y.data(), rows, 5, &narrow);
  collector_.Add(x.data() + 30 * 80, rows - 30, 80, &wide);
  EXPECT_EQ(Doubles(wide), Naive(x, rows, 80, 80));
  EXPECT_EQ(Doubles(narrow), Naive(y, rows, 5, 5));
}

TEST_P(MomentsCollectorTest, SecondPlaneOfInt16SitesCounts) {
  if (!gemm_->fast_bf16()) GTEST_SKIP() << "this CPU has no AMX";
  const int64_t rows = 60, depth = 70;
  const std::vector<float> hi = Integers(rows * depth, 127, 5);
  std::vector<float> lo = Integers(rows * depth, 127, 6), sum = hi;
  for (size_t i = 0; i < lo.size(); ++i) {
    lo[i] /= 256;
    sum[i] += lo[i];
  }
  SecondMoments moments{.depth = depth};
  collector_.Add(Bf16(hi).data(), Bf16(lo).data(), rows, depth, &moments);
  const std::vector<double> expected = Naive(sum, rows, depth, depth);
  for (int64_t i = 0; i < depth; ++i) {
    for (int64_t j = 0; j < depth; ++j) {
      // Each factor is within 2^-9 of its size; by Cauchy and Schwarz the sum is within 2^-8 of the
      // norms' product (and the second order on top).
      const double limit =
          std::sqrt(expected[i * depth + i] * expected[j * depth + j]) * (0x1p-8 + 0x1p-17);
      EXPECT_NEAR(moments.sums[i * depth + j], expected[i * depth + j], limit) << i << ", " << j;
      EXPECT_EQ(moments.sums[i * depth + j], moments.sums[j * depth + i]);
    }
  }
  // hi alone would leave the smallest channels at 0.
  std::vector<float> zero(rows * depth);
  SecondMoments small{.depth = depth};
  collector_.Add(Bf16(zero).data(), Bf16(lo).data(), rows, depth, &small);
  EXPECT_EQ(Doubles(small), Naive(lo, rows, depth, depth));  // 8 bits: no rounding
}

INSTANTIATE_TEST_SUITE_P(Threads, MomentsCollectorTest, testing::Values(1, 2, 3));

}  // namespace
}  // namespace fixpoint
