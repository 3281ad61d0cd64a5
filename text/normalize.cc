#include "text/normalize.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <vector>

#include "base/check.h"
#include "text/utf8.h"

namespace fixpoint {
namespace {

// No character below U+0300 changes under NFC unless one from there on follows it.
bool IsPlainlyNfc(absl::string_view text) {
  for (const char c : text) {
    if (static_cast<uint8_t>(c) >= 0xCC) return false;  // lead byte of U+0300 and above
  }
  return true;
}

// Characters with a combining class or a decomposition in Unicode 15 (utf8proc 2.8) but not in
// Unicode 9. Found by asking the `tokenizers` package about every code point;
// tests/tokenizer_test.py does so again.
struct CodePointRange {
  uint32_t first, last;
};
constexpr CodePointRange kNewerThanUnicode9[] = {
    {0x7FD, 0x7FD},     {0x897, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},
    {0xC3C, 0xC3C},     {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0x1715, 0x1715},
    {0x1ABF, 0x1ACE},   {0x1DF6, 0x1DFA},   {0xA82C, 0xA82C},   {0x10D24, 0x10D27},
    {0x10D69, 0x10D6D}, {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50},
    {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x113CE, 0x113D0},
    {0x1145E, 0x1145E}, {0x11839, 0x1183A}, {0x11930, 0x11938}, {0x1193D, 0x1193E},
    {0x11943, 0x11943}, {0x119E0, 0x119E0}, {0x11A34, 0x11A34}, {0x11A47, 0x11A47},
    {0x11A99, 0x11A99}, {0x11D42, 0x11D42}, {0x11D44, 0x11D45}, {0x11D97, 0x11D97},
    {0x11F41, 0x11F42}, {0x1612F, 0x1612F}, {0x16FF0, 0x16FF1}, {0x1E08F, 0x1E08F},
    {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF},
    {0x1E5EE, 0x1E5EF},
};

bool IsInert(uint32_t code_point) {
  const auto* range =
      std::lower_bound(std::begin(kNewerThanUnicode9), std::end(kNewerThanUnicode9), code_point,
                       [](const CodePointRange& r, uint32_t c) { return r.last < c; });
  return range != std::end(kNewerThanUnicode9) && range->first <= code_point;
}

int32_t CombiningClass(int32_t code_point) {
  return utf8proc_get_property(code_point)->combining_class;
}

void SortMarks(std::vector<int32_t>* code_points) {
  for (size_t i = 0; i < code_points->size();) {
    size_t end = i;
    while (end < code_points->size() && CombiningClass((*code_points)[end]) != 0) ++end;
    std::stable_sort(code_points->begin() + i, code_points->begin() + end,
                     [](int32_t a, int32_t b) { return CombiningClass(a) < CombiningClass(b); });
    i = end + 1;
  }
}

// Puts the decomposed *code_points in order, composes them, moves them to *out.
void ComposeInto(std::vector<int32_t>* code_points, std::string* out) {
  SortMarks(code_points);
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE);
  const auto count = utf8proc_normalize_utf32(code_points->data(), code_points->size(), options);
  CHECK_GE(count, 0);
  for (utf8proc_ssize_t i = 0; i < count; ++i) {
    AppendUtf8(static_cast<uint32_t>((*code_points)[i]), out);
  }
  code_points->clear();
}

}  // namespace

std::string ToNfc(absl::string_view text) {
  if (IsPlainlyNfc(text)) return std::string(text);
  std::string out;
  out.reserve(text.size());
  std::vector<int32_t> stretch;  // decomposed, up to the next inert character
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = ReadCodePoint(text, i);
    i += c.length;
    if (IsInert(c.value)) {
      ComposeInto(&stretch, &out);
      AppendUtf8(c.value, &out);
      continue;
    }
    int32_t parts[8];  // the longest canonical decomposition has four
    int boundary = 0;
    const auto count = utf8proc_decompose_char(static_cast<int32_t>(c.value), parts, 8,
                                               UTF8PROC_DECOMPOSE, &boundary);
    CHECK(count >= 0 && count <= 8) << "decomposition of code point " << c.value;
    stretch.insert(stretch.end(), parts, parts + count);
  }
  ComposeInto(&stretch, &out);
  return out;
}

}  // namespace fixpoint
