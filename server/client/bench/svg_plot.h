// Small plots over time as one self-contained SVG file: no script, no font, no link; readable on
// light and dark backgrounds. Pure.
#pragma once

#include <string>
#include <vector>

namespace fixpoint::client {

struct PlotSeries {
  std::string name;
  std::vector<double> values;  // one a step; NaN: nothing there
};

struct PlotPanel {
  std::string title;  // with the unit
  bool log_scale = false;
  std::vector<PlotSeries> series;  // at most 3 can be told apart
};

struct Plot {
  std::string title;
  std::vector<std::string> notes;  // lines below the title; a run of spaces is kept
  double step_seconds = 1;
  double warmup_seconds = 0;  // shaded
  std::vector<PlotPanel> panels;
};

// Values at most 0 have no place on a log scale and are left out there.
std::string RenderSvg(const Plot& plot);

}  // namespace fixpoint::client
