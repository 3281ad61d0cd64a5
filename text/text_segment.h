// Text with a mark of where it came from, as chat templates render it and the tokenizer takes it.
#pragma once

#include <string>

namespace fixpoint {

// `trusted` text was written by the operator (the template's own literals, the bos and eos
// strings): spellings of control tokens in it mean these tokens. In any other text they are plain
// characters.
struct TextSegment {
  std::string text;  // UTF-8
  bool trusted = false;

  bool operator==(const TextSegment& other) const {
    return text == other.text && trusted == other.trusted;
  }
};

}  // namespace fixpoint
