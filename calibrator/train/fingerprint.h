// Whether a checkpoint belongs to a training.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "calibrator/calibration_settings.h"
#include "calibrator/corpus.h"
#include "calibrator/train/trainer.h"

namespace fixpoint {

struct TrainingIdentity {
  std::string source_sha256;
  const Corpus* corpus = nullptr;
  const CalibrationSettings* settings = nullptr;
  TrainOptions options;  // of this training: the float control's are not the settings'
  std::string rounding;
  std::vector<int32_t> prefix_token_ids;
  std::string vector_loops;  // the instruction set that float sums depend on
  bool bf16 = false;
};

// SHA-256, hexadecimal, over everything that the result of a training depends on.
std::string TrainingFingerprint(const TrainingIdentity& identity);

}  // namespace fixpoint
