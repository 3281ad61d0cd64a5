// Text sampled from the float model itself: calibration data that needs no corpus and has the
// model's own distribution.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "calibrator/calibration.h"
#include "calibrator/evaluate.h"
#include "calibrator/float_forward.h"

namespace fixpoint {

// One window to be written by the model.
struct Opening {
  std::vector<int32_t> token_ids;  // its first tokens, at least one, behind the prefix
  bool allow_control = false;      // whether the model may emit the tokens of `control_ids`
};

struct GenerateOptions {
  int32_t tokens = 512;  // of each window, openings included
  uint64_t seed = 0;
  std::vector<int32_t> control_ids;  // special tokens; windows of plain text are kept free of them
  int64_t max_kv_bytes = 768 << 20;  // bounds how many windows are written at once
};

// Temperature 1. Window i depends on (seed, i) and its opening only, apart from float rounding.
// `progress` gets the share done.
Windows GenerateWindows(FloatForward& forward, const FloatConfig& config, const FloatPrefix& prefix,
                        const std::vector<Opening>& openings, const GenerateOptions& options,
                        ThreadPool& pool, const std::function<void(double)>& progress);

}  // namespace fixpoint
