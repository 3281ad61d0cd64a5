#include "server/client/bench/svg_plot.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace fixpoint::client {
namespace {

constexpr double kWidth = 960;
constexpr double kLeft = 70;
constexpr double kRight = 20;
constexpr double kPanelHeight = 150;
constexpr double kPanelGap = 56;
constexpr double kLineHeight = 17;

// Colour and dashes both tell series apart.
constexpr char kStyle[] =
    "svg{--bg:#ffffff;--fg:#1c2128;--dim:#5b6470;--grid:#d8dde3;--shade:#eef1f4;"
    "--s0:#1f6fc4;--s1:#a86200;--s2:#bf2f2a;background:var(--bg);"
    "font:13px ui-sans-serif,system-ui,sans-serif}"
    "@media(prefers-color-scheme:dark){svg{--bg:#15191e;--fg:#e6e9ed;--dim:#9aa4af;--grid:#323941;"
    "--shade:#1e242b;--s0:#6cb0ff;--s1:#f2b64c;--s2:#ff8078}}"
    "text{fill:var(--fg)}.dim{fill:var(--dim);font-size:11px}"
    ".note{font-family:ui-monospace,monospace;font-size:12px;white-space:pre}"
    ".title{font-size:16px;font-weight:600}.grid{stroke:var(--grid);stroke-width:1}"
    ".shade{fill:var(--shade)}.page{fill:var(--bg)}.hit{fill:transparent}"
    "path{fill:none;stroke-width:1.6;stroke-linejoin:round;stroke-linecap:round}"
    ".s0{stroke:var(--s0)}.s1{stroke:var(--s1);stroke-dasharray:7 3}"
    ".s2{stroke:var(--s2);stroke-dasharray:2 3}";

std::string Escaped(const std::string& text) {
  return absl::StrReplaceAll(text,
                             {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}

std::string Number(double value) { return absl::StrFormat("%.4g", value); }

std::string Text(double x, double y, const std::string& text, const char* classes = "",
                 const char* anchor = "start") {
  return absl::StrFormat(
      "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\" text-anchor=\"%s\" "
      "xml:space=\"preserve\">%s</text>\n",
      x, y, classes, anchor, Escaped(text));
}

// Where values go on the vertical axis.
struct Scale {
  bool log = false;
  double least = 0;
  double most = 1;
  std::vector<double> ticks;

  bool Shows(double value) const { return std::isfinite(value) && (!log || value > 0); }
  double Place(double value) const {  // 0 bottom, 1 top
    if (log) return std::log(value / least) / std::log(most / least);
    return (value - least) / (most - least);
  }
};

// Decades around the values, with 2 and 5 between them where there are few.
Scale LogScale(double least, double most) {
  Scale scale{.log = true};
  const double first = std::floor(std::log10(least) + 1e-9);
  const double last = std::max(first + 1, std::ceil(std::log10(most) - 1e-9));
  scale.least = std::pow(10, first);
  scale.most = std::pow(10, last);
  for (double decade = first; decade <= last; ++decade) {
    for (const double step : {1.0, 2.0, 5.0}) {
      const double tick = step * std::pow(10, decade);
      if ((step == 1 || last - first <= 2) && tick <= scale.most * 1.0001) {
        scale.ticks.push_back(tick);
      }
    }
  }
  return scale;
}

// From 0, in steps of 1, 2 or 5 times a power of ten.
double NiceStep(double span, int most_steps) {
  const double raw = std::max(span, 1e-9) / most_steps;
  const double power = std::pow(10, std::floor(std::log10(raw)));
  for (const double step : {1.0, 2.0, 5.0}) {
    if (step * power >= raw) return step * power;
  }
  return 10 * power;
}

Scale LinearScale(double most) {
  Scale scale;
  const double step = NiceStep(most, 5);
  scale.most = std::max(1.0, std::ceil(most / step - 1e-9)) * step;
  for (double tick = 0; tick <= scale.most * 1.0001; tick += step) scale.ticks.push_back(tick);
  return scale;
}

Scale ScaleOf(const PlotPanel& panel) {
  double least = INFINITY;
  double most = 0;
  for (const PlotSeries& series : panel.series) {
    for (const double value : series.values) {
      if (!std::isfinite(value) || value <= 0) continue;
      least = std::min(least, value);
      most = std::max(most, value);
    }
  }
  if (most == 0) return panel.log_scale ? LogScale(1, 10) : LinearScale(1);
  return panel.log_scale ? LogScale(least, most) : LinearScale(most);
}

struct Frame {
  double top = 0;
  size_t steps = 0;
  double step_seconds = 1;

  double Width() const { return kWidth - kLeft - kRight; }
  double X(double step) const {
    return kLeft + Width() * step / static_cast<double>(std::max<size_t>(steps, 1));
  }
  double XOfSeconds(double seconds) const { return X(seconds / step_seconds); }
  double Y(double place) const { return top + kPanelHeight * (1 - place); }
};

// A line in the middle of the steps, interrupted where there is nothing; lone points become dots.
std::string Line(const PlotSeries& series, size_t index, const Scale& scale, const Frame& frame) {
  std::string path;
  bool open = false;
  for (size_t i = 0; i < series.values.size(); ++i) {
    if (!scale.Shows(series.values[i])) {
      open = false;
      continue;
    }
    const double x = frame.X(static_cast<double>(i) + 0.5);
    const double y = frame.Y(scale.Place(series.values[i]));
    absl::StrAppendFormat(&path, "%s%.1f %.1f", open ? "L" : "M", x, y);
    if (!open) absl::StrAppend(&path, "h0");
    open = true;
  }
  if (path.empty()) return "";
  return absl::StrFormat("<path class=\"s%d\" d=\"%s\"/>\n", index % 3, path);
}

std::string Legend(const PlotPanel& panel, const Frame& frame) {
  std::string out;
  double x = kWidth - kRight;
  for (size_t i = panel.series.size(); i-- > 0;) {
    const std::string& name = panel.series[i].name;
    out += Text(x, frame.top - 10, name, "dim", "end");
    x -= 6.5 * static_cast<double>(name.size()) + 6;
    absl::StrAppendFormat(&out, "<path class=\"s%d\" d=\"M%.1f %.1fh22\"/>\n", i % 3, x - 22,
                          frame.top - 14);
    x -= 38;
  }
  return out;
}

// Invisible columns that show the numbers when pointed at.
std::string Columns(const PlotPanel& panel, const Frame& frame) {
  std::string out;
  for (size_t i = 0; i < frame.steps; ++i) {
    std::string text = absl::StrCat(Number(static_cast<double>(i) * frame.step_seconds), " s");
    for (const PlotSeries& series : panel.series) {
      if (i < series.values.size() && std::isfinite(series.values[i])) {
        absl::StrAppend(&text, ", ", series.name, " ", Number(series.values[i]));
      }
    }
    absl::StrAppendFormat(&out,
                          "<rect class=\"hit\" x=\"%.2f\" y=\"%.1f\" width=\"%.2f\" "
                          "height=\"%.0f\"><title>%s</title></rect>\n",
                          frame.X(static_cast<double>(i)), frame.top, frame.X(1) - frame.X(0),
                          kPanelHeight, Escaped(text));
  }
  return out;
}

std::string Axes(const Scale& scale, const Frame& frame) {
  std::string out;
  for (const double tick : scale.ticks) {
    const double y = frame.Y(scale.Place(tick));
    absl::StrAppendFormat(&out, "<path class=\"grid\" d=\"M%.1f %.1fh%.1f\"/>\n", kLeft, y,
                          frame.Width());
    out += Text(kLeft - 8, y + 4, Number(tick), "dim", "end");
  }
  const double seconds = static_cast<double>(frame.steps) * frame.step_seconds;
  const double step = NiceStep(seconds, 10);
  for (double at = 0; at <= seconds * 1.0001; at += step) {
    out += Text(frame.XOfSeconds(at), frame.top + kPanelHeight + 15, absl::StrCat(Number(at), " s"),
                "dim", "middle");
  }
  return out;
}

std::string PanelSvg(const PlotPanel& panel, const Frame& frame, double warmup_seconds) {
  const Scale scale = ScaleOf(panel);
  std::string out = Text(kLeft, frame.top - 10, panel.title);
  if (warmup_seconds > 0 && frame.steps > 0) {
    const double end = std::min(frame.XOfSeconds(warmup_seconds), kWidth - kRight);
    absl::StrAppendFormat(&out,
                          "<rect class=\"shade\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" "
                          "height=\"%.0f\"><title>warm-up</title></rect>\n",
                          kLeft, frame.top, end - kLeft, kPanelHeight);
  }
  out += Axes(scale, frame);
  for (size_t i = 0; i < panel.series.size(); ++i) out += Line(panel.series[i], i, scale, frame);
  return out + Legend(panel, frame) + Columns(panel, frame);
}

}  // namespace

std::string RenderSvg(const Plot& plot) {
  const double head = 40 + kLineHeight * static_cast<double>(plot.notes.size());
  const double height =
      head + (kPanelHeight + kPanelGap) * static_cast<double>(plot.panels.size()) + 10;
  std::string out = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\" "
      "height=\"%.0f\" role=\"img\">\n<title>%s</title>\n<style>%s</style>\n"
      "<rect class=\"page\" width=\"100%%\" height=\"100%%\"/>\n",
      kWidth, height, kWidth, height, Escaped(plot.title), kStyle);
  out += Text(kLeft, 28, plot.title, "title");
  for (size_t i = 0; i < plot.notes.size(); ++i) {
    out += Text(kLeft, 50 + kLineHeight * static_cast<double>(i), plot.notes[i], "note");
  }
  Frame frame{.step_seconds = plot.step_seconds > 0 ? plot.step_seconds : 1};
  for (const PlotPanel& panel : plot.panels) {
    for (const PlotSeries& series : panel.series) {
      frame.steps = std::max(frame.steps, series.values.size());
    }
  }
  for (size_t i = 0; i < plot.panels.size(); ++i) {
    frame.top = head + kPanelGap / 2 + (kPanelHeight + kPanelGap) * static_cast<double>(i);
    out += PanelSvg(plot.panels[i], frame, plot.warmup_seconds);
  }
  return out + "</svg>\n";
}

}  // namespace fixpoint::client
