// Maps of layers (rows) by sites (columns), with colours in classes: exact to read, and the same
// for people who see colours differently. Colours come from the classes of report_style.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "calibrator/report/report.h"

namespace fixpoint {

// Classes of values between rising edges: value v is in class k when edges[k - 1] <= v < edges[k].
struct HeatRamp {
  std::string css_prefix;           // class k is painted as "<css_prefix>k"
  std::vector<double> edges;        // one fewer than classes
  std::vector<std::string> labels;  // of each edge
  bool zero_apart = false;          // values of exactly 0 get class "<css_prefix>z"
};

// Nine classes around 1, edges at powers of a round step, chosen so that nearly all of `ratios` (>
// 0) fit: "d0" to "d8".
HeatRamp RatioRamp(const std::vector<double>& ratios);
// Shares in powers of ten from 1 ppm to 10 %, zero apart: "s0" to "s6".
HeatRamp ShareRamp();
// Relative errors in half powers of ten from 1e-5 to 1e-2: "s0" to "s7".
HeatRamp ErrorRamp();

// "s3"; empty when `value` is not finite, or not positive for a ratio.
std::string HeatClass(const HeatRamp& ramp, double value);

// What the colours mean.
std::string HeatLegendHtml(const HeatRamp& ramp);

struct HeatCell {
  int32_t layer = 0;
  ReportSiteKind kind = ReportSiteKind::kAttnIn;
  std::string css_class;  // of HeatClass; empty: a hollow cell
  std::string hover;      // plain text
  bool dotted = false;    // an int16 site
};

// `label`: plain text for those who do not see it. Rows are the layers that occur, columns the
// kinds; head_in, which belongs to no layer, is a row of its own across the map.
std::string HeatMapSvg(const std::string& label, const std::vector<HeatCell>& cells);

}  // namespace fixpoint
