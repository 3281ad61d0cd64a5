// That scales fit a model before anything is computed with them.
#pragma once

#include "absl/status/status.h"
#include "bundle/model.h"
#include "calibrator/calibration.h"

namespace fixpoint {

// One entry per layer and head, gains per channel or none, all scales and gains positive and
// finite. INVALID_ARGUMENT names layer, site and value.
absl::Status CheckScales(const ModelConfig& config, const Scales& scales);

}  // namespace fixpoint
