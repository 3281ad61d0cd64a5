#include "text/template/marked_string.h"

namespace fixpoint {

void MarkedString::SpellOutMarks() {
  if (marks_.empty()) marks_.assign(text_.size(), trusted_ ? 1 : 0);
}

void MarkedString::Append(absl::string_view text, bool trusted) {
  if (text.empty()) return;
  if (text_.empty()) {
    marks_.clear();
    trusted_ = trusted;
  }
  if (!marks_.empty() || trusted_ != trusted) {
    SpellOutMarks();
    marks_.append(text.size(), trusted ? 1 : 0);
  }
  text_.append(text.data(), text.size());
}

void MarkedString::Append(const MarkedString& other) { AppendRange(other, 0, other.size()); }

void MarkedString::AppendRange(const MarkedString& other, size_t begin, size_t end) {
  const absl::string_view bytes = absl::string_view(other.text_).substr(begin, end - begin);
  if (other.marks_.empty()) return Append(bytes, other.trusted_);
  if (bytes.empty()) return;
  SpellOutMarks();
  marks_.append(other.marks_, begin, end - begin);
  text_.append(bytes.data(), bytes.size());
}

MarkedString MarkedString::Substring(size_t begin, size_t end) const {
  MarkedString out;
  out.AppendRange(*this, begin, end);
  return out;
}

std::vector<TextSegment> MarkedString::Segments() const {
  std::vector<TextSegment> segments;
  for (size_t begin = 0; begin < size();) {
    size_t end = begin + 1;
    while (end < size() && trusted_at(end) == trusted_at(begin)) ++end;
    segments.push_back({text_.substr(begin, end - begin), trusted_at(begin)});
    begin = end;
  }
  return segments;
}

}  // namespace fixpoint
