// Python's string operations on marked strings. Positions in methods count code points where Python
// does. No bounds of their own: callers charge the budget by the sizes that go in and come out. All
// strings are valid UTF-8.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/strings/string_view.h"

#include "text/template/marked_string.h"

namespace fixpoint {

int64_t CountCodePoints(absl::string_view text);

enum StripSides { kStripLeft = 1, kStripRight = 2, kStripBoth = 3 };
// `characters`: what to strip, nullptr for white space.
MarkedString Strip(const MarkedString& text, StripSides sides, const MarkedString* characters);

enum class CaseChange { kUpper, kLower, kCapitalize, kTitle };
// By simple case mapping, one code point for one; only U+00DF becomes two letters.
MarkedString ChangeCase(const MarkedString& text, CaseChange change);
// The title filter of Jinja: words end only at white space and the brackets and hyphens it lists.
MarkedString JinjaTitle(const MarkedString& text);

// max_parts < 0: no limit. `separator` is not empty.
std::vector<MarkedString> SplitBy(const MarkedString& text, absl::string_view separator,
                                  int64_t max_splits, bool from_right);
std::vector<MarkedString> SplitAtSpace(const MarkedString& text, int64_t max_splits,
                                       bool from_right);

// max_count < 0: all. An empty `from` puts `to` around every character, as in Python.
MarkedString Replace(const MarkedString& text, absl::string_view from, const MarkedString& to,
                     int64_t max_count);
// Size that Replace would give.
int64_t ReplacedSize(const MarkedString& text, absl::string_view from, const MarkedString& to,
                     int64_t max_count);

// Each code point as a string of its own.
std::vector<MarkedString> Characters(const MarkedString& text);

// Byte position of the first `needle` at or behind `from`, or npos. Linear time.
size_t FindBytes(absl::string_view text, absl::string_view needle, size_t from);

}  // namespace fixpoint
