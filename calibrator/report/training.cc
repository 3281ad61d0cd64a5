#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "calibrator/report/charts.h"
#include "calibrator/report/html.h"
#include "calibrator/report/sections.h"

namespace fixpoint {
namespace {

constexpr double kRateHeight = 72;
constexpr char kNoBreakSpace[] = "\u00a0";

// At most `count` of `all`, spread evenly, the first and the last included. Requires count >= 2.
std::vector<size_t> SpreadEvenly(const std::vector<size_t>& all, size_t count) {
  if (all.size() <= count) return all;
  std::vector<size_t> some;
  for (size_t i = 0; i < count; ++i) some.push_back(all[i * (all.size() - 1) / (count - 1)]);
  return some;
}

// Points in the order of their steps, one for each step, at most kMaxReportTrainingPoints: those
// with a held-out figure have half of the room for themselves.
std::vector<ReportTrainingPoint> ThinPoints(const ReportTraining& training) {
  std::vector<ReportTrainingPoint> points = training.points;
  std::stable_sort(points.begin(), points.end(),
                   [](const auto& a, const auto& b) { return a.step < b.step; });
  points.erase(std::unique(points.begin(), points.end(),
                           [](const auto& a, const auto& b) { return a.step == b.step; }),
               points.end());
  if (points.size() <= kMaxReportTrainingPoints) return points;
  std::vector<size_t> held_out, others, chosen;
  for (size_t i = 0; i < points.size(); ++i) {
    if (points[i].step == training.kept_step) {
      chosen.push_back(i);
    } else if (std::isfinite(points[i].held_out)) {
      held_out.push_back(i);
    } else {
      others.push_back(i);
    }
  }
  held_out = SpreadEvenly(held_out, kMaxReportTrainingPoints / 2);
  others = SpreadEvenly(others, kMaxReportTrainingPoints - 1 - held_out.size());
  chosen.insert(chosen.end(), held_out.begin(), held_out.end());
  chosen.insert(chosen.end(), others.begin(), others.end());
  std::sort(chosen.begin(), chosen.end());
  std::vector<ReportTrainingPoint> result;
  for (const size_t i : chosen) result.push_back(points[i]);
  return result;
}

std::string Loss(double value) { return FormatSignificant(value, 4); }

std::string HoverText(const ReportTrainingPoint& point) {
  std::string text = absl::StrCat("step ", FormatCount(point.step), " \u00b7 ",
                                  FormatCount(point.tokens), " tokens");
  const auto add = [&](const char* name, const std::string& value, double number) {
    if (std::isfinite(number)) absl::StrAppend(&text, " \u00b7 ", name, " ", value);
  };
  add("loss", Loss(point.loss), point.loss);
  add("smoothed", Loss(point.loss_smoothed), point.loss_smoothed);
  add("held-out", Loss(point.held_out), point.held_out);
  add("learning rate", FormatSignificant(point.learning_rate, 3), point.learning_rate);
  return text;
}

std::string Chart(const ReportTraining& training, const std::vector<ReportTrainingPoint>& points) {
  LineChart chart{.label = "Training",
                  .x_title = absl::StrCat("step (", FormatCount(points.back().step), " steps, ",
                                          FormatCount(points.back().tokens), " tokens)"),
                  .marked_x = static_cast<double>(training.kept_step)};
  if (training.kept_step >= 0) {
    chart.mark_text = absl::StrCat("kept: step ", FormatCount(training.kept_step));
  }
  ChartCurve raw{.css_class = "raw", .name = "each step"};
  ChartCurve smooth{.css_class = "smooth", .name = "smoothed"};
  ChartCurve held_out{.css_class = "held", .dots = true};
  ChartCurve rate{.css_class = "rate"};
  for (const ReportTrainingPoint& point : points) {
    chart.x.push_back(static_cast<double>(point.step));
    chart.hover.push_back(HoverText(point));
    raw.y.push_back(point.loss);
    smooth.y.push_back(point.loss_smoothed);
    held_out.y.push_back(point.held_out);
    rate.y.push_back(point.learning_rate);
  }
  const auto name = [](const std::string& bytes) {
    return bytes.substr(0, CutLength(bytes, kMaxReportNameBytes));
  };
  chart.panels.push_back({.title = name(training.loss_name), .curves = {raw, smooth}});
  chart.panels.push_back({.title = name(training.held_out_name), .curves = {held_out}});
  chart.panels.push_back({.title = "Learning rate",
                          .height = kRateHeight,
                          .may_be_logarithmic = false,
                          .curves = {rate}});
  return LineChartHtml(chart);
}

std::string Summary(const ReportTraining& training,
                    const std::vector<ReportTrainingPoint>& points) {
  const ReportTrainingPoint* first = nullptr;
  const ReportTrainingPoint* kept = nullptr;
  for (const ReportTrainingPoint& point : points) {
    if (!std::isfinite(point.held_out)) continue;
    if (first == nullptr) first = &point;
    if (point.step == training.kept_step) kept = &point;
  }
  const std::string name = EscapeCut(training.held_out_name, kMaxReportNameBytes);
  std::string html = "<p>";
  if (kept != nullptr && kept != first) {
    absl::StrAppend(&html, name, " went from ", Loss(first->held_out), " at step ",
                    FormatCount(first->step), " to <b>", Loss(kept->held_out), "</b> at step ",
                    FormatCount(kept->step), ", whose scales were kept. ");
  } else if (training.kept_step >= 0) {
    absl::StrAppend(&html, "The scales of step ", FormatCount(training.kept_step), " were kept. ");
  }
  if (!training.stop_reason.empty()) {
    absl::StrAppend(&html, "Training ended: ", EscapeCut(training.stop_reason, kMaxReportNoteBytes),
                    ".");
  }
  return absl::StrCat(html, "</p>\n");
}

std::string Table(const ReportTraining& training, const std::vector<ReportTrainingPoint>& points) {
  HtmlTable table("Training steps",
                  {{"Step", true},
                   {"Tokens", true},
                   {"Loss", true},
                   {"Smoothed", true},
                   {"Held-out", true},
                   {"Learning rate", true},
                   {""}},
                  true);
  for (const ReportTrainingPoint& point : points) {
    const bool kept = point.step == training.kept_step;
    table.Row({FormatCount(point.step), FormatCount(point.tokens), Loss(point.loss),
               Loss(point.loss_smoothed), Loss(point.held_out),
               FormatSignificant(point.learning_rate, 3), kept ? "kept" : ""},
              kept ? "shipped" : "");
  }
  if (points.size() < training.points.size()) {
    table.Note(absl::StrCat(FormatCount(points.size()), " of ", FormatCount(training.points.size()),
                            " steps are shown."));
  }
  return absl::StrCat("<details><summary>All", kNoBreakSpace, "figures of the curve</summary>\n",
                      table.Take(), "</details>\n");
}

}  // namespace

std::string TrainingSection(const ReportTraining& training) {
  const std::vector<ReportTrainingPoint> points = ThinPoints(training);
  if (points.empty()) return "";
  return absl::StrCat(Summary(training, points), Chart(training, points), Table(training, points));
}

}  // namespace fixpoint
