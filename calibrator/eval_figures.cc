#include "calibrator/eval_figures.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/json_writer.h"

namespace fixpoint {
namespace {

// Percentile intervals from fewer windows than this are too narrow to be believed.
constexpr int32_t kFewWindows = 10;

const EvalModel* Find(const EvalFigures& f, const std::string& name) {
  for (const EvalModel& model : f.models) {
    if (model.name == name) return &model;
  }
  return nullptr;
}

std::string Verdict(const PairedDifference& difference) {
  if (!difference.significant) return "no significant difference";
  return difference.mean < 0 ? "better" : "worse";
}

double Percent(double log_ratio) { return 100 * std::expm1(log_ratio); }

void WriteIds(const char* key, const std::vector<int32_t>& ids, JsonWriter* json) {
  json->Key(key);
  json->BeginArray();
  for (const int32_t id : ids) json->Int(id);
  json->EndArray();
}

void WriteBundle(const char* key, const EvalBundle& bundle, JsonWriter* json) {
  json->Key(key);
  json->BeginObject();
  json->Field("path", bundle.path);
  json->Field("digest", bundle.digest);
  WriteIds("prefix_token_ids", bundle.prefix_token_ids, json);
  json->EndObject();
}

void WriteAgainst(const EvalAgainst& against, JsonWriter* json) {
  json->Field("relative_percent", against.relative.percent);
  json->Field("standard_error_percent", against.relative.standard_error_percent);
  json->Field("kl_mean", against.kl_mean);
  json->Field("kl_median", against.kl_median);
  json->Field("kl_p99", against.kl_p99);
  json->Field("top1_agreement", against.top1_agreement);
}

void WriteAllAgainst(const std::vector<EvalAgainst>& all, JsonWriter* json) {
  if (all.empty()) return;
  json->Key("against");
  json->BeginObject();
  for (const EvalAgainst& against : all) {
    json->Key(against.reference);
    json->BeginObject();
    WriteAgainst(against, json);
    json->EndObject();
  }
  json->EndObject();
}

void WriteReference(const char* key, const EvalFigures& f, const EvalReference& reference,
                    JsonWriter* json) {
  json->Key(key);
  json->BeginObject();
  json->Field("perplexity", reference.perplexity);
  WriteIds("token_ids", reference.token_ids, json);
  const EvalModel* moved = Find(f, "float");
  if (moved != nullptr && &reference == &f.references.front())
    WriteAllAgainst(moved->against, json);
  json->EndObject();
}

void WriteReferences(const EvalFigures& f, JsonWriter* json) {
  for (const EvalReference& reference : f.references) {
    if (reference.name == "own") {
      WriteReference("float_prefix", f, reference, json);
    } else if (reference.name == "bos") {
      WriteReference("float", f, reference, json);
      // Without a reference of its own the bundle's prefix is BOS alone, or not asked for.
      if (f.references.size() == 1 && !f.bundles.empty() &&
          f.bundles[0].prefix_token_ids == reference.token_ids) {
        WriteReference("float_prefix", f, reference, json);
      }
    } else {
      WriteReference(reference.name == "none" ? "float_none" : "float_ids", f, reference, json);
    }
  }
}

void WriteModels(const EvalFigures& f, JsonWriter* json) {
  for (const EvalModel& model : f.models) {
    if (model.name == "float") continue;
    json->Key(model.name);
    json->BeginObject();
    json->Field("perplexity", model.perplexity);
    if (!model.against.empty()) WriteAgainst(model.against.front(), json);
    WriteAllAgainst(model.against, json);
    json->EndObject();
  }
  const EvalModel* integer = Find(f, "integer");
  if (integer == nullptr || integer->against.empty()) return;
  const EvalAgainst& first = integer->against.front();
  json->Field("relative_percent", first.relative.percent);
  json->Field("standard_error_percent", first.relative.standard_error_percent);
  json->Field("kl_mean", first.kl_mean);
  json->Field("top1_agreement", first.top1_agreement);
  for (const EvalAgainst& against : integer->against) {
    if (against.reference == "bos") json->Field("kl_bos_mean", against.kl_mean);
  }
}

void WriteComparison(const EvalComparison& comparison, JsonWriter* json) {
  json->Key("comparison");
  json->BeginObject();
  json->Field("perplexity_ratio_percent", Percent(comparison.log_ratio.mean));
  json->Field("low_percent", Percent(comparison.log_ratio.low));
  json->Field("high_percent", Percent(comparison.log_ratio.high));
  json->Field("significant", comparison.log_ratio.significant);
  json->Field("verdict", Verdict(comparison.log_ratio));
  json->Field("resamples", comparison.bootstrap.resamples);
  json->Field("seed", comparison.bootstrap.seed);
  json->Field("confidence", comparison.bootstrap.confidence);
  if (!comparison.kl.empty()) {
    json->Key("kl");
    json->BeginObject();
    for (const EvalComparison::Kl& kl : comparison.kl) {
      json->Key(kl.reference);
      json->BeginObject();
      json->Field("difference", kl.difference.mean);
      json->Field("low", kl.difference.low);
      json->Field("high", kl.difference.high);
      json->Field("significant", kl.difference.significant);
      json->EndObject();
    }
    json->EndObject();
  }
  json->EndObject();
}

std::string DescribePrefix(const std::vector<int32_t>& ids, const std::string& text) {
  if (ids.empty()) return "no prefix";
  return absl::StrCat("prefix [", absl::StrJoin(ids, ", "), "] ", text);
}

std::string DescribeReference(const EvalReference& reference) {
  if (reference.token_ids.empty()) return "float alone, behind nothing";
  const char* what = "";
  if (reference.name == "own") what = "the bundle's prefix ";
  if (reference.name == "bos") what = "BOS alone ";
  return absl::StrCat("float behind ", what, "[", absl::StrJoin(reference.token_ids, ", "), "] ",
                      reference.text);
}

std::string DescribeModel(const std::string& name, bool comparing) {
  if (name == "integer") return comparing ? "A, integer engine" : "integer engine";
  if (name == "against") return "B, integer engine";
  if (name == "simulation") return "simulation in float";
  if (name == "dynamic_rotated") return "dynamic int8, rotated";
  if (name == "dynamic_plain") return "dynamic int8, plain";
  return name;
}

void AppendBlock(const EvalFigures& f, size_t reference, std::string* text) {
  const EvalReference& teacher = f.references[reference];
  absl::StrAppendFormat(text, "\n%s\n", DescribeReference(teacher));
  absl::StrAppendFormat(text, "  %-26s %10.4f\n", "float", teacher.perplexity);
  for (const EvalModel& model : f.models) {
    for (const EvalAgainst& against : model.against) {
      if (against.reference != teacher.name) continue;
      const std::string name =
          model.name == "float" ? absl::StrCat("float behind ", f.references.front().name == "own"
                                                                    ? "the bundle's prefix"
                                                                    : f.references.front().name)
                                : DescribeModel(model.name, f.comparison.has_value());
      absl::StrAppendFormat(
          text, "  %-26s %10.4f  %+8.3f %% +- %.3f  %8.5f  %8.5f  %8.5f  %6.2f %%\n", name,
          model.perplexity, against.relative.percent, against.relative.standard_error_percent,
          against.kl_mean, against.kl_median, against.kl_p99, 100 * against.top1_agreement);
    }
  }
}

void AppendComparison(const EvalFigures& f, std::string* text) {
  const EvalComparison& c = *f.comparison;
  const PairedDifference& ratio = c.log_ratio;
  absl::StrAppendFormat(text,
                        "\nA beside B, paired over %d windows (%d resamples, %g %% intervals)\n",
                        f.windows, c.bootstrap.resamples, 100 * c.bootstrap.confidence);
  const std::string verdict = Verdict(ratio);
  absl::StrAppendFormat(text, "  perplexity  %+.3f %%  (%+.3f to %+.3f)  %s\n", Percent(ratio.mean),
                        Percent(ratio.low), Percent(ratio.high),
                        ratio.significant ? absl::StrCat("significant: A is ", verdict) : verdict);
  for (const EvalComparison::Kl& kl : c.kl) {
    const std::string judged = Verdict(kl.difference);
    absl::StrAppendFormat(
        text, "  KL to float (%s)  %+.6f  (%+.6f to %+.6f)  %s\n", kl.reference, kl.difference.mean,
        kl.difference.low, kl.difference.high,
        kl.difference.significant ? absl::StrCat("significant: A is ", judged) : judged);
  }
  if (f.windows < 2) {
    text->append("  one window says nothing about others\n");
  } else if (f.windows < kFewWindows) {
    absl::StrAppendFormat(text, "  fewer than %d windows: the intervals are too narrow\n",
                          kFewWindows);
  }
}

}  // namespace

std::string EvalToJson(const EvalFigures& f) {
  JsonWriter json;
  json.BeginObject();
  json.Field("text", f.text);
  json.Field("tokens", f.tokens);
  json.Field("windows", f.windows);
  json.Field("window_tokens", f.window_tokens);
  json.Field("stride", f.stride);
  if (!f.bundles.empty()) WriteBundle("bundle", f.bundles[0], &json);
  if (f.bundles.size() > 1) WriteBundle("against_bundle", f.bundles[1], &json);
  WriteReferences(f, &json);
  WriteModels(f, &json);
  if (f.comparison) WriteComparison(*f.comparison, &json);
  json.EndObject();
  return json.Take();
}

std::string EvalToText(const EvalFigures& f) {
  std::string text =
      absl::StrFormat("%s: %d windows of %d tokens", f.text, f.windows, f.window_tokens);
  if (f.stride != f.window_tokens) absl::StrAppendFormat(&text, " every %d", f.stride);
  absl::StrAppendFormat(&text, ", %d tokens measured\n", f.tokens);
  for (size_t i = 0; i < f.bundles.size(); ++i) {
    const EvalBundle& bundle = f.bundles[i];
    if (f.bundles.size() > 1) absl::StrAppend(&text, i == 0 ? "A  " : "B  ");
    absl::StrAppendFormat(&text, "%s (%s), %s\n", bundle.path, bundle.digest.substr(0, 12),
                          DescribePrefix(bundle.prefix_token_ids, bundle.prefix_text));
  }
  if (f.references.empty()) {
    for (const EvalModel& model : f.models) {
      absl::StrAppendFormat(&text, "  %-26s perplexity %10.4f\n",
                            DescribeModel(model.name, f.comparison.has_value()), model.perplexity);
    }
  } else {
    absl::StrAppendFormat(&text, "\n  %-26s %10s  %19s  %8s  %8s  %8s  %8s\n", "", "perplexity",
                          "over float", "KL", "median", "99 %", "top-1");
    for (size_t i = 0; i < f.references.size(); ++i) AppendBlock(f, i, &text);
  }
  if (f.comparison) AppendComparison(f, &text);
  text.pop_back();
  return text;
}

}  // namespace fixpoint
