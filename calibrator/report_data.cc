#include "calibrator/report_data.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "calibrator/ranges.h"

namespace fixpoint {
namespace {

ReportFigures Figures(const HeldOutFigures::Model& model) {
  return {.perplexity = model.perplexity,
          .relative_percent = model.relative.percent,
          .standard_error_percent = model.relative.standard_error_percent,
          .kl = model.kl_mean,
          .top1 = model.top1_agreement};
}

void AddPerplexities(const ReportInput& in, ReportData* report) {
  const HeldOutFigures& figures = *in.provenance->figures;
  ReportPerplexityRow& base = report->perplexity.emplace_back();
  base.name = "float";
  base.figures.perplexity = figures.float_perplexity;
  struct Row {
    const char* key;
    const char* name;
    const char* note;
  };
  static constexpr Row kRows[] = {
      {"float_prefix", "float + prefix", "float behind the bundle's own prefix"},
      {"int8_weights", "int8 weights alone", "to nearest, activations in float"},
      {"dynamic_plain", "dynamic int8 per token, plain basis", "what most servers do"},
      {"dynamic_rotated", "dynamic int8 per token, rotated basis", "QuaRot's recipe"},
      {"static_int8", "static, untrained, every input int8", ""},
      {"untrained", "static, untrained, with int16 inputs", ""},
      {"float_control", "float control", "the same gains trained in float, nothing rounded"},
      {"static", "static, as shipped, in simulation", ""},
      {"integer", "integer engine", "what the bundle does when it runs"}};
  for (const Row& row : kRows) {
    for (const HeldOutFigures::Model& model : figures.models) {
      if (model.name != row.key) continue;
      report->perplexity.push_back({.name = row.name,
                                    .figures = Figures(model),
                                    .note = row.note,
                                    .shipped = model.name == "integer"});
    }
  }
  report->integer = Figures(figures.Find("integer"));
  report->held_out_tokens = figures.tokens;
}

void AddTraining(const ReportInput& in, ReportData* report) {
  const Method& method = in.provenance->method;
  report->track = method.objective == "kl"   ? ReportTrack::kNeutral
                  : method.objective == "ce" ? ReportTrack::kAdapted
                                             : ReportTrack::kNotTrained;
  if (in.training == nullptr) return;
  ReportTraining& out = report->training;
  if (method.objective == "ce") {
    out.loss_name = "next-token loss on training text";
    out.held_out_name = "next-token loss on held-out text";
  }
  const TrainState& state = in.training->details.state;
  const double rate = in.provenance->settings->training.scale_rate;
  out.points.push_back({.held_out = state.first_held_out});
  double smoothed = 0;
  for (const TrainPoint& point : state.points) {
    smoothed = out.points.size() == 1 ? point.loss : 0.9 * smoothed + 0.1 * point.loss;
    out.points.push_back({.step = point.step,
                          .tokens = point.tokens,
                          .loss = point.loss,
                          .loss_smoothed = smoothed,
                          .held_out = point.held_out >= 0 ? point.held_out : kNotMeasured,
                          .learning_rate = point.rate * rate});
  }
  out.kept_step = state.best_step;
  const std::string& stop = in.training->details.stop_reason;
  out.stop_reason = stop == "steps"      ? "all steps done"
                    : stop == "patience" ? "held-out text did not improve any more"
                                         : stop;
  if (stop == "diverged") {
    report->remarks.push_back(
        absl::StrFormat("Training diverged at step %d; the scales of step %d were kept.",
                        state.step, state.best_step));
  }
  report->run.training_tokens_per_second = in.training->tokens_per_second;
  if (const double peak = in.provenance->training->peak_flops_per_second; peak > 0) {
    report->run.peak_flops = peak;
    report->run.peak_share = in.training->flops_per_second / peak;
    report->run.products = in.provenance->bf16 ? "bf16" : "float32";
  }
}

// Geometric mean of scales, means of shares and errors over the histograms of one tensor.
ReportSite DescribeSite(int32_t layer, ReportSiteKind kind, bool wide,
                        const std::vector<double>& before, const std::vector<double>& after,
                        const std::vector<const MagnitudeHistogram*>& seen_before,
                        const std::vector<const MagnitudeHistogram*>& seen_after,
                        const std::vector<float>& gain, bool trained) {
  ReportSite site{.layer = layer, .kind = kind, .bits = wide ? 16 : 8};
  const auto describe = [&](const std::vector<double>& scales,
                            const std::vector<const MagnitudeHistogram*>& seen, double* scale,
                            double* saturated, double* error) {
    double log_sum = 0, share = 0, noise = 0;
    for (size_t i = 0; i < scales.size(); ++i) {
      log_sum += std::log(scales[i]);
      share += seen[i]->ShareAbove(127.5 * scales[i]);
      noise += RelativeRoundingError(*seen[i], scales[i], wide);
    }
    const double n = static_cast<double>(scales.size());
    *scale = std::exp(log_sum / n);
    *saturated = share / n;
    *error = noise / n;
  };
  describe(after, seen_after, &site.scale_after, &site.saturated_after, &site.error_after);
  if (!trained) return site;
  describe(before, seen_before, &site.scale_before, &site.saturated_before, &site.error_before);
  if (!gain.empty()) {
    site.gain_min = *std::min_element(gain.begin(), gain.end());
    site.gain_max = *std::max_element(gain.begin(), gain.end());
  }
  return site;
}

void AddSites(const ReportInput& in, ReportData* report) {
  const Scales& after = *in.provenance->scales;
  const bool trained = in.training != nullptr;
  const auto linear = [&](int32_t layer, ReportSiteKind kind, const LinearSite& before,
                          const LinearSite& now, const MagnitudeHistogram& seen_before,
                          const MagnitudeHistogram& seen_after) {
    report->sites.push_back(DescribeSite(layer, kind, now.wide, {before.scale}, {now.scale},
                                         {&seen_before}, {&seen_after}, now.gain, trained));
  };
  const auto heads =
      [&](int32_t layer, ReportSiteKind kind, const std::vector<double>& before,
          const std::vector<double>& now, const std::vector<MagnitudeHistogram>& seen_before,
          const std::vector<MagnitudeHistogram>& seen_after, const std::vector<float>& gain) {
        std::vector<const MagnitudeHistogram*> b, a;
        for (const MagnitudeHistogram& h : seen_before) b.push_back(&h);
        for (const MagnitudeHistogram& h : seen_after) a.push_back(&h);
        report->sites.push_back(DescribeSite(layer, kind, false, before, now, b, a, gain, trained));
      };
  static constexpr ReportSiteKind kLinearKinds[] = {ReportSiteKind::kAttnIn, ReportSiteKind::kOIn,
                                                    ReportSiteKind::kMlpIn,
                                                    ReportSiteKind::kDownIn};
  for (size_t i = 0; i < after.layers.size(); ++i) {
    const int32_t layer = static_cast<int32_t>(i);
    const LayerScales& b = in.untrained->layers[i];
    const LayerScales& a = after.layers[i];
    const LayerStatistics& seen_b = in.before->layers[i];
    const LayerStatistics& seen_a = in.after->layers[i];
    for (int32_t j = 0; j < kLayerLinearSites; ++j) {
      const LayerSite site = static_cast<LayerSite>(j);
      linear(layer, kLinearKinds[j], b.linear(site), a.linear(site), seen_b.linear[j],
             seen_a.linear[j]);
    }
    heads(layer, ReportSiteKind::kQ, b.q, a.q, seen_b.q, seen_a.q, a.q_gain);
    heads(layer, ReportSiteKind::kK, b.k, a.k, seen_b.k, seen_a.k, a.k_gain);
    heads(layer, ReportSiteKind::kV, b.v, a.v, seen_b.v, seen_a.v, a.v_gain);
  }
  linear(0, ReportSiteKind::kHeadIn, in.untrained->head_in, after.head_in, in.before->head_in,
         in.after->head_in);
}

void AddWideSites(const SiteSearchResult& sites, ReportData* report) {
  ReportWideSites& out = report->wide_sites;
  for (const SiteChoice& choice : sites.chosen) {
    out.chosen.push_back({.name = choice.name,
                          .work_share = choice.work_share,
                          .kl_before = choice.kl_before,
                          .kl_after = choice.kl_after});
  }
  out.stop_reason = sites.stop_reason;
  out.kl_start = sites.kl_start > 0 ? sites.kl_start : kNotMeasured;
  out.kl_end = sites.kl_end > 0 ? sites.kl_end : kNotMeasured;
}

std::string TokenText(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  return absl::StrCat("[", absl::StrJoin(ids, ", "), "] ", tokenizer.Decode(ids, false));
}

void AddSettings(const ReportInput& in, ReportData* report) {
  const CalibrationSettings& settings = *in.provenance->settings;
  const TrainOptions& train = settings.training;
  const Method& method = in.provenance->method;
  ReportKeyValues& out = report->settings;
  const Corpus& corpus = *in.provenance->corpus;
  out.emplace_back("text", absl::StrFormat("%s: %d windows of %d tokens to calibrate, %d held out",
                                           corpus.source, corpus.train.count(), corpus.train.tokens,
                                           corpus.held_out.count()));
  out.emplace_back("budget", absl::StrFormat("%.4g %%", 100 * settings.budget));
  out.emplace_back("weights", absl::StrCat("int8 per row, ", method.rounding));
  out.emplace_back("prefix", TokenText(*in.tokenizer, in.bundle->model.prefix_token_ids));
  for (const PrefixCandidate& candidate : in.prefix_search->candidates) {
    out.emplace_back(absl::StrCat("prefix tried (", candidate.why, ")"),
                     absl::StrFormat("%s: KL %.5f untrained",
                                     TokenText(*in.tokenizer, candidate.token_ids), candidate.kl));
  }
  out.emplace_back("objective", method.objective);
  if (in.training != nullptr) {
    out.emplace_back("granularity", absl::StrCat(method.granularity, ", ", method.vectors));
    out.emplace_back("learning rates",
                     absl::StrFormat("scales %.3g, gains %.3g, prefix %.3g", train.scale_rate,
                                     train.gain_rate, train.prefix_rate));
    out.emplace_back("steps",
                     absl::StrFormat("%d of %d windows", train.steps, train.batch_windows));
  }
  out.emplace_back("seed", absl::StrCat(settings.seed));
  report->budget_percent = 100 * settings.budget;
}

}  // namespace

ReportData MakeReport(const ReportInput& in) {
  ReportData report;
  report.model_name = in.provenance->source_name;
  report.calibrator = absl::StrCat("fixpoint-calibrate ", FIXPOINT_VERSION);
  AddPerplexities(in, &report);
  AddTraining(in, &report);
  AddSites(in, &report);
  AddWideSites(*in.provenance->sites, &report);
  AddSettings(in, &report);
  report.samples = *in.samples;
  if (in.provenance->training && in.provenance->training->control)
    report.control_gap_percent = in.provenance->training->control->gap_percent;
  for (const Progress::Duration& d : in.provenance->durations)
    report.run.durations.push_back({d.stage, d.seconds});
  report.run.peak_memory_bytes = static_cast<double>(PeakMemoryBytes());
  report.digests = {{"source sha256", in.provenance->checkpoint->source_sha256},
                    {"text sha256", in.provenance->corpus->digest},
                    {"golden digest", in.bundle->golden_digest}};
  return report;
}

}  // namespace fixpoint
