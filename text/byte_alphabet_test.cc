#include "text/byte_alphabet.h"

#include <gtest/gtest.h>

#include "text/utf8.h"

namespace fixpoint {
namespace {

TEST(ByteAlphabetTest, EveryByteComesBack) {
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all.push_back(static_cast<char>(byte));
  const std::string spelled = AlphabetFromBytes(all);
  EXPECT_TRUE(IsValidUtf8(spelled));
  EXPECT_EQ(*BytesFromAlphabet(spelled), all);
}

TEST(ByteAlphabetTest, KnownSpellings) {
  EXPECT_EQ(*BytesFromAlphabet("\u0120the\u010A"), " the\n");
  EXPECT_EQ(AlphabetFromBytes("\xC3\xA9"), "\u00C3\u00A9");  // é as two bytes
}

TEST(ByteAlphabetTest, RefusesWhatIsNoSpelling) {
  EXPECT_FALSE(BytesFromAlphabet("a b").ok());  // a space is spelled U+0120
  EXPECT_FALSE(BytesFromAlphabet("\u2581").ok());
  EXPECT_FALSE(BytesFromAlphabet("\u0144").ok());  // one behind the last
  EXPECT_TRUE(BytesFromAlphabet("\u0143").ok());
  EXPECT_FALSE(BytesFromAlphabet("\xC3").ok());
}

}  // namespace
}  // namespace fixpoint
