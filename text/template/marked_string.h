// A string that knows of each byte whether it came from the template's own literals.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

#include "text/text_segment.h"

namespace fixpoint {

// UTF-8 text with one mark per byte: trusted (a literal of the template, a string that the operator
// passed) or not. Every operation carries the marks along, so a control token typed by a user stays
// untrusted wherever the template puts it.
class MarkedString {
 public:
  MarkedString() = default;
  MarkedString(std::string text, bool trusted) : text_(std::move(text)), trusted_(trusted) {}

  const std::string& text() const { return text_; }
  size_t size() const { return text_.size(); }
  bool empty() const { return text_.empty(); }
  bool trusted_at(size_t i) const { return marks_.empty() ? trusted_ : marks_[i] != 0; }

  void Append(absl::string_view text, bool trusted);
  void Append(const MarkedString& other);
  // Appends bytes [begin, end) of `other`.
  void AppendRange(const MarkedString& other, size_t begin, size_t end);
  MarkedString Substring(size_t begin, size_t end) const;

  // Maximal runs with the same mark, none empty.
  std::vector<TextSegment> Segments() const;

 private:
  void SpellOutMarks();

  std::string text_;
  std::string marks_;  // one byte per byte of text_, or empty: all of it is as trusted_ says
  bool trusted_ = false;
};

}  // namespace fixpoint
