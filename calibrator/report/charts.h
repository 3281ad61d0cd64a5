// Line charts as inline SVG that stretches with the page, and small marks for the rows of tables.
// Colours come from the classes of report_style.
#pragma once

#include <string>
#include <vector>

namespace fixpoint {

struct ChartCurve {
  std::string css_class;  // "raw", "smooth", "held", "rate"
  std::string name;       // in the key above the panel; empty: no key
  std::vector<double> y;  // one for each of LineChart::x; what is not finite is left out
  bool dots = false;      // marks each point
};

struct ChartPanel {
  std::string title;
  double height = 160;             // CSS pixels
  bool may_be_logarithmic = true;  // where values spread widely
  std::vector<ChartCurve> curves;
};

// Panels one below the other over the same x.
struct LineChart {
  std::string label;  // what it shows, for those who do not see it
  std::string x_title;
  std::vector<double> x;           // rising, at least one
  std::vector<std::string> hover;  // text for each x
  double marked_x = -1;            // a vertical line through all panels; outside of x: none
  std::string mark_text;
  std::vector<ChartPanel> panels;
};

// Panels without a finite value are left out. All texts of `chart` are plain, not HTML.
std::string LineChartHtml(const LineChart& chart);

// Round numbers in [low, high]: about `wanted`, at least one when low < high. Requires finite low <
// high. With `logarithmic` (0 < low): 1, 2 and 5 times powers of ten, thinned to about `wanted`.
std::vector<double> RoundTicks(double low, double high, int wanted, bool logarithmic);

// A row of a forest plot: a point with its standard error (0: none) on an axis from low to high,
// with a line at 0. Values outside are drawn at the edge as an arrow.
struct ForestAxis {
  double low = -1, high = 1;
};
// Holds 0 and all finite values with their errors, but nothing beyond +-40.
ForestAxis ChooseForestAxis(const std::vector<double>& values, const std::vector<double>& errors);
std::string ForestRowSvg(double value, double error, const ForestAxis& axis, bool strong);

// A bar of value / max of the width of a table's cell; empty when not finite.
std::string BarSvg(double value, double max, bool strong);

}  // namespace fixpoint
