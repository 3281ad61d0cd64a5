#include "calibrator/gemm_plan.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace fixpoint {
namespace {

// Products of two sides and an element's size stay below 2^63.
constexpr int64_t kMaxSide = int64_t{1} << 30;
// A piece has at least so many rows and outputs, or all there are.
constexpr int64_t kMinTile = 8;

int64_t RoundUp(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

int64_t AlignedStride(int64_t elements, int64_t element_bytes) {
  return RoundUp(elements, kDeviceRowAlignment / element_bytes);
}

absl::Status CheckSide(const char* name, int64_t value) {
  if (value >= 1 && value <= kMaxSide) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("matrix product: %s is %d, outside [1, 2^30]", name, value));
}

absl::Status CheckOperand(const char* name, const void* data, int64_t row, int64_t stride,
                          int64_t element_bytes) {
  if (data == nullptr)
    return absl::InvalidArgumentError(absl::StrFormat("matrix product: %s is null", name));
  if (reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(element_bytes) != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("matrix product: %s at %p is not aligned to its elements' %d bytes", name,
                        data, element_bytes));
  }
  if (stride < row || stride > kMaxSide) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "matrix product: %s has a stride of %d, outside [%d (a row), 2^30]", name, stride, row));
  }
  return absl::OkStatus();
}

absl::Status Check(const GemmArgs& args) {
  RETURN_IF_ERROR(CheckSide("rows", args.rows));
  RETURN_IF_ERROR(CheckSide("outputs", args.outputs));
  RETURN_IF_ERROR(CheckSide("depth", args.depth));
  const int64_t bytes = BytesOf(args.type);
  RETURN_IF_ERROR(CheckOperand("x", args.x, args.depth, args.x_stride, bytes));
  RETURN_IF_ERROR(
      CheckOperand("w", args.w, args.w_by_depth ? args.outputs : args.depth, args.w_stride, bytes));
  return CheckOperand("y", args.y, args.outputs, args.y_stride, sizeof(float));
}

// The most items of `item_bytes` that fit, a multiple of kMinTile; all of them if they fit.
int64_t ItemsPerTile(int64_t items, int64_t item_bytes, int64_t tile_bytes) {
  if (items <= tile_bytes / item_bytes) return items;
  return tile_bytes / item_bytes / kMinTile * kMinTile;
}

}  // namespace

absl::StatusOr<GemmPlan> PlanGemm(const GemmArgs& args, int64_t tile_bytes) {
  CHECK_GE(tile_bytes, 1024);
  RETURN_IF_ERROR(Check(args));
  const int64_t bytes = BytesOf(args.type);
  GemmPlan plan;
  plan.x_stride = AlignedStride(args.depth, bytes);
  const int64_t depth_bytes = plan.x_stride * bytes;

  // A piece of w is a number of rows of depth, or as many columns beside each other: as bytes the
  // same, but for the rounding of short rows. Its outputs in y are at most 1/16 of a piece a row,
  // so that kMinTile rows fit.
  const int64_t w_limit =
      tile_bytes - (args.w_by_depth ? kDeviceRowAlignment * args.depth : int64_t{0});
  plan.outputs_per_tile = ItemsPerTile(
      args.outputs, std::max<int64_t>(depth_bytes, 2 * kMinTile * sizeof(float)), w_limit);
  if (args.w_by_depth) plan.w_stride = AlignedStride(plan.outputs_per_tile, bytes);
  if (!args.w_by_depth) plan.w_stride = plan.x_stride;
  plan.w_bytes = (args.w_by_depth ? args.depth : plan.outputs_per_tile) * plan.w_stride * bytes;

  plan.y_stride = AlignedStride(plan.outputs_per_tile, sizeof(float));
  const int64_t y_row_bytes = plan.y_stride * static_cast<int64_t>(sizeof(float));
  plan.rows_per_tile = ItemsPerTile(args.rows, std::max(depth_bytes, y_row_bytes), tile_bytes);
  if (plan.outputs_per_tile < 1 || plan.rows_per_tile < 1) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "matrix product: of depth %d (%d bytes a row) with pieces of %d outputs not "
        "%d rows fit into the device's buffers of %d bytes",
        args.depth, depth_bytes, plan.outputs_per_tile, kMinTile, tile_bytes));
  }
  plan.x_bytes = plan.rows_per_tile * depth_bytes;
  plan.y_bytes = plan.rows_per_tile * y_row_bytes;
  return plan;
}

}  // namespace fixpoint
