// Trains static scales end to end against frozen weights (SASQ, arXiv 2512.14481): only scales,
// gains and, if wanted, the prefix's K and V move.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/thread_pool.h"
#include "calibrator/evaluate.h"
#include "calibrator/train/backward_pass.h"
#include "calibrator/train/optimizer.h"
#include "calibrator/train/parameters.h"
#include "calibrator/train/teacher.h"

namespace fixpoint {

enum class Objective {
  kNone,  // no training
  kKl,    // stay close to the float model
  kCe,    // predict the corpus: an adapted model
};

struct TrainOptions {
  Objective objective = Objective::kKl;
  Granularity granularity = Granularity::kChannel;
  Vectors vectors = Vectors::kGain;
  bool round = true;  // false: the float control, gains alone and nothing rounded
  // Relative change a step at full rate; prefix values: in units of their root mean square.
  double scale_rate = 5e-3;
  double gain_rate = 1e-3;
  double prefix_rate = 0;
  int32_t steps = 100;
  int32_t batch_windows = 4;
  int32_t micro_windows = 4;  // windows that are in memory at once
  int32_t warmup_steps = 10;
  double clip_norm = 1;
  double average_decay = 0.95;  // of the running mean
  int32_t judge_every = 25;     // steps between looks at held-out text
  int32_t patience = 2;         // looks without a new best before it stops
  uint64_t seed = 0;            // order of the windows
};

// One step, as the report draws it.
struct TrainPoint {
  int64_t step = 0;
  int64_t tokens = 0;  // trained on so far
  double loss = 0;     // of this step's batch, nats a token
  double gradient_norm = 0;
  double rate = 0;       // share of the full rate
  double held_out = -1;  // negative: not looked at after this step
};

// Everything that a killed run needs to go on; see checkpoint.h for its file.
struct TrainState {
  int64_t step = 0;
  std::vector<float> parameters;
  std::vector<float> average;  // running mean of parameters: what is judged and kept
  AdamState adam;
  std::vector<float> best_parameters;
  int64_t best_step = 0;
  double best_held_out = 0;
  double first_held_out = 0;
  int32_t looks_since_best = 0;
  std::vector<TrainPoint> points;
};

struct TrainResult {
  TrainState state;
  std::string stop_reason;  // "steps", "patience", "diverged", "interrupted"
  double seconds = 0;       // of this process
  int64_t tokens = 0;       // of this process
};

class Trainer {
 public:
  struct Model {
    BackwardPass* pass = nullptr;
    const ParameterLayout* layout = nullptr;
    const Scales* base = nullptr;
    const FloatPrefix* prefix = nullptr;
    const Windows* windows = nullptr;
    const Teacher* teacher = nullptr;  // of the same windows; may be null for kCe
    ThreadPool* pool = nullptr;
    int32_t vocab_size = 0;
    // Loss on held-out text, in nats a token: lower is better.
    std::function<absl::StatusOr<double>(const Scales&, const FloatPrefix&)> judge;
    // Vectors::kFolded: rounds the student's weights again for new gains.
    std::function<void(const Scales&)> refold;
    // After each step; saves checkpoints and shows progress.
    std::function<void(const TrainState&, const TrainPoint&)> after_step;
  };
  Trainer(const TrainOptions& options, Model model);

  // From `state` when it has parameters, else from the start. `stop`, when set, ends it after the
  // step at work.
  absl::StatusOr<TrainResult> Run(TrainState state, const std::atomic<bool>& stop);

 private:
  void SetRates();
  std::vector<int32_t> Batch(int64_t step) const;
  double Step(const TrainState& state);
  double AddWindows(const std::vector<int32_t>& windows, size_t first, size_t count, double weight,
                    const Scales& scales, const FloatPrefix& prefix);
  void LossRow(const float* teacher, float* student, int32_t target, double weight, double* loss);
  absl::StatusOr<double> Judge(const std::vector<float>& parameters);

  const TrainOptions options_;
  const Model model_;
  std::vector<float> rates_;
  std::vector<float> student_logits_, teacher_logits_;
};

}  // namespace fixpoint
