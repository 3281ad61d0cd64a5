// The report's data out of what a calibration has found.
#pragma once

#include "calibrator/calibration.h"
#include "calibrator/prefix_search.h"
#include "calibrator/provenance.h"
#include "calibrator/report/report.h"
#include "calibrator/statistics.h"
#include "calibrator/train/training_run.h"

namespace fixpoint {

struct ReportInput {
  const ProvenanceInput* provenance = nullptr;
  const Tokenizer* tokenizer = nullptr;
  const Bundle* bundle = nullptr;
  const Scales* untrained = nullptr;
  const Statistics* before = nullptr;                 // of the untrained model
  const Statistics* after = nullptr;                  // with trained gains
  const TrainingRunResult* training = nullptr;        // null: not trained
  const PrefixSearchResult* prefix_search = nullptr;  // may be empty
  const std::vector<ReportSample>* samples = nullptr;
};

ReportData MakeReport(const ReportInput& input);

}  // namespace fixpoint
