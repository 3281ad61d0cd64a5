// Regular expressions: the part of ECMA-262 (as JSON Schema uses it) that describes a regular
// language. Read as Unicode code points.
//   literals, ., [classes], \d \w \s \D \W \S, \t \n \r \f \v \0 \xHH \uHHHH \u{H...}, escaped
//   punctuation, ( ) (?: ) (?<name> ), |, * + ? {m} {m,} {m,n} (lazy forms mean the same),
//   ^ and $ at the ends of the whole expression or of its outermost alternatives.
// Everything else is refused with its name and byte offset: look-around, back-references, \b,
// \p{...}, flags, possessive quantifiers.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "grammar/code_points.h"
#include "grammar/nfa.h"

namespace fixpoint {

struct RegexNode {
  enum class Kind { kSet, kConcatenation, kAlternatives, kRepeat };
  Kind kind = Kind::kConcatenation;  // of no parts: the empty text
  CodePointSet set;
  std::vector<int32_t> parts;  // nodes; kRepeat: one
  int32_t min = 0;
  int32_t max = 0;  // kUnlimited: no end
};

inline constexpr int32_t kUnlimited = -1;

struct Regex {
  struct Branch {
    int32_t node = 0;
    bool at_start = false;  // begins with ^
    bool at_end = false;    // ends with $
  };
  std::vector<RegexNode> nodes;
  std::vector<Branch> branches;  // the outermost alternatives
};

absl::StatusOr<Regex> ParseRegex(absl::string_view pattern);

// How code points become bytes: as they are, or as they stand inside a JSON string (quote,
// backslash and control characters escaped in the one way that JSON writers use).
enum class Spelling { kUtf8, kJsonString };

// kWhole: the text is one of the expression (anchors at the ends change nothing). kSearch: some
// part of it is, the ends being fixed by ^ and $ only.
enum class RegexMatch { kWhole, kSearch };

// Adds the expression behind `from` and returns the state behind it.
int32_t EmitRegex(const Regex& regex, RegexMatch match, Spelling spelling, int32_t from, Nfa* nfa);

// One code point of the set.
int32_t EmitSet(const CodePointSet& set, Spelling spelling, int32_t from, Nfa* nfa);

}  // namespace fixpoint
