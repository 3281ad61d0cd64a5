// What training did, for the provenance and the report.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "calibrator/held_out_figures.h"
#include "calibrator/train/trainer.h"
#include "calibrator/train/training_run.h"

namespace fixpoint {

// The share of float training in the gain of an adapted model: the same gains trained on the same
// data and steps with nothing rounded.
struct FloatControl {
  double perplexity = 0;              // of the control on held-out text
  double relative_percent = 0;        // of the control over float
  double standard_error_percent = 0;  // paired over windows
  double gap_percent = 0;             // of the integer engine over the control
};

struct TrainingSummary {
  double scale_learning_rate = 0;  // relative change a step, at the start of the schedule
  double gain_learning_rate = 0;
  int64_t steps = 0;  // done; best_step <= steps <= planned_steps
  int64_t planned_steps = 0;
  int64_t best_step = 0;  // whose scales the bundle has
  int64_t tokens = 0;     // seen in all steps
  int32_t step_windows = 0;
  int32_t micro_batch_windows = 0;
  int32_t window_tokens = 0;
  uint64_t seed = 0;
  std::string stopped_by;                // "steps", "held_out", "diverged", "interrupted"
  double loss_first = 0, loss_last = 0;  // of the objective, nats a token
  // Mean KL to float on held-out text, in simulation: before training and at the best step.
  double held_out_kl_before = 0, held_out_kl_after = 0;
  double seconds = 0;
  double tokens_per_second = 0;
  double flops_per_second = 0;       // of the matrix products
  double peak_flops_per_second = 0;  // what the machine's cores can do, measured; 0: not measured
  std::optional<FloatControl> control;  // of the adapted objective
};

// How scales and weights were found. Each field has the values that stand beside it, no others.
struct Method {
  std::string objective = "none";      // "none" (not trained), "kl", "ce"
  std::string granularity = "tensor";  // "tensor", "channel": what a linear site has one scale for
  std::string vectors = "gain";      // what a channel's scale is: "gain", or "folded" into weights
  std::string rounding = "nearest";  // of weights: "nearest", "gptq"
};

// `figures` have "untrained", "static" and "integer", and "float_control" where one was trained.
TrainingSummary Summarize(const TrainingRunResult& run, const TrainOptions& options,
                          int32_t window_tokens, const HeldOutFigures& figures);

Method DescribeMethod(const TrainOptions& options, const std::string& rounding);

}  // namespace fixpoint
