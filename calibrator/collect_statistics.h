// Histograms and ranges of a student's values over text.
#pragma once

#include <functional>

#include "base/thread_pool.h"
#include "calibrator/evaluate.h"
#include "calibrator/float_forward.h"
#include "calibrator/statistics.h"

namespace fixpoint {

// Behind `prefix`, with the gains of `scales` applied (null: none) and nothing rounded but weights.
// `progress` gets the share done.
Statistics CollectStatistics(FloatForward& student, const FloatConfig& config,
                             const FloatPrefix& prefix, const Scales* scales, const Windows& text,
                             ThreadPool& pool, const std::function<void(double)>& progress);

}  // namespace fixpoint
