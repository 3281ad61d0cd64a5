#include "text/unicode.h"

#include <algorithm>
#include <array>
#include <iterator>

namespace fixpoint {
namespace {

struct ClassRange {
  uint32_t first, last;
  uint8_t bits;
};
constexpr ClassRange kRanges[] = {
#include "text/unicode_tables.inc"
};

// Planes 0 and 1 hold nearly all text, so they are spelled out; the rest is searched.
constexpr uint32_t kDirectSize = 0x20000;
using DirectTable = std::array<uint8_t, kDirectSize>;

const DirectTable& Direct() {
  static const DirectTable* const table = [] {
    auto* filled = new DirectTable{};
    for (const ClassRange& range : kRanges) {
      for (uint32_t c = range.first; c <= range.last && c < kDirectSize; ++c)
        (*filled)[c] = range.bits;
    }
    return filled;
  }();
  return *table;
}

}  // namespace

uint8_t CharacterClass(uint32_t code_point) {
  if (code_point < kDirectSize) return Direct()[code_point];
  const auto* range = std::lower_bound(std::begin(kRanges), std::end(kRanges), code_point,
                                       [](const ClassRange& r, uint32_t c) { return r.last < c; });
  return range != std::end(kRanges) && range->first <= code_point ? range->bits : 0;
}

bool IsPythonSpace(uint32_t code_point) {
  return (CharacterClass(code_point) & kSpaceClass) != 0 ||
         (code_point >= 0x1C && code_point <= 0x1F);
}

}  // namespace fixpoint
