// Which linear inputs of an export stay in bf16: those whose int8 rounding costs most, until the
// rest is close enough to float. Without a prefix single tokens make some of them thousands of
// times larger than all others, which no static scale survives.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/thread_pool.h"
#include "calibrator/evaluate.h"
#include "calibrator/export/export_model.h"
#include "calibrator/export/static_simulation.h"

namespace fixpoint {

// An export against the float function that it rounds, on held-out text.
struct ExportFigures {
  int64_t tokens = 0;
  double float_perplexity = 0, perplexity = 0;
  RelativePerplexity relative;
  double kl_mean = 0;
  double top1_agreement = 0;
};

// Held-out text with the float model's logits.
class ExportYardstick {
 public:
  // `teacher` is used here only.
  static absl::StatusOr<ExportYardstick> Create(FloatForward& teacher, Windows windows,
                                                ThreadPool& pool);

  absl::StatusOr<ExportFigures> Measure(StaticSimulation& simulation);
  // Mean KL of the first windows alone, quick and good enough to put sites in order. QuickBase
  // keeps the residual streams; QuickKl begins at `first_layer` with them, so sites of earlier
  // layers must be as they were.
  absl::StatusOr<double> QuickBase(StaticSimulation& simulation);
  absl::StatusOr<double> QuickKl(StaticSimulation& simulation, int32_t first_layer);

  const Windows& windows() const { return windows_; }

 private:
  explicit ExportYardstick(ThreadPool& pool) : pool_(&pool) {}
  absl::StatusOr<double> Quick(StaticSimulation& simulation, bool record, int32_t first_layer);

  ThreadPool* pool_;
  Windows windows_, quick_windows_;
  std::unique_ptr<CachedLogits> logits_, quick_logits_;
  std::vector<LayerCheckpoints> checkpoints_;  // by batch
};

struct SiteCost {
  int32_t layer = 0;
  LayerSite site = LayerSite::kAttnIn;
  double kl = 0;          // with this site quantized alone
  double work_share = 0;  // of all multiplications in the layers
};

struct IgnoredSites {
  ExportFigures all_quantized;  // but for sites that were unquantized from the start
  ExportFigures figures;        // of the choice
  std::vector<SiteCost> ignored;
  int32_t measurements = 0;
};

// Sets `quantized` of model.sites. `budget`: perplexity allowed over float, as a fraction; KL must
// stay below KlTarget(budget) too. Sites are put in order by KL per work, each measured alone, and
// as few as possible from the front are taken. FAILED_PRECONDITION when not even one site can be
// quantized within the budget. `progress` gets the share done and what is being measured.
absl::StatusOr<IgnoredSites> ChooseIgnoredSites(
    ExportModel& model, StaticSimulation& simulation, ExportYardstick& yardstick, double budget,
    const std::function<void(double, const std::string&)>& progress);

}  // namespace fixpoint
