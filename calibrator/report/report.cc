#include "calibrator/report/report.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "calibrator/report/charts.h"
#include "calibrator/report/html.h"
#include "calibrator/report/sample_texts.h"
#include "calibrator/report/sections.h"
#include "calibrator/report/style.h"

namespace fixpoint {
namespace {

constexpr char kPercent[] = "\u00a0%";

std::string Name(const std::string& bytes) { return EscapeCut(bytes, kMaxReportNameBytes); }
std::string Note(const std::string& bytes) { return EscapeCut(bytes, kMaxReportNoteBytes); }
// Four decimals line up in tables and are more than noise leaves; very small ones get digits.
std::string Kl(double kl) {
  return std::abs(kl) < 5e-4 ? FormatSignificant(kl, 2) : FormatFixed(kl, 4);
}

// "+0.62 %"
std::string SignedPercent(double percent) {
  if (!std::isfinite(percent)) return kDash;
  return absl::StrCat(FormatSigned(percent, 2), kPercent);
}

std::string PlusMinus(double error) {
  return std::isfinite(error) ? absl::StrCat("\u00b1\u00a0", FormatFixed(std::abs(error), 2)) : "";
}

std::string TrackText(ReportTrack track) {
  switch (track) {
    case ReportTrack::kNotTrained:
      return "scales from statistics, not trained";
    case ReportTrack::kNeutral:
      return "neutral track: scales trained towards the float model (KL)";
    case ReportTrack::kAdapted:
      return "adapted track: scales trained on the next token of the corpus (CE)";
  }
  return "";
}

std::string Verdict(const ReportData& data) {
  const ReportFigures& figures = data.integer;
  if (!std::isfinite(figures.relative_percent) && !std::isfinite(figures.kl)) {
    return "The integer engine was not measured.";
  }
  std::string text = "On ";
  absl::StrAppend(
      &text, data.held_out_tokens > 0 ? absl::StrCat(FormatCount(data.held_out_tokens), " ") : "",
      "held-out tokens the perplexity of the integer engine is <b>",
      FormatFixed(std::abs(figures.relative_percent), 2), kPercent, "</b> ",
      figures.relative_percent < 0 ? "below" : "above",
      " that of float, its mean KL to float is <b>", Kl(figures.kl),
      "</b> nats a token, and its most likely next token is that of float in <b>",
      FormatPercent(figures.top1, 1), "</b> of all places");
  if (std::isfinite(data.budget_percent) && std::isfinite(figures.relative_percent)) {
    absl::StrAppend(&text,
                    figures.relative_percent <= data.budget_percent ? ", within" : ", beyond",
                    " the budget of ", FormatSigned(data.budget_percent, 1), kPercent);
  }
  return text + ".";
}

std::string Tiles(const ReportData& data) {
  const ReportFigures& figures = data.integer;
  const auto tile = [](const char* name, const std::string& figure, const std::string& more) {
    return absl::StrCat("<div><dt>", name, "</dt><dd class=\"figure\">", figure,
                        "</dd><dd class=\"more\">", more, "</dd></div>\n");
  };
  const std::string error = PlusMinus(figures.standard_error_percent);
  std::string html = absl::StrCat(
      "<dl class=\"tiles\">\n",
      tile("Perplexity against float", SignedPercent(figures.relative_percent),
           error.empty() ? "" : absl::StrCat(error, " standard error")),
      tile("Mean KL to float", Kl(figures.kl), "nats a token"),
      tile("Same most likely token", FormatPercent(figures.top1, 1), "of held-out tokens"));
  if (data.track == ReportTrack::kAdapted && std::isfinite(data.control_gap_percent)) {
    absl::StrAppend(&html,
                    tile("Perplexity against the control", SignedPercent(data.control_gap_percent),
                         "float, adapted in the same way"));
  }
  return html + "</dl>\n";
}

std::string Header(const ReportData& data) {
  std::string html =
      absl::StrCat("<header>\n<p class=\"kind\">Calibration report \u00b7 ", TrackText(data.track),
                   "</p>\n<h1>", data.model_name.empty() ? "Unnamed model" : Name(data.model_name),
                   "</h1>\n<p class=\"verdict\">", Verdict(data), "</p>\n", Tiles(data));
  if (data.track == ReportTrack::kAdapted) {
    absl::StrAppend(
        &html,
        "<p>Adapted scales act as gains that learn the corpus, so that perplexity can "
        "fall below that of float. What quantization costs is the distance to the "
        "float control, which learned from the same text with the same parameters.</p>\n");
  }
  if (!data.remarks.empty()) {
    absl::StrAppend(&html, "<ul class=\"remarks\">\n");
    const size_t shown = std::min(data.remarks.size(), kMaxReportRows);
    for (size_t i = 0; i < shown; ++i) {
      absl::StrAppend(&html, "<li>", Note(data.remarks[i]), "</li>\n");
    }
    if (shown < data.remarks.size()) {
      absl::StrAppend(&html, "<li>", FormatCount(data.remarks.size() - shown),
                      " more remarks are not shown.</li>\n");
    }
    absl::StrAppend(&html, "</ul>\n");
  }
  return html;
}

void NoteRest(size_t all, HtmlTable* table) {
  if (all > kMaxReportRows) {
    table->Note(absl::StrCat("The first ", kMaxReportRows, " of ", FormatCount(all), " rows."));
  }
}

std::string PerplexitySection(const ReportData& data) {
  const std::vector<ReportPerplexityRow> rows(
      data.perplexity.begin(),
      data.perplexity.begin() + std::min(data.perplexity.size(), kMaxReportRows));
  if (rows.empty()) return "";
  std::vector<double> relative, errors;
  double largest_kl = 0;
  for (const ReportPerplexityRow& row : rows) {
    relative.push_back(row.figures.relative_percent);
    errors.push_back(row.figures.standard_error_percent);
    if (std::isfinite(row.figures.kl)) largest_kl = std::max(largest_kl, row.figures.kl);
  }
  const ForestAxis axis = ChooseForestAxis(relative, errors);
  HtmlTable table("Perplexity, KL and top-1 agreement", {{"Model"},
                                                         {"Perplexity", true},
                                                         {"Against float", true},
                                                         {"\u2506 float"},
                                                         {"KL to float", true},
                                                         {""},
                                                         {"Top-1", true},
                                                         {"Note"}});
  for (const ReportPerplexityRow& row : rows) {
    const ReportFigures& figures = row.figures;
    table.Row(
        {absl::StrCat("<span class=\"name\">", Name(row.name), "</span>"),
         FormatFixed(figures.perplexity, 3),
         absl::StrCat(SignedPercent(figures.relative_percent), " ",
                      PlusMinus(figures.standard_error_percent)),
         ForestRowSvg(figures.relative_percent, figures.standard_error_percent, axis, row.shipped),
         Kl(figures.kl), BarSvg(figures.kl, largest_kl, row.shipped),
         FormatPercent(figures.top1, 1),
         absl::StrCat("<div class=\"note\">", Note(row.note), "</div>")},
        row.shipped ? "shipped" : "");
  }
  NoteRest(data.perplexity.size(), &table);
  return absl::StrCat(
      table.Take(),
      "<p class=\"soft\">Perplexity against float in percent, with the standard error of paired "
      "windows in points; the dotted line is float. KL and top-1 are the surer judges: what "
      "sharpens a distribution can lower perplexity while it moves away from float.</p>\n");
}

std::string WideSitesSection(const ReportWideSites& wide) {
  if (wide.chosen.empty() && wide.stop_reason.empty()) return "";
  double work = 0, most = 0;
  for (const ReportWideSite& site : wide.chosen) {
    if (std::isfinite(site.work_share)) work += site.work_share;
    if (std::isfinite(site.kl_before - site.kl_after)) {
      most = std::max(most, site.kl_before - site.kl_after);
    }
  }
  std::string html = "<p>";
  if (wide.chosen.empty()) {
    absl::StrAppend(&html, "No site needs int16 inputs. ");
  } else {
    absl::StrAppend(
        &html, wide.chosen.size() == 1 ? "One site" : FormatCount(wide.chosen.size()),
        wide.chosen.size() == 1 ? " has an int16 input, " : " sites have int16 inputs, ",
        FormatPercent(work, 1), " more multiplications in the layers. ");
  }
  if (std::isfinite(wide.kl_start) && std::isfinite(wide.kl_end)) {
    absl::StrAppend(&html, "KL to float during the search: ", Kl(wide.kl_start),
                    " with all inputs "
                    "in int8, ",
                    Kl(wide.kl_end), " at its end. ");
  }
  if (!wide.stop_reason.empty()) {
    absl::StrAppend(&html, "The search ended: ", Note(wide.stop_reason), ".");
  }
  absl::StrAppend(&html, "</p>\n");
  if (wide.chosen.empty()) return html;
  HtmlTable table(
      "int16 sites",
      {{"Site"}, {"Work", true}, {"KL before", true}, {"after", true}, {"Bought", true}, {""}});
  for (size_t i = 0; i < std::min(wide.chosen.size(), kMaxReportRows); ++i) {
    const ReportWideSite& site = wide.chosen[i];
    const double bought = site.kl_before - site.kl_after;
    table.Row({Name(site.name), FormatPercent(site.work_share, 2), Kl(site.kl_before),
               Kl(site.kl_after), Kl(bought), BarSvg(bought, most, false)});
  }
  NoteRest(wide.chosen.size(), &table);
  return html + table.Take();
}

std::string SamplesSection(const std::vector<ReportSample>& samples) {
  if (samples.empty()) return "";
  std::string html =
      "<p>Prompts, continued by the float model and by the integer engine. The first place where "
      "they differ is marked; from there on each follows its own text.</p>\n";
  for (size_t i = 0; i < std::min(samples.size(), kMaxReportSamples); ++i) {
    const ReportSample& sample = samples[i];
    const bool same = sample.float_text == sample.integer_text;
    const size_t at =
        same ? std::string::npos : FirstDifference(sample.float_text, sample.integer_text);
    const auto side = [&](const char* title, const std::string& text) {
      return absl::StrCat("<div><h4>", title,
                          "</h4><div class=\"text\" dir=\"auto\" tabindex=\"0\">",
                          MarkedText(text, at, kMaxReportTextBytes), "</div></div>\n");
    };
    absl::StrAppend(&html, "<article class=\"sample\">\n<div class=\"prompt\"><h4>Prompt</h4>",
                    "<div class=\"text\" dir=\"auto\">",
                    EscapeCut(sample.prompt, kMaxReportTextBytes), "</div></div>\n",
                    "<div class=\"twins\">\n", side("Float", sample.float_text),
                    side("Integer", sample.integer_text), "</div>\n<p class=\"same\">",
                    DifferenceText(sample.float_text, sample.integer_text), "</p>\n</article>\n");
  }
  if (samples.size() > kMaxReportSamples) {
    absl::StrAppend(&html, "<p class=\"soft\">", FormatCount(samples.size() - kMaxReportSamples),
                    " more samples are not shown.</p>\n");
  }
  return html;
}

std::string KeyValues(const char* title, const ReportKeyValues& pairs) {
  if (pairs.empty()) return "";
  HtmlTable table(title, {{"Name"}, {"Value"}});
  for (size_t i = 0; i < std::min(pairs.size(), kMaxReportRows); ++i) {
    table.Row({Name(pairs[i].first), Note(pairs[i].second)});
  }
  NoteRest(pairs.size(), &table);
  return absl::StrCat("<div class=\"pairs\">\n<h3>", title, "</h3>\n", table.Take(), "</div>\n");
}

std::string Durations(const ReportRun& run) {
  if (run.durations.empty()) return "";
  double total = 0, longest = 0;
  for (const ReportDuration& duration : run.durations) {
    if (!std::isfinite(duration.seconds)) continue;
    total += duration.seconds;
    longest = std::max(longest, duration.seconds);
  }
  HtmlTable table("Durations", {{"Stage"}, {"Time", true}, {""}});
  for (size_t i = 0; i < std::min(run.durations.size(), kMaxReportRows); ++i) {
    const ReportDuration& duration = run.durations[i];
    table.Row({Name(duration.stage), FormatSeconds(duration.seconds),
               BarSvg(duration.seconds, longest, false)});
  }
  NoteRest(run.durations.size(), &table);
  table.Row({"all", FormatSeconds(total), ""}, "shipped");
  return absl::StrCat("<div>\n<h3>Durations</h3>\n", table.Take(), "</div>\n");
}

std::string RunSection(const ReportData& data) {
  ReportKeyValues machine;
  const ReportRun& run = data.run;
  const auto add = [&](const std::string& name, double value, const std::string& text) {
    if (std::isfinite(value)) machine.push_back({name, text});
  };
  add("peak memory", run.peak_memory_bytes, FormatBytes(run.peak_memory_bytes));
  add("training speed", run.training_tokens_per_second,
      absl::StrCat(FormatSignificant(run.training_tokens_per_second, 4), "\u00a0tokens/s"));
  add(absl::StrCat("share of the ", run.products, " peak"), run.peak_share,
      FormatPercent(run.peak_share, 1));
  add(absl::StrCat(run.products, " peak"), run.peak_flops, FormatScaled(run.peak_flops, "FLOP/s"));
  const std::string html =
      absl::StrCat(KeyValues("Settings", data.settings), Durations(run),
                   KeyValues("Speed and memory", machine), KeyValues("Digests", data.digests));
  return html.empty() ? "" : absl::StrCat("<div class=\"columns\">\n", html, "</div>\n");
}

struct Section {
  const char* id;
  const char* title;
  std::string html;
};

std::string Body(const ReportData& data) {
  std::vector<Section> sections;
  sections.push_back({"perplexity", "Perplexity", PerplexitySection(data)});
  sections.push_back({"training", "Training", TrainingSection(data.training)});
  sections.push_back({"sites", "Scales, saturation and errors", SitesSection(data.sites)});
  sections.push_back({"int16", "int16 sites", WideSitesSection(data.wide_sites)});
  sections.push_back({"samples", "Samples", SamplesSection(data.samples)});
  sections.push_back({"run", "Settings and run", RunSection(data)});
  std::string html = Header(data), content;
  absl::StrAppend(&html, "<nav aria-label=\"Sections\"><ul>\n");
  for (const Section& section : sections) {
    if (section.html.empty()) continue;
    absl::StrAppend(&html, "<li><a href=\"#", section.id, "\">", section.title, "</a></li>\n");
    absl::StrAppend(&content, "<section id=\"", section.id, "\">\n<h2>", section.title, "</h2>\n",
                    section.html, "</section>\n");
  }
  absl::StrAppend(&html, "</ul></nav>\n</header>\n<main>\n", content, "</main>\n<footer>\n<p>");
  if (!data.calibrator.empty()) absl::StrAppend(&html, "Written by ", Name(data.calibrator), ". ");
  absl::StrAppend(&html, "KL is the mean of KL(float || model) in nats.</p>\n</footer>\n");
  return html;
}

}  // namespace

std::string WriteReport(const ReportData& data) {
  // The policy lets the page load nothing and run nothing, whatever its texts hold.
  return absl::StrCat(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
      "'unsafe-inline'\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>",
      EscapeHtml(data.model_name.substr(0, CutLength(data.model_name, kMaxReportNameBytes))),
      " \u2013 calibration</title>\n<style>", kReportStyle, "</style>\n</head>\n<body>\n",
      Body(data), "</body>\n</html>\n");
}

}  // namespace fixpoint
