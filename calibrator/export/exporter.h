// From a bundle and the float checkpoint that it was made of to a static W8A8 checkpoint.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/thread_pool.h"
#include "calibrator/corpus.h"
#include "calibrator/export/ignored_sites.h"
#include "calibrator/pipeline.h"
#include "calibrator/progress.h"

namespace fixpoint {

enum class IgnorePolicy { kAuto, kNone };

struct ExportSettings {
  std::string bundle, source, output;
  std::vector<std::string> corpus_files;  // empty: text that the model writes itself
  IgnorePolicy ignore = IgnorePolicy::kAuto;
  double budget = 0.01;  // perplexity allowed over float, as a fraction; kAuto only
  uint64_t seed = 0;     // of text that the model writes
  // As in calibrating, so that what is held out here was held out there.
  CorpusLimits file_windows = CalibrationSettings().file_windows;
  CorpusLimits own_windows = CalibrationSettings().own_windows;
  int32_t statistics_windows = CalibrationSettings().statistics_windows;
};

struct ExportResult {
  // Against the float source; with an adapted bundle against that with the trained gains.
  ExportFigures figures;
  ExportFigures all_quantized;       // the same with every site int8 that may be; equal with kNone
  double source_perplexity = 0;      // of the float source
  std::string text_source;           // "files" or "self-generated"
  std::vector<std::string> ignored;  // module names in bf16, lm_head among them
  std::vector<SiteCost> chosen;      // sites that the budget put there
  std::vector<std::string> not_carried;  // one sentence each
  double int8_share = 0;                 // of the multiplications in the layers
  uint64_t bytes = 0;
};

std::vector<Progress::Stage> ExportStages();

// Writes settings.output, which must not exist or be an empty folder; nothing is left behind on an
// error. INVALID_ARGUMENT when `source` is not what the bundle was made of. Needs memory for about
// 3 times the float32 weights, one more with neutral gains.
absl::StatusOr<ExportResult> ExportCompressedTensors(const ExportSettings& settings,
                                                     ThreadPool& pool, Progress& progress);

}  // namespace fixpoint
