// Splitting of text into pieces before byte-level BPE. Each rule is a hand-written scanner that
// equals the regular expression of the tokenizers' own files (listed in pre_tokenizer.cc) on all of
// Unicode 16; no regex engine runs on user text.
#pragma once

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/strings/string_view.h"

#include "text/tokenizer_spec.h"

namespace fixpoint {

// Calls `emit` for the pieces of `text` in order; they are not empty and together they are `text`.
// kNone: one piece. Requires valid UTF-8. Adds the number of code points looked at to *work, at
// most 6 per code point of the text.
void SplitText(PreTokenizer rule, absl::string_view text,
               absl::FunctionRef<void(absl::string_view)> emit, int64_t* work);

}  // namespace fixpoint
