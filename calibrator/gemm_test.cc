#include "calibrator/gemm.h"

#include <cmath>
#include <vector>

#include "calibrator/gemm_test_util.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

struct Case {
  int64_t rows, outputs, depth;
};
// One row, odd tails, several row blocks and panels.
const Case kCases[] = {{1, 1, 1}, {3, 65, 17}, {257, 100, 64}, {600, 1100, 33}, {24, 576, 96}};

// y += x w^T, exactly: the operands are integers.
std::vector<float> Expected(const Case& c, const std::vector<float>& x, const std::vector<float>& w,
                            float initial) {
  std::vector<float> y(c.rows * c.outputs, initial);
  for (int64_t m = 0; m < c.rows; ++m) {
    for (int64_t n = 0; n < c.outputs; ++n) {
      int64_t sum = 0;
      for (int64_t k = 0; k < c.depth; ++k)
        sum += static_cast<int64_t>(x[m * c.depth + k]) * static_cast<int64_t>(w[n * c.depth + k]);
      y[m * c.outputs + n] += static_cast<float>(sum);
    }
  }
  return y;
}

class GemmTest : public testing::TestWithParam<int> {};

TEST_P(GemmTest, ProductsOfIntegersAreExactInFloat32) {
  ThreadPool pool(GetParam());
  const std::unique_ptr<FloatGemm> gemm = CreateCpuGemm(pool);
  for (const Case& c : kCases) {
    const std::vector<float> x = Integers(c.rows * c.depth, 127, 1),
                             w = Integers(c.outputs * c.depth, 127, 2);
    std::vector<float> y(c.rows * c.outputs, 3);
    GemmArgs args{.rows = c.rows,
                  .outputs = c.outputs,
                  .depth = c.depth,
                  .x = x.data(),
                  .x_stride = c.depth,
                  .w = w.data(),
                  .w_stride = c.depth,
                  .y = y.data(),
                  .y_stride = c.outputs};
    gemm->Multiply(args);
    EXPECT_EQ(y, Expected(c, x, w, 0)) << c.rows << " x " << c.outputs << " x " << c.depth;
    std::fill(y.begin(), y.end(), 3);
    args.accumulate = true;
    gemm->Multiply(args);
    EXPECT_EQ(y, Expected(c, x, w, 3)) << "accumulate";
  }
}

TEST_P(GemmTest, ProductsOfIntegersAreExactInBf16) {
  ThreadPool pool(GetParam());
  const std::unique_ptr<FloatGemm> gemm = CreateCpuGemm(pool);
  if (!gemm->fast_bf16()) GTEST_SKIP() << "this CPU has no AMX";
  for (const Case& c : kCases) {
    const std::vector<float> x = Integers(c.rows * c.depth, 128, 3),
                             w = Integers(c.outputs * c.depth, 127, 4);
    const std::vector<uint16_t> x16 = Bf16(x), w16 = Bf16(w);
    std::vector<float> y(c.rows * c.outputs);
    gemm->Multiply({.type = GemmType::kBf16,
                    .rows = c.rows,
                    .outputs = c.outputs,
                    .depth = c.depth,
                    .x = x16.data(),
                    .x_stride = c.depth,
                    .w = w16.data(),
                    .w_stride = c.depth,
                    .y = y.data(),
                    .y_stride = c.outputs});
    EXPECT_EQ(y, Expected(c, x, w, 0)) << c.rows << " x " << c.outputs << " x " << c.depth;
  }
}

TEST_P(GemmTest, WeightsByDepthAndStridesAreHonoured) {
  ThreadPool pool(GetParam());
  const std::unique_ptr<FloatGemm> gemm = CreateCpuGemm(pool);
  const Case c{37, 50, 20};
  const std::vector<float> x = Integers(c.rows * c.depth, 9, 5),
                           w = Integers(c.outputs * c.depth, 9, 6);
  std::vector<float> w_by_depth(c.depth * (c.outputs + 3));
  for (int64_t n = 0; n < c.outputs; ++n) {
    for (int64_t k = 0; k < c.depth; ++k) w_by_depth[k * (c.outputs + 3) + n] = w[n * c.depth + k];
  }
  std::vector<float> y(c.rows * (c.outputs + 5), -7);
  gemm->Multiply({.rows = c.rows,
                  .outputs = c.outputs,
                  .depth = c.depth,
                  .x = x.data(),
                  .x_stride = c.depth,
                  .w = w_by_depth.data(),
                  .w_stride = c.outputs + 3,
                  .w_by_depth = true,
                  .y = y.data(),
                  .y_stride = c.outputs + 5});
  const std::vector<float> expected = Expected(c, x, w, 0);
  for (int64_t m = 0; m < c.rows; ++m) {
    for (int64_t n = 0; n < c.outputs + 5; ++n) {
      EXPECT_EQ(y[m * (c.outputs + 5) + n], n < c.outputs ? expected[m * c.outputs + n] : -7);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Threads, GemmTest, testing::Values(1, 2, 3));

}  // namespace
}  // namespace fixpoint
