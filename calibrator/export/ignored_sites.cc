#include "calibrator/export/ignored_sites.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "calibrator/pipeline.h"
#include "calibrator/site_search.h"

namespace fixpoint {
namespace {

constexpr int32_t kQuickTokens = 2048;
constexpr int64_t kMaxCheckpointBytes = 512 << 20;

// The simulation: records its residual streams, or starts from recorded ones at a later layer.
class QuickStudent : public LogitSource {
 public:
  QuickStudent(StaticSimulation& simulation, std::vector<LayerCheckpoints>& checkpoints,
               bool record, int32_t first_layer)
      : simulation_(simulation),
        checkpoints_(checkpoints),
        record_(record),
        first_layer_(first_layer) {
    if (record) checkpoints_.clear();
  }
  int32_t vocab_size() const override { return simulation_.forward().vocab_size(); }

  absl::Status Start(const Windows& windows, int32_t first, int32_t count) override {
    ForwardOptions options = StaticSimulation::Options();
    if (record_) {
      const FloatConfig& c = simulation_.config();
      const int64_t all_bytes = static_cast<int64_t>(windows.token_ids.size()) * c.hidden_size *
                                c.num_hidden_layers * static_cast<int64_t>(sizeof(float));
      LayerCheckpoints& to = checkpoints_.emplace_back();
      to.stride = static_cast<int32_t>(1 + all_bytes / kMaxCheckpointBytes);
      options.record = &to;
    } else {
      CHECK_LT(batch_, checkpoints_.size());
      options.resume = &checkpoints_[batch_++];
      options.first_layer = first_layer_;
    }
    simulation_.forward().Run(
        {.token_ids = windows.window(first), .sequences = count, .tokens = windows.tokens},
        options);
    return absl::OkStatus();
  }

  absl::Status Logits(int64_t begin, int64_t end, float* out) override {
    simulation_.forward().Logits(begin, end, out);
    return absl::OkStatus();
  }

 private:
  StaticSimulation& simulation_;
  std::vector<LayerCheckpoints>& checkpoints_;
  const bool record_;
  const int32_t first_layer_;
  size_t batch_ = 0;
};

class Search {
 public:
  Search(ExportModel& model, StaticSimulation& simulation, ExportYardstick& yardstick,
         double budget, const std::function<void(double, const std::string&)>& progress)
      : model_(model),
        simulation_(simulation),
        yardstick_(yardstick),
        budget_(budget),
        progress_(progress) {
    ListSites();
    measurements_expected_ = static_cast<int32_t>(costs_.size()) + 10;
  }

  absl::StatusOr<IgnoredSites> Run() {
    ASSIGN_OR_RETURN(result_.all_quantized, Measure(0));
    result_.figures = result_.all_quantized;
    if (costs_.empty()) return NoneFits();
    if (Fits(result_.figures)) return std::move(result_);
    RETURN_IF_ERROR(Order());
    // Fewest sites that are enough; more of them may only help, apart from noise.
    size_t low = 0, high = costs_.size();  // `low` is not enough, `high` is taken to be
    while (high - low > 1) {
      const size_t middle = low + (high - low) / 2;
      ASSIGN_OR_RETURN(const ExportFigures figures, Measure(middle));
      if (Fits(figures)) {
        high = middle;
        result_.figures = figures;
      } else {
        low = middle;
      }
    }
    if (high == costs_.size()) return NoneFits();
    Ignore(high);
    result_.ignored.assign(costs_.begin(), costs_.begin() + static_cast<int64_t>(high));
    return std::move(result_);
  }

 private:
  void ListSites() {
    double all = 0;
    for (size_t layer = 0; layer < model_.sites.size(); ++layer) {
      double work[kLayerLinearSites] = {};
      for (int32_t i = 0; i < kExportLinears; ++i) {
        const IntegerLinear& linear = model_.integers[layer][i];
        work[static_cast<int32_t>(kExportLinearList[i].site)] +=
            static_cast<double>(linear.outputs) * static_cast<double>(linear.depth);
      }
      for (int32_t site = 0; site < kLayerLinearSites; ++site) {
        all += work[site];
        if (!model_.sites[layer][site].quantized) continue;
        costs_.push_back({.layer = static_cast<int32_t>(layer),
                          .site = static_cast<LayerSite>(site),
                          .kl = 0,
                          .work_share = work[site]});
      }
    }
    for (SiteCost& cost : costs_) cost.work_share /= all;
  }

  bool& Quantized(const SiteCost& cost) {
    return model_.sites[static_cast<size_t>(cost.layer)][static_cast<int32_t>(cost.site)].quantized;
  }

  // The first `count` sites of costs_ in bf16, the others int8.
  void Ignore(size_t count) {
    for (size_t i = 0; i < costs_.size(); ++i) Quantized(costs_[i]) = i >= count;
  }

  absl::StatusOr<ExportFigures> Measure(size_t ignored) {
    Report(absl::StrCat(ignored, " of ", costs_.size(), " sites in bf16"));
    Ignore(ignored);
    return yardstick_.Measure(simulation_);
  }

  bool Fits(const ExportFigures& figures) const {
    return figures.relative.percent <= 100 * budget_ && figures.kl_mean <= KlTarget(budget_);
  }

  // Each site alone, the others in bf16.
  absl::Status Order() {
    Ignore(costs_.size());
    ASSIGN_OR_RETURN(const double floor, yardstick_.QuickBase(simulation_));
    for (SiteCost& cost : costs_) {
      Report(SiteName({cost.layer, cost.site}, static_cast<int32_t>(model_.sites.size())));
      Quantized(cost) = true;
      ASSIGN_OR_RETURN(const double kl, yardstick_.QuickKl(simulation_, cost.layer));
      cost.kl = std::max(0.0, kl - floor);
      Quantized(cost) = false;
    }
    std::stable_sort(costs_.begin(), costs_.end(), [](const SiteCost& a, const SiteCost& b) {
      return a.kl / a.work_share > b.kl / b.work_share;
    });
    return absl::OkStatus();
  }

  absl::Status NoneFits() const {
    return absl::FailedPreconditionError(absl::StrFormat(
        "no int8 site fits a budget of %.3g %% over float; allow more with --budget, or quantize "
        "all with --ignore none (measured: %+.2f %%, KL %.4f)",
        100 * budget_, result_.all_quantized.relative.percent, result_.all_quantized.kl_mean));
  }

  void Report(const std::string& what) {
    ++result_.measurements;
    if (progress_)
      progress_(std::min(1.0, static_cast<double>(result_.measurements) / measurements_expected_),
                what);
  }

  ExportModel& model_;
  StaticSimulation& simulation_;
  ExportYardstick& yardstick_;
  const double budget_;
  const std::function<void(double, const std::string&)>& progress_;
  std::vector<SiteCost> costs_;
  IgnoredSites result_;
  int32_t measurements_expected_ = 1;
};

}  // namespace

absl::StatusOr<ExportYardstick> ExportYardstick::Create(FloatForward& teacher, Windows windows,
                                                        ThreadPool& pool) {
  ExportYardstick yardstick(pool);
  yardstick.windows_ = std::move(windows);
  const Windows& all = yardstick.windows_;
  const int32_t quick =
      std::clamp<int32_t>(kQuickTokens / std::max(1, all.tokens), 1, std::max(1, all.count()));
  yardstick.quick_windows_.tokens = all.tokens;
  yardstick.quick_windows_.token_ids.assign(all.token_ids.begin(),
                                            all.token_ids.begin() + int64_t{quick} * all.tokens);
  ForwardLogits logits(teacher, ForwardOptions());
  ASSIGN_OR_RETURN(yardstick.logits_, CachedLogits::Create(logits, all, pool));
  ASSIGN_OR_RETURN(yardstick.quick_logits_,
                   CachedLogits::Create(logits, yardstick.quick_windows_, pool));
  return yardstick;
}

absl::StatusOr<ExportFigures> ExportYardstick::Measure(StaticSimulation& simulation) {
  ForwardLogits student(simulation.forward(), StaticSimulation::Options());
  ASSIGN_OR_RETURN(const std::vector<Comparison> result,
                   Compare(*logits_, {&student}, windows_, *pool_));
  return ExportFigures{.tokens = static_cast<int64_t>(windows_.token_ids.size()),
                       .float_perplexity = Perplexity(result[0].teacher_loss),
                       .perplexity = Perplexity(result[0].loss),
                       .relative = RelativeTo(result[0].teacher_loss, result[0].loss),
                       .kl_mean = result[0].kl_mean,
                       .top1_agreement = result[0].top1_agreement};
}

absl::StatusOr<double> ExportYardstick::Quick(StaticSimulation& simulation, bool record,
                                              int32_t first_layer) {
  QuickStudent student(simulation, checkpoints_, record, first_layer);
  ASSIGN_OR_RETURN(const std::vector<Comparison> result,
                   Compare(*quick_logits_, {&student}, quick_windows_, *pool_));
  return result[0].kl_mean;
}

absl::StatusOr<double> ExportYardstick::QuickBase(StaticSimulation& simulation) {
  return Quick(simulation, /*record=*/true, 0);
}

absl::StatusOr<double> ExportYardstick::QuickKl(StaticSimulation& simulation, int32_t first_layer) {
  return Quick(simulation, /*record=*/false, first_layer);
}

absl::StatusOr<IgnoredSites> ChooseIgnoredSites(
    ExportModel& model, StaticSimulation& simulation, ExportYardstick& yardstick, double budget,
    const std::function<void(double, const std::string&)>& progress) {
  return Search(model, simulation, yardstick, budget, progress).Run();
}

}  // namespace fixpoint
