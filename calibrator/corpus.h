// Text as windows of token ids: for calibration from files or from what the model itself says, for
// evaluation from any file.
//
// Text is UTF-8 without NUL bytes. What is not is refused with the file's name and the offset of
// the first bad byte in the file; so are empty files, directories and what cannot be opened or
// read. Only the bytes that are used are looked at: of files that are too long to be read whole,
// pieces, so memory stays bounded whatever the size.
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

// Text of files in the order given, cut into windows of kCorpusWindowTokens; windows are taken
// evenly from all of it, and every few one is held out. Files of more than 8 MiB together are read
// in evenly spaced pieces (and once more, in small steps, for the digest). INVALID_ARGUMENT also:
// fewer than four windows, with the number of tokens found and needed.
absl::StatusOr<Corpus> ReadCorpus(const std::vector<std::string>& files, const Tokenizer& tokenizer,
                                  const CorpusLimits& limits);

// At most `count` of the windows, evenly spread, in order.
Windows EvenWindows(const Windows& windows, int32_t count);

// Splits windows evenly: at most limits.max_train and max_held_out of them. Requires at least two
// windows.
Corpus SplitWindows(const Windows& all, const CorpusLimits& limits);

// INVALID_ARGUMENT naming `place` and the first byte that is not UTF-8 with its offset; `offset` is
// that of text[0].
absl::Status CheckUtf8(absl::string_view text, const std::string& place, uint64_t offset = 0);

struct TextWindows {
  int32_t tokens = 1024;  // in a window, at least 2
  int32_t stride = 0;     // tokens from one start to the next, in [1, tokens]; 0: tokens
  int32_t limit = 0;      // windows, evenly spread over the text; 0: all
};

// Windows of one text, to measure on. A text shorter than one window gives one window of all its
// tokens, at least two of them. The rest behind the last whole window is left out. With a limit,
// files of more than 8 MiB are read in one piece per window, so that the size does not matter (a
// piece that holds too few tokens gives no window). Without, a text of more than 64 MiB is refused
// with OUT_OF_RANGE, as are more than 2^24 tokens of windows. Pipes are read whole.
absl::StatusOr<Windows> ReadTextWindows(const std::string& path, const Tokenizer& tokenizer,
                                        const TextWindows& wanted);

// Cuts ids into windows of `tokens` that start every `stride` tokens (0: `tokens`), at most `limit`
// of them (0: all), evenly spread and the first always among them; the rest is dropped.
Windows CutWindows(const std::vector<int32_t>& ids, int32_t tokens, int32_t limit,
                   int32_t stride = 0);

}  // namespace fixpoint
