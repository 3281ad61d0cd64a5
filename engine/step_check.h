// What every executor checks of a step before it computes anything.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/executor.h"

namespace fixpoint {

// INVALID_ARGUMENT "NAME is VALUE, must be in [LOW, HIGH]" unless it is.
absl::Status CheckRange(absl::string_view name, int64_t value, int64_t low, int64_t high);

// INVALID_ARGUMENT for chunks that break the rules of executor.h or the limits. No allocation when
// all is well.
absl::Status CheckStep(absl::Span<const SequenceChunk> chunks, const ExecutorLimits& limits);

}  // namespace fixpoint
