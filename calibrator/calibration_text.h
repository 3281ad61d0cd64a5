// The text of a calibration: from the user's files, or written by the model.
#pragma once

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "base/thread_pool.h"
#include "calibrator/calibration_settings.h"
#include "calibrator/corpus.h"
#include "calibrator/float_forward.h"
#include "calibrator/float_model.h"
#include "text/tokenizer.h"

namespace fixpoint {

struct CalibrationTextInput {
  const CalibrationSettings* settings = nullptr;
  const Tokenizer* tokenizer = nullptr;
  std::string chat_template;
  const FloatModel* model = nullptr;  // prepared as `online` says
  OnlineTransforms online;
  const FloatPrefix* prefix = nullptr;  // of the float model
};

// INVALID_ARGUMENT for files as ReadCorpus says, and when the model has no room for a window behind
// the prefix. At most as many windows as keep the teacher's logits and states within a gigabyte
// each. `progress` gets the share done of what the model writes.
absl::StatusOr<Corpus> TakeCalibrationText(const CalibrationTextInput& input, FloatGemm& gemm,
                                           ThreadPool& pool,
                                           const std::function<void(double)>& progress);

}  // namespace fixpoint
