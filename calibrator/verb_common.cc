#include <cmath>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/available_cpus.h"
#include "base/status_macros.h"
#include "base/thread_pool.h"
#include "bundle/bundle.h"
#include "calibrator/import/checkpoint.h"
#include "calibrator/verbs.h"
#include "engine/cpu_executor.h"

namespace fixpoint {

absl::StatusOr<int> ResolveThreads(int threads) {
  if (threads < 0 || threads > kMaxThreads) {
    return absl::InvalidArgumentError(
        absl::StrCat("--threads ", threads, ": must be in [0, ", kMaxThreads, "]"));
  }
  return threads == 0 ? AvailableCpuCount() : threads;
}

absl::StatusOr<double> ParseBudget(const std::string& text) {
  absl::string_view number = text;
  const double unit = absl::ConsumeSuffix(&number, "%") ? 0.01 : 1;
  double value = 0;
  if (!absl::SimpleAtod(number, &value) || !std::isfinite(value) || value < 0 || value * unit > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("--budget '", text, "': must be like 1% or 0.01, between 0 and 100%"));
  }
  return value * unit;
}

absl::StatusOr<TextModel> LoadTextModel(const std::string& path) {
  TextModel model;
  TokenizerSpec spec;
  if (LooksLikeBundle(path)) {
    ASSIGN_OR_RETURN(Bundle bundle, ReadBundle(path));
    spec = std::move(bundle.tokenizer);
    model.chat_template = std::move(bundle.chat_template);
  } else {
    ASSIGN_OR_RETURN(TokenizerAndTemplate imported, ImportTokenizer(path));
    spec = std::move(imported.tokenizer);
    model.chat_template = std::move(imported.chat_template);
  }
  ASSIGN_OR_RETURN(model.tokenizer, Tokenizer::Create(std::move(spec)));
  return model;
}

}  // namespace fixpoint
