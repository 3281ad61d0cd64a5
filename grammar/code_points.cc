#include "grammar/code_points.h"

#include <algorithm>
#include <string>

#include "text/utf8.h"

namespace fixpoint {
namespace {

constexpr CodePointRange kSurrogates = {0xd800, 0xdfff};

// Cuts at the last code point of each encoded length, then where a continuation byte starts over.
void Split(CodePointRange range, std::vector<Utf8Sequence>* out) {
  for (const uint32_t last : {0x7fu, 0x7ffu, 0xffffu}) {
    if (range.low <= last && last < range.high) {
      Split({range.low, last}, out);
      Split({last + 1, range.high}, out);
      return;
    }
  }
  // With equal leading bits the rest must be all of a block of 64, 4096, ... or one value.
  for (int32_t bits = 6; bits <= 18; bits += 6) {
    const uint32_t block = (1u << bits) - 1;
    if ((range.low & ~block) == (range.high & ~block) || range.high <= 0x7f) continue;
    if ((range.low & block) != 0) {
      Split({range.low, range.low | block}, out);
      Split({(range.low | block) + 1, range.high}, out);
      return;
    }
    if ((range.high & block) != block) {
      Split({range.low, (range.high & ~block) - 1}, out);
      Split({range.high & ~block, range.high}, out);
      return;
    }
  }
  std::string low, high;
  AppendUtf8(range.low, &low);
  AppendUtf8(range.high, &high);
  Utf8Sequence sequence;
  while (static_cast<size_t>(sequence.length) < std::min<size_t>(low.size(), 4)) {
    const auto i = static_cast<size_t>(sequence.length++);
    sequence.low[i] = static_cast<uint8_t>(low[i]);
    sequence.high[i] = static_cast<uint8_t>(high[i]);
  }
  out->push_back(sequence);
}

}  // namespace

CodePointSet::CodePointSet(const std::vector<CodePointRange>& ranges) {
  std::vector<CodePointRange> scalar;
  for (const CodePointRange& range : ranges) {
    if (range.low < kSurrogates.low) {
      scalar.push_back({range.low, std::min(range.high, kSurrogates.low - 1)});
    }
    if (range.high > kSurrogates.high) {
      scalar.push_back({std::max(range.low, kSurrogates.high + 1), range.high});
    }
  }
  std::sort(scalar.begin(), scalar.end(),
            [](const CodePointRange& a, const CodePointRange& b) { return a.low < b.low; });
  for (const CodePointRange& range : scalar) {
    if (!ranges_.empty() && range.low <= ranges_.back().high + 1) {
      ranges_.back().high = std::max(ranges_.back().high, range.high);
    } else {
      ranges_.push_back(range);
    }
  }
}

CodePointSet CodePointSet::Complement() const {
  std::vector<CodePointRange> gaps;
  uint32_t next = 0;
  for (const CodePointRange& range : ranges_) {
    if (range.low > next) gaps.push_back({next, range.low - 1});
    next = range.high + 1;
  }
  if (next <= kMaxCodePoint) gaps.push_back({next, kMaxCodePoint});
  return CodePointSet(gaps);
}

bool CodePointSet::Has(uint32_t code_point) const {
  return std::any_of(ranges_.begin(), ranges_.end(), [&](const CodePointRange& range) {
    return range.low <= code_point && code_point <= range.high;
  });
}

std::vector<Utf8Sequence> Utf8Sequences(CodePointRange range) {
  std::vector<Utf8Sequence> sequences;
  Split(range, &sequences);
  return sequences;
}

}  // namespace fixpoint
