// Calibration text as windows of token ids: from files, or what the model itself says.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "calibrator/evaluate.h"
#include "text/tokenizer.h"

namespace fixpoint {

inline constexpr int32_t kCorpusWindowTokens = 512;

struct Corpus {
  Windows train;       // statistics are taken from these
  Windows held_out;    // choices are judged on these
  std::string source;  // "files" or "self-generated"
  std::string digest;  // SHA-256 of the file; of several files, of their digests in order; of
                       // generated text, of its ids
};

struct CorpusLimits {
  int32_t max_train = 0, max_held_out = 0;  // windows
};

// Text of UTF-8 files in the order given, cut into windows of kCorpusWindowTokens; windows are
// taken evenly from all of it, and every few one is held out. Files of more than 8 MiB together are
// not read whole but in evenly spaced pieces, so that memory stays bounded. INVALID_ARGUMENT: not
// UTF-8 (file and offset), fewer than four windows (with the number of tokens found).
absl::StatusOr<Corpus> ReadCorpus(const std::vector<std::string>& files, const Tokenizer& tokenizer,
                                  const CorpusLimits& limits);

// Splits windows evenly: at most limits.max_train and max_held_out of them. Requires at least two
// windows.
Corpus SplitWindows(const Windows& all, const CorpusLimits& limits);

// INVALID_ARGUMENT naming `place` and the offset of the first byte that is not UTF-8.
absl::Status CheckUtf8(absl::string_view text, const std::string& place);

// The whole file as token ids, at most 64 MiB of UTF-8; for evaluation texts.
absl::StatusOr<std::vector<int32_t>> TokenizeFile(const std::string& path,
                                                  const Tokenizer& tokenizer);

// Cuts ids into windows of `tokens`, at most `limit` of them (0: all); the rest is dropped.
Windows CutWindows(const std::vector<int32_t>& ids, int32_t tokens, int32_t limit);

}  // namespace fixpoint
