// Which linear sites get int16 inputs: those that bring the model closest to float for the work
// they add.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "calibrator/calibration.h"
#include "calibrator/float_model.h"
#include "calibrator/statistics.h"

namespace fixpoint {

// A linear site; layer == num_hidden_layers is head_in.
struct SiteId {
  int32_t layer = 0;
  LayerSite site = LayerSite::kAttnIn;
};

struct SiteSearchOptions {
  double kl_target = 0;            // stop when the mean KL to float is at most this
  double max_doubled_share = 0.2;  // of the layers' multiplications (the head left out)
  // A site must remove at least this share of the KL that is there, and per percent of the layers'
  // work this share of what is above the target: measurement noise must not buy work. On 4,096
  // tokens the KL of SmolLM2 moves by some 2 % when roundings that do not matter change.
  double min_gain = 0.02;
  double min_gain_per_percent = 0.005;
  // Measured one by one; chosen by the histograms' signal to noise.
  int32_t candidates = 20;
  // Gains measured while one bad site drowns the others say little: when an addition has removed
  // this share of the KL, all are measured again, but not more often than max_rounds times in all.
  double stale_after = 0.25;
  int32_t max_rounds = 3;
};

struct SiteChoice {
  SiteId id;
  std::string name;                    // "layers.3.down_in", "head_in"
  double work_share = 0;               // doubled multiplications over those of all layers
  double kl_before = 0, kl_after = 0;  // measured when it was added
};

struct SiteSearchResult {
  Scales scales;
  double kl_start = 0, kl_end = 0;
  double doubled_share = 0;
  std::vector<SiteChoice> chosen;  // in order
  std::string stop_reason;         // "target", "work" or "gain"
};

// Judges scales on held-out text.
class SiteMeasurer {
 public:
  virtual ~SiteMeasurer() = default;
  // Scales that later ones resemble: those that Measure gets differ from them in few sites.
  virtual absl::Status SetBase(const Scales& scales) = 0;
  // Mean KL to float.
  virtual absl::StatusOr<double> Measure(const Scales& scales) = 0;
};

// `progress`, when given, is told the measurements done and how many are usual.
absl::StatusOr<SiteSearchResult> SearchWideSites(
    const FloatConfig& config, const Statistics& statistics, const Scales& narrow,
    const SiteSearchOptions& options, SiteMeasurer& measurer,
    const std::function<void(int32_t, int32_t)>& progress);

// After training: takes int16 back where int8 (with the MSE clip) costs at most `min_gain` of the
// KL and leaves it below the target, cheapest first. Adjusts `result`'s scales, share and list.
absl::Status DropWideSites(const FloatConfig& config, const Statistics& statistics,
                           const SiteSearchOptions& options, SiteMeasurer& measurer,
                           SiteSearchResult* result);

// Other clips for int8 sites with heavy tails, where the squared error says little about the loss:
// from the scale at hand upwards by factors of 1.5 and downwards, as long as the measured KL falls.
// Sites with more than `noise_factor` times the median relative rounding error, the worst
// `max_sites` of them. Returns the number of sites changed.
struct ScaleSearchOptions {
  double noise_factor = 4;
  int32_t max_sites = 8;
};
absl::StatusOr<int32_t> RefineScales(const FloatConfig& config, const Statistics& statistics,
                                     const ScaleSearchOptions& options, SiteMeasurer& measurer,
                                     Scales* scales, const std::function<void(double)>& progress);

std::string SiteName(const SiteId& id, int32_t num_hidden_layers);

}  // namespace fixpoint
