#include "calibrator/gemm_plan.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

using testing::HasSubstr;

alignas(16) float buffer[16];

GemmArgs Args(GemmType type, int64_t rows, int64_t outputs, int64_t depth,
              bool w_by_depth = false) {
  return {.type = type,
          .rows = rows,
          .outputs = outputs,
          .depth = depth,
          .x = buffer,
          .x_stride = depth,
          .w = buffer,
          .w_stride = w_by_depth ? outputs : depth,
          .w_by_depth = w_by_depth,
          .y = buffer,
          .y_stride = outputs};
}

TEST(GemmPlanTest, RowsOnTheDeviceStartAtMultiplesOf16Bytes) {
  const GemmPlan bf16 = *PlanGemm(Args(GemmType::kBf16, 5, 7, 9), 1 << 20);
  EXPECT_EQ(bf16.rows_per_tile, 5);
  EXPECT_EQ(bf16.outputs_per_tile, 7);
  EXPECT_EQ(bf16.x_stride, 16);
  EXPECT_EQ(bf16.w_stride, 16);
  EXPECT_EQ(bf16.y_stride, 8);
  EXPECT_EQ(bf16.x_bytes, 5 * 32);
  EXPECT_EQ(bf16.w_bytes, 7 * 32);
  EXPECT_EQ(bf16.y_bytes, 5 * 32);
  const GemmPlan by_depth = *PlanGemm(Args(GemmType::kBf16, 5, 7, 9, true), 1 << 20);
  EXPECT_EQ(by_depth.w_stride, 8);
  EXPECT_EQ(by_depth.w_bytes, 9 * 16);
  const GemmPlan float32 = *PlanGemm(Args(GemmType::kFloat32, 5, 7, 9), 1 << 20);
  EXPECT_EQ(float32.x_stride, 12);
  EXPECT_EQ(float32.w_bytes, 7 * 48);
}

// All shapes: aligned, complete, and no piece above the limit.
TEST(GemmPlanTest, PiecesStayWithinTheLimit) {
  for (const GemmType type : {GemmType::kBf16, GemmType::kFloat32}) {
    for (const bool by_depth : {false, true}) {
      for (const int64_t side : {1, 7, 8, 100, 1000, 100'000}) {
        for (const int64_t other : {1, 9, 300, 70'000, 1 << 30}) {
          for (const int64_t depth : {1, 3, 8, 33}) {
            for (const int64_t limit : {1024, 5000, 1 << 16}) {
              for (const GemmArgs& args : {Args(type, side, other, depth, by_depth),
                                           Args(type, other, side, depth, by_depth)}) {
                const auto plan = PlanGemm(args, limit);
                if (!plan.ok()) {  // 8 rows of this depth do not fit
                  EXPECT_GT(8 * (depth * BytesOf(type) + 16) + (by_depth ? 16 * depth : 0), limit)
                      << plan.status();
                  continue;
                }
                EXPECT_GE(plan->rows_per_tile, std::min<int64_t>(8, args.rows));
                EXPECT_GE(plan->outputs_per_tile, std::min<int64_t>(8, args.outputs));
                EXPECT_LE(plan->rows_per_tile, args.rows);
                EXPECT_LE(plan->outputs_per_tile, args.outputs);
                EXPECT_LE(std::max({plan->x_bytes, plan->w_bytes, plan->y_bytes}), limit);
                EXPECT_GE(plan->x_stride, depth);
                EXPECT_GE(plan->y_stride, plan->outputs_per_tile);
                EXPECT_GE(plan->w_stride, by_depth ? plan->outputs_per_tile : depth);
                EXPECT_EQ(plan->x_stride * BytesOf(type) % 16, 0);
                EXPECT_EQ(plan->w_stride * BytesOf(type) % 16, 0);
                EXPECT_EQ(plan->y_stride * 4 % 16, 0);
              }
            }
          }
        }
      }
    }
  }
}

TEST(GemmPlanTest, BadArgumentsAreNamed) {
  const GemmArgs good = Args(GemmType::kBf16, 4, 5, 6);
  ASSERT_TRUE(PlanGemm(good, 1024).ok());
  const auto message = [](GemmArgs args, auto&& change) {
    change(args);
    const absl::Status status = PlanGemm(args, 1024).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(message(good, [](GemmArgs& a) { a.rows = 0; }), HasSubstr("rows is 0"));
  EXPECT_THAT(message(good, [](GemmArgs& a) { a.outputs = -1; }), HasSubstr("outputs is -1"));
  EXPECT_THAT(message(good, [](GemmArgs& a) { a.depth = (int64_t{1} << 30) + 1; }),
              HasSubstr("depth is 1073741825"));
  EXPECT_THAT(message(good, [](GemmArgs& a) { a.x_stride = 5; }), HasSubstr("x has a stride of 5"));
  EXPECT_THAT(message(good, [](GemmArgs& a) { a.w_stride = 5; }), HasSubstr("w has a stride of 5"));
  EXPECT_THAT(message(good, [](GemmArgs& a) { a.y_stride = 4; }), HasSubstr("y has a stride of 4"));
  EXPECT_THAT(message(good, [](GemmArgs& a) { a.y_stride = int64_t{1} << 31; }),
              HasSubstr("y has a stride"));
  // By depth a row of w has as many elements as there are outputs.
  EXPECT_THAT(message(Args(GemmType::kBf16, 4, 5, 3, true), [](GemmArgs& a) { a.w_stride = 4; }),
              HasSubstr("w has a stride of 4"));
  EXPECT_THAT(message(good, [](GemmArgs& a) { a.x = nullptr; }), HasSubstr("x is null"));
  EXPECT_THAT(message(good, [](GemmArgs& a) { a.w = nullptr; }), HasSubstr("w is null"));
  EXPECT_THAT(message(good, [](GemmArgs& a) { a.y = nullptr; }), HasSubstr("y is null"));
  EXPECT_THAT(message(good, [](GemmArgs& a) { a.x = reinterpret_cast<const char*>(buffer) + 1; }),
              HasSubstr("x at"));
  EXPECT_THAT(message(Args(GemmType::kBf16, 100, 100, 1000), [](GemmArgs&) {}),
              HasSubstr("depth 1000 (2000 bytes a row)"));
}

}  // namespace
}  // namespace fixpoint
