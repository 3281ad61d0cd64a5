#include "calibrator/product_peak.h"

#include "calibrator/gemm.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

// No core of this world does less than a product in 10 ns, no two cores more than 10^13 a second.
TEST(ProductPeakTest, IsARateOfThisWorld) {
  ThreadPool pool(2);
  const double floats = MeasureProductPeak(false, pool);
  EXPECT_GT(floats, 2e8);
  EXPECT_LT(floats, 2e13);
  if (!CreateCpuGemm(pool)->fast_bf16()) GTEST_SKIP() << "this CPU has no AMX";
  const double tiles = MeasureProductPeak(true, pool);
  EXPECT_GT(tiles, 2 * floats);
  EXPECT_LT(tiles, 2e13);
}

}  // namespace
}  // namespace fixpoint
