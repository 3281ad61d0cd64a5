#include "calibrator/train/training_run.h"

#include <chrono>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "calibrator/train/checkpoint.h"

namespace fixpoint {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::time_point since) {
  return std::chrono::duration<double>(Clock::now() - since).count();
}

// Multiplications and additions of a token's products in one pass through the layers, and in one
// through the head; attention left out.
double LayerFlops(const FloatConfig& c) {
  const double q = static_cast<double>(c.num_attention_heads) * c.head_dim;
  const double kv = static_cast<double>(c.num_key_value_heads) * c.head_dim;
  const double hidden = c.hidden_size;
  return 2.0 * c.num_hidden_layers * (hidden * (2 * q + 2 * kv) + 3 * hidden * c.intermediate_size);
}
double HeadFlops(const FloatConfig& c) {
  return 2.0 * c.hidden_size * static_cast<double>(c.vocab_size);
}

class Run {
 public:
  Run(const TrainingRunInput& input, const TrainOptions& options, FloatGemm& gemm, ThreadPool& pool)
      : input_(input),
        options_(options),
        gemm_(gemm),
        pool_(pool),
        config_(input.rotated->config),
        layout_(config_, input.prefix->size()) {}

  absl::StatusOr<TrainingRunResult> Train(
      const std::atomic<bool>& stop, const std::function<void(std::string)>& say,
      const std::function<void(double, const TrainPoint&, std::string)>& progress) {
    TrainState start;
    if (input_.resume) {
      absl::StatusOr<TrainState> state =
          ReadCheckpoint(input_.checkpoint_path, input_.fingerprint, layout_.size());
      if (state.ok()) {
        start = *std::move(state);
        say(absl::StrFormat("resumed behind step %d of %d", start.step, options_.steps));
      } else if (state.status().code() == absl::StatusCode::kNotFound) {
        say(absl::StrFormat("no checkpoint %s: starting at the first step",
                            input_.checkpoint_path));
      } else {
        return state.status();
      }
    }
    const int64_t first_step = start.step;
    PrepareModels(progress);
    BackwardPass pass(*forward_, layout_, gemm_, pool_);
    Clock::time_point saved = Clock::now();
    const Clock::time_point begin = Clock::now();
    Trainer::Model model = TrainerModel(&pass);
    const auto save = [&](const TrainState& state) {
      if (input_.checkpoint_path.empty() || state.adam.first.empty()) return;
      const absl::Status status =
          WriteCheckpoint(input_.checkpoint_path, input_.fingerprint, state);
      if (!status.ok())
        say(absl::StrFormat("checkpoint not written, training goes on: %s", status.message()));
      saved = Clock::now();
    };
    model.after_step = [&](const TrainState& state, const TrainPoint& point) {
      if (Seconds(saved) >= input_.checkpoint_seconds || stop.load(std::memory_order_relaxed))
        save(state);
      const double rate = TokensPerStep() * static_cast<double>(state.step - first_step) /
                          std::max(1e-9, Seconds(begin));
      progress(static_cast<double>(state.step) / options_.steps, point,
               absl::StrFormat("step %d of %d  loss %.5f  held-out %.5f  %.0f tokens/s", state.step,
                               options_.steps, point.loss, state.best_held_out, rate));
    };
    Trainer trainer(options_, std::move(model));
    ASSIGN_OR_RETURN(TrainResult details, trainer.Run(std::move(start), stop));
    save(details.state);
    return Finish(std::move(details));
  }

 private:
  bool folded() const {
    return options_.granularity == Granularity::kChannel && options_.vectors == Vectors::kFolded;
  }
  double TokensPerStep() const {
    return static_cast<double>(options_.batch_windows) * input_.train->tokens;
  }

  void PrepareModels(const std::function<void(double, const TrainPoint&, std::string)>& progress) {
    const bool needs_teacher = options_.objective == Objective::kKl;
    if (needs_teacher || !options_.round) {
      float_model_ =
          MakeForwardModel(*input_.rotated, input_.online, WeightKind::kBf16, gemm_, pool_);
      float_forward_.emplace(float_model_, gemm_, pool_);
    }
    if (needs_teacher) {
      teacher_ = Teacher::Create(
          *float_forward_, *input_.teacher_prefix, *input_.train, gemm_, pool_,
          [&](double share) { progress(0, {}, absl::StrFormat("teacher %.0f %%", 100 * share)); });
    }
    if (!options_.round) {
      forward_ = &*float_forward_;
    } else {
      // The student's bf16 copy of the float weights has served.
      student_forward_.emplace(*input_.student, gemm_, pool_);
      forward_ = &*student_forward_;
    }
  }

  Trainer::Model TrainerModel(BackwardPass* pass) {
    Trainer::Model model;
    model.pass = pass;
    model.layout = &layout_;
    model.base = input_.base;
    model.prefix = input_.prefix;
    model.windows = input_.train;
    model.teacher = teacher_.get();
    model.pool = &pool_;
    model.vocab_size = config_.vocab_size;
    model.judge = [this](const Scales& scales, const FloatPrefix& prefix) {
      return Judge(scales, prefix);
    };
    if (folded() && options_.round) model.refold = [this](const Scales& scales) { Refold(scales); };
    return model;
  }

  absl::StatusOr<double> Judge(const Scales& scales, const FloatPrefix& prefix) {
    ForwardLogits student(*forward_, {.prefix = &prefix,
                                      .scales = &scales,
                                      .round = options_.round,
                                      .precise_activations = false});
    if (options_.objective == Objective::kKl) {
      ASSIGN_OR_RETURN(const std::vector<Comparison> result,
                       Compare(*input_.held_out_teacher, {&student}, *input_.held_out, pool_));
      return result[0].kl_robust;
    }
    ASSIGN_OR_RETURN(const std::vector<double> losses,
                     WindowLosses(student, *input_.held_out, pool_));
    return std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(losses.size());
  }

  void Refold(const Scales& scales) {
    gemm_.ForgetWeights();
    *input_.weights = RoundWeights(*input_.rotated, &scales, pool_);
    for (size_t i = 0; i < input_.weights->layers.size(); ++i)
      ReplaceLayer(input_.weights->layers[i], &input_.student->layers[i], pool_);
    ReplaceLinear(input_.weights->head, &input_.student->head, pool_);
  }

  absl::StatusOr<TrainingRunResult> Finish(TrainResult details) {
    TrainingRunResult result;
    result.scales = MoveScales(*input_.base, layout_, details.state.best_parameters);
    result.prefix = MovePrefix(*input_.prefix, layout_, details.state.best_parameters);
    if (folded() && options_.round) Refold(result.scales);
    if (details.seconds > 0) {
      result.tokens_per_second = static_cast<double>(details.tokens) / details.seconds;
      // Forward, again, and back; of the head also the teacher's.
      result.flops_per_second =
          result.tokens_per_second * 3 * (LayerFlops(config_) + HeadFlops(config_));
    }
    result.details = std::move(details);
    return result;
  }

  const TrainingRunInput& input_;
  const TrainOptions& options_;
  FloatGemm& gemm_;
  ThreadPool& pool_;
  const FloatConfig& config_;
  const ParameterLayout layout_;
  ForwardModel float_model_;
  std::optional<FloatForward> float_forward_, student_forward_;
  FloatForward* forward_ = nullptr;  // of the student
  std::unique_ptr<Teacher> teacher_;
};

}  // namespace

absl::StatusOr<TrainingRunResult> RunTraining(
    const TrainingRunInput& input, const TrainOptions& options, FloatGemm& gemm, ThreadPool& pool,
    const std::atomic<bool>& stop, const std::function<void(std::string)>& say,
    const std::function<void(double, const TrainPoint&, std::string)>& progress) {
  return Run(input, options, gemm, pool).Train(stop, say, progress);
}

}  // namespace fixpoint
