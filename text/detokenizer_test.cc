#include "text/detokenizer.h"

#include <gtest/gtest.h>

#include "text/test_tokenizers.h"
#include "text/utf8.h"

namespace fixpoint {
namespace {

std::unique_ptr<Tokenizer> Bytes() {
  AddedToken end;
  end.content = "<end>";
  end.special = true;
  return MakeTokenizer(ByteLevelSpec({}, {end}));
}

TEST(DetokenizerTest, HoldsBackHalfACodePoint) {
  const auto tokenizer = Bytes();
  Detokenizer out(tokenizer.get(), {});
  EXPECT_EQ(out.Push(0xF0), "");
  EXPECT_EQ(out.Push(0x9F), "");
  EXPECT_EQ(out.Push(0x98), "");
  EXPECT_EQ(out.pending_bytes(), 3u);
  EXPECT_EQ(out.Push(256), "");  // a control token in between is left out
  EXPECT_EQ(out.Push(0x80), "\U0001F600");
  EXPECT_EQ(out.Finish(), "");
}

TEST(DetokenizerTest, FinishGivesOneReplacementForAnIncompleteRest) {
  const auto tokenizer = Bytes();
  Detokenizer out(tokenizer.get(), {});
  EXPECT_EQ(out.Push(0xE4), "");
  EXPECT_EQ(out.Push(0xB8), "");
  EXPECT_EQ(out.Finish(), "\uFFFD");
  EXPECT_EQ(out.Finish(), "");
}

// All strings of four bytes from a set that has every kind of byte, as one token each and joined in
// pairs.
TEST(DetokenizerTest, InvalidBytesGiveTheSameTextHoweverTheyAreCut) {
  const uint8_t kinds[] = {'a', 0x80, 0xBF, 0xC3, 0xE0, 0xED, 0xF0, 0xF4, 0xFF, 0x9F};
  std::vector<std::string> pairs;
  for (const uint8_t a : kinds) {
    for (const uint8_t b : kinds) pairs.push_back({static_cast<char>(a), static_cast<char>(b)});
  }
  TokenizerSpec spec = ByteLevelSpec(pairs, {});
  const auto tokenizer = MakeTokenizer(spec);
  auto decode = [&](const std::vector<int32_t>& ids) {
    Detokenizer out(tokenizer.get(), {});
    std::string text;
    for (const int32_t id : ids) {
      const std::string part = out.Push(id);
      EXPECT_TRUE(IsValidUtf8(part));
      EXPECT_LE(out.pending_bytes(), 3u);
      text += part;
    }
    return text + out.Finish();
  };
  auto pair_id = [&](size_t a, size_t b) {
    return static_cast<int32_t>(256 + a * std::size(kinds) + b);
  };
  for (size_t a = 0; a < std::size(kinds); ++a) {
    for (size_t b = 0; b < std::size(kinds); ++b) {
      for (size_t c = 0; c < std::size(kinds); ++c) {
        for (size_t d = 0; d < std::size(kinds); ++d) {
          const std::string single = decode({kinds[a], kinds[b], kinds[c], kinds[d]});
          ASSERT_EQ(decode({pair_id(a, b), pair_id(c, d)}), single);
          ASSERT_EQ(decode({kinds[a], pair_id(b, c), kinds[d]}), single);
        }
      }
    }
  }
}

TEST(DetokenizerTest, SentencePieceStripsTheFirstSpaceOnlyAtTheStart) {
  const auto tokenizer = MakeTokenizer(SentencePieceSpec({"\u2581a", "\u2581"}));
  Detokenizer start(tokenizer.get(), {});
  EXPECT_EQ(start.Push(1), "");
  EXPECT_EQ(start.Push(259), "a");
  EXPECT_EQ(start.Push(259), " a");
  Detokenizer rest(tokenizer.get(), {.at_start = false});
  EXPECT_EQ(rest.Push(259), " a");
  Detokenizer lone(tokenizer.get(), {});
  EXPECT_EQ(lone.Push(260), "");
  EXPECT_EQ(lone.Push(260), " ");
}

}  // namespace
}  // namespace fixpoint
