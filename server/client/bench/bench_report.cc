#include "server/client/bench/bench_report.h"

#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/json_writer.h"

namespace fixpoint::client {
namespace {

constexpr double kNothing = std::numeric_limits<double>::quiet_NaN();

double Ms(double nanos) { return nanos * 1e-6; }

// 0 for a run without time, so that no report holds an infinity.
double PerSecond(int64_t count, double seconds) {
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

struct Row {
  const char* key;
  const char* name;
  const LatencyHistogram* histogram;
};

std::vector<Row> Rows(const Totals& totals) {
  return {{"ttft", "time to first token", &totals.first_token},
          {"inter_token", "between messages", &totals.inter_token},
          {"time_per_token", "time per token", &totals.time_per_token},
          {"end_to_end", "end to end", &totals.end_to_end}};
}

std::string Table(const Totals& totals) {
  std::string out = absl::StrFormat("%-20s %10s %10s %10s %10s %10s %9s\n", "milliseconds", "p50",
                                    "p90", "p99", "max", "mean", "count");
  for (const Row& row : Rows(totals)) {
    const LatencyHistogram& h = *row.histogram;
    absl::StrAppendFormat(&out, "%-20s %10.2f %10.2f %10.2f %10.2f %10.2f %9d\n", row.name,
                          Ms(static_cast<double>(h.Percentile(0.5))),
                          Ms(static_cast<double>(h.Percentile(0.9))),
                          Ms(static_cast<double>(h.Percentile(0.99))),
                          Ms(static_cast<double>(h.max())), Ms(h.mean()), h.count());
  }
  return out;
}

std::string Requests(const Totals& totals) {
  std::string out =
      absl::StrFormat("%d requests: %d finished, %d left on purpose, %d failed", totals.requests,
                      totals.finished, totals.left, totals.failures());
  if (totals.cut > 0) absl::StrAppend(&out, ", ", totals.cut, " cut off at the end");
  if (totals.not_sent > 0) {
    absl::StrAppend(&out, ", ", totals.not_sent, " NOT SENT: this generator was too slow");
  }
  if (totals.breaks > 0) absl::StrAppend(&out, "; ", totals.breaks, " broken streams went on");
  return out;
}

std::string Throughput(const LoadResult& result) {
  const Totals& totals = result.totals;
  const double seconds = result.measured_seconds;
  return absl::StrFormat(
      "%.2f requests/s, %.1f output tokens/s, %.1f prompt tokens/s over %.1f s; at most %d streams "
      "open",
      PerSecond(totals.ended, seconds), PerSecond(totals.tokens, seconds),
      PerSecond(totals.prompt_tokens, seconds), seconds, totals.open_max);
}

std::vector<std::string> FailureLines(const Totals& totals) {
  std::vector<std::string> lines;
  for (const auto& [code, count] : totals.failed) {
    lines.push_back(absl::StrCat("failed ", absl::StatusCodeToString(code), ": ", count));
  }
  return lines;
}

std::string WorkloadSentence(const BenchSetup& setup) {
  const WorkloadOptions& workload = setup.workload;
  std::string out = absl::StrCat("prompts ", workload.prompt_tokens.ToString(), " of ",
                                 setup.prompts, ", answers ", workload.output_tokens.ToString());
  if (workload.shared_share > 0) {
    absl::StrAppend(&out, ", ", workload.shared_share * 100, " % share one of ",
                    workload.shared_prefixes, " prefixes of ", workload.shared_tokens, " tokens");
  }
  if (workload.cancel_share > 0) {
    absl::StrAppend(&out, ", ", workload.cancel_share * 100, " % leave early");
  }
  return absl::StrCat(out, ", seed ", workload.seed);
}

void WriteLatencies(const Totals& totals, JsonWriter* json) {
  json->Key("latency_ms");
  json->BeginObject();
  for (const Row& row : Rows(totals)) {
    const LatencyHistogram& h = *row.histogram;
    json->Key(row.key);
    json->BeginObject();
    json->Field("p50", Ms(static_cast<double>(h.Percentile(0.5))));
    json->Field("p90", Ms(static_cast<double>(h.Percentile(0.9))));
    json->Field("p99", Ms(static_cast<double>(h.Percentile(0.99))));
    json->Field("max", Ms(static_cast<double>(h.max())));
    json->Field("mean", Ms(h.mean()));
    json->Field("count", h.count());
    json->EndObject();
  }
  json->EndObject();
}

void WriteSetup(const BenchSetup& setup, JsonWriter* json) {
  json->Key("setup");
  json->BeginObject();
  json->Key("targets");
  json->BeginArray();
  for (const std::string& target : setup.targets) json->String(target);
  json->EndArray();
  json->Field("model", setup.model);
  json->Field("system_fingerprint", setup.system_fingerprint);
  json->Field("server_version", setup.server_version);
  json->Field("started_at", setup.started_at);
  json->Field("loop", setup.load.concurrency > 0 ? "closed" : "open");
  json->Field("concurrency", setup.load.concurrency);
  json->Field("rate", setup.load.rate);
  json->Field("ramp_seconds", setup.load.ramp);
  json->Field("warmup_seconds", setup.load.warmup);
  json->Field("duration_seconds", setup.load.duration);
  json->Field("requests", setup.load.requests);
  json->Field("prompts", setup.prompts);
  json->Field("prompt_tokens", setup.workload.prompt_tokens.ToString());
  json->Field("output_tokens", setup.workload.output_tokens.ToString());
  json->Field("shared_prefix_share", setup.workload.shared_share);
  json->Field("shared_prefix_tokens", setup.workload.shared_tokens);
  json->Field("shared_prefixes", setup.workload.shared_prefixes);
  json->Field("cancel_share", setup.workload.cancel_share);
  json->Field("temperature", setup.temperature);
  json->Field("seed", setup.workload.seed);
  json->EndObject();
}

void WriteTotals(const LoadResult& result, JsonWriter* json) {
  const Totals& totals = result.totals;
  json->Field("measured_seconds", result.measured_seconds);
  json->Key("requests");
  json->BeginObject();
  json->Field("sent", totals.requests - totals.not_sent);
  json->Field("finished", totals.finished);
  json->Field("left_on_purpose", totals.left);
  json->Field("cut_at_the_end", totals.cut);
  json->Field("not_sent", totals.not_sent);
  json->Field("failed", totals.failures());
  json->Key("failed_by_code");
  json->BeginObject();
  for (const auto& [code, count] : totals.failed) {
    json->Field(absl::StatusCodeToString(code), count);
  }
  json->EndObject();
  json->Field("broken_streams_continued", totals.breaks);
  json->Field("open_streams_max", totals.open_max);
  json->EndObject();
  json->Key("throughput");
  json->BeginObject();
  json->Field("requests_per_second", PerSecond(totals.ended, result.measured_seconds));
  json->Field("output_tokens_per_second", PerSecond(totals.tokens, result.measured_seconds));
  json->Field("prompt_tokens_per_second", PerSecond(totals.prompt_tokens, result.measured_seconds));
  json->Field("output_tokens", totals.tokens);
  json->EndObject();
}

void WriteSlices(const LoadResult& result, JsonWriter* json) {
  json->Field("slice_seconds", result.slice_seconds);
  json->Key("slices");
  json->BeginArray();
  for (const Slice& slice : result.slices) {
    json->BeginObject();
    json->Field("output_tokens", slice.tokens);
    json->Field("finished", slice.finished);
    json->Field("failed", slice.failed);
    json->Field("open_max", slice.open_max);
    json->Field("ttft_p50_ms", Ms(static_cast<double>(slice.first_token.Percentile(0.5))));
    json->Field("ttft_p99_ms", Ms(static_cast<double>(slice.first_token.Percentile(0.99))));
    json->Field("inter_token_p50_ms", Ms(static_cast<double>(slice.inter_token.Percentile(0.5))));
    json->Field("inter_token_p99_ms", Ms(static_cast<double>(slice.inter_token.Percentile(0.99))));
    json->EndObject();
  }
  json->EndArray();
}

template <typename Value>
std::vector<double> Series(const LoadResult& result, Value value) {
  std::vector<double> out;
  for (const Slice& slice : result.slices) out.push_back(value(slice));
  return out;
}

PlotPanel LatencyPanel(const char* title, const LoadResult& result,
                       LatencyHistogram Slice::*histogram) {
  PlotPanel panel{.title = title, .log_scale = true};
  for (const auto& [name, share] : {std::pair("p50", 0.5), {"p90", 0.9}, {"p99", 0.99}}) {
    panel.series.push_back({name, Series(result, [&, share = share](const Slice& slice) {
                              const LatencyHistogram& h = slice.*histogram;
                              return h.count() == 0 ? kNothing
                                                    : Ms(static_cast<double>(h.Percentile(share)));
                            })});
  }
  return panel;
}

}  // namespace

std::string LoadSentence(const LoadOptions& load) {
  std::string out = load.concurrency > 0
                        ? absl::StrCat("closed loop of ", load.concurrency, " streams")
                        : absl::StrCat("open loop, ", load.rate, " requests/s (Poisson)");
  absl::StrAppend(&out, ", ");
  if (load.duration > 0) {
    absl::StrAppend(&out, load.duration, " s");
  } else {
    absl::StrAppend(&out, load.requests, " requests");
  }
  if (load.warmup > 0) absl::StrAppend(&out, " behind ", load.warmup, " s of warm-up");
  if (load.ramp > 0) absl::StrAppend(&out, ", ramp of ", load.ramp, " s");
  return out;
}

std::string BenchText(const BenchSetup& setup, const LoadResult& result) {
  std::string out = absl::StrCat(
      setup.model, " (", setup.system_fingerprint, ") at ", absl::StrJoin(setup.targets, ","), "\n",
      LoadSentence(setup.load), "\n", WorkloadSentence(setup), "\n", Requests(result.totals), "\n");
  for (const std::string& line : FailureLines(result.totals)) absl::StrAppend(&out, line, "\n");
  absl::StrAppend(&out, Throughput(result), "\n", Table(result.totals));
  return out;
}

std::string BenchJson(const BenchSetup& setup, const LoadResult& result) {
  JsonWriter json;
  json.BeginObject();
  json.Field("format", "fixpoint-bench-1");
  WriteSetup(setup, &json);
  WriteTotals(result, &json);
  WriteLatencies(result.totals, &json);
  WriteSlices(result, &json);
  json.EndObject();
  return json.Take() + "\n";
}

Plot BenchPlot(const BenchSetup& setup, const LoadResult& result) {
  Plot plot;
  plot.title = absl::StrCat(setup.model, ": ", LoadSentence(setup.load));
  plot.notes = {WorkloadSentence(setup), Requests(result.totals), Throughput(result)};
  for (std::string& line : FailureLines(result.totals)) plot.notes.push_back(std::move(line));
  for (const absl::string_view line :
       absl::StrSplit(Table(result.totals), '\n', absl::SkipEmpty())) {
    plot.notes.emplace_back(line);
  }
  plot.step_seconds = result.slice_seconds;
  plot.warmup_seconds = setup.load.warmup;
  const double seconds = result.slice_seconds;
  plot.panels = {
      LatencyPanel("Time to first token, ms", result, &Slice::first_token),
      LatencyPanel("Between messages, ms", result, &Slice::inter_token),
      {.title = "Output tokens/s",
       .series = {{"tokens/s",
                   Series(result, [&](const Slice& s) { return PerSecond(s.tokens, seconds); })}}},
      {.title = "Requests/s and open streams",
       .series = {{"finished/s",
                   Series(result, [&](const Slice& s) { return PerSecond(s.finished, seconds); })},
                  {"open streams",
                   Series(result, [](const Slice& s) { return static_cast<double>(s.open_max); })},
                  {"failed/s",
                   Series(result, [&](const Slice& s) { return PerSecond(s.failed, seconds); })}}}};
  return plot;
}

}  // namespace fixpoint::client
