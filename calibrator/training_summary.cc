#include "calibrator/training_summary.h"

namespace fixpoint {

TrainingSummary Summarize(const TrainingRunResult& run, const TrainOptions& o,
                          int32_t window_tokens, const HeldOutFigures& figures) {
  const TrainState& state = run.details.state;
  TrainingSummary s;
  s.scale_learning_rate = o.scale_rate;
  s.gain_learning_rate = o.granularity == Granularity::kChannel ? o.gain_rate : 0;
  s.steps = state.step;
  s.planned_steps = o.steps;
  s.best_step = state.best_step;
  s.tokens = state.step * o.batch_windows * window_tokens;
  s.step_windows = o.batch_windows;
  s.micro_batch_windows = o.micro_windows;
  s.window_tokens = window_tokens;
  s.seed = o.seed;
  s.stopped_by = run.details.stop_reason;
  if (!state.points.empty()) {
    s.loss_first = state.points.front().loss;
    s.loss_last = state.points.back().loss;
  }
  s.held_out_kl_before = figures.Find("untrained").kl_mean;
  s.held_out_kl_after = figures.Find("static").kl_mean;
  s.seconds = run.details.seconds;
  s.tokens_per_second = run.tokens_per_second;
  s.flops_per_second = run.flops_per_second;
  if (const HeldOutFigures::Model* control = figures.FindOrNull("float_control")) {
    s.control = FloatControl{
        .perplexity = control->perplexity,
        .relative_percent = control->relative.percent,
        .standard_error_percent = control->relative.standard_error_percent,
        .gap_percent = 100 * (figures.Find("integer").perplexity / control->perplexity - 1)};
  }
  return s;
}

Method DescribeMethod(const TrainOptions& o, const std::string& rounding) {
  Method method;
  method.rounding = rounding;
  if (o.objective == Objective::kNone) return method;
  method.objective = o.objective == Objective::kKl ? "kl" : "ce";
  method.granularity = o.granularity == Granularity::kTensor ? "tensor" : "channel";
  method.vectors = o.vectors == Vectors::kGain ? "gain" : "folded";
  return method;
}

}  // namespace fixpoint
