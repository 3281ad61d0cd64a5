#include <iostream>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/json_writer.h"
#include "base/status_macros.h"
#include "base/thread_pool.h"
#include "calibrator/export/exporter.h"
#include "calibrator/site_search.h"
#include "calibrator/verbs.h"

namespace fixpoint {
namespace {

void WriteFigures(const char* key, const ExportFigures& figures, JsonWriter* json) {
  json->Key(key);
  json->BeginObject();
  json->Field("perplexity", figures.perplexity);
  json->Field("relative_percent", figures.relative.percent);
  json->Field("standard_error_percent", figures.relative.standard_error_percent);
  json->Field("kl_mean", figures.kl_mean);
  json->Field("top1_agreement", figures.top1_agreement);
  json->EndObject();
}

void WriteStrings(const char* key, const std::vector<std::string>& values, JsonWriter* json) {
  json->Key(key);
  json->BeginArray();
  for (const std::string& value : values) json->String(value);
  json->EndArray();
}

std::string ToJson(const ExportFlags& flags, const ExportResult& result) {
  JsonWriter json;
  json.BeginObject();
  json.Field("directory", flags.output);
  json.Field("bytes", result.bytes);
  json.Field("tokens", result.figures.tokens);
  json.Field("text", result.text_source);
  json.Field("source_perplexity", result.source_perplexity);
  json.Field("float_perplexity", result.figures.float_perplexity);
  WriteFigures("all_quantized", result.all_quantized, &json);
  WriteFigures("exported", result.figures, &json);
  json.Field("int8_share", result.int8_share);
  WriteStrings("ignored", result.ignored, &json);
  WriteStrings("not_carried", result.not_carried, &json);
  json.EndObject();
  return json.Take();
}

std::string ToText(const ExportFlags& flags, const ExportResult& result) {
  std::string text =
      absl::StrFormat("%d held-out tokens, %s\n%-32s perplexity %9.4f\n", result.figures.tokens,
                      result.text_source, "float", result.figures.float_perplexity);
  const auto line = [&](const char* name, const ExportFigures& f) {
    absl::StrAppendFormat(&text,
                          "%-32s perplexity %9.4f  %+.3f %% +- %.3f  KL %.5f  top-1 %.2f %%\n",
                          name, f.perplexity, f.relative.percent, f.relative.standard_error_percent,
                          f.kl_mean, 100 * f.top1_agreement);
  };
  if (!result.chosen.empty()) line("with every possible layer int8", result.all_quantized);
  line("exported", result.figures);
  absl::StrAppendFormat(&text, "%s: %.1f MB, %.1f %% of the layers' multiplications int8",
                        flags.output, static_cast<double>(result.bytes) / 1e6,
                        100 * result.int8_share);
  return text;
}

// Everybody who will serve the checkpoint should know; so it goes to stderr in any case.
void Warn(const ExportResult& result) {
  std::cerr << "not carried over:\n";
  for (const std::string& sentence : result.not_carried) std::cerr << "  - " << sentence << "\n";
}

absl::StatusOr<ExportSettings> SettingsOf(const ExportFlags& flags) {
  if (flags.to != "compressed-tensors") {
    return absl::InvalidArgumentError(
        absl::StrCat("--to '", flags.to, "': only compressed-tensors is known"));
  }
  ExportSettings settings{.bundle = flags.bundle,
                          .source = flags.source,
                          .output = flags.output,
                          .corpus_files = flags.corpus,
                          .seed = flags.seed};
  if (flags.ignore != "auto" && flags.ignore != "none") {
    return absl::InvalidArgumentError(
        absl::StrCat("--ignore '", flags.ignore, "': must be auto or none"));
  }
  settings.ignore = flags.ignore == "auto" ? IgnorePolicy::kAuto : IgnorePolicy::kNone;
  ASSIGN_OR_RETURN(settings.budget, ParseBudget(flags.budget));
  return settings;
}

}  // namespace

absl::Status RunExport(const ExportFlags& flags) {
  ASSIGN_OR_RETURN(const int threads, ResolveThreads(flags.threads));
  ASSIGN_OR_RETURN(const ExportSettings settings, SettingsOf(flags));
  ThreadPool pool(threads);
  const std::unique_ptr<Progress> progress = CreateProgress(flags.progress, ExportStages());
  const absl::StatusOr<ExportResult> result = ExportCompressedTensors(settings, pool, *progress);
  progress->Finish();
  RETURN_IF_ERROR(result.status());
  Warn(*result);
  std::cout << (flags.json ? ToJson(flags, *result) : ToText(flags, *result)) << "\n";
  return absl::OkStatus();
}

}  // namespace fixpoint
