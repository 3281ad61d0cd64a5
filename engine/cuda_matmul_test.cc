#include "engine/cuda_matmul.h"

#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

// Addresses that nobody reads.
template <typename T>
T* Address(uintptr_t at) {
  return reinterpret_cast<T*>(at);
}

CudaMatmul Valid() {
  return {.weights = Address<int8_t>(1 << 20),
          .x = Address<int8_t>(2 << 20),
          .acc = Address<int32_t>(4 << 20),
          .outputs = 304,
          .tokens = 65,
          .depth = 128,
          .weight_stride = 128,
          .x_stride = 192,
          .acc_stride = 304,
          .workspace = Address<void>(8 << 20),
          .workspace_bytes = 1 << 20};
}

TEST(CudaMatmulTest, WhatTheExecutorAsksForIsValid) {
  EXPECT_TRUE(ValidateMatmul(Valid()).ok()) << ValidateMatmul(Valid());
  CudaMatmul m = Valid();
  m.workspace = nullptr;
  m.workspace_bytes = 0;
  EXPECT_TRUE(ValidateMatmul(m).ok());
  m.tokens = 1;  // n is free
  EXPECT_TRUE(ValidateMatmul(m).ok());
}

TEST(CudaMatmulTest, EachBrokenRuleIsNamed) {
  using M = CudaMatmul;
  const struct {
    std::string message;
    std::function<void(M&)> breaks;
  } cases[] = {
      {"tokens is 0", [](M& m) { m.tokens = 0; }},
      {"outputs is 302", [](M& m) { m.outputs = 302; }},
      {"outputs is 0", [](M& m) { m.outputs = 0; }},
      {"depth is 127", [](M& m) { m.depth = 127; }},
      {"depth is 132108", [](M& m) { m.depth = m.weight_stride = m.x_stride = 132108; }},
      {"weights is null", [](M& m) { m.weights = nullptr; }},
      {"weights is not aligned to 16", [](M& m) { m.weights += 8; }},
      {"x is not aligned to 16", [](M& m) { m.x += 4; }},
      {"acc is not aligned to 16", [](M& m) { m.acc += 1; }},
      {"weight_stride is 112, a row has 128", [](M& m) { m.weight_stride = 112; }},
      {"x_stride is 196, no multiple", [](M& m) { m.x_stride = 196; }},
      {"acc_stride is 306, no multiple", [](M& m) { m.acc_stride = 306; }},
      {"acc_stride is 300, a row has 304", [](M& m) { m.acc_stride = 300; }},
      {"workspace is not aligned to 256", [](M& m) { m.workspace = Address<void>(8 << 20 | 16); }},
      {"workspace is null", [](M& m) { m.workspace = nullptr; }},
      {"workspace_bytes is -1", [](M& m) { m.workspace_bytes = -1; }},
      {"acc overlaps weights", [](M& m) { m.acc = Address<int32_t>((1 << 20) + 16); }},
      {"acc overlaps x", [](M& m) { m.x = Address<int8_t>((4 << 20) + 16); }},
      {"acc overlaps the workspace", [](M& m) { m.workspace = Address<void>((4 << 20) - 256); }},
  };
  for (const auto& c : cases) {
    CudaMatmul m = Valid();
    c.breaks(m);
    const absl::Status status = ValidateMatmul(m);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.message;
    EXPECT_THAT(status.message(), testing::HasSubstr(c.message));
  }
}

TEST(PaddedTokensTest, FourCountsToAnOctaveAndThirtyTwoApartAtLeast) {
  std::vector<int64_t> counts;
  for (int64_t n = PaddedTokens(1); n <= 1024; n = PaddedTokens(n + 1)) counts.push_back(n);
  EXPECT_THAT(counts, testing::ElementsAre(32, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512,
                                           640, 768, 896, 1024));
  for (int64_t n = 1; n <= 40000; ++n) {
    const int64_t padded = PaddedTokens(n);
    ASSERT_GE(padded, n);
    ASSERT_LT(padded, n + std::max<int64_t>(32, n / 4)) << n;
    ASSERT_EQ(PaddedTokens(padded), padded) << n;
  }
}

}  // namespace
}  // namespace fixpoint
