// From a checkpoint to a verified bundle: rotation, prefix, text, statistics, scales, int16 sites,
// integers, measurements.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/thread_pool.h"
#include "bundle/bundle.h"
#include "calibrator/calibration_settings.h"
#include "calibrator/float_model.h"
#include "calibrator/held_out_figures.h"
#include "calibrator/progress.h"
#include "calibrator/report/report.h"
#include "calibrator/site_search.h"
#include "calibrator/train/stop_signal.h"
#include "calibrator/training_summary.h"

namespace fixpoint {

// The stages of Calibrate behind the import, to be appended to the caller's own.
std::vector<Progress::Stage> CalibrationStages(const CalibrationSettings& settings);

struct CalibrationResult {
  Bundle bundle;  // complete but for the durations of writing
  ReportData report;
  HeldOutFigures figures;
  SiteSearchResult sites;
  std::optional<TrainingSummary> training;
};

// `first_stage`: index of the first of CalibrationStages() in `progress`. Uses about twice the
// float32 weights of memory. `source_name` is what the provenance calls the checkpoint.
absl::StatusOr<CalibrationResult> Calibrate(Checkpoint checkpoint, const std::string& source_name,
                                            const CalibrationSettings& settings, ThreadPool& pool,
                                            Progress& progress, size_t first_stage,
                                            StopSignal& stop);

}  // namespace fixpoint
