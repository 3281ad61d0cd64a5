#include "calibrator/report/heat.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "calibrator/report/html.h"

namespace fixpoint {
namespace {

// Pixels. Seven columns and the names of the layers fit a phone of 360.
constexpr int kCellWidth = 30, kCellHeight = 14, kLeft = 34, kTop = 44, kHeadGap = 6;
constexpr int kLeanOut = 26;
constexpr int kSwatchWidth = 34;
// A few sites may lie beyond the outermost edge: its class is open.
constexpr double kCovered = 0.97;

void AppendCell(const HeatCell& cell, int x, int y, int width, std::string* out) {
  absl::StrAppendFormat(
      out, "<rect class=\"cell %s\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\">",
      cell.css_class.empty() ? "hollow" : cell.css_class, x, y, width - 1, kCellHeight - 1);
  absl::StrAppend(out, "<title>", EscapeHtml(cell.hover), "</title></rect>");
  if (cell.dotted) {
    absl::StrAppendFormat(out, "<circle class=\"wide\" cx=\"%.1f\" cy=\"%.1f\" r=\"3\"/>",
                          x + (width - 1) / 2.0, y + (kCellHeight - 1) / 2.0);
  }
  absl::StrAppend(out, "\n");
}

}  // namespace

HeatRamp RatioRamp(const std::vector<double>& ratios) {
  std::vector<double> sizes;
  for (const double ratio : ratios) {
    if (std::isfinite(ratio) && ratio > 0) sizes.push_back(std::abs(std::log(ratio)));
  }
  std::sort(sizes.begin(), sizes.end());
  const double most = sizes.empty() ? 0 : sizes[static_cast<size_t>(kCovered * (sizes.size() - 1))];
  double step = 10;
  for (const double candidate : {1.01, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0, 4.0}) {
    if (5 * std::log(candidate) >= most) {
      step = candidate;
      break;
    }
  }
  HeatRamp ramp{.css_prefix = "d"};
  for (const int power : {-4, -3, -2, -1, 1, 2, 3, 4}) {
    const double edge = std::pow(step, power);
    ramp.edges.push_back(edge);
    ramp.labels.push_back(edge >= 0.1 && edge < 100 ? absl::StrFormat("%.2f", edge)
                                                    : absl::StrFormat("%.1g", edge));
  }
  return ramp;
}

HeatRamp ShareRamp() {
  return {.css_prefix = "s",
          .edges = {1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1},
          .labels = {"1\u00a0ppm", "10", "100", "0.1\u00a0%", "1\u00a0%", "10\u00a0%"},
          .zero_apart = true};
}

HeatRamp ErrorRamp() {
  return {.css_prefix = "s",
          .edges = {1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2},
          .labels = {"1e-5", "3e-5", "1e-4", "3e-4", "1e-3", "3e-3", "1e-2"}};
}

std::string HeatClass(const HeatRamp& ramp, double value) {
  if (!std::isfinite(value) || value < 0) return "";
  if (value == 0 && ramp.css_prefix == "d") return "";
  if (value == 0 && ramp.zero_apart) return absl::StrCat(ramp.css_prefix, "z");
  const auto above = std::upper_bound(ramp.edges.begin(), ramp.edges.end(), value);
  return absl::StrCat(ramp.css_prefix, above - ramp.edges.begin());
}

std::string HeatLegendHtml(const HeatRamp& ramp) {
  const int zero = ramp.zero_apart ? 1 : 0;
  const int classes = static_cast<int>(ramp.edges.size()) + 1;
  const int width = (classes + zero) * kSwatchWidth + zero * 6 + 2;
  std::string svg = absl::StrFormat(
      "<svg class=\"legend\" viewBox=\"0 0 %d 34\" width=\"%d\" height=\"34\" role=\"img\" "
      "aria-label=\"Colours from %s to %s\">",
      width, width, ramp.labels.front(), ramp.labels.back());
  if (ramp.zero_apart) {
    absl::StrAppendFormat(&svg,
                          "<rect class=\"cell %sz\" x=\"1\" y=\"1\" width=\"%d\" height=\"13\"/>"
                          "<text class=\"tick middle\" x=\"%d\" y=\"28\">none</text>",
                          ramp.css_prefix, kSwatchWidth - 1, kSwatchWidth / 2);
  }
  for (int i = 0; i < classes; ++i) {
    const int x = 1 + zero * (kSwatchWidth + 6) + i * kSwatchWidth;
    absl::StrAppendFormat(&svg,
                          "<rect class=\"cell %s%d\" x=\"%d\" y=\"1\" width=\"%d\" height=\"13\"/>",
                          ramp.css_prefix, i, x, kSwatchWidth);
    if (i == 0) continue;
    absl::StrAppendFormat(&svg, "<text class=\"tick middle\" x=\"%d\" y=\"28\">%s</text>", x,
                          ramp.labels[i - 1]);
  }
  return svg + "</svg>\n";
}

std::string HeatMapSvg(const std::string& label, const std::vector<HeatCell>& cells) {
  std::map<int32_t, int> rows;
  std::map<ReportSiteKind, int> columns;
  bool head = false;
  for (const HeatCell& cell : cells) {
    if (cell.kind == ReportSiteKind::kHeadIn) {
      head = true;
    } else {
      rows[cell.layer] = columns[cell.kind] = 0;
    }
  }
  int next = 0;
  for (auto& [layer, row] : rows) row = next++;
  next = 0;
  for (auto& [kind, column] : columns) column = next++;

  const int full_width = std::max(1, static_cast<int>(columns.size())) * kCellWidth;
  const int head_y =
      kTop + static_cast<int>(rows.size()) * kCellHeight + (rows.empty() ? 0 : kHeadGap);
  // The last name leans out over the right edge.
  const int width = kLeft + full_width + kLeanOut, height = head_y + (head ? kCellHeight : 0);
  std::string svg = absl::StrFormat(
      "<svg class=\"heat\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" role=\"img\" "
      "aria-label=\"%s\">\n",
      width, height, width, height, EscapeHtml(label));
  for (const auto& [kind, column] : columns) {
    const int x = kLeft + column * kCellWidth + kCellWidth / 2;
    absl::StrAppendFormat(
        &svg, "<text class=\"tick\" transform=\"translate(%d %d) rotate(-40)\">%s</text>\n", x,
        kTop - 6, ReportSiteName(kind));
  }
  for (const auto& [layer, row] : rows) {
    if (row % 5 != 0 && row != static_cast<int>(rows.size()) - 1) continue;
    absl::StrAppendFormat(&svg, "<text class=\"tick end\" x=\"%d\" y=\"%d\">%d</text>\n", kLeft - 6,
                          kTop + row * kCellHeight + 11, layer);
  }
  for (const HeatCell& cell : cells) {
    if (cell.kind == ReportSiteKind::kHeadIn) {
      AppendCell(cell, kLeft, head_y, full_width, &svg);
    } else {
      AppendCell(cell, kLeft + columns[cell.kind] * kCellWidth,
                 kTop + rows[cell.layer] * kCellHeight, kCellWidth, &svg);
    }
  }
  if (head) {
    absl::StrAppendFormat(&svg, "<text class=\"tick end\" x=\"%d\" y=\"%d\">head</text>\n",
                          kLeft - 6, head_y + 11);
  }
  return svg + "</svg>\n";
}

}  // namespace fixpoint
