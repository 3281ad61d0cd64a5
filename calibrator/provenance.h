// What a bundle says about how it was made: written by the calibrator, read back by `eval` and
// `inspect`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "calibrator/calibration.h"
#include "calibrator/calibration_settings.h"
#include "calibrator/held_out_figures.h"
#include "calibrator/progress.h"
#include "calibrator/site_list.h"
#include "calibrator/training_summary.h"

namespace fixpoint {

struct ProvenanceInput {
  const Checkpoint* checkpoint = nullptr;  // weights are not read
  std::string source_name;                 // base name of the path
  const CalibrationSettings* settings = nullptr;
  const Corpus* corpus = nullptr;
  const Scales* scales = nullptr;  // gains are not written: they are in the multipliers
  OnlineTransforms online;
  std::string head_clip;  // "max" or "mse"
  Method method;
  const TrainingSummary* training = nullptr;  // null: not trained
  const SiteSearchResult* sites = nullptr;
  const HeldOutFigures* figures = nullptr;
  std::vector<Saturation> saturation;
  std::vector<Progress::Duration> durations;
  int threads = 0;
  bool bf16 = false;
};

// Method has known values (CHECK).
std::string WriteProvenance(const ProvenanceInput& input);

// What is needed to measure a bundle against its source again.
struct ProvenanceSource {
  std::string name, sha256;
  RotationOptions rotation;
  Method method;  // what older provenance does not say has the default
  Scales scales;  // without gains
};

// INVALID_ARGUMENT when the text is not the provenance of this calibrator, or holds a value that
// this version does not know.
absl::StatusOr<ProvenanceSource> ReadProvenance(const std::string& json);

}  // namespace fixpoint
