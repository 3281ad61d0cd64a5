#include "calibrator/report/sample_texts.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "calibrator/report/html.h"

namespace fixpoint {
namespace {

// Text without spaces must not be marked to its end.
constexpr size_t kMaxMarkedBytes = 48;

bool IsContinuation(char c) { return (c & 0xC0) == 0x80; }
bool IsSpace(char c) { return c == ' ' || c == '\n' || c == '\t'; }

// The end of the word that starts at `begin`, the spaces in front of it included.
size_t WordEnd(absl::string_view text, size_t begin) {
  size_t end = begin;
  while (end < text.size() && IsSpace(text[end])) ++end;
  while (end < text.size() && !IsSpace(text[end])) ++end;
  if (end - begin <= kMaxMarkedBytes) return end;
  return begin + CutLength(text.substr(begin), kMaxMarkedBytes);
}

// Code points, an invalid byte counting as one unless it looks like a continuation.
int64_t CountCharacters(absl::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return !IsContinuation(c); });
}

std::string Characters(int64_t count) {
  return absl::StrCat(FormatCount(count), count == 1 ? " character" : " characters");
}

}  // namespace

size_t FirstDifference(absl::string_view a, absl::string_view b) {
  const size_t shared = std::min(a.size(), b.size());
  size_t at = std::mismatch(a.begin(), a.begin() + shared, b.begin()).first - a.begin();
  // Back to the start of the code point, in both texts: what is in front is equal.
  const auto inside = [](absl::string_view text, size_t i) {
    return i < text.size() && IsContinuation(text[i]);
  };
  for (int i = 0; i < 3 && at > 0 && (inside(a, at) || inside(b, at)); ++i) --at;
  return at;
}

std::string MarkedText(absl::string_view text, size_t difference, size_t max_bytes) {
  const size_t shown = CutLength(text, max_bytes);
  const bool beyond_cut = shown < text.size() && difference >= shown;
  if (difference > text.size() || beyond_cut) return EscapeCut(text, max_bytes);
  std::string html = EscapeHtml(text.substr(0, difference));
  if (difference == text.size()) {
    return html + "<mark class=\"end\">end</mark>";
  }
  const size_t end = std::min(WordEnd(text, difference), shown);
  absl::StrAppend(&html, "<mark>", EscapeHtml(text.substr(difference, end - difference)), "</mark>",
                  EscapeCut(text.substr(end), max_bytes - end));
  return html;
}

std::string DifferenceText(absl::string_view a, absl::string_view b) {
  if (a == b) return absl::StrCat("Identical, ", Characters(CountCharacters(a)), ".");
  const int64_t same = CountCharacters(a.substr(0, FirstDifference(a, b)));
  if (same == 0) return "Different from the first character on.";
  return absl::StrCat("The same for the first ", Characters(same), ".");
}

}  // namespace fixpoint
