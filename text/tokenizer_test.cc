#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <cmath>

#include "text/test_tokenizers.h"

namespace fixpoint {
namespace {

using Ids = std::vector<int32_t>;

AddedToken Added(std::string content, bool special) {
  AddedToken token;
  token.content = std::move(content);
  token.special = special;
  return token;
}

class ByteLevelTest : public testing::Test {
 protected:
  // " the" is 258 by way of " t" 256 and " th" 257; "ab" 259; <end> 260, <tool> 261.
  ByteLevelTest()
      : tokenizer_(MakeTokenizer(
            ByteLevelSpec({" the", "ab"}, {Added("<end>", true), Added("<tool>", false)}))) {}
  std::unique_ptr<Tokenizer> tokenizer_;
};
constexpr int32_t kThe = 258, kAb = 259, kEnd = 260, kTool = 261;

TEST_F(ByteLevelTest, MergesWithinPiecesOnly) {
  EXPECT_EQ(tokenizer_->Encode("ab the", false), (Ids{kAb, kThe}));
  EXPECT_EQ(tokenizer_->Encode("a b", false), (Ids{'a', ' ', 'b'}));
  EXPECT_EQ(tokenizer_->Encode("", false), Ids{});
}

TEST_F(ByteLevelTest, ControlTokensNeedTrust) {
  EXPECT_EQ(tokenizer_->Encode("a<end>", true), (Ids{'a', kEnd}));
  EXPECT_EQ(tokenizer_->Encode("a<end>", false), (Ids{'a', '<', 'e', 'n', 'd', '>'}));
  EXPECT_EQ(tokenizer_->Encode("<tool>x", false), (Ids{kTool, 'x'}));
}

TEST_F(ByteLevelTest, SegmentsJoinAsTextButNotAsControlTokens) {
  auto encode = [&](std::vector<TextSegment> segments) {
    return tokenizer_->EncodeSegments(segments);
  };
  EXPECT_EQ(encode({{"a", false}, {"b t", true}, {"he", false}}), (Ids{kAb, kThe}));
  EXPECT_EQ(encode({{"<e", true}, {"nd>", true}}), (Ids{kEnd}));
  for (size_t cut = 1; cut < 5; ++cut) {
    const std::string end = "<end>";
    EXPECT_EQ(encode({{end.substr(0, cut), true}, {end.substr(cut), false}}).size(), 5u);
    EXPECT_EQ(encode({{end.substr(0, cut), false}, {end.substr(cut), true}}).size(), 5u);
  }
  // User text cannot swallow the template's control token by starting a longer match.
  EXPECT_EQ(encode({{"<tool", false}, {"<end>", true}}).back(), kEnd);
}

TEST_F(ByteLevelTest, UserTextCannotHideAControlTokenBehindALongerAddedToken) {
  const auto tokenizer =
      MakeTokenizer(ByteLevelSpec({}, {Added("<end>", true), Added("x<end>y", false)}));
  EXPECT_EQ(tokenizer->EncodeSegments({{"x", false}, {"<end>", true}, {"y", false}}),
            (Ids{'x', 256, 'y'}));
  EXPECT_EQ(tokenizer->Encode("x<end>y", true), (Ids{257}));  // all of it trusted: leftmost-longest
}

TEST_F(ByteLevelTest, VocabularyLookupsNeverGiveControlTokens) {
  TokenizerSpec spec = ByteLevelSpec({"abc"}, {});
  spec.types[257] = TokenType::kControl;  // "abc" itself
  spec.ignore_merges = true;
  EXPECT_EQ(MakeTokenizer(spec)->Encode("abc", false), (Ids{256, 'c'}));
  EXPECT_EQ(MakeTokenizer(spec)->Encode("abc", true),
            (Ids{256, 'c'}));  // it is no added token either
}

TEST_F(ByteLevelTest, IgnoreMergesTakesAWholePieceFromTheVocabulary) {
  TokenizerSpec spec = ByteLevelSpec({"abc"}, {});
  spec.tokens.push_back("xyz");  // no merge leads to it
  spec.types.push_back(TokenType::kNormal);
  EXPECT_EQ(MakeTokenizer(spec)->Encode("xyz", false), (Ids{'x', 'y', 'z'}));
  spec.ignore_merges = true;
  EXPECT_EQ(MakeTokenizer(spec)->Encode("xyz", false), (Ids{258}));
}

TEST_F(ByteLevelTest, AddedTokenFlags) {
  AddedToken left = Added("<L>", false), right = Added("<R>", false), word = Added("word", false);
  left.lstrip = right.rstrip = word.single_word = true;
  const auto tokenizer = MakeTokenizer(ByteLevelSpec({}, {left, right, word}));
  EXPECT_EQ(tokenizer->Encode("a \n<L> b", false), (Ids{'a', 256, ' ', 'b'}));
  EXPECT_EQ(tokenizer->Encode("a <R> \nb", false), (Ids{'a', ' ', 257, 'b'}));
  EXPECT_EQ(tokenizer->Encode("word", false), (Ids{258}));
  EXPECT_EQ(tokenizer->Encode("words", false).size(), 5u);
  EXPECT_EQ(tokenizer->Encode("-word-", false), (Ids{'-', 258, '-'}));
}

TEST_F(ByteLevelTest, UnknownBytesAreDroppedOrUnknown) {
  TokenizerSpec spec = ByteLevelSpec({}, {});
  spec.tokens[4] = "";
  spec.types[4] = TokenType::kUnused;
  EXPECT_EQ(MakeTokenizer(spec)->Encode("a\x04"
                                        "b",
                                        false),
            (Ids{'a', 'b'}));
  spec.unknown_id = 0;
  EXPECT_EQ(MakeTokenizer(spec)->Encode("a\x04"
                                        "b",
                                        false),
            (Ids{'a', 0, 'b'}));
}

TEST_F(ByteLevelTest, DecodeIsTheReverse) {
  const std::string text = "ab the \xE4\xB8\xAD<tool>\n";
  EXPECT_EQ(tokenizer_->Decode(tokenizer_->Encode(text, true), false), text);
  EXPECT_EQ(tokenizer_->Decode({'a', kEnd, 'b'}, true), "ab");
  EXPECT_EQ(tokenizer_->Decode({'a', kEnd, 'b'}, false), "a<end>b");
  EXPECT_EQ(tokenizer_->Decode({-1, 'a', 99999}, false), "a");
  EXPECT_EQ(tokenizer_->Decode({0xE4, 0xB8}, false), "\uFFFD");
}

TEST_F(ByteLevelTest, HostileTextTakesLinearWork) {
  TokenizerSpec spec = ByteLevelSpec({"aaaaaaaa", "        ", "........"},
                                     {Added("<|im_end|>", true), Added("<<<<<<<<", false)});
  const std::string patterns[] = {"a",
                                  " ",
                                  ".",
                                  "\n",
                                  "'",
                                  "<",
                                  "<|im_end|>",
                                  "<|im_en",
                                  " \n",
                                  "7",
                                  "\xE4\xB8\xAD",
                                  "\xCC\x81\xCC\xA3",
                                  "ab "};
  for (const auto rule :
       {PreTokenizer::kGpt2, PreTokenizer::kSmolLm, PreTokenizer::kLlama3, PreTokenizer::kQwen2}) {
    spec.pre_tokenizer = rule;
    spec.normalize_nfc = rule == PreTokenizer::kQwen2;
    const auto tokenizer = MakeTokenizer(spec);
    for (const std::string& pattern : patterns) {
      std::string text;
      while (text.size() < 1 << 17) text += pattern;
      EncodeWork work;
      const size_t ids = tokenizer->Encode(text, true, &work).size();
      const auto size = static_cast<int64_t>(text.size());
      EXPECT_LE(ids, text.size()) << pattern;
      EXPECT_LE(work.characters_scanned, 6 * size) << pattern;
      EXPECT_LE(work.trie_steps, 2 * 11 * size)
          << pattern;  // two passes, at most one longer than the longest pattern
      EXPECT_LE(work.pair_lookups, 4 * size) << pattern;
      EXPECT_LE(work.heap_operations, 8 * size) << pattern;
    }
  }
}

class SentencePieceTest : public testing::Test {
 protected:
  // "▁ab" 259, "ab" 260, "▁" 261, "a" 262, "b" 263, "▁▁" 264, then the spelling of </s> in parts
  // and "s>" 268
  SentencePieceTest()
      : tokenizer_(
            MakeTokenizer(SentencePieceSpec({"\u2581ab", "ab", "\u2581", "a", "b", "\u2581\u2581",
                                             "<", "/", "s", "s>", ">", "</", "/s>"}))) {}
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(SentencePieceTest, PrefixMergesAndByteFallback) {
  EXPECT_EQ(tokenizer_->Encode("ab", false), (Ids{259}));
  EXPECT_EQ(tokenizer_->Encode(" ab", false),
            (Ids{261, 259}));  // "▁▁ab": "▁ab" has the better rank
  EXPECT_EQ(tokenizer_->Encode("\u00E9", false), (Ids{261, 3 + 0xC3, 3 + 0xA9}));
  EXPECT_EQ(tokenizer_->Encode("", false), Ids{});
}

TEST_F(SentencePieceTest, TextCannotSpellControlOrByteTokens) {
  for (const char* text : {"</s>", "<0x41>", "<unk>"}) {
    for (const int32_t id : tokenizer_->Encode(text, false)) {
      EXPECT_NE(tokenizer_->spec().types[id], TokenType::kControl) << text;
      EXPECT_NE(id, 3 + 0x41) << text;
    }
  }
  EXPECT_EQ(tokenizer_->Encode("</s>ab", true),
            (Ids{2, 259}));  // the prefix goes before each stretch of text
}

TEST_F(SentencePieceTest, DecodeDropsThePrefixOnce) {
  EXPECT_EQ(tokenizer_->Decode({259, 259}, false), "ab ab");
  EXPECT_EQ(tokenizer_->Decode({1, 259}, true), "ab");
  EXPECT_EQ(tokenizer_->Decode({1, 259}, false), "<s> ab");
  EXPECT_EQ(tokenizer_->Decode({3 + 0xC3, 3 + 0xA9}, false), "\u00E9");
}

TEST_F(SentencePieceTest, ALongPromptIsOnePieceInLinearWork) {
  for (const std::string pattern : {"ab", " ", "a", "\u00E9", "</s"}) {
    std::string text;
    while (text.size() < 1 << 17) text += pattern;
    EncodeWork work;
    tokenizer_->Encode(text, false, &work);
    EXPECT_LE(work.pair_lookups, static_cast<int64_t>(4 * text.size()));
    EXPECT_LE(work.heap_operations, static_cast<int64_t>(8 * text.size()));
  }
}

TEST_F(SentencePieceTest, WithoutBytesUnknownsFuse) {
  TokenizerSpec spec = SentencePieceSpec({"\u2581", "a"});
  for (size_t id = 3; id < 259; ++id) spec.types[id] = TokenType::kUnused;
  EXPECT_EQ(MakeTokenizer(spec)->Encode("a\u00E9\u00E8"
                                        "a",
                                        false),
            (Ids{259, 260, 0, 260}));
}

}  // namespace
}  // namespace fixpoint
