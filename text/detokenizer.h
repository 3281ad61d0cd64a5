// Token ids to text as they come, without ever giving out half a code point.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

#include "text/tokenizer.h"

namespace fixpoint {

struct DetokenizerOptions {
  bool skip_control = true;
  // The ids start a text: SentencePiece's prefix space is dropped, once. False when they go on from
  // text already shown.
  bool at_start = true;
};

// One sequence of ids. The concatenation of all results is valid UTF-8 and does not depend on how
// the bytes are spread over the tokens: each maximal ill-formed subpart is one U+FFFD. Not
// thread-safe.
class Detokenizer {
 public:
  // `tokenizer` must outlive this.
  Detokenizer(const Tokenizer* tokenizer, DetokenizerOptions options);

  // The text that `id` completes, possibly none. Holds back at most 3 bytes. An id outside the
  // vocabulary gives nothing.
  std::string Push(int32_t id);

  // What is still held back, as U+FFFD: call it once, behind the last id.
  std::string Finish();

  // Bytes held back: 0 to 3.
  size_t pending_bytes() const { return pending_.size(); }

 private:
  const Tokenizer* tokenizer_;
  bool skip_control_;
  bool strip_space_;  // still waiting for the first byte
  std::string pending_;
};

}  // namespace fixpoint
