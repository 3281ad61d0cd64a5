// One training of a calibration: teacher, student, held-out text, checkpoints and progress around
// the Trainer.
#pragma once

#include <atomic>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "base/thread_pool.h"
#include "calibrator/evaluate.h"
#include "calibrator/float_forward.h"
#include "calibrator/integer_weights.h"
#include "calibrator/train/trainer.h"

namespace fixpoint {

struct TrainingRunInput {
  const FloatModel* rotated = nullptr;
  OnlineTransforms online;
  ForwardModel* student = nullptr;    // int8 weights; folded vectors round them again
  IntegerWeights* weights = nullptr;  // the same integers; kept in step for folded vectors
  const Scales* base = nullptr;
  const FloatPrefix* prefix = nullptr;          // of the student, where training starts
  const FloatPrefix* teacher_prefix = nullptr;  // BOS alone, or nothing
  const Windows* train = nullptr;
  const Windows* held_out = nullptr;
  LogitSource* held_out_teacher = nullptr;  // the float model behind teacher_prefix
  std::string checkpoint_path;              // empty: none
  std::string fingerprint;                  // of everything that the result depends on
  double checkpoint_seconds = 60;           // between two; 0: after each step
  bool resume = false;
};

struct TrainingRunResult {
  Scales scales;  // the best
  FloatPrefix prefix;
  TrainResult details;
  double tokens_per_second = 0;
  double flops_per_second = 0;  // of the products, recomputation included
};

// `stop` ends it early with the best so far. Checkpoints are written now and then and when it is
// stopped; one that cannot be written is said and tried again. `say` gets lines for the user,
// `progress` the share done and a short text.
absl::StatusOr<TrainingRunResult> RunTraining(
    const TrainingRunInput& input, const TrainOptions& options, FloatGemm& gemm, ThreadPool& pool,
    const std::atomic<bool>& stop, const std::function<void(std::string)>& say,
    const std::function<void(double, const TrainPoint&, std::string)>& progress);

}  // namespace fixpoint
