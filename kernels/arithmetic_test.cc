// Hand-computed cases of the scalar rules, and their distance from the real functions that they
// stand for.
#include "kernels/reference/arithmetic.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace fixpoint {
namespace {

TEST(RoundShiftTest, TiesGoTowardPlusInfinity) {
  EXPECT_EQ(RoundShift(3, 1), 2);    // 1.5
  EXPECT_EQ(RoundShift(1, 1), 1);    // 0.5
  EXPECT_EQ(RoundShift(-1, 1), 0);   // -0.5
  EXPECT_EQ(RoundShift(-3, 1), -1);  // -1.5
  EXPECT_EQ(RoundShift(6, 2), 2);    // 1.5
  EXPECT_EQ(RoundShift(-6, 2), -1);  // -1.5
  EXPECT_EQ(RoundShift(5, 2), 1);    // 1.25
  EXPECT_EQ(RoundShift(-7, 2), -2);  // -1.75
}

TEST(RoundShiftTest, ZeroShiftIsIdentity) {
  EXPECT_EQ(RoundShift(INT32_MIN, 0), INT32_MIN);
  EXPECT_EQ(RoundShift64(-5, 0), -5);
}

TEST(RoundShiftTest, ExtremesDoNotOverflow) {
  EXPECT_EQ(RoundShift(INT32_MAX, 1), 1 << 30);
  EXPECT_EQ(RoundShift(INT32_MAX, 30), 2);
  EXPECT_EQ(RoundShift(INT32_MIN, 30), -2);
  EXPECT_EQ(RoundShift64((int64_t{1} << 62) - 1, 62), 1);
}

TEST(SaturationTest, IsSymmetric) {
  EXPECT_EQ(Sat8(128), 127);
  EXPECT_EQ(Sat8(-128), -127);
  EXPECT_EQ(Sat16(32768), 32767);
  EXPECT_EQ(Sat16(-32768), -32767);
  EXPECT_EQ(Sat16(-32767), -32767);
}

TEST(NarrowTest, RoundsTwice) {
  // 1000 / 2^3 = 125;  125 * 3 / 2^2 = 93.75
  EXPECT_EQ(Narrow(1000, 3, 3, 2), 94);
  // 1004 / 8 = 125.5 -> 126;  126 * 3 / 4 = 94.5 -> 95 (one rounding of 94.125 would give 94)
  EXPECT_EQ(Narrow(1004, 3, 3, 2), 95);
}

TEST(NarrowTest, SaturatesBetweenTheSteps) {
  EXPECT_EQ(Narrow(INT32_MAX, 1, 32767, 1), (32767 * 32767 + 1) / 2);
  EXPECT_EQ(Narrow(INT32_MIN, 1, 32767, 1), -(32767 * 32767 - 1) / 2);  // tie upward
}

TEST(WideTest, KeepsTheExactProduct) {
  EXPECT_EQ(Wide(INT32_MIN, INT32_MAX, 31), -2147483647);
  EXPECT_EQ(Wide(3, 1 << 30, 31), 2);    // 1.5
  EXPECT_EQ(Wide(-3, 1 << 30, 31), -1);  // -1.5
}

TEST(StoreActivationTest, Int8SiteSaturates) {
  int8_t hi = 0;
  StoreActivation(200, &hi, nullptr);
  EXPECT_EQ(hi, 127);
  StoreActivation(-128, &hi, nullptr);
  EXPECT_EQ(hi, -127);
}

TEST(StoreActivationTest, PlanesRebuildTheValue) {
  for (int32_t value = -33000; value <= 33000; ++value) {
    int8_t hi = 0, lo = 0;
    StoreActivation(value, &hi, &lo);
    ASSERT_EQ(256 * hi + lo, Clamp(value, kWideSiteLimit)) << value;
  }
}

TEST(IntegerSqrtTest, IsTheFloor) {
  EXPECT_EQ(IntegerSqrt(0), 0u);
  EXPECT_EQ(IntegerSqrt(3), 1u);
  EXPECT_EQ(IntegerSqrt(4), 2u);
  EXPECT_EQ(IntegerSqrt(UINT64_MAX), 4294967295u);
  std::mt19937_64 random(1);
  for (int i = 0; i < 20000; ++i) {
    const uint64_t root = random() >> (32 + i % 32);
    const uint64_t square = root * root;
    ASSERT_EQ(IntegerSqrt(square), root);
    ASSERT_EQ(IntegerSqrt(square + 2 * root), root);
    if (square > 0) {
      ASSERT_EQ(IntegerSqrt(square - 1), root - 1);
    }
  }
}

TEST(NormInputShiftTest, BringsAnyRowBelowTheLimit) {
  EXPECT_EQ(NormInputShift(0), 0);
  EXPECT_EQ(NormInputShift(kNormInputLimit), 0);
  EXPECT_EQ(NormInputShift(kNormInputLimit + 1), 1);
  EXPECT_EQ(NormInputShift((1 << 24) - 1), 1);
  EXPECT_EQ(NormInputShift(1 << 24), 2);
  EXPECT_EQ(NormInputShift(kResidualLimit), 4);
}

TEST(InverseSquareRootTest, ZeroSumCountsAsOne) {
  const InverseRoot root = InverseSquareRoot(0);
  // 1 << 62 has the root 2^31; 2^62 / 2^31 = 2^31 is capped.
  EXPECT_EQ(root.inverse, 0x7fffffff);
  EXPECT_EQ(root.shift, 31);
}

TEST(InverseSquareRootTest, IsWithinTwoUnitsOfTheLastPlace) {
  std::mt19937_64 random(2);
  for (int i = 0; i < 100000; ++i) {
    const uint64_t sum = (random() >> (i % 64)) | 1;
    const InverseRoot root = InverseSquareRoot(sum);
    ASSERT_GE(root.inverse, int64_t{1} << 30);
    ASSERT_LT(root.inverse, int64_t{1} << 31);
    const long double exact = 1 / std::sqrt(static_cast<long double>(sum));
    const long double got = std::ldexp(static_cast<long double>(root.inverse), -root.shift);
    // The floored root is low by at most one part in 2^31, the floored quotient by one unit in
    // 2^30, and the cap takes one more: 2^-29 covers all.
    ASSERT_NEAR(static_cast<double>(got / exact), 1, std::ldexp(1.0, -29)) << sum;
  }
}

TEST(ExpNegativeTest, KnownValues) {
  EXPECT_EQ(ExpNegative(0), 16383);         // 1.0 is capped to 14 bits
  EXPECT_EQ(ExpNegative(32768), 8192);      // 1/2
  EXPECT_EQ(ExpNegative(2 * 32768), 4096);  // 1/4
  EXPECT_EQ(ExpNegative(14 * 32768), 1);
  EXPECT_EQ(ExpNegative(15 * 32768), 1);  // 2^-15 in Q14 is 0.5, a tie
  EXPECT_EQ(ExpNegative(15 * 32768 + 100), 0);
  EXPECT_EQ(ExpNegative(16 * 32768), 0);
  EXPECT_EQ(ExpNegative(INT32_MAX), 0);
}

TEST(ExpNegativeTest, StaysWithin1e4OfTheFunction) {
  double worst = 0;
  for (int32_t y = 0; y < 17 * 32768; ++y) {
    const double exact = std::exp2(-y / 32768.0);
    worst = std::max(worst, std::abs(ExpNegative(y) / 16384.0 - exact));
  }
  EXPECT_LE(worst, 1e-4);
}

TEST(ExpNegativeTest, NeverRisesByMoreThanItsRounding) {
  for (int32_t y = 1; y < 17 * 32768; ++y) {
    ASSERT_LE(ExpNegative(y), ExpNegative(y - 1) + 1) << y;
  }
}

TEST(SoftmaxNumeratorTest, StopsAtTheLargestDistance) {
  const ScoreParams s{.d_max = 1000, .a = 2, .c = 300, .n = 3};
  // rs(1000, 2) = 250;  250 * 300 / 8 = 9375
  EXPECT_EQ(SoftmaxNumerator(1000, s), ExpNegative(9375));
  EXPECT_EQ(SoftmaxNumerator(1 << 30, s), ExpNegative(9375));
  EXPECT_EQ(SoftmaxNumerator(0, s), 16383);
}

TEST(NormalizeWeightedTest, ConstantValuesComeBackTimes128) {
  std::mt19937_64 random(3);
  for (int i = 0; i < 100000; ++i) {
    const uint64_t z = 16383 + (random() & 0x7fffffff) % (0x7fffffff - 16383 - 1);
    const auto v = static_cast<int64_t>(random() % 255) - 127;
    const int64_t weighted = v * static_cast<int64_t>(z);
    // The quotient is exact; the reciprocal is off by 2^-30 of 128 * 127 at most, which rounding
    // hides, except that the shifted sum has lost half a unit of 16 bits: one unit in 16256 can
    // appear.
    ASSERT_NEAR(NormalizeWeighted(weighted, ReciprocalOfSum(z)), 128 * v, 1) << z << " " << v;
  }
}

TEST(SigmoidTableTest, IsTheFunctionRoundedToNearest) {
  for (int i = 0; i <= 128; ++i) {
    const long double exact = 32768 / (1 + std::exp(static_cast<long double>(i) / 8));
    // llround rounds ties away from zero; only i = 0 is exact, nothing is a tie.
    EXPECT_EQ(kSigmoidTable[i], std::llround(exact)) << i;
  }
}

TEST(SiluTest, HandComputed) {
  // a * 1024 >> 10 = a: table input in Q11 equals g.
  EXPECT_EQ(Silu(0, 1024, 10), 0);
  // 2048 is 1.0: i = 2048, T[8] = 8813;  r = rs(2048 * 8813, 15) = 551 (550.8)
  EXPECT_EQ(Silu(2048, 1024, 10), 2048 - 551);
  EXPECT_EQ(Silu(-2048, 1024, 10), -551);
  EXPECT_EQ(Silu(32767, 1024, 10), 32767);  // sigmoid(-16) is 0
  EXPECT_EQ(Silu(-32767, 1024, 10), 0);
}

TEST(SiluTest, StaysNearTheFunction) {
  for (int32_t g = -32767; g <= 32767; ++g) {
    const double x = g / 2048.0;
    const double exact = g / (1 + std::exp(-x));
    // Interpolation error of a table with step 1/8 is at most h^2/8 * max|s''| = 1.9e-4, a table
    // unit is 3e-5 and the last rounding is half a unit.
    ASSERT_NEAR(Silu(g, 1024, 10), exact, 2.4e-4 * std::abs(g) + 1) << g;
  }
}

TEST(WalshHadamardTest, SylvesterOrder) {
  int32_t x[4] = {1, 2, 3, 4};
  WalshHadamard(x, 4);
  EXPECT_EQ(x[0], 10);
  EXPECT_EQ(x[1], -2);
  EXPECT_EQ(x[2], -4);
  EXPECT_EQ(x[3], 0);
}

TEST(WalshHadamardTest, TwiceIsTimesN) {
  int32_t x[64], y[64];
  for (int i = 0; i < 64; ++i) x[i] = y[i] = i * i - 700;
  WalshHadamard(x, 64);
  WalshHadamard(x, 64);
  for (int i = 0; i < 64; ++i) EXPECT_EQ(x[i], 64 * y[i]);
}

TEST(KvTileTest, EveryElementHasOnePlace) {
  for (const int32_t head_dim : {16, 64, 80, 128}) {
    const size_t size = static_cast<size_t>(kKvBlockTokens) * head_dim;
    std::vector<int> k(size), v(size);
    for (int32_t token = 0; token < kKvBlockTokens; ++token) {
      for (int32_t d = 0; d < head_dim; ++d) {
        ASSERT_LT(KTileIndex(token, d, head_dim), size);
        ASSERT_LT(VTileIndex(token, d, head_dim), size);
        ++k[KTileIndex(token, d, head_dim)];
        ++v[VTileIndex(token, d, head_dim)];
      }
    }
    for (size_t i = 0; i < size; ++i) ASSERT_TRUE(k[i] == 1 && v[i] == 1) << head_dim << " " << i;
  }
}

}  // namespace
}  // namespace fixpoint
