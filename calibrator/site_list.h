// The activation sites of a model as a bundle and its provenance list them.
#pragma once

#include <string>
#include <vector>

#include "bundle/bundle.h"
#include "calibrator/calibration.h"
#include "calibrator/float_model.h"
#include "calibrator/statistics.h"

namespace fixpoint {

// Layer by layer: linear sites, then q, k and v; the head's input last.
std::vector<SiteInfo> ListSites(const FloatConfig& config, const Scales& scales);

// The share of magnitudes above the clip at each linear site, in [0, 1].
struct Saturation {
  std::string site;
  double share = 0;
};
// `statistics` were taken with the gains of `scales`.
std::vector<Saturation> SaturatedShares(const FloatConfig& config, const Scales& scales,
                                        const Statistics& statistics);

}  // namespace fixpoint
