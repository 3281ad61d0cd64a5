// Which kernel level runs: the best one that this CPU and operating system support, or the one that
// FIXPOINT_ISA names. Every level gives the same bits, so the choice is about speed alone.
// Thread-safe.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/ops.h"

namespace fixpoint {

// The fastest supported level. Never the reference.
const Ops& BestOps();

// The level called "reference", "portable", "avx2", "vnni", "amx", "neon" or "i8mm"; nullptr if
// unknown or not supported here.
const Ops* FindOps(absl::string_view name);

// Names of the supported levels, slowest first, "reference" included.
std::vector<absl::string_view> SupportedOps();

// The level that the environment variable FIXPOINT_ISA names, or BestOps() if it is unset or empty.
// INVALID_ARGUMENT for an unknown name, FAILED_PRECONDITION for a level that this CPU lacks; the
// message names the value and what there is.
absl::StatusOr<const Ops*> SelectOps();

}  // namespace fixpoint
