#include "grammar/token_trie.h"

#include <algorithm>

#include "base/check.h"

namespace fixpoint {
namespace {

size_t CommonPrefix(absl::string_view a, absl::string_view b) {
  size_t size = 0;
  while (size < a.size() && size < b.size() && a[size] == b[size]) ++size;
  return size;
}

}  // namespace

TokenTrie::TokenTrie(const Tokenizer& tokenizer, absl::Span<const int32_t> left_out)
    : vocab_size_(tokenizer.vocab_size()) {
  begin_.reserve(static_cast<size_t>(vocab_size_) + 1);
  for (int32_t id = 0; id < vocab_size_; ++id) {
    begin_.push_back(static_cast<uint32_t>(bytes_.size()));
    const TokenType type = tokenizer.spec().types[static_cast<size_t>(id)];
    const bool is_text = !tokenizer.IsControl(id) && type != TokenType::kUnknown &&
                         type != TokenType::kUnused &&
                         std::find(left_out.begin(), left_out.end(), id) == left_out.end();
    if (!is_text) continue;
    const absl::string_view bytes = tokenizer.TokenBytes(id);
    CHECK_LT(bytes_.size() + bytes.size(), size_t{UINT32_MAX});  // 2^20 tokens of 4,096 bytes
    bytes_.append(bytes.data(), bytes.size());
    if (!bytes.empty()) tokens_.push_back(id);
  }
  begin_.push_back(static_cast<uint32_t>(bytes_.size()));
  std::sort(tokens_.begin(), tokens_.end(), [&](int32_t a, int32_t b) {
    const int order = TokenBytes(a).compare(TokenBytes(b));
    return order != 0 ? order < 0 : a < b;
  });

  std::vector<size_t> open;  // nodes of the last token's bytes
  const auto close = [&](size_t depth) {
    for (; open.size() > depth; open.pop_back()) {
      nodes_[open.back()].behind = static_cast<uint32_t>(nodes_.size());
    }
  };
  absl::string_view previous;
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const absl::string_view bytes = TokenBytes(tokens_[i]);
    close(CommonPrefix(previous, bytes));
    while (open.size() < bytes.size()) {
      Node node;
      node.byte = static_cast<uint8_t>(bytes[open.size()]);
      node.depth = static_cast<uint16_t>(open.size() + 1);
      // Tokens end at the last node of their bytes only: those before it in the order are behind
      // this node's parent, this one is the first that can end here.
      node.first_token = static_cast<uint32_t>(i);
      open.push_back(nodes_.size());
      nodes_.push_back(node);
    }
    if (bytes.size() == 1) single_bytes_.set(static_cast<uint8_t>(bytes[0]));
    max_depth_ = std::max(max_depth_, static_cast<int32_t>(bytes.size()));
    previous = bytes;
  }
  close(0);
  nodes_.push_back({.first_token = static_cast<uint32_t>(tokens_.size())});
}

absl::string_view TokenTrie::TokenBytes(int32_t id) const {
  if (id < 0 || id >= vocab_size_) return {};
  const uint32_t begin = begin_[static_cast<size_t>(id)];
  return absl::string_view(bytes_).substr(begin, begin_[static_cast<size_t>(id) + 1] - begin);
}

}  // namespace fixpoint
