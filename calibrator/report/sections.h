// The sections of the report that hold charts; report.cc has the rest. Each returns HTML, empty
// when there is nothing to show.
#pragma once

#include <string>

#include "calibrator/report/report.h"

namespace fixpoint {

// The curve, what was kept, why training ended, all figures in a table.
std::string TrainingSection(const ReportTraining& training);

// Maps of scales, saturation, rounding errors and gains, all figures in a table.
std::string SitesSection(const std::vector<ReportSite>& sites);

}  // namespace fixpoint
