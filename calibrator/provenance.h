// What a bundle says about how it was made: written by the calibrator, read back by `eval` and
// `inspect`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "calibrator/calibration.h"
#include "calibrator/pipeline.h"

namespace fixpoint {

// The share of magnitudes above the clip at each linear site, on the calibration text.
struct Saturation {
  std::string site;
  double share = 0;
};

struct ProvenanceInput {
  const Checkpoint* checkpoint = nullptr;  // weights are not read
  std::string source_name;                 // base name of the path
  const CalibrationSettings* settings = nullptr;
  const Corpus* corpus = nullptr;
  const Scales* scales = nullptr;
  OnlineTransforms online;
  std::string head_clip;  // "max" or "mse"
  const SiteSearchResult* sites = nullptr;
  const HeldOutFigures* figures = nullptr;
  std::vector<Saturation> saturation;
  std::vector<Progress::Duration> durations;
  int threads = 0;
  bool bf16 = false;
};

std::string WriteProvenance(const ProvenanceInput& input);

// What is needed to measure a bundle against its source again.
struct ProvenanceSource {
  std::string name, sha256;
  RotationOptions rotation;
  Scales scales;
};

// INVALID_ARGUMENT when the text is not the provenance of this calibrator.
absl::StatusOr<ProvenanceSource> ReadProvenance(const std::string& json);

}  // namespace fixpoint
