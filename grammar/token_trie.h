// The vocabulary by its bytes: which tokens a text may go on with is asked for all of them in one
// pass over their common beginnings.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "grammar/automaton.h"
#include "text/tokenizer.h"

namespace fixpoint {

// Tokens that are text: control, unknown and unused ones, `left_out` and those without bytes are
// not in it. Immutable, thread-safe; keeps nothing of the tokenizer.
class TokenTrie {
 public:
  TokenTrie(const Tokenizer& tokenizer, absl::Span<const int32_t> left_out);

  // One byte behind its parent. In the order of a walk that goes down first: the parent of a node
  // of depth d is the last node of depth d - 1 before it.
  struct Node {
    uint8_t byte = 0;
    uint16_t depth = 0;        // of the root's children: 1
    uint32_t behind = 0;       // the first node that is not below this one
    uint32_t first_token = 0;  // tokens that end here: up to the next node's first_token
  };
  // One more than there are nodes: the last one only ends the tokens.
  absl::Span<const Node> nodes() const { return nodes_; }
  absl::Span<const int32_t> TokensAt(size_t node) const {
    return absl::MakeConstSpan(tokens_).subspan(
        nodes_[node].first_token, nodes_[node + 1].first_token - nodes_[node].first_token);
  }

  int32_t vocab_size() const { return vocab_size_; }
  int32_t max_depth() const { return max_depth_; }
  // Empty when the token is not in the trie.
  absl::string_view TokenBytes(int32_t id) const;
  // Bytes that are tokens of their own.
  const ByteSet& single_bytes() const { return single_bytes_; }

 private:
  int32_t vocab_size_;
  int32_t max_depth_ = 0;
  std::vector<Node> nodes_;
  std::vector<int32_t> tokens_;  // in the nodes' order
  std::string bytes_;            // of all tokens, by id
  std::vector<uint32_t> begin_;  // [vocab_size + 1] into bytes_
  ByteSet single_bytes_;
};

}  // namespace fixpoint
