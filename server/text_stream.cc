#include "server/text_stream.h"

#include <utility>

#include "base/check.h"

namespace fixpoint {

TextStream::TextStream(const Tokenizer* tokenizer, std::vector<std::string> stop_strings)
    : stop_strings_(std::move(stop_strings)),
      matcher_(stop_strings_),
      detokenizer_(tokenizer, DetokenizerOptions{}) {}

std::string TextStream::Push(int32_t id) {
  CHECK(!stopped());
  return Take(detokenizer_.Push(id));
}

bool TextStream::Resume(absl::Span<const int32_t> ids, size_t* taken) {
  for (*taken = 0; *taken < ids.size(); ++*taken) {
    if (stopped()) return false;
    Push(ids[*taken]);
  }
  return true;
}

std::string TextStream::Finish() {
  if (stopped()) return "";
  std::string text = Take(detokenizer_.Finish());
  text += held_;  // the stop string did not come
  held_.clear();
  return text;
}

// Stop strings are valid UTF-8, so a match and anything held back begin where a code point begins.
std::string TextStream::Take(const std::string& text) {
  held_ += text;
  const size_t old_size = held_.size() - text.size();
  for (size_t i = old_size; i < held_.size(); ++i) {
    stop_index_ = matcher_.Push(held_[i]);
    if (!stopped()) continue;
    std::string before = held_.substr(0, i + 1 - stop_strings_[stop_index_].size());
    held_.clear();
    return before;
  }
  const size_t certain = held_.size() - matcher_.held_bytes();
  std::string out = held_.substr(0, certain);
  held_.erase(0, certain);
  return out;
}

}  // namespace fixpoint
