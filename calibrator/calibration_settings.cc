#include "calibrator/calibration_settings.h"

#include <cmath>

namespace fixpoint {

double KlTarget(double budget) { return 1.2 * std::log1p(budget); }

}  // namespace fixpoint
