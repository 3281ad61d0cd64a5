// UTF-8 without a locale: checking, reading and writing code points. All functions are thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace fixpoint {

inline constexpr uint32_t kReplacementCharacter = 0xFFFD;

// True when `text` is well-formed UTF-8: no overlong form, no surrogate, nothing above U+10FFFF.
// NUL is allowed.
bool IsValidUtf8(absl::string_view text);

// The code point that starts at byte `position` of valid UTF-8, and its length in bytes (1 to 4).
// Requires position < text.size() and text valid from there on.
struct CodePoint {
  uint32_t value;
  uint32_t length;
};
CodePoint ReadCodePoint(absl::string_view text, size_t position);

// Byte at which the code point in front of `position` starts. Requires 0 < position <= text.size(),
// valid UTF-8.
size_t PreviousCodePoint(absl::string_view text, size_t position);

// Requires a scalar value: at most U+10FFFF and no surrogate.
void AppendUtf8(uint32_t code_point, std::string* out);

// What stands at the front of bytes that may be invalid or cut off.
enum class Utf8Prefix {
  kValid,    // a whole code point of `length` bytes
  kInvalid,  // `length` bytes that no continuation can make valid (the maximal subpart of Unicode,
             // table 3-8)
  kIncomplete,  // all the bytes are the start of a code point and more must follow; `length` is
                // their number
};
struct Utf8Front {
  Utf8Prefix kind;
  size_t length;
};
// Requires a non-empty `bytes`.
Utf8Front ClassifyUtf8(absl::string_view bytes);

}  // namespace fixpoint
