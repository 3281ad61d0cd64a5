// Token ids of an answer to the text that a caller sees: whole code points, ended in front of a
// stop string.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "server/stop_matcher.h"
#include "text/detokenizer.h"

namespace fixpoint {

// One answer. The concatenation of all returned texts depends on the ids and stop strings only,
// never on how the ids were grouped into calls. Holds back at most 3 bytes of a code point and 255
// bytes of a stop string. Not thread-safe.
class TextStream {
 public:
  // `tokenizer` must outlive this. Stop strings: up to 4 of 1 to 256 bytes, valid UTF-8.
  TextStream(const Tokenizer* tokenizer, std::vector<std::string> stop_strings);

  // The text that became certain with `id`. Requires !stopped().
  std::string Push(int32_t id);

  // Takes the ids that an earlier stream of the same answer has given out, with their text. False
  // when a stop string ends in front of the last of them: the others are no part of an answer.
  // `taken` says how many were read.
  bool Resume(absl::Span<const int32_t> ids, size_t* taken);
  // What is still held back: call it once, when no id follows. Nothing after a stop.
  std::string Finish();

  // True once a stop string was found; the text then ends in front of it.
  bool stopped() const { return stop_index_ >= 0; }
  // Requires stopped().
  const std::string& stop_string() const { return stop_strings_[stop_index_]; }

 private:
  std::string Take(const std::string& text);

  std::vector<std::string> stop_strings_;
  StopMatcher matcher_;
  Detokenizer detokenizer_;
  std::string held_;  // the beginning of a stop string, perhaps
  int32_t stop_index_ = -1;
};

}  // namespace fixpoint
