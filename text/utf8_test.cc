#include "text/utf8.h"

#include <gtest/gtest.h>

namespace fixpoint {
namespace {

TEST(Utf8Test, AcceptsTheBordersOfEachLength) {
  for (const uint32_t c :
       {0x0u, 0x7Fu, 0x80u, 0x7FFu, 0x800u, 0xD7FFu, 0xE000u, 0xFFFFu, 0x10000u, 0x10FFFFu}) {
    std::string text = "x";
    AppendUtf8(c, &text);
    text += "yyyyyyyyy";
    EXPECT_TRUE(IsValidUtf8(text)) << c;
    EXPECT_EQ(ReadCodePoint(text, 1).value, c);
    EXPECT_EQ(PreviousCodePoint(text, 1 + ReadCodePoint(text, 1).length), 1u);
  }
}

TEST(Utf8Test, RefusesOverlongSurrogatesTooLargeAndCut) {
  for (const absl::string_view bad :
       {"\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xED\xBF\xBF", "\xF0\x8F\xBF\xBF",
        "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF", "\x80", "\xE4\xB8", "\xC3", "\xF0\x9F\x98",
        "aaaaaaaaaaaaaaaa\xC3"}) {
    EXPECT_FALSE(IsValidUtf8(bad)) << testing::PrintToString(bad);
  }
}

TEST(Utf8Test, ClassifiesTheMaximalSubpart) {
  EXPECT_EQ(ClassifyUtf8("\xF0\x9F\x98").kind, Utf8Prefix::kIncomplete);
  EXPECT_EQ(ClassifyUtf8("\xF0\x9F\x98").length, 3u);
  EXPECT_EQ(ClassifyUtf8("\xF0\x9Fx").kind, Utf8Prefix::kInvalid);
  EXPECT_EQ(ClassifyUtf8("\xF0\x9Fx").length, 2u);
  EXPECT_EQ(ClassifyUtf8("\xED\xA0\x80").length, 1u);  // a surrogate: each byte stands alone
  EXPECT_EQ(ClassifyUtf8("\xE4\xB8\xAD").kind, Utf8Prefix::kValid);
}

}  // namespace
}  // namespace fixpoint
