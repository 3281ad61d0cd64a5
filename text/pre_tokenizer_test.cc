#include "text/pre_tokenizer.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace fixpoint {
namespace {

using Pieces = std::vector<std::string>;

Pieces Split(PreTokenizer rule, absl::string_view text) {
  Pieces pieces;
  int64_t work = 0;
  SplitText(
      rule, text, [&](absl::string_view piece) { pieces.emplace_back(piece); }, &work);
  return pieces;
}

// Expected pieces come from the regexes, by way of the `tokenizers` package.
TEST(PreTokenizerTest, Gpt2) {
  EXPECT_EQ(Split(PreTokenizer::kGpt2, "I'm  we'LL x1 23!?  \n y"),
            (Pieces{"I", "'m", " ", " we", "'", "LL", " x", "1", " 23", "!?", "  \n", " y"}));
  EXPECT_EQ(Split(PreTokenizer::kGpt2, "a  "), (Pieces{"a", "  "}));
  EXPECT_EQ(Split(PreTokenizer::kGpt2, "a\u00A0\u00A0b"), (Pieces{"a", "\u00A0", "\u00A0", "b"}));
}

TEST(PreTokenizerTest, SmolLmTakesNumbersApartAndDoesNotHoldBackSpaceForThem) {
  EXPECT_EQ(Split(PreTokenizer::kSmolLm, "a  12 b"), (Pieces{"a", "  ", "1", "2", " b"}));
  EXPECT_EQ(Split(PreTokenizer::kSmolLm, "\u00BD\u0663"), (Pieces{"\u00BD", "\u0663"}));
}

TEST(PreTokenizerTest, Llama3) {
  EXPECT_EQ(Split(PreTokenizer::kLlama3, "We'LL \tgo 12345 (x)\n\n  \n y\u017F'\u017F"),
            (Pieces{"We", "'LL", " ", "\tgo", " ", "123", "45", " (", "x", ")\n\n", "  \n",
                    " y\u017F", "'\u017F"}));
  EXPECT_EQ(Split(PreTokenizer::kLlama3, "\u0301abc"),
            (Pieces{"\u0301abc"}));  // a mark is no letter, but leads them
  EXPECT_EQ(Split(PreTokenizer::kLlama3, "\nabc  \r\n"), (Pieces{"\n", "abc", "  \r\n"}));
}

TEST(PreTokenizerTest, Qwen2TakesDigitsOneByOne) {
  EXPECT_EQ(Split(PreTokenizer::kQwen2, "x 123"), (Pieces{"x", " ", "1", "2", "3"}));
}

TEST(PreTokenizerTest, PiecesJoinToTheTextAndWorkIsLinear) {
  const std::string parts[] = {" ", "\n", "a",      "\u4E2D", "1",   "'",      "'s",
                               ".", "\t", "\u00A0", "\r",     "'re", "\u0301", "  \n "};
  uint32_t random = 1;
  for (const auto rule : {PreTokenizer::kNone, PreTokenizer::kGpt2, PreTokenizer::kSmolLm,
                          PreTokenizer::kLlama3, PreTokenizer::kQwen2}) {
    for (int round = 0; round < 300; ++round) {
      std::string text;
      int64_t code_points = 0;
      for (int i = 0; i < 40; ++i) {
        random = random * 1664525 + 1013904223;
        text += parts[(random >> 16) % std::size(parts)];
      }
      for (const char c : text) code_points += (c & 0xC0) != 0x80;
      std::string joined;
      int64_t work = 0;
      SplitText(
          rule, text,
          [&](absl::string_view piece) {
            EXPECT_FALSE(piece.empty());
            joined.append(piece.data(), piece.size());
          },
          &work);
      EXPECT_EQ(joined, text);
      EXPECT_LE(work, 6 * code_points);
    }
  }
}

}  // namespace
}  // namespace fixpoint
