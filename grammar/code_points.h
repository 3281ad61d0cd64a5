// Sets of code points and their UTF-8.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace fixpoint {

inline constexpr uint32_t kMaxCodePoint = 0x10ffff;

struct CodePointRange {
  uint32_t low = 0;
  uint32_t high = 0;  // included
};

// Scalar values only: surrogates are never in a set.
class CodePointSet {
 public:
  CodePointSet() = default;
  // In any order, overlapping or not; surrogates are left out. low <= high <= kMaxCodePoint.
  explicit CodePointSet(const std::vector<CodePointRange>& ranges);

  CodePointSet Complement() const;
  bool Has(uint32_t code_point) const;
  bool empty() const { return ranges_.empty(); }

  // Rising, not touching each other.
  absl::Span<const CodePointRange> ranges() const { return ranges_; }

 private:
  std::vector<CodePointRange> ranges_;
};

// Bytes of which each may be any of a range: code points of equal length with consecutive UTF-8.
struct Utf8Sequence {
  int32_t length = 0;
  uint8_t low[4] = {};
  uint8_t high[4] = {};
};

// The UTF-8 of a range without surrogates: every sequence of bytes that one of the results matches
// is the encoding of a code point of the range, and the other way round.
std::vector<Utf8Sequence> Utf8Sequences(CodePointRange range);

}  // namespace fixpoint
