// Two completions of one prompt side by side, the first place where they differ marked.
#pragma once

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace fixpoint {

// Where the texts part: the byte at which the first code point that differs starts, in both the
// same; the common length when one is the start of the other or both are equal.
size_t FirstDifference(absl::string_view a, absl::string_view b);

// `text` as HTML, at most max_bytes of it. From `difference` on it is not shared: the rest of the
// word there is in <mark>, or the word "end" where the text ends there. `difference` beyond the
// text marks nothing.
std::string MarkedText(absl::string_view text, size_t difference, size_t max_bytes);

// "The same for the first 212 characters.", "Identical, 400 characters."
std::string DifferenceText(absl::string_view a, absl::string_view b);

}  // namespace fixpoint
