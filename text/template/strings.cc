#include "text/template/strings.h"

#include <string.h>
#include <utf8proc.h>

#include <algorithm>

#include "text/unicode.h"
#include "text/utf8.h"

namespace fixpoint {
namespace {

bool IsSpaceAt(absl::string_view text, size_t position) {
  return IsPythonSpace(ReadCodePoint(text, position).value);
}

bool IsCased(uint32_t c) {
  const utf8proc_category_t category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return category == UTF8PROC_CATEGORY_LU || category == UTF8PROC_CATEGORY_LL ||
         category == UTF8PROC_CATEGORY_LT;
}

void AppendMapped(const MarkedString& text, size_t position, CodePoint c,
                  utf8proc_int32_t (*map)(utf8proc_int32_t), MarkedString* out) {
  const bool trusted = text.trusted_at(position);
  if (c.value == 0xDF && map != utf8proc_tolower) {
    return out->Append(map == utf8proc_toupper ? "SS" : "Ss", trusted);
  }
  std::string mapped;
  AppendUtf8(static_cast<uint32_t>(map(static_cast<utf8proc_int32_t>(c.value))), &mapped);
  out->Append(mapped, trusted);
}

}  // namespace

int64_t CountCodePoints(absl::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; });
}

MarkedString Strip(const MarkedString& text, StripSides sides, const MarkedString* characters) {
  const absl::string_view bytes = text.text();
  auto strips = [&](size_t position) {
    if (characters == nullptr) return IsSpaceAt(bytes, position);
    const size_t length = ReadCodePoint(bytes, position).length;
    return absl::string_view(characters->text()).find(bytes.substr(position, length)) !=
           absl::string_view::npos;
  };
  size_t begin = 0;
  size_t end = bytes.size();
  while ((sides & kStripLeft) && begin < end && strips(begin))
    begin += ReadCodePoint(bytes, begin).length;
  while ((sides & kStripRight) && begin < end) {
    const size_t last = PreviousCodePoint(bytes, end);
    if (!strips(last)) break;
    end = last;
  }
  return text.Substring(begin, end);
}

MarkedString ChangeCase(const MarkedString& text, CaseChange change) {
  MarkedString out;
  bool first = true;  // of the text, or of a word
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = ReadCodePoint(text.text(), i);
    const bool up = change == CaseChange::kUpper || (change != CaseChange::kLower && first);
    const auto map = !up                            ? utf8proc_tolower
                     : change == CaseChange::kUpper ? utf8proc_toupper
                                                    : utf8proc_totitle;
    AppendMapped(text, i, c, map, &out);
    first = change == CaseChange::kTitle && !IsCased(c.value);
    i += c.length;
  }
  return out;
}

MarkedString JinjaTitle(const MarkedString& text) {
  MarkedString out;
  bool first = true;
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = ReadCodePoint(text.text(), i);
    AppendMapped(text, i, c, first ? utf8proc_toupper : utf8proc_tolower, &out);
    first = IsPythonSpace(c.value) ||
            (c.value < 0x80 && memchr("-({[<", static_cast<int>(c.value), 5) != nullptr);
    i += c.length;
  }
  return out;
}

size_t FindBytes(absl::string_view text, absl::string_view needle, size_t from) {
  if (from > text.size()) return absl::string_view::npos;
  if (needle.empty()) return from;
  // glibc's memmem is linear in both sizes; string::find is not.
  const void* found = memmem(text.data() + from, text.size() - from, needle.data(), needle.size());
  return found == nullptr ? absl::string_view::npos : static_cast<const char*>(found) - text.data();
}

std::vector<MarkedString> SplitBy(const MarkedString& text, absl::string_view separator,
                                  int64_t max_splits, bool from_right) {
  std::vector<size_t> cuts;
  if (from_right) {
    // Matches counted from the right, which differ from those from the left only when separators
    // overlap.
    size_t end = text.size();
    while (end >= separator.size() &&
           (max_splits < 0 || static_cast<int64_t>(cuts.size()) < max_splits)) {
      const size_t at = absl::string_view(text.text()).substr(0, end).rfind(separator);
      if (at == absl::string_view::npos) break;
      cuts.push_back(at);
      end = at;
    }
    std::reverse(cuts.begin(), cuts.end());
  } else {
    for (size_t at = FindBytes(text.text(), separator, 0);
         at != absl::string_view::npos &&
         (max_splits < 0 || static_cast<int64_t>(cuts.size()) < max_splits);
         at = FindBytes(text.text(), separator, at + separator.size())) {
      cuts.push_back(at);
    }
  }
  std::vector<MarkedString> parts;
  size_t begin = 0;
  for (const size_t cut : cuts) {
    parts.push_back(text.Substring(begin, cut));
    begin = cut + separator.size();
  }
  parts.push_back(text.Substring(begin, text.size()));
  return parts;
}

std::vector<MarkedString> SplitAtSpace(const MarkedString& text, int64_t max_splits,
                                       bool from_right) {
  const absl::string_view bytes = text.text();
  std::vector<std::pair<size_t, size_t>> words;
  for (size_t i = 0; i < bytes.size();) {
    const size_t length = ReadCodePoint(bytes, i).length;
    if (IsSpaceAt(bytes, i)) {
      i += length;
      continue;
    }
    const size_t begin = i;
    while (i < bytes.size() && !IsSpaceAt(bytes, i)) i += ReadCodePoint(bytes, i).length;
    words.emplace_back(begin, i);
  }
  if (max_splits >= 0 && static_cast<int64_t>(words.size()) > max_splits) {
    // What is left over stays in one piece, with its white space but for that at the last split.
    if (from_right) {
      const size_t keep = words.size() - static_cast<size_t>(max_splits);
      words[keep - 1].first = 0;
      words.erase(words.begin(), words.begin() + static_cast<int64_t>(keep) - 1);
    } else {
      words[static_cast<size_t>(max_splits)].second = bytes.size();
      words.resize(static_cast<size_t>(max_splits) + 1);
    }
  }
  std::vector<MarkedString> parts;
  for (const auto& [begin, end] : words) parts.push_back(text.Substring(begin, end));
  return parts;
}

namespace {

// Calls visit(begin, end) for each place that `from` is replaced.
template <typename Visit>
void ForEachReplaced(absl::string_view text, absl::string_view from, int64_t max_count,
                     Visit visit) {
  int64_t count = 0;
  if (from.empty()) {
    for (size_t i = 0; max_count < 0 || count < max_count; ++count) {
      visit(i, i);
      if (i >= text.size()) break;
      i += ReadCodePoint(text, i).length;
    }
    return;
  }
  for (size_t at = FindBytes(text, from, 0);
       at != absl::string_view::npos && (max_count < 0 || count < max_count);
       at = FindBytes(text, from, at + from.size()), ++count) {
    visit(at, at + from.size());
  }
}

}  // namespace

int64_t ReplacedSize(const MarkedString& text, absl::string_view from, const MarkedString& to,
                     int64_t max_count) {
  int64_t size = static_cast<int64_t>(text.size());
  ForEachReplaced(text.text(), from, max_count, [&](size_t begin, size_t end) {
    size += static_cast<int64_t>(to.size()) - static_cast<int64_t>(end - begin);
  });
  return size;
}

MarkedString Replace(const MarkedString& text, absl::string_view from, const MarkedString& to,
                     int64_t max_count) {
  MarkedString out;
  size_t done = 0;
  ForEachReplaced(text.text(), from, max_count, [&](size_t begin, size_t end) {
    out.AppendRange(text, done, begin);
    out.Append(to);
    done = end;
  });
  out.AppendRange(text, done, text.size());
  return out;
}

std::vector<MarkedString> Characters(const MarkedString& text) {
  std::vector<MarkedString> characters;
  for (size_t i = 0; i < text.size();) {
    const size_t end = i + ReadCodePoint(text.text(), i).length;
    characters.push_back(text.Substring(i, end));
    i = end;
  }
  return characters;
}

}  // namespace fixpoint
