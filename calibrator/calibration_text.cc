#include "calibrator/calibration_text.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/status_macros.h"
#include "calibrator/generate.h"
#include "calibrator/prefix.h"

namespace fixpoint {
namespace {

constexpr int64_t kMaxCachedLogitBytes = 1 << 30;
constexpr int64_t kMaxTeacherBytes = 1 << 30;

Corpus WriteOwnText(const CalibrationTextInput& in, FloatGemm& gemm, ThreadPool& pool,
                    const std::function<void(double)>& progress) {
  const CorpusLimits& limits = in.settings->own_windows;
  const ForwardModel bf16 = MakeForwardModel(*in.model, in.online, WeightKind::kBf16, gemm, pool);
  FloatForward forward(bf16, gemm, pool);
  const std::vector<Opening> openings =
      ChooseOpenings(*in.tokenizer, in.chat_template, in.prefix->token_ids,
                     limits.max_train + limits.max_held_out, in.settings->seed);
  const GenerateOptions options{.tokens = kCorpusWindowTokens,
                                .seed = in.settings->seed,
                                .control_ids = ControlIds(*in.tokenizer)};
  const Windows all =
      GenerateWindows(forward, in.model->config, *in.prefix, openings, options, pool, progress);
  Corpus corpus = SplitWindows(all, limits);
  corpus.source = "self-generated";
  Sha256 digest;
  digest.Update(all.token_ids.data(), all.token_ids.size() * sizeof(int32_t));
  corpus.digest = digest.FinishHex();
  return corpus;
}

void KeepWithin(int64_t max_bytes, int64_t token_bytes, Windows* windows) {
  const int64_t count =
      std::clamp<int64_t>(max_bytes / (windows->tokens * token_bytes), 1, windows->count());
  windows->token_ids.resize(count * windows->tokens);
}

}  // namespace

absl::StatusOr<Corpus> TakeCalibrationText(const CalibrationTextInput& in, FloatGemm& gemm,
                                           ThreadPool& pool,
                                           const std::function<void(double)>& progress) {
  const FloatConfig& config = in.model->config;
  const int32_t room = config.max_position_embeddings - in.prefix->size();
  if (kCorpusWindowTokens > room) {
    return absl::InvalidArgumentError(absl::StrCat("the model has room for ", room,
                                                   " tokens, calibration windows have ",
                                                   kCorpusWindowTokens));
  }
  Corpus corpus;
  if (in.settings->corpus_files.empty()) {
    corpus = WriteOwnText(in, gemm, pool, progress);
  } else {
    ASSIGN_OR_RETURN(
        corpus, ReadCorpus(in.settings->corpus_files, *in.tokenizer, in.settings->file_windows));
  }
  KeepWithin(kMaxCachedLogitBytes, int64_t{config.vocab_size} * 2, &corpus.held_out);
  KeepWithin(kMaxTeacherBytes, int64_t{config.hidden_size} * 4, &corpus.train);
  return corpus;
}

}  // namespace fixpoint
