#include "calibrator/site_search.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "calibrator/ranges.h"

namespace fixpoint {
namespace {

// The head runs for the last token of a prompt and for each generated one, where weights are read
// once whatever the input's width: an int16 head_in costs much less time than its multiplications
// say.
constexpr double kHeadWeight = 1.0 / 16;

struct Candidate {
  SiteId id;
  double work_share = 0;     // towards the limit
  double cost = 0;           // what gains are weighed with
  double noise = 0;          // relative error of int8 rounding
  double gain = 0;           // KL removed when it becomes int16
  size_t measured_with = 0;  // sites chosen when the gain was measured
};

class Search {
 public:
  Search(const FloatConfig& config, const Statistics& statistics, const Scales& narrow,
         const SiteSearchOptions& options, SiteMeasurer& measurer,
         const std::function<void(int32_t, int32_t)>& progress)
      : config_(config),
        statistics_(statistics),
        options_(options),
        measurer_(measurer),
        progress_(progress) {
    result_.scales = narrow;
    ListCandidates();
    bound_ = static_cast<int32_t>(5 * candidates_.size() / 2);
  }

  // Greedy by gain per cost. An addition leaves the other gains slightly stale, so the best is
  // measured once more before it is taken and goes back into the list if it is no longer the best.
  absl::StatusOr<SiteSearchResult> Run() {
    RETURN_IF_ERROR(measurer_.SetBase(result_.scales));
    ASSIGN_OR_RETURN(result_.kl_start, Measure(result_.scales));
    result_.kl_end = result_.kl_start;
    double measured_at = 0;  // KL when all gains were measured
    int32_t rounds = 0;
    while (result_.kl_end > options_.kl_target) {
      if (rounds == 0 || (result_.kl_end < (1 - options_.stale_after) * measured_at &&
                          rounds < options_.max_rounds)) {
        RETURN_IF_ERROR(MeasureAll());
        measured_at = result_.kl_end;
        ++rounds;
      }
      ASSIGN_OR_RETURN(const bool added, AddBest());
      if (!added) break;
    }
    if (result_.kl_end <= options_.kl_target) result_.stop_reason = "target";
    return std::move(result_);
  }

 private:
  void ListCandidates() {
    const FloatConfig& c = config_;
    const double hidden = c.hidden_size, ffn = c.intermediate_size;
    const double q = static_cast<double>(c.num_attention_heads) * c.head_dim;
    const double kv = static_cast<double>(c.num_key_value_heads) * c.head_dim;
    const double work[kLayerLinearSites] = {(q + 2 * kv) * hidden, q * hidden, 2 * ffn * hidden,
                                            ffn * hidden};
    const double all = (work[0] + work[1] + work[2] + work[3]) * c.num_hidden_layers;
    for (int32_t layer = 0; layer < c.num_hidden_layers; ++layer) {
      for (int32_t site = 0; site < kLayerLinearSites; ++site) {
        Add({layer, static_cast<LayerSite>(site)}, work[site] / all, work[site] / all);
      }
    }
    std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) {
      return a.noise / a.cost > b.noise / b.cost;
    });
    if (candidates_.size() > static_cast<size_t>(options_.candidates))
      candidates_.resize(options_.candidates);
    Add({c.num_hidden_layers, LayerSite::kAttnIn}, 0, kHeadWeight * c.vocab_size * hidden / all);
  }

  // What is int16 already counts as doubled and is no candidate.
  void Add(const SiteId& id, double work_share, double cost) {
    const bool wide = id.layer == config_.num_hidden_layers
                          ? result_.scales.head_in.wide
                          : result_.scales.layers[id.layer].linear(id.site).wide;
    if (wide) {
      result_.doubled_share += work_share;
      return;
    }
    const MagnitudeHistogram& histogram = HistogramOf(id);
    double error = 0;
    MseClip(histogram, &error);
    const double signal = MeanSquare(histogram);
    candidates_.push_back({.id = id,
                           .work_share = work_share,
                           .cost = cost,
                           .noise = signal > 0 ? error / signal : 0});
  }

  const MagnitudeHistogram& HistogramOf(const SiteId& id) const {
    if (id.layer == config_.num_hidden_layers) return statistics_.head_in;
    return statistics_.layers[id.layer].linear[static_cast<int32_t>(id.site)];
  }

  void Widen(const SiteId& id, Scales* scales) const {
    LinearSite& site = id.layer == config_.num_hidden_layers
                           ? scales->head_in
                           : scales->layers[id.layer].linear(id.site);
    std::vector<float> gain = std::move(site.gain);
    site = ScaleSite(HistogramOf(id), true);
    site.gain = std::move(gain);
  }

  absl::StatusOr<double> Measure(const Scales& scales) {
    if (progress_) progress_(measured_, bound_);
    measured_ = std::min(measured_ + 1, bound_);
    return measurer_.Measure(scales);
  }

  absl::Status MeasureAll() {
    for (Candidate& candidate : candidates_) RETURN_IF_ERROR(MeasureGain(&candidate));
    return absl::OkStatus();
  }

  absl::Status MeasureGain(Candidate* candidate) {
    Scales scales = result_.scales;
    Widen(candidate->id, &scales);
    ASSIGN_OR_RETURN(const double kl, Measure(scales));
    candidate->gain = result_.kl_end - kl;
    candidate->measured_with = result_.chosen.size();
    return absl::OkStatus();
  }

  // False when nothing is left that pays and fits; stop_reason then says which.
  absl::StatusOr<bool> AddBest() {
    result_.stop_reason = "gain";
    for (;;) {
      const auto better = [](const Candidate& a, const Candidate& b) {
        return a.gain / a.cost < b.gain / b.cost;
      };
      // Candidates that do not fit are out for good; those that do not pay may pay later.
      const auto fits = [&](const Candidate& c) {
        return result_.doubled_share + c.work_share <= options_.max_doubled_share;
      };
      Candidate* best = nullptr;
      for (Candidate& candidate : candidates_) {
        if (!Pays(candidate)) continue;
        if (!fits(candidate)) {
          result_.stop_reason = "work";
          continue;
        }
        if (best == nullptr || better(*best, candidate)) best = &candidate;
      }
      if (best == nullptr) return false;
      if (best->measured_with == result_.chosen.size()) {
        Take(best);
        RETURN_IF_ERROR(measurer_.SetBase(result_.scales));
        return true;
      }
      RETURN_IF_ERROR(MeasureGain(best));
    }
  }

  void Take(Candidate* candidate) {
    const double kl = result_.kl_end - candidate->gain;
    result_.chosen.push_back({.id = candidate->id,
                              .name = SiteName(candidate->id, config_.num_hidden_layers),
                              .work_share = candidate->work_share,
                              .kl_before = result_.kl_end,
                              .kl_after = kl});
    Widen(candidate->id, &result_.scales);
    result_.kl_end = kl;
    result_.doubled_share += candidate->work_share;
    candidates_.erase(candidates_.begin() + (candidate - candidates_.data()));
  }

  bool Pays(const Candidate& candidate) const {
    const double excess = result_.kl_end - options_.kl_target;
    return candidate.gain >= options_.min_gain * result_.kl_end &&
           candidate.gain >= options_.min_gain_per_percent * excess * candidate.cost * 100;
  }

  const FloatConfig& config_;
  const Statistics& statistics_;
  const SiteSearchOptions& options_;
  SiteMeasurer& measurer_;
  const std::function<void(int32_t, int32_t)>& progress_;
  std::vector<Candidate> candidates_;
  SiteSearchResult result_;
  int32_t measured_ = 0;
  int32_t bound_ = 1;  // a usual number, for the progress
};

}  // namespace

std::string SiteName(const SiteId& id, int32_t num_hidden_layers) {
  if (id.layer == num_hidden_layers) return "head_in";
  static constexpr const char* kNames[] = {"attn_in", "o_in", "mlp_in", "down_in"};
  return absl::StrCat("layers.", id.layer, ".", kNames[static_cast<int32_t>(id.site)]);
}

absl::StatusOr<SiteSearchResult> SearchWideSites(
    const FloatConfig& config, const Statistics& statistics, const Scales& narrow,
    const SiteSearchOptions& options, SiteMeasurer& measurer,
    const std::function<void(int32_t, int32_t)>& progress) {
  return Search(config, statistics, narrow, options, measurer, progress).Run();
}

namespace {

// Of RefineScales in one direction: 1.5^16 is more than any tail.
constexpr int32_t kMaxScaleSteps = 16;

LinearSite& SiteOf(const SiteId& id, const FloatConfig& config, Scales* scales) {
  return id.layer == config.num_hidden_layers ? scales->head_in
                                              : scales->layers[id.layer].linear(id.site);
}

const MagnitudeHistogram& HistogramOf(const SiteId& id, const FloatConfig& config,
                                      const Statistics& statistics) {
  if (id.layer == config.num_hidden_layers) return statistics.head_in;
  return statistics.layers[id.layer].linear[static_cast<int32_t>(id.site)];
}

}  // namespace

absl::Status DropWideSites(const FloatConfig& config, const Statistics& statistics,
                           const SiteSearchOptions& options, SiteMeasurer& measurer,
                           SiteSearchResult* result) {
  RETURN_IF_ERROR(measurer.SetBase(result->scales));
  ASSIGN_OR_RETURN(result->kl_end, measurer.Measure(result->scales));
  // The last ones added bought the least.
  for (size_t i = result->chosen.size(); i-- > 0;) {
    const SiteChoice choice = result->chosen[i];
    Scales scales = result->scales;
    LinearSite& site = SiteOf(choice.id, config, &scales);
    std::vector<float> gain = std::move(site.gain);
    site = ScaleSite(HistogramOf(choice.id, config, statistics), false);
    site.gain = std::move(gain);
    ASSIGN_OR_RETURN(const double kl, measurer.Measure(scales));
    // Put so that a KL that is no number keeps the site.
    if (!(kl <= options.kl_target && kl <= (1 + options.min_gain) * result->kl_end)) continue;
    result->scales = std::move(scales);
    result->kl_end = kl;
    result->doubled_share -= choice.work_share;
    result->chosen.erase(result->chosen.begin() + static_cast<int64_t>(i));
    RETURN_IF_ERROR(measurer.SetBase(result->scales));
  }
  return absl::OkStatus();
}

absl::StatusOr<int32_t> RefineScales(const FloatConfig& config, const Statistics& statistics,
                                     const ScaleSearchOptions& options, SiteMeasurer& measurer,
                                     Scales* scales, const std::function<void(double)>& progress) {
  struct Noisy {
    SiteId id;
    double noise = 0;
  };
  std::vector<Noisy> sites;
  for (int32_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    for (int32_t i = 0; i < kLayerLinearSites; ++i) {
      const SiteId id{layer, static_cast<LayerSite>(i)};
      if (SiteOf(id, config, scales).wide) continue;
      double error = 0;
      MseClip(HistogramOf(id, config, statistics), &error);
      const double signal = MeanSquare(HistogramOf(id, config, statistics));
      sites.push_back({id, signal > 0 ? error / signal : 0});
    }
  }
  std::sort(sites.begin(), sites.end(),
            [](const Noisy& a, const Noisy& b) { return a.noise > b.noise; });
  const double limit = sites.empty() ? 0 : options.noise_factor * sites[sites.size() / 2].noise;
  RETURN_IF_ERROR(measurer.SetBase(*scales));
  ASSIGN_OR_RETURN(double kl, measurer.Measure(*scales));
  int32_t changed = 0;
  for (size_t i = 0; i < sites.size(); ++i) {
    if (static_cast<int32_t>(i) >= options.max_sites || sites[i].noise < limit) break;
    progress(static_cast<double>(i) / options.max_sites);
    bool moved = false;
    for (const double factor : {1.5, 1 / 1.3}) {
      for (int32_t step = 0; step < kMaxScaleSteps; ++step) {
        Scales tried = *scales;
        SiteOf(sites[i].id, config, &tried).scale *= factor;
        ASSIGN_OR_RETURN(const double tried_kl, measurer.Measure(tried));
        if (!(tried_kl < kl)) break;
        kl = tried_kl;
        *scales = std::move(tried);
        moved = true;
      }
      if (moved) break;  // upwards helped: downwards cannot
    }
    if (!moved) continue;
    ++changed;
    RETURN_IF_ERROR(measurer.SetBase(*scales));
  }
  return changed;
}

}  // namespace fixpoint
