#include "grammar/token_trie.h"

#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "grammar/test_grammar.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

void CheckTrie(const Tokenizer& tokenizer, const std::vector<int32_t>& left_out) {
  const TokenTrie trie(tokenizer, left_out);
  std::set<int32_t> found;
  std::vector<size_t> open;  // the nodes above
  std::string text, previous;
  for (size_t i = 0; i + 1 < trie.nodes().size(); ++i) {
    const TokenTrie::Node& node = trie.nodes()[i];
    ASSERT_GE(node.depth, 1u);
    ASSERT_LE(node.depth, open.size() + 1);
    for (; open.size() >= node.depth; open.pop_back()) {
      ASSERT_EQ(trie.nodes()[open.back()].behind, i);
    }
    text.resize(node.depth - 1u);
    text.push_back(static_cast<char>(node.byte));
    ASSERT_GT(text, previous) << "each beginning once, in the order of bytes";
    previous = text;
    open.push_back(i);
    for (const int32_t id : trie.TokensAt(i)) {
      ASSERT_TRUE(found.insert(id).second) << "twice: " << id;
      ASSERT_EQ(std::string(tokenizer.TokenBytes(id)), text);
      ASSERT_EQ(trie.TokenBytes(id), text);
    }
  }
  for (const size_t node : open) ASSERT_EQ(trie.nodes()[node].behind + 1, trie.nodes().size());
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const bool text_token = !tokenizer.IsControl(id) && !tokenizer.TokenBytes(id).empty() &&
                            std::find(left_out.begin(), left_out.end(), id) == left_out.end();
    ASSERT_EQ(found.count(id), text_token ? 1u : 0u) << id;
    if (!text_token) {
      ASSERT_EQ(trie.TokenBytes(id), "") << id;
    }
  }
}

TEST(TokenTrieTest, HoldsEachTextTokenOnce) {
  const auto tokenizer = SmallTokenizer();
  CheckTrie(*tokenizer, {});
  CheckTrie(*tokenizer, {'a', 300});
  EXPECT_TRUE(TokenTrie(*tokenizer, {}).single_bytes().all());
  EXPECT_FALSE(TokenTrie(*tokenizer, {'a'}).single_bytes()['a']);
}

TEST(TokenTrieTest, SentencePieceBytesAndSpacesAreTheirText) {
  const auto tokenizer = MakeTokenizer(SentencePieceSpec({"\xe2\x96\x81the", "a", "\xe2\x96\x81"}));
  CheckTrie(*tokenizer, {2});
  const TokenTrie trie(*tokenizer, {2});
  EXPECT_EQ(trie.TokenBytes(259), " the");
  EXPECT_TRUE(trie.single_bytes().all());
  EXPECT_EQ(trie.TokenBytes(-1), "");
  EXPECT_EQ(trie.TokenBytes(1 << 20), "");
}

TEST(TokenTrieTest, TokensOfEqualBytesShareANode) {
  TokenizerSpec spec = ByteLevelSpec({"ab"}, {{.id = -1, .content = "ab"}});
  const auto tokenizer = MakeTokenizer(std::move(spec));
  CheckTrie(*tokenizer, {});
}

}  // namespace
}  // namespace fixpoint
