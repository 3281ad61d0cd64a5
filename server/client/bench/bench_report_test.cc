#include "server/client/bench/bench_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <simdjson.h>

#include <limits>
#include <vector>

namespace fixpoint::client {
namespace {

using testing::HasSubstr;
using testing::Not;

// Every tag is closed, in order, and no attribute or text breaks out.
void ExpectWellFormed(const std::string& xml) {
  std::vector<std::string> open;
  for (size_t at = 0; at < xml.size();) {
    if (xml[at] != '<') {
      ASSERT_NE(xml[at], '>') << "at " << at;
      if (xml[at] == '&') {
        ASSERT_NE(xml.find(';', at), std::string::npos);
      }
      ++at;
      continue;
    }
    const size_t end = xml.find('>', at);
    ASSERT_NE(end, std::string::npos);
    std::string tag = xml.substr(at + 1, end - at - 1);
    ASSERT_EQ(tag.find('<'), std::string::npos) << tag;
    at = end + 1;
    if (tag[0] == '/') {
      ASSERT_FALSE(open.empty());
      ASSERT_EQ(tag.substr(1), open.back());
      open.pop_back();
    } else if (tag.back() != '/') {
      open.push_back(tag.substr(0, tag.find(' ')));
    }
  }
  EXPECT_TRUE(open.empty());
}

void ExpectSound(const std::string& svg) {
  ExpectWellFormed(svg);
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, Not(HasSubstr("inf")));
  EXPECT_THAT(svg, HasSubstr("prefers-color-scheme:dark"));
  EXPECT_THAT(svg, Not(HasSubstr("href")));
  EXPECT_THAT(svg, Not(HasSubstr("url(")));
  EXPECT_THAT(svg, Not(HasSubstr("<script")));
}

TEST(SvgPlotTest, TextIsEscaped) {
  Plot plot{.title = "a<b> & \"c\"", .notes = {"x < y"}};
  plot.panels = {{.title = "<script>", .series = {{"</svg>", {1, 2}}}}};
  const std::string svg = RenderSvg(plot);
  ExpectSound(svg);
  EXPECT_THAT(svg, HasSubstr("a&lt;b&gt; &amp; &quot;c&quot;"));
}

TEST(SvgPlotTest, HostileNumbersAreLeftOut) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double inf = std::numeric_limits<double>::infinity();
  for (const bool log : {false, true}) {
    for (const std::vector<double>& values : std::vector<std::vector<double>>{
             {}, {nan}, {0}, {0, 0, 0}, {nan, 5, nan}, {inf, 1}, {-1, 3}, {1e-9, 1e12}, {7}}) {
      Plot plot{.title = "t", .step_seconds = 0.25, .warmup_seconds = 100};
      plot.panels = {{.title = "p", .log_scale = log, .series = {{"s", values}, {"u", {1}}}}};
      ExpectSound(RenderSvg(plot));
    }
  }
  ExpectSound(RenderSvg({}));
}

TEST(SvgPlotTest, PointsLieWhereTheyBelong) {
  Plot plot{.title = "t", .step_seconds = 1};
  plot.panels = {{.title = "p", .series = {{"s", {0, 10, 5}}}}};
  const std::string svg = RenderSvg(plot);
  // Three steps over 870 pixels from 70 on; top of the panel at 68, bottom at 218; 0 to 10.
  EXPECT_THAT(svg, HasSubstr("d=\"M215.0 218.0h0L505.0 68.0L795.0 143.0\""));
}

TEST(SvgPlotTest, GapsInterruptTheLine) {
  Plot plot{.title = "t"};
  plot.panels = {
      {.title = "p", .series = {{"s", {10, std::numeric_limits<double>::quiet_NaN(), 10}}}}};
  EXPECT_THAT(RenderSvg(plot), HasSubstr("d=\"M215.0 68.0h0M795.0 68.0h0\""));
}

TEST(SvgPlotTest, DecadesOfALogScaleAreEvenlySpaced) {
  Plot plot{.title = "t"};
  plot.panels = {{.title = "p", .log_scale = true, .series = {{"s", {1, 10, 100}}}}};
  EXPECT_THAT(RenderSvg(plot), HasSubstr("d=\"M215.0 218.0h0L505.0 143.0L795.0 68.0\""));
}

BenchSetup ExampleSetup() {
  BenchSetup setup;
  setup.targets = {"a:1", "b:2"};
  setup.model = "tiny";
  setup.load = {.rate = 5, .warmup = 1, .duration = 10};
  setup.workload.prompt_tokens = *LengthDistribution::Parse("", "uniform:1:9");
  setup.workload.output_tokens = *LengthDistribution::Parse("", "4");
  setup.workload.seed = 3;
  setup.prompts = "random tokens";
  return setup;
}

LoadResult Result() {
  LoadResult result{.slice_seconds = 0.25, .measured_seconds = 10};
  Totals& totals = result.totals;
  totals.requests = 12;
  totals.finished = totals.ended = 10;
  totals.tokens = 50;
  totals.failed = {{absl::StatusCode::kUnavailable, 2}};
  for (int i = 1; i <= 100; ++i) totals.first_token.Add(i * 1'000'000);
  result.slices.resize(3);
  result.slices[1].tokens = 50;
  result.slices[1].first_token = totals.first_token;
  return result;
}

TEST(BenchReportTest, TextTellsCountsPercentilesAndFailures) {
  const std::string text = BenchText(ExampleSetup(), Result());
  EXPECT_THAT(text, HasSubstr("open loop, 5 requests/s (Poisson), 10 s behind 1 s of warm-up"));
  EXPECT_THAT(text, HasSubstr("12 requests: 10 finished, 0 left on purpose, 2 failed"));
  EXPECT_THAT(text, HasSubstr("failed UNAVAILABLE: 2"));
  EXPECT_THAT(text, HasSubstr("1.00 requests/s, 5.0 output tokens/s"));
  EXPECT_THAT(text, HasSubstr("time to first token       50."));
}

TEST(BenchReportTest, JsonIsJson) {
  simdjson::dom::parser parser;
  for (const LoadResult& result : {Result(), LoadResult()}) {
    const std::string json = BenchJson(ExampleSetup(), result);
    simdjson::dom::element document;
    ASSERT_EQ(parser.parse(json).get(document), simdjson::SUCCESS) << json;
    int64_t finished = -1;
    ASSERT_EQ(document.at_pointer("/requests/finished").get(finished), simdjson::SUCCESS);
    EXPECT_EQ(finished, result.totals.finished);
    double p99 = -1;
    ASSERT_EQ(document.at_pointer("/latency_ms/ttft/p99").get(p99), simdjson::SUCCESS);
    EXPECT_NEAR(p99, result.totals.finished > 0 ? 99 : 0, 0.8);
  }
}

TEST(BenchReportTest, PlotsAreSoundWithAndWithoutData) {
  ExpectSound(RenderSvg(BenchPlot(ExampleSetup(), Result())));
  ExpectSound(RenderSvg(BenchPlot(ExampleSetup(), LoadResult())));
}

}  // namespace
}  // namespace fixpoint::client
