#include "base/digest.h"

#include <string>
#include <utility>

#include "gtest/gtest.h"

namespace fixpoint {
namespace {

// FIPS 180-4 example vectors.
TEST(DigestTest, Sha256OfPublishedExamples) {
  EXPECT_EQ(Sha256Hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sha256Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Sha256Hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
}

TEST(DigestTest, Sha256IsTheSameInPieces) {
  const std::string text(100'003, 'x');
  Sha256 sha;
  for (size_t i = 0, n = 1; i < text.size(); i += n, n = n * 3 % 1000 + 1) {
    sha.Update(absl::string_view(text).substr(i, n));
  }
  Sha256 moved(std::move(sha));
  EXPECT_EQ(moved.FinishHex(), Sha256Hex(text));
  // Finish starts over.
  moved.Update("abc");
  EXPECT_EQ(moved.FinishHex(), Sha256Hex("abc"));
}

TEST(DigestTest, Xxh3OfPublishedExamples) { EXPECT_EQ(Xxh3_64("", 0), 0x2D06800538D394C2u); }

TEST(DigestTest, Xxh3IsTheSameInPieces) {
  std::string text(70'001, '\0');
  for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 131 >> 3);
  Xxh3Stream stream;
  for (int round = 0; round < 2; ++round) {
    stream.Reset();
    for (size_t i = 0, n = 1; i < text.size(); i += n, n = n * 7 % 5000 + 1) {
      stream.Update(text.data() + i, std::min(n, text.size() - i));
    }
    EXPECT_EQ(stream.Digest(), Xxh3_64(text.data(), text.size()));
  }
}

TEST(DigestTest, HexDigests) {
  EXPECT_EQ(HexEncode("\x00\x9f\xff", 3), "009fff");
  EXPECT_TRUE(IsSha256Hex(Sha256Hex("x")));
  EXPECT_FALSE(IsSha256Hex(""));
  EXPECT_FALSE(IsSha256Hex(std::string(63, 'a')));
  EXPECT_FALSE(IsSha256Hex(std::string(63, 'a') + "A"));
}

}  // namespace
}  // namespace fixpoint
