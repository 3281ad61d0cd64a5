// Code point classes of Unicode 16.0 (unicode_tables.inc), the version that the `tokenizers`
// package splits by.
#pragma once

#include <cstdint>

namespace fixpoint {

// Bits of CharacterClass(). A combining mark that is alphabetic is both kMarkClass and kWordClass,
// and so on.
enum CharacterClassBits : uint8_t {
  kLetterClass = 1,  // \p{L}
  kNumberClass = 2,  // \p{N}
  kMarkClass = 4,    // \p{M}
  kSpaceClass = 8,   // \s: the White_Space property
  kWordClass = 16,   // \w: alphabetic, mark, decimal digit, connector punctuation or join control
};

// 0 for an unassigned code point. Requires code_point <= U+10FFFF. Thread-safe.
uint8_t CharacterClass(uint32_t code_point);

// What Python's str.isspace() and str.strip() take for white space: \s and the four separators
// U+001C to U+001F.
bool IsPythonSpace(uint32_t code_point);

}  // namespace fixpoint
