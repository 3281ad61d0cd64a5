// Unicode normalization form C as the `tokenizers` package computes it, through utf8proc, in time
// linear in the text but for one sort per run of combining marks.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace fixpoint {

// NFC of valid UTF-8 by the tables of Unicode 9, which is what `tokenizers` has and so what
// checkpoints were trained with: a mark that came later is left where it stands and joins with
// nothing. Canonical ordering is done here and not by utf8proc, whose insertion sort needs
// quadratic time on a long run of marks. Thread-safe.
std::string ToNfc(absl::string_view text);

}  // namespace fixpoint
