#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "calibrator/report/heat.h"
#include "calibrator/report/html.h"
#include "calibrator/report/sections.h"

namespace fixpoint {
namespace {

using Figure = std::function<double(const ReportSite&)>;
using Text = std::string (*)(double);

std::string FactorText(double ratio) {
  return std::isfinite(ratio) ? absl::StrCat("\u00d7", FormatSignificant(ratio, 3)) : kDash;
}
std::string ErrorText(double error) { return FormatSignificant(error, 3); }
std::string ScaleText(double scale) { return FormatSignificant(scale, 4); }

double ScaleChange(const ReportSite& site) { return site.scale_after / site.scale_before; }

std::string SiteName(const ReportSite& site) {
  if (site.kind == ReportSiteKind::kHeadIn) return ReportSiteName(site.kind);
  return absl::StrCat("layers.", site.layer, ".", ReportSiteName(site.kind));
}

size_t Index(ReportSiteKind kind) {
  const int32_t index = static_cast<int32_t>(kind);
  CHECK(index >= 0 && index < kReportSiteKinds) << index;
  return index;
}

struct Map {
  std::string title;
  Figure figure;
};

struct MapFigure {
  std::string name, caption;
  HeatRamp ramp;
  Text text;
  std::vector<Map> maps;
};

bool Known(const std::vector<ReportSite>& sites, const Figure& figure) {
  return std::any_of(sites.begin(), sites.end(),
                     [&](const ReportSite& site) { return std::isfinite(figure(site)); });
}

// Kinds of sites of which no map of the figure knows anything get no column.
std::string MapFigureHtml(const std::vector<ReportSite>& all, const MapFigure& spec) {
  bool known[kReportSiteKinds] = {};
  for (const ReportSite& site : all) {
    for (const Map& map : spec.maps) known[Index(site.kind)] |= std::isfinite(map.figure(site));
  }
  std::vector<ReportSite> sites;
  std::copy_if(all.begin(), all.end(), std::back_inserter(sites),
               [&](const ReportSite& site) { return known[Index(site.kind)]; });
  std::string maps;
  for (const Map& map : spec.maps) {
    if (!Known(sites, map.figure)) continue;
    std::vector<HeatCell> cells;
    for (const ReportSite& site : sites) {
      const double value = map.figure(site);
      cells.push_back({.layer = site.layer,
                       .kind = site.kind,
                       .css_class = HeatClass(spec.ramp, value),
                       .hover = absl::StrCat(SiteName(site), site.bits == 16 ? " (int16)" : "",
                                             ": ", spec.text(value)),
                       .dotted = site.bits == 16 && std::isfinite(value)});
    }
    absl::StrAppend(&maps, "<div>",
                    map.title.empty() ? "" : absl::StrCat("<h4>", map.title, "</h4>"),
                    HeatMapSvg(absl::StrCat(spec.name, map.title.empty() ? "" : ", ", map.title,
                                            ", by layer and site"),
                               cells),
                    "</div>\n");
  }
  if (maps.empty()) return "";
  return absl::StrCat("<figure>\n<figcaption><b>", spec.name, ".</b> ", spec.caption,
                      "</figcaption>\n<div class=\"pair\">\n", maps, "</div>\n",
                      HeatLegendHtml(spec.ramp), "</figure>\n");
}

// All values of the figures, for a ramp that fits them.
std::vector<double> Values(const std::vector<ReportSite>& sites,
                           const std::vector<Figure>& figures) {
  std::vector<double> values;
  for (const ReportSite& site : sites) {
    for (const Figure& figure : figures) values.push_back(figure(site));
  }
  return values;
}

std::string Maps(const std::vector<ReportSite>& sites) {
  const Figure saturated_before = [](const ReportSite& s) { return s.saturated_before; };
  const Figure saturated_after = [](const ReportSite& s) { return s.saturated_after; };
  const Figure error_before = [](const ReportSite& s) { return s.error_before; };
  const Figure error_after = [](const ReportSite& s) { return s.error_after; };
  const Figure gain_min = [](const ReportSite& s) { return s.gain_min; };
  const Figure gain_max = [](const ReportSite& s) { return s.gain_max; };
  const bool trained = Known(sites, saturated_before) || Known(sites, error_before);
  const auto pair = [&](const Figure& before, const Figure& after) {
    return std::vector<Map>{{"before training", before}, {trained ? "after training" : "", after}};
  };
  return absl::StrCat(
      "<div class=\"maps\">\n",
      MapFigureHtml(sites, {"Change of scale",
                            "Scale after training over scale before. Blue: finer steps, outliers "
                            "are truncated. Orange: a wider range, coarser steps.",
                            RatioRamp(Values(sites, {ScaleChange})),
                            FactorText,
                            {{"", ScaleChange}}}),
      MapFigureHtml(sites, {"Saturated values", "Share of the values that the range cuts off.",
                            ShareRamp(), FormatShare, pair(saturated_before, saturated_after)}),
      MapFigureHtml(sites, {"Relative rounding error",
                            "Mean square of the error, clipping included, over the mean square of "
                            "the values.",
                            ErrorRamp(), ErrorText, pair(error_before, error_after)}),
      MapFigureHtml(sites, {"Trained gains",
                            "Of the channels of each site that has a vector.",
                            RatioRamp(Values(sites, {gain_min, gain_max})),
                            FactorText,
                            {{"smallest", gain_min}, {"largest", gain_max}}}),
      "</div>\n");
}

struct TableColumn {
  const char* title;
  Text text;
  Figure figure;
};

// Columns in which nothing is known are left out.
std::string Table(const std::vector<ReportSite>& sites, size_t all) {
  const std::vector<TableColumn> wanted = {
      {"Scale before", ScaleText, [](const ReportSite& s) { return s.scale_before; }},
      {"after", ScaleText, [](const ReportSite& s) { return s.scale_after; }},
      {"change", FactorText, ScaleChange},
      {"Saturated before", FormatShare, [](const ReportSite& s) { return s.saturated_before; }},
      {"after", FormatShare, [](const ReportSite& s) { return s.saturated_after; }},
      {"Error before", ErrorText, [](const ReportSite& s) { return s.error_before; }},
      {"after", ErrorText, [](const ReportSite& s) { return s.error_after; }},
      {"Smallest gain", FactorText, [](const ReportSite& s) { return s.gain_min; }},
      {"largest", FactorText, [](const ReportSite& s) { return s.gain_max; }}};
  std::vector<TableColumn> columns;
  std::vector<HtmlTable::Column> head = {{"Site"}, {"Bits", true}};
  for (const TableColumn& column : wanted) {
    if (!Known(sites, column.figure)) continue;
    columns.push_back(column);
    head.push_back({column.title, true});
  }
  HtmlTable table("Figures of each site", head, true);
  for (const ReportSite& site : sites) {
    std::vector<std::string> cells = {SiteName(site), absl::StrCat(site.bits)};
    for (const TableColumn& column : columns) cells.push_back(column.text(column.figure(site)));
    table.Row(cells);
  }
  if (sites.size() < all) {
    table.Note(absl::StrCat("The first ", FormatCount(sites.size()), " of ", FormatCount(all),
                            " sites are shown, here and in the maps."));
  }
  return absl::StrCat("<details><summary>All figures of the maps</summary>\n", table.Take(),
                      "</details>\n");
}

}  // namespace

const char* ReportSiteName(ReportSiteKind kind) {
  static constexpr const char* kNames[kReportSiteKinds] = {
      "attn_in", "q", "k", "v", "o_in", "mlp_in", "down_in", "head_in"};
  return kNames[Index(kind)];
}

std::string SitesSection(const std::vector<ReportSite>& all) {
  if (all.empty()) return "";
  const std::vector<ReportSite> sites(all.begin(),
                                      all.begin() + std::min(all.size(), kMaxReportSites));
  const bool wide = std::any_of(sites.begin(), sites.end(),
                                [](const ReportSite& site) { return site.bits == 16; });
  return absl::StrCat(
      "<p>A row is a layer, counted from 0, a column a quantized tensor; attn_in is the input of "
      "q, k and v, mlp_in that of gate and up. ",
      wide ? "A dot marks an int16 input. " : "",
      "Figures appear when the pointer rests on a cell, and stand in the table below.</p>\n",
      Maps(sites), Table(sites, all.size()));
}

}  // namespace fixpoint
