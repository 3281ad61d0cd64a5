// Static scales from the histograms of the calibration text.
#pragma once

#include "calibrator/calibration.h"
#include "calibrator/statistics.h"

namespace fixpoint {

// The clip that gives int8 rounding the least expected squared error, between 2 % and 100 % of the
// largest magnitude: a value above the clip t costs (x - t)^2, one below min(step^2 / 12, x^2) with
// step = t / 127. `error`, when given, gets the expected squared error of one value. An empty
// histogram gives a tiny positive clip.
double MseClip(const MagnitudeHistogram& histogram, double* error = nullptr);

// Mean of squares of one value.
double MeanSquare(const MagnitudeHistogram& histogram);

// Expected squared error of rounding over the mean square, with the scale at hand.
double RelativeRoundingError(const MagnitudeHistogram& histogram, double scale, bool wide);

enum class HeadClip {
  kMax,
  kMse
};  // scale of a head of q, k or v: from its largest magnitude, or MseClip

// An int8 site has the MSE clip. An int16 site has room for its largest magnitude and half as much
// again on unseen text: it has steps to spare.
LinearSite ScaleSite(const MagnitudeHistogram& histogram, bool wide);

// All sites int8.
Scales ChooseScales(const Statistics& statistics, HeadClip head_clip);

}  // namespace fixpoint
