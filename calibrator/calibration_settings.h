// What a user asks of a calibration.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "calibrator/corpus.h"
#include "calibrator/rotate.h"
#include "calibrator/site_search.h"
#include "calibrator/train/trainer.h"

namespace fixpoint {

struct CalibrationSettings {
  std::vector<std::string> corpus_files;  // empty: text that the model writes itself
  double budget = 0.01;                   // perplexity allowed over float, as a fraction
  uint64_t seed = 0;
  RotationOptions rotation;
  CorpusLimits file_windows{.max_train = 400, .max_held_out = 16};
  CorpusLimits own_windows{.max_train = 160, .max_held_out = 16};
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

}  // namespace fixpoint
