#include "calibrator/report/report.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "calibrator/report/charts.h"
#include "calibrator/report/heat.h"
#include "calibrator/report/html.h"
#include "calibrator/report/sample_texts.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "text/utf8.h"

namespace fixpoint {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::Pointwise;

constexpr double kInf = std::numeric_limits<double>::infinity();

TEST(EscapeHtmlTest, MarkupBecomesText) {
  EXPECT_EQ(EscapeHtml("<a b=\"c\">'&amp;'</a>"),
            "&lt;a b=&quot;c&quot;&gt;&#39;&amp;amp;&#39;&lt;/a&gt;");
}

TEST(EscapeHtmlTest, ControlCharactersBecomeVisible) {
  EXPECT_EQ(EscapeHtml(absl::string_view("a\0\r\x1b\x7f\n\t", 7)), "a\u2400\u240d\u241b\u2421\n\t");
  EXPECT_EQ(EscapeHtml("\u0085\ufffe\ufdd0"), "\ufffd\ufffd\ufffd");
}

TEST(EscapeHtmlTest, NothingTurnsTheTextBehindItAround) {
  EXPECT_EQ(EscapeHtml("a\u202eb\u2067c\u2069"), "a\ufffdb\ufffdc\ufffd");
  EXPECT_EQ(EscapeHtml("\u05d0\u200f"), "\u05d0\u200f");
}

TEST(EscapeHtmlTest, EachInvalidPieceBecomesOneReplacement) {
  EXPECT_EQ(EscapeHtml("\xff\xc3(\xe2\x82"), "\ufffd\ufffd(\ufffd");
  EXPECT_EQ(EscapeHtml("\xc0\x80"), "\ufffd\ufffd");  // overlong
  EXPECT_EQ(EscapeHtml("\u00fc \u65e5 \U0001f600"), "\u00fc \u65e5 \U0001f600");
}

TEST(EscapeCutTest, CutsBetweenCodePointsAndSaysSo) {
  EXPECT_EQ(EscapeCut("abc", 3), "abc");
  EXPECT_THAT(EscapeCut("ab\u65e5", 4), AllOf(HasSubstr("ab<span"), HasSubstr("(3 bytes more)")));
  EXPECT_THAT(EscapeCut(std::string(3000, 'x'), 1000), HasSubstr("(2,000 bytes more)"));
  // Nothing but continuation bytes: no code point to keep whole.
  EXPECT_EQ(CutLength(std::string(100, '\x80'), 10), 10);
}

TEST(FormatTest, WhatIsNotFiniteIsADash) {
  for (const double value : {kNotMeasured, kInf, -kInf}) {
    EXPECT_EQ(FormatSignificant(value, 3), kDash);
    EXPECT_EQ(FormatFixed(value, 2), kDash);
    EXPECT_EQ(FormatSigned(value, 2), kDash);
    EXPECT_EQ(FormatPercent(value, 1), kDash);
    EXPECT_EQ(FormatShare(value), kDash);
    EXPECT_EQ(FormatSeconds(value), kDash);
    EXPECT_EQ(FormatScaled(value, ""), kDash);
    EXPECT_EQ(FormatBytes(value), kDash);
  }
}

TEST(FormatTest, FiguresForPeople) {
  EXPECT_EQ(FormatSignificant(0.0098, 3), "0.00980");
  EXPECT_EQ(FormatSignificant(1.2345e-7, 2), "1.2e-7");
  EXPECT_EQ(FormatSignificant(123456, 3), "123456");
  EXPECT_EQ(FormatSignificant(-5, 1), "\u22125");
  EXPECT_EQ(FormatFixed(1e300, 2), "1.000e+300");
  EXPECT_EQ(FormatSigned(0.624, 2), "+0.62");
  EXPECT_EQ(FormatSigned(-0.626, 2), "\u22120.63");
  EXPECT_EQ(FormatSigned(-0.001, 2), "0.00");
  EXPECT_EQ(FormatSigned(0.001, 2), "0.00");
  EXPECT_EQ(FormatPercent(0.9412, 1), "94.1\u00a0%");
  EXPECT_EQ(FormatShare(0), "0");
  EXPECT_EQ(FormatShare(3.1e-6), "3.1\u00a0ppm");
  EXPECT_EQ(FormatShare(0.12), "12\u00a0%");
  EXPECT_EQ(FormatShare(1), "100\u00a0%");
}

TEST(FormatTest, CountsTimesAndSizes) {
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(307200), "307,200");
  EXPECT_EQ(FormatCount(-1234567), "\u22121,234,567");
  EXPECT_EQ(FormatCount(-123), "\u2212123");
  EXPECT_EQ(FormatCount(std::numeric_limits<int64_t>::min()), "\u22129,223,372,036,854,775,808");
  EXPECT_EQ(FormatSeconds(0.42), "0.4\u00a0s");
  EXPECT_EQ(FormatSeconds(9.96), "10\u00a0s");
  EXPECT_EQ(FormatSeconds(59.7), "1\u00a0min 00\u00a0s");
  EXPECT_EQ(FormatSeconds(3720), "1\u00a0h 02\u00a0min");
  EXPECT_EQ(FormatSeconds(-1), kDash);
  EXPECT_EQ(FormatBytes(3.42 * (1 << 30)), "3.42\u00a0GiB");
  EXPECT_EQ(FormatBytes(1023), "0.999\u00a0KiB");
  EXPECT_EQ(FormatBytes(0), "0\u00a0B");
  EXPECT_EQ(FormatScaled(1.21e12, "FLOP/s"), "1.21\u00a0TFLOP/s");
}

TEST(RoundTicksTest, RoundNumbersInsideTheRange) {
  EXPECT_THAT(RoundTicks(0, 150, 5, false), ElementsAre(0, 50, 100, 150));
  EXPECT_THAT(RoundTicks(-0.3, 0.3, 4, false), Pointwise(DoubleNear(1e-12), {-0.2, 0.0, 0.2}));
  EXPECT_THAT(RoundTicks(0.5, 60, 4, true), Pointwise(DoubleNear(1e-9), {1.0, 10.0}));
  EXPECT_THAT(RoundTicks(1, 30, 4, true), Pointwise(DoubleNear(1e-9), {1.0, 2.0, 5.0, 10.0, 20.0}));
}

TEST(RoundTicksTest, FewWhateverTheRange) {
  for (const auto& [low, high] : std::vector<std::pair<double, double>>{
           {1, std::nextafter(1, 2)}, {1e300, 1.1e300}, {4e-324, 8e-324}, {-1e308, 1e308}}) {
    EXPECT_LE(RoundTicks(low, high, 5, false).size(), 25u) << low;
    EXPECT_GE(RoundTicks(low, high, 5, false).size(), 1u) << low;
  }
  EXPECT_LE(RoundTicks(4e-324, 1e99, 5, true).size(), 25u);
}

LineChart SmallChart() {
  return {.label = "l",
          .x_title = "step",
          .x = {0, 1, 2},
          .hover = {"zero", "one", "two"},
          .marked_x = 1,
          .mark_text = "kept",
          .panels = {{.title = "loss", .height = 100, .curves = {{"raw", "n", {1, 3, 2}}}}}};
}

TEST(LineChartTest, DrawsPointsHoverAndMark) {
  const std::string html = LineChartHtml(SmallChart());
  // 8 pixels above the highest, 6 below the lowest.
  EXPECT_THAT(html, HasSubstr("M0.0 94.0L500.0 8.0L1000.0 51.0"));
  EXPECT_THAT(html, HasSubstr("<title>one</title>"));
  EXPECT_THAT(html, HasSubstr("x1=\"50.00%\" x2=\"50.00%\""));
  EXPECT_THAT(html, HasSubstr(">kept</text>"));
}

TEST(LineChartTest, MissingFiguresAreGaps) {
  LineChart chart = SmallChart();
  chart.panels[0].curves[0].y = {1, kNotMeasured, 2};
  EXPECT_THAT(LineChartHtml(chart), HasSubstr("M0.0 94.0M1000.0 8.0"));
  chart.panels[0].curves[0].y = {1, 1e308, 2};  // too large to draw
  EXPECT_THAT(LineChartHtml(chart), HasSubstr("M0.0 94.0M1000.0 8.0"));
  chart.panels[0].curves[0].y = {kInf, kNotMeasured, -kInf};
  EXPECT_THAT(LineChartHtml(chart), Not(HasSubstr("<svg")));
}

TEST(LineChartTest, OnePointAndFlatLinesHaveAPlace) {
  LineChart chart = SmallChart();
  chart.panels[0].curves[0].y = {5, 5, 5};
  EXPECT_THAT(LineChartHtml(chart), HasSubstr("M0.0 51.0L500.0 51.0"));
  chart.x = {7};
  chart.hover = {"seven"};
  chart.panels[0].curves[0].y = {5};
  EXPECT_THAT(LineChartHtml(chart), HasSubstr("M500.0 51.0"));
}

TEST(ForestTest, AxisHoldsZeroAndErrors) {
  const ForestAxis axis = ChooseForestAxis({5, kNotMeasured, -300}, {1, 1, 1});
  EXPECT_LT(axis.low, -40);
  EXPECT_GT(axis.low, -45);
  EXPECT_GT(axis.high, 6);
  EXPECT_LT(axis.high, 9);
  EXPECT_THAT(ForestRowSvg(-300, 1, axis, false), HasSubstr("<path"));  // an arrow at the edge
  EXPECT_THAT(ForestRowSvg(5, 1, axis, false), HasSubstr("<circle"));
  EXPECT_THAT(ForestRowSvg(kNotMeasured, 1, axis, false), IsEmpty());
}

TEST(HeatTest, RatiosAreSymmetricAroundOne) {
  const HeatRamp ramp = RatioRamp({0.7, 1.0, 1.3, kNotMeasured, 0, -1});
  EXPECT_EQ(ramp.edges.size(), 8u);
  for (int i = 0; i < 8; ++i) EXPECT_NEAR(ramp.edges[i] * ramp.edges[7 - i], 1, 1e-12);
  EXPECT_EQ(HeatClass(ramp, 1), "d4");
  EXPECT_EQ(HeatClass(ramp, 0.01), "d0");
  EXPECT_EQ(HeatClass(ramp, 100), "d8");
  EXPECT_EQ(HeatClass(ramp, 0), "");
  EXPECT_EQ(HeatClass(ramp, kNotMeasured), "");
  EXPECT_EQ(RatioRamp({}).edges.size(), 8u);
}

TEST(HeatTest, EveryClassHasAColour) {
  // report_style paints s0 to s7, sz and d0 to d8.
  EXPECT_EQ(ShareRamp().edges.size(), 6u);
  EXPECT_EQ(ErrorRamp().edges.size(), 7u);
  EXPECT_EQ(HeatClass(ShareRamp(), 0), "sz");
  EXPECT_EQ(HeatClass(ShareRamp(), 1e-9), "s0");
  EXPECT_EQ(HeatClass(ShareRamp(), 1e-6), "s1");
  EXPECT_EQ(HeatClass(ShareRamp(), 1), "s6");
  EXPECT_EQ(HeatClass(ErrorRamp(), 0), "s0");
  EXPECT_EQ(HeatClass(ErrorRamp(), 5), "s7");
  EXPECT_EQ(HeatClass(ErrorRamp(), -1), "");
  for (const HeatRamp& ramp : {ShareRamp(), ErrorRamp(), RatioRamp({2})}) {
    EXPECT_EQ(ramp.labels.size(), ramp.edges.size());
  }
}

TEST(SamplesTest, FirstDifferenceStartsACodePoint) {
  EXPECT_EQ(FirstDifference("abc", "abd"), 2u);
  EXPECT_EQ(FirstDifference("abc", "abcd"), 3u);
  EXPECT_EQ(FirstDifference("", "x"), 0u);
  EXPECT_EQ(FirstDifference("a\u00fc", "a\u00f6"), 1u);  // differ in the second byte of two
  EXPECT_EQ(FirstDifference("a\U0001f600", "a\U0001f601"), 1u);
}

TEST(SamplesTest, MarksTheWordThatDiffers) {
  EXPECT_EQ(MarkedText("one two three", 4, 100), "one <mark>two</mark> three");
  EXPECT_EQ(MarkedText("one", 3, 100), "one<mark class=\"end\">end</mark>");
  EXPECT_EQ(MarkedText("one two", std::string::npos, 100), "one two");
  EXPECT_EQ(MarkedText("<b> <i>", 4, 100), "&lt;b&gt; <mark>&lt;i&gt;</mark>");
  // Without spaces the mark ends somewhere.
  EXPECT_THAT(MarkedText(std::string(200, 'x'), 0, 1000), HasSubstr("x</mark>x"));
  // Beyond the cut there is nothing to mark.
  EXPECT_THAT(MarkedText(std::string(200, 'x'), 150, 100),
              AllOf(Not(HasSubstr("mark")), HasSubstr("(100 bytes more)")));
  EXPECT_THAT(MarkedText(std::string(200, 'x'), 90, 100),
              HasSubstr("xx</mark><span class=\"cut\""));
}

TEST(SamplesTest, SaysHowMuchIsTheSame) {
  EXPECT_EQ(DifferenceText("\u00fcber", "\u00fcber"), "Identical, 4 characters.");
  EXPECT_EQ(DifferenceText("\u00fcb", "\u00fcc"), "The same for the first 1 character.");
  EXPECT_EQ(DifferenceText("a", "b"), "Different from the first character on.");
}

ReportData SmallData() {
  ReportData data{.model_name = "tiny", .track = ReportTrack::kNeutral, .held_out_tokens = 4096};
  data.integer = {20.1, 0.5, 0.2, 0.0123, 0.93};
  data.perplexity = {{"float", {20}, "note"}, {"integer", data.integer, "", true}};
  data.sites = {{.layer = 3,
                 .kind = ReportSiteKind::kDownIn,
                 .bits = 16,
                 .scale_before = 2,
                 .scale_after = 1,
                 .saturated_after = 0.5}};
  return data;
}

TEST(WriteReportTest, VerdictHasTheThreeFigures) {
  ReportData data = SmallData();
  EXPECT_THAT(WriteReport(data), HasSubstr("<b>0.50\u00a0%</b> above"));
  EXPECT_THAT(WriteReport(data), HasSubstr("<b>0.0123</b> nats"));
  EXPECT_THAT(WriteReport(data), HasSubstr("<b>93.0\u00a0%</b> of all places."));
  data.budget_percent = 0.4;
  EXPECT_THAT(WriteReport(data), HasSubstr("beyond the budget of +0.4\u00a0%"));
  data.integer.relative_percent = -20;
  EXPECT_THAT(WriteReport(data), HasSubstr("<b>20.00\u00a0%</b> below"));
  data.integer = {};
  EXPECT_THAT(WriteReport(data), HasSubstr("The integer engine was not measured."));
}

TEST(WriteReportTest, OnlyWhatIsThereHasASection) {
  const std::string html = WriteReport(SmallData());
  EXPECT_THAT(html, HasSubstr("id=\"perplexity\""));
  EXPECT_THAT(html, HasSubstr("id=\"sites\""));
  for (const char* id : {"training", "int16", "samples", "run"}) {
    EXPECT_THAT(html, Not(HasSubstr(absl::StrCat("id=\"", id, "\""))));
    EXPECT_THAT(html, Not(HasSubstr(absl::StrCat("#", id))));
  }
  EXPECT_THAT(WriteReport({}), HasSubstr("Unnamed model"));
}

TEST(WriteReportTest, SitesAreNamedWithTheirFigures) {
  const std::string html = WriteReport(SmallData());
  EXPECT_THAT(html, HasSubstr("<title>layers.3.down_in (int16): \u00d70.500</title>"));
  EXPECT_THAT(html, HasSubstr("<title>layers.3.down_in (int16): 50\u00a0%</title>"));
  EXPECT_THAT(html, Not(HasSubstr("Relative rounding error")));  // nothing known
  EXPECT_THAT(html, Not(HasSubstr("Trained gains")));
}

TEST(WriteReportTest, AdaptedIsLabelledWithItsControl) {
  ReportData data = SmallData();
  data.track = ReportTrack::kAdapted;
  data.control_gap_percent = 0.54;
  EXPECT_THAT(WriteReport(data), AllOf(HasSubstr("adapted track"), HasSubstr("+0.54\u00a0%"),
                                       HasSubstr("float control")));
  EXPECT_THAT(WriteReport(SmallData()), Not(HasSubstr("control</dt>")));
}

TEST(WriteReportTest, ThinsLongTrainingsAndKeepsWhatMatters) {
  ReportData data = SmallData();
  for (int64_t step = 0; step < 20000; ++step) {
    data.training.points.push_back({.step = step, .tokens = step, .loss = 1.0 + step});
    if (step % 1000 == 500) data.training.points.back().held_out = 7;
  }
  data.training.kept_step = 12345;
  const std::string html = WriteReport(data);
  EXPECT_THAT(html, HasSubstr("kept: step 12,345"));
  EXPECT_THAT(html, HasSubstr("600 of 20,000 steps are shown."));
  for (const char* step : {"0", "500", "1,500", "12,345", "19,500", "19,999"}) {
    EXPECT_THAT(html, HasSubstr(absl::StrCat("<th scope=\"row\" class=\"num\">", step, "</th>")));
  }
}

TEST(WriteReportTest, StepsOutOfOrderAndTwiceAreSorted) {
  ReportData data = SmallData();
  data.training.points = {{.step = 2, .loss = 3}, {.step = 1, .loss = 1}, {.step = 2, .loss = 9}};
  EXPECT_THAT(WriteReport(data), HasSubstr("M0.0 154.0L1000.0 8.0\""));
}

TEST(WriteReportTest, TextsCannotLeaveTheirPlace) {
  const std::string attack = "\"'></title></style><script>x</script>\xff";
  ReportData data = SmallData();
  data.model_name = data.calibrator = attack;
  data.remarks = {attack};
  data.perplexity = {{attack, {}, attack}};
  data.training = {attack, attack, {{.step = 1, .loss = 1, .held_out = 1}}, 1, attack};
  data.wide_sites = {{{attack, 0.1, 0.2, 0.1}}, attack};
  data.samples = {{attack, attack, attack + "x"}};
  data.run.durations = {{attack, 1}};
  data.settings = data.digests = {{attack, attack}};
  const std::string html = WriteReport(data);
  EXPECT_THAT(html, Not(HasSubstr("<script")));
  EXPECT_TRUE(IsValidUtf8(html));
  size_t styles = 0;
  for (size_t at = html.find("</style>"); at != std::string::npos;
       at = html.find("</style>", at + 1)) {
    ++styles;
  }
  EXPECT_EQ(styles, 1u);
}

TEST(WriteReportTest, SizeHasABound) {
  const std::string quotes(20000, '"');  // six bytes each
  ReportData data;
  data.model_name = data.calibrator = quotes;
  data.remarks.assign(1000, quotes);
  data.perplexity.assign(1000, {quotes, {1, -1.0 / 3, 1, 1e-9, 1e-9}, quotes, true});
  for (int64_t i = 0; i < 5000; ++i) {
    data.training.points.push_back({i * 10000019, i * 400000007, -1e-9 * i, -1e-9, -1e-9, 1e-9});
  }
  data.training.stop_reason = quotes;
  for (int32_t i = 0; i < 10000; ++i) {
    data.sites.push_back({std::numeric_limits<int32_t>::min() + i,
                          static_cast<ReportSiteKind>(i % 7), 16, 1e-9, 1e-7, 1e-9, 1e-9, 1e-9,
                          1e-9, 0.9, 1.1});
  }
  data.wide_sites.chosen.assign(1000, {quotes, 1e-9, 1e-9, 1e-8});
  data.samples.assign(100, {quotes, quotes, quotes + "x"});
  data.run.durations.assign(1000, {quotes, 1e8});
  data.settings.assign(1000, {quotes, quotes});
  data.digests = data.settings;
  const std::string html = WriteReport(data);
  EXPECT_LT(html.size(), kMaxReportBytes);
  EXPECT_GT(html.size(), kMaxReportBytes / 4);  // else the bound says little
  EXPECT_THAT(html, HasSubstr("The first 2,048 of 10,000 sites are shown"));
  EXPECT_THAT(html, HasSubstr("The first 200 of 1,000 rows."));
  EXPECT_THAT(html, HasSubstr("76 more samples are not shown."));
}

}  // namespace
}  // namespace fixpoint
