#include "calibrator/report/charts.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "calibrator/report/html.h"

namespace fixpoint {
namespace {

// The width of the inner coordinates, which the page stretches to its own.
constexpr double kWidth = 1000;
constexpr double kTopPad = 8, kBottomPad = 6;
constexpr double kLogarithmicFrom = 20;  // largest over smallest value
constexpr double kForestLimit = 40;

// What is larger would overflow where figures are subtracted.
bool Drawable(double y) { return std::isfinite(y) && std::abs(y) < 1e100; }

struct Axis {
  double low = 0, high = 1;
  bool logarithmic = false;
  double height = 0;

  double Map(double value) const {
    const auto f = [this](double v) { return logarithmic ? std::log(v) : v; };
    const double share = (f(value) - f(low)) / (f(high) - f(low));
    return kTopPad + (1 - share) * (height - kTopPad - kBottomPad);
  }
};

std::string TickText(double value) {
  std::string text = absl::StrFormat("%.6g", value);
  const size_t exponent = text.find('e');
  if (exponent != std::string::npos && text[exponent + 2] == '0') text.erase(exponent + 2, 1);
  return text[0] == '-' ? absl::StrCat("\u2212", text.substr(1)) : text;
}

std::optional<Axis> ChooseAxis(const ChartPanel& panel) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const ChartCurve& curve : panel.curves) {
    for (const double y : curve.y) {
      if (!Drawable(y)) continue;
      low = std::min(low, y);
      high = std::max(high, y);
    }
  }
  if (low > high) return std::nullopt;
  Axis axis{.low = low, .high = high, .height = panel.height};
  axis.logarithmic = panel.may_be_logarithmic && low > 0 && high / low > kLogarithmicFrom;
  // A flat line gets some room; so does a spread that doubles cannot resolve.
  if (high - low <= 1e-9 * std::max(std::abs(high), std::abs(low))) {
    const double room = high == 0 ? 1 : 0.1 * std::abs(high);
    axis.low -= room;
    axis.high += room;
  }
  return axis;
}

double MapX(const LineChart& chart, double x) {
  const double low = chart.x.front(), high = chart.x.back();
  return high > low ? (x - low) / (high - low) * kWidth : kWidth / 2;
}

std::string Percent(double inner_x) { return absl::StrFormat("%.2f%%", inner_x / kWidth * 100); }

// A curve as one path; gaps where values are missing. Dots are lines without length, which keep
// their round ends when the page stretches the chart.
void AppendCurve(const LineChart& chart, const ChartCurve& curve, const Axis& axis,
                 std::string* out) {
  std::string line, dots;
  bool down = false;
  for (size_t i = 0; i < curve.y.size(); ++i) {
    if (!Drawable(curve.y[i])) {
      // Held-out figures are taken now and then: they are joined across the steps between them.
      if (!curve.dots) down = false;
      continue;
    }
    const std::string point =
        absl::StrFormat("%.1f %.1f", MapX(chart, chart.x[i]), axis.Map(curve.y[i]));
    absl::StrAppend(&line, down ? "L" : "M", point);
    absl::StrAppend(&dots, "M", point, "h0");
    down = true;
  }
  absl::StrAppend(out, "<path class=\"curve ", curve.css_class, "\" d=\"", line, "\"/>");
  if (curve.dots) {
    absl::StrAppend(out, "<path class=\"dots ", curve.css_class, "\" d=\"", dots, "\"/>");
  }
  absl::StrAppend(out, "\n");
}

// Strips that show a step's figures on hover, each reaching half-way to its neighbours.
void AppendHover(const LineChart& chart, double height, std::string* out) {
  const size_t n = chart.x.size();
  for (size_t i = 0; i < n; ++i) {
    const double x = MapX(chart, chart.x[i]);
    const double begin = i == 0 ? 0 : (x + MapX(chart, chart.x[i - 1])) / 2;
    const double end = i + 1 == n ? kWidth : (x + MapX(chart, chart.x[i + 1])) / 2;
    absl::StrAppendFormat(out, "<rect class=\"hit\" x=\"%.1f\" width=\"%.1f\" height=\"%.0f\">",
                          begin, end - begin, height);
    absl::StrAppend(out, "<title>", EscapeHtml(chart.hover[i]), "</title></rect>\n");
  }
}

void AppendGrid(const Axis& axis, std::string* out) {
  const int wanted = axis.height < 100 ? 2 : 5;
  for (const double tick : RoundTicks(axis.low, axis.high, wanted, axis.logarithmic)) {
    const double y = axis.Map(tick);
    absl::StrAppendFormat(
        out, "<line class=\"grid\" x1=\"0\" x2=\"100%%\" y1=\"%.1f\" y2=\"%.1f\"/>", y, y);
    absl::StrAppendFormat(out, "<text class=\"tick end\" x=\"-8\" y=\"%.1f\">%s</text>\n", y + 4,
                          TickText(tick));
  }
}

void AppendMark(const LineChart& chart, double height, bool with_text, std::string* out) {
  const double x = MapX(chart, chart.marked_x);
  absl::StrAppendFormat(out, "<line class=\"kept\" x1=\"%s\" x2=\"%s\" y1=\"0\" y2=\"%.0f\"/>",
                        Percent(x), Percent(x), height);
  if (!with_text) return;
  const bool left = x > kWidth / 2;
  absl::StrAppendFormat(out, "<text class=\"mark%s\" x=\"%s\" dx=\"%d\" y=\"12\">%s</text>\n",
                        left ? " end" : "", Percent(x), left ? -6 : 6, EscapeHtml(chart.mark_text));
}

void AppendXAxis(const LineChart& chart, double height, std::string* out) {
  std::vector<double> ticks = {chart.x.front()};
  if (chart.x.back() > chart.x.front()) {
    ticks = RoundTicks(chart.x.front(), chart.x.back(), 5, false);
  }
  for (const double tick : ticks) {
    const double x = MapX(chart, tick);
    absl::StrAppendFormat(out, "<text class=\"tick %s\" x=\"%s\" y=\"%.0f\">%s</text>",
                          x > 0.97 * kWidth ? "end" : "middle", Percent(x), height + 16,
                          TickText(tick));
  }
  absl::StrAppend(out, "\n");
}

void AppendPanelHead(const ChartPanel& panel, const Axis& axis, std::string* out) {
  absl::StrAppend(out, "<p class=\"panel-head\"><b>", EscapeHtml(panel.title), "</b>",
                  axis.logarithmic ? " <span class=\"soft\">(logarithmic)</span>" : "");
  for (const ChartCurve& curve : panel.curves) {
    if (curve.name.empty()) continue;
    absl::StrAppend(
        out, " <span class=\"key\"><svg width=\"22\" height=\"10\" aria-hidden=\"true\">",
        "<path class=\"curve ", curve.css_class, "\" d=\"M1 5H21\"/>",
        curve.dots ? absl::StrCat("<path class=\"dots ", curve.css_class, "\" d=\"M11 5h0\"/>")
                   : "",
        "</svg>", EscapeHtml(curve.name), "</span>");
  }
  absl::StrAppend(out, "</p>\n");
}

}  // namespace

std::vector<double> RoundTicks(double low, double high, int wanted, bool logarithmic) {
  std::vector<double> ticks;
  if (logarithmic) {
    // 1, 2 and 5 of each decade, or whole decades, or each second one ...
    const int first = static_cast<int>(std::floor(std::log10(low)));
    const int last = static_cast<int>(std::ceil(std::log10(high)));
    const bool fine = last - first <= 2;
    const int stride = std::max(1, (last - first) / std::max(1, wanted));
    for (int decade = first; decade <= last; decade += stride) {
      for (const int factor : {1, 2, 5}) {
        const double tick = factor * std::pow(10.0, decade);
        if ((fine || factor == 1) && tick >= low && tick <= high) ticks.push_back(tick);
      }
    }
    if (ticks.empty()) ticks = {low, high};
    return ticks;
  }
  const double rough = (high - low) / std::max(1, wanted);
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (const double factor : {1.0, 2.0, 2.5, 5.0}) {
    if (factor * power >= rough) {
      step = factor * power;
      break;
    }
  }
  const double first = std::ceil(low / step - 1e-9);
  for (int i = 0; (first + i) * step <= high + 1e-9 * step; ++i) {
    // Where the step is lost in the size of the numbers, no tick is better than an endless row.
    if (i > 4 * wanted + 4) break;
    ticks.push_back(first + i == 0 ? 0 : (first + i) * step);
  }
  if (ticks.empty()) ticks.push_back(low);
  return ticks;
}

std::string LineChartHtml(const LineChart& chart) {
  CHECK(!chart.x.empty());
  CHECK_EQ(chart.hover.size(), chart.x.size());
  std::vector<std::pair<const ChartPanel*, Axis>> panels;
  for (const ChartPanel& panel : chart.panels) {
    for (const ChartCurve& curve : panel.curves) CHECK_EQ(curve.y.size(), chart.x.size());
    if (const std::optional<Axis> axis = ChooseAxis(panel)) panels.push_back({&panel, *axis});
  }
  const bool marked = chart.marked_x >= chart.x.front() && chart.marked_x <= chart.x.back();
  std::string html = "<div class=\"chart\">\n";
  for (size_t i = 0; i < panels.size(); ++i) {
    const auto& [panel, axis] = panels[i];
    const bool last = i + 1 == panels.size();
    AppendPanelHead(*panel, axis, &html);
    absl::StrAppendFormat(
        &html, "<svg class=\"panel\" role=\"img\" aria-label=\"%s: %s\" height=\"%.0f\">\n",
        EscapeHtml(chart.label), EscapeHtml(panel->title), axis.height + (last ? 22 : 0));
    AppendGrid(axis, &html);
    if (marked) AppendMark(chart, axis.height, i == 0, &html);
    absl::StrAppendFormat(&html,
                          "<svg viewBox=\"0 0 %.0f %.0f\" width=\"100%%\" height=\"%.0f\" "
                          "preserveAspectRatio=\"none\" class=\"inner\">\n",
                          kWidth, axis.height, axis.height);
    for (const ChartCurve& curve : panel->curves) AppendCurve(chart, curve, axis, &html);
    AppendHover(chart, axis.height, &html);
    absl::StrAppend(&html, "</svg>\n");
    if (last) AppendXAxis(chart, axis.height, &html);
    absl::StrAppend(&html, "</svg>\n");
  }
  if (!panels.empty()) {
    absl::StrAppend(&html, "<p class=\"x-title\">", EscapeHtml(chart.x_title), "</p>\n");
  }
  absl::StrAppend(&html, "</div>\n");
  return html;
}

ForestAxis ChooseForestAxis(const std::vector<double>& values, const std::vector<double>& errors) {
  CHECK_EQ(values.size(), errors.size());
  ForestAxis axis{.low = 0, .high = 0};
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) continue;
    const double error = std::isfinite(errors[i]) ? std::abs(errors[i]) : 0;
    axis.low = std::min(axis.low, values[i] - error);
    axis.high = std::max(axis.high, values[i] + error);
  }
  axis.low = std::max(axis.low, -kForestLimit);
  axis.high = std::min(axis.high, kForestLimit);
  const double room = std::max(0.05 * (axis.high - axis.low), 0.01);
  return {.low = axis.low - room, .high = axis.high + room};
}

std::string ForestRowSvg(double value, double error, const ForestAxis& axis, bool strong) {
  if (!std::isfinite(value)) return "";
  constexpr double kRowWidth = 140, kRowHeight = 16, kMiddle = 8;
  const auto map = [&](double v) {
    const double share = (std::clamp(v, axis.low, axis.high) - axis.low) / (axis.high - axis.low);
    return 3 + share * (kRowWidth - 6);
  };
  std::string svg = absl::StrFormat(
      "<svg class=\"forest%s\" width=\"%.0f\" height=\"%.0f\" aria-hidden=\"true\">"
      "<line class=\"zero\" x1=\"%.1f\" x2=\"%.1f\" y1=\"0\" y2=\"%.0f\"/>",
      strong ? " strong" : "", kRowWidth, kRowHeight, map(0), map(0), kRowHeight);
  if (value < axis.low || value > axis.high) {
    const double x = map(value), back = value < axis.low ? 7 : -7;
    absl::StrAppendFormat(&svg, "<path class=\"point\" d=\"M%.1f %.0fl%.0f -4v8z\"/>", x, kMiddle,
                          back);
  } else {
    if (std::isfinite(error) && error > 0) {
      absl::StrAppendFormat(
          &svg, "<line class=\"error\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.0f\" y2=\"%.0f\"/>",
          map(value - error), map(value + error), kMiddle, kMiddle);
    }
    absl::StrAppendFormat(&svg, "<circle class=\"point\" cx=\"%.1f\" cy=\"%.0f\" r=\"%.1f\"/>",
                          map(value), kMiddle, strong ? 4.5 : 3.5);
  }
  return svg + "</svg>";
}

std::string BarSvg(double value, double max, bool strong) {
  if (!std::isfinite(value) || !std::isfinite(max) || max <= 0) return "";
  constexpr double kBarWidth = 72;
  return absl::StrFormat(
      "<svg class=\"bar%s\" width=\"%.0f\" height=\"10\" aria-hidden=\"true\">"
      "<rect width=\"%.1f\" height=\"10\" rx=\"2\"/></svg>",
      strong ? " strong" : "", kBarWidth, kBarWidth * std::clamp(value / max, 0.0, 1.0));
}

}  // namespace fixpoint
