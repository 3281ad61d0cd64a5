#include "text/added_tokens.h"

#include <algorithm>

#include "base/check.h"
#include "text/unicode.h"
#include "text/utf8.h"

namespace fixpoint {
namespace {

bool IsWordAt(absl::string_view text, size_t position) {
  return (CharacterClass(ReadCodePoint(text, position).value) & kWordClass) != 0;
}

bool IsSingleWord(absl::string_view text, size_t begin, size_t end) {
  return (begin == 0 || !IsWordAt(text, PreviousCodePoint(text, begin))) &&
         (end == text.size() || !IsWordAt(text, end));
}

bool IsSpaceAt(absl::string_view text, size_t position) {
  return (CharacterClass(ReadCodePoint(text, position).value) & kSpaceClass) != 0;
}

size_t StripLeft(absl::string_view text, size_t floor, size_t position) {
  while (position > floor) {
    const size_t previous = PreviousCodePoint(text, position);
    if (!IsSpaceAt(text, previous)) break;
    position = previous;
  }
  return position;
}

size_t StripRight(absl::string_view text, size_t position) {
  while (position < text.size() && IsSpaceAt(text, position)) {
    position += ReadCodePoint(text, position).length;
  }
  return position;
}

}  // namespace

void AddedTokenMatcher::Add(const AddedToken& token, absl::string_view pattern) {
  CHECK(!pattern.empty() && pattern.size() <= kMaxPatternBytes) << "added token " << token.id;
  int32_t node = 0;
  for (const char byte : pattern) {
    int32_t next = Child(node, byte);
    if (next < 0) {
      next = static_cast<int32_t>(nodes_.size());
      auto& children = nodes_[node].children;
      children.insert(
          std::upper_bound(children.begin(), children.end(), std::make_pair(byte, next)),
          {byte, next});
      nodes_.emplace_back();
    }
    node = next;
  }
  if (nodes_[node].token < 0) {
    nodes_[node].token = static_cast<int32_t>(tokens_.size());
    tokens_.push_back(token);
  } else {
    tokens_[nodes_[node].token] = token;
  }
  starts_[static_cast<uint8_t>(pattern[0])] = true;
}

int32_t AddedTokenMatcher::Child(int32_t node, char byte) const {
  const auto& children = nodes_[node].children;
  const auto found = std::lower_bound(children.begin(), children.end(), std::make_pair(byte, -1));
  return found != children.end() && found->first == byte ? found->second : -1;
}

int32_t AddedTokenMatcher::LongestAt(absl::string_view text, size_t begin, size_t* length,
                                     EncodeWork* work) const {
  int32_t best = -1;
  int32_t node = 0;
  for (size_t i = begin; i < text.size(); ++i) {
    ++work->trie_steps;
    node = Child(node, text[i]);
    if (node < 0) break;
    if (nodes_[node].token >= 0) {
      best = nodes_[node].token;
      *length = i + 1 - begin;
    }
  }
  return best;
}

void AddedTokenMatcher::ForEachMatch(
    absl::string_view text, size_t begin, size_t end,
    absl::FunctionRef<void(const AddedToken& token, size_t begin, size_t end)> found,
    EncodeWork* work) const {
  const absl::string_view matchable = text.substr(0, end);
  for (size_t i = begin; i < end && !empty();) {
    size_t length = 0;
    const bool may_start = starts_[static_cast<uint8_t>(text[i])];
    const int32_t token = may_start ? LongestAt(matchable, i, &length, work) : -1;
    if (token < 0) {
      ++i;
    } else {
      found(tokens_[token], i, i + length);
      i += length;
    }
  }
}

void SpanCutter::Take(const AddedToken& token, size_t begin, size_t end) {
  if (token.single_word && !IsSingleWord(text_, begin, end)) return;
  if (token.lstrip) begin = StripLeft(text_, done_, begin);
  if (token.rstrip) end = StripRight(text_, end);
  if (done_ < begin) spans_.push_back({done_, begin, -1});
  spans_.push_back({begin, end, token.id});
  done_ = end;
}

std::vector<TextSpan> SpanCutter::Finish() {
  if (done_ < text_.size()) spans_.push_back({done_, text_.size(), -1});
  return std::move(spans_);
}

}  // namespace fixpoint
