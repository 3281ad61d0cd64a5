// From a checkpoint to a verified bundle: rotation, prefix, text, statistics, scales, int16 sites,
// integers, measurements.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/thread_pool.h"
#include "bundle/bundle.h"
#include "calibrator/corpus.h"
#include "calibrator/float_model.h"
#include "calibrator/progress.h"
#include "calibrator/ranges.h"
#include "calibrator/report/report.h"
#include "calibrator/rotate.h"
#include "calibrator/site_search.h"
#include "calibrator/train/stop_signal.h"
#include "calibrator/train/trainer.h"
#include "calibrator/train/training_run.h"
#include "calibrator/training_summary.h"

namespace fixpoint {

struct CalibrationSettings {
  std::vector<std::string> corpus_files;  // empty: text that the model writes itself
  double budget = 0.01;                   // perplexity allowed over float, as a fraction
  uint64_t seed = 0;
  RotationOptions rotation;
  CorpusLimits file_windows{.max_train = 400, .max_held_out = 16};
  CorpusLimits own_windows{.max_train = 48, .max_held_out = 8};
  int32_t statistics_windows = 96;  // of the training windows, evenly
  SiteSearchOptions sites;          // kl_target is derived from the budget
  bool int16_inputs = true;         // false: every input stays int8
  bool gptq = true;                 // weights rounded with second moments, else to nearest
  bool prefix_search = true;
  TrainOptions training;
  std::string checkpoint_path;  // of the training; empty: none
  double checkpoint_seconds = 60;
  bool resume = false;
  std::string device = "cpu";  // of the float products, see gemm_device.h
};

// Mean KL that a budget of perplexity allows. KL and the rise of the loss are close to each other;
// single texts scatter.
double KlTarget(double budget);

// The stages of Calibrate behind the import, to be appended to the caller's own.
std::vector<Progress::Stage> CalibrationStages(const CalibrationSettings& settings);

// Figures on held-out text, against the float model behind the same prefix where nothing else is
// said.
struct HeldOutFigures {
  struct Model {
    std::string name;
    double perplexity = 0;
    RelativePerplexity relative;
    double kl_mean = 0;
    double top1_agreement = 0;
  };
  int64_t tokens = 0;
  double float_bos_perplexity = 0;  // behind BOS alone, or nothing without a BOS
  double float_prefix_perplexity = 0;
  double integer_kl_bos_mean = 0;  // integer engine against float behind BOS alone
  std::vector<Model> models;       // "int8_weights", "static_int8", "static", "integer"
  const Model& Find(const std::string& name) const;
};

struct CalibrationResult {
  Bundle bundle;  // complete but for the durations of writing
  ReportData report;
  HeldOutFigures figures;
  SiteSearchResult sites;
  std::optional<TrainingSummary> training;
};

// `first_stage`: index of the first of CalibrationStages() in `progress`. Uses about twice the
// float32 weights of memory. `source_name` is what the provenance calls the checkpoint.
absl::StatusOr<CalibrationResult> Calibrate(Checkpoint checkpoint, const std::string& source_name,
                                            const CalibrationSettings& settings, ThreadPool& pool,
                                            Progress& progress, size_t first_stage,
                                            StopSignal& stop);

}  // namespace fixpoint
