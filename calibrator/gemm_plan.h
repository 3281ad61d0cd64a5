// How a product is cut into pieces that fit a device's buffers, and how the pieces lie there. Plain
// arithmetic: it needs no device.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "calibrator/gemm.h"

namespace fixpoint {

// Buffers on the device are dense: rows follow each other at a leading dimension rounded up so that
// each starts at a multiple of 16 bytes, which the fast tensor-core kernels want.
inline constexpr int64_t kDeviceRowAlignment = 16;

struct GemmPlan {
  // The last piece of either may be smaller. Pieces are [rows_per_tile][outputs_per_tile] of y; the
  // depth is never cut.
  int64_t rows_per_tile = 0, outputs_per_tile = 0;
  // Elements between rows on the device, the same for all pieces.
  int64_t x_stride = 0;  // x [rows][depth]
  int64_t w_stride = 0;  // w [outputs][depth], or [depth][outputs] with w_by_depth
  int64_t y_stride = 0;  // y [rows][outputs], float32
  // Bytes of a full piece, each at most the limit.
  int64_t x_bytes = 0, w_bytes = 0, y_bytes = 0;
};

// `tile_bytes`: limit of each operand's piece, at least 1 KiB. INVALID_ARGUMENT, naming the
// operand, for null or misaligned pointers, sides below 1 or above 2^30, a stride that is shorter
// than its row or above 2^30, and a depth of which not even 8 rows fit.
absl::StatusOr<GemmPlan> PlanGemm(const GemmArgs& args, int64_t tile_bytes);

}  // namespace fixpoint
