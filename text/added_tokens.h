// Finds added tokens in text: leftmost-longest, with the flags of tokenizer.json (single_word,
// lstrip, rstrip).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/string_view.h"

#include "text/bpe.h"
#include "text/tokenizer_spec.h"

namespace fixpoint {

// Bytes [begin, end) of a text and what they are: an added token's id, or -1 for plain text.
struct TextSpan {
  size_t begin;
  size_t end;
  int32_t id;
};

// A set of patterns over one kind of text (raw, or normalized). Immutable once filled; thread-safe
// then.
class AddedTokenMatcher {
 public:
  // Adds a token that is found where `pattern` stands. Pattern: 1 to kMaxPatternBytes bytes. A
  // second token with the same pattern replaces the first.
  void Add(const AddedToken& token, absl::string_view pattern);
  bool empty() const { return tokens_.empty(); }

  // Calls `found` for the matches within [begin, end) of `text`, leftmost first, at each place the
  // longest, none overlapping. Flags are not looked at. Time O((end - begin) * longest pattern).
  void ForEachMatch(
      absl::string_view text, size_t begin, size_t end,
      absl::FunctionRef<void(const AddedToken& token, size_t begin, size_t end)> found,
      EncodeWork* work) const;

  static constexpr size_t kMaxPatternBytes = 1024;

 private:
  struct Node {
    int32_t token = -1;                              // index into tokens_
    std::vector<std::pair<char, int32_t>> children;  // sorted by byte
  };
  int32_t Child(int32_t node, char byte) const;
  // The longest token that starts at `begin`, as an index into tokens_, or -1; *length is its
  // pattern's.
  int32_t LongestAt(absl::string_view text, size_t begin, size_t* length, EncodeWork* work) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_ = std::vector<Node>(1);
  bool starts_[256] =
      {};  // bytes that open a pattern: nearly all text is passed over by this test alone
};

// Cuts a text into spans at accepted matches, one after the other.
class SpanCutter {
 public:
  explicit SpanCutter(absl::string_view text) : text_(text) {}

  // Takes the match of `token` at [begin, end) with the white space that lstrip and rstrip add.
  // Does nothing where single_word forbids the match.
  void Take(const AddedToken& token, size_t begin, size_t end);

  // The spans, none empty, with the text behind the last match. Where an rstrip took white space
  // that a later match starts with, both matches count (as in `tokenizers`).
  std::vector<TextSpan> Finish();

 private:
  absl::string_view text_;
  size_t done_ = 0;  // what lies in front of it is in spans_
  std::vector<TextSpan> spans_;
};

}  // namespace fixpoint
