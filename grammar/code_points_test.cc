#include "grammar/code_points.h"

#include <algorithm>
#include <random>
#include <string>

#include "gtest/gtest.h"
#include "text/utf8.h"

namespace fixpoint {
namespace {

bool Has(const std::vector<Utf8Sequence>& sequences, const std::string& bytes) {
  return std::any_of(sequences.begin(), sequences.end(), [&](const Utf8Sequence& s) {
    if (static_cast<size_t>(s.length) != bytes.size()) return false;
    for (size_t i = 0; i < bytes.size(); ++i) {
      const auto byte = static_cast<uint8_t>(bytes[i]);
      if (byte < s.low[i] || byte > s.high[i]) return false;
    }
    return true;
  });
}

std::vector<Utf8Sequence> SequencesOf(const CodePointSet& set) {
  std::vector<Utf8Sequence> all;
  for (const CodePointRange& range : set.ranges()) {
    const auto some = Utf8Sequences(range);
    all.insert(all.end(), some.begin(), some.end());
  }
  return all;
}

const uint32_t kEdges[] = {0,       1,       0x7e,    0x7f,    0x80,     0xbf,    0xc0,
                           0x7ff,   0x800,   0xfff,   0x1000,  0xd7ff,   0xe000,  0xffff,
                           0x10000, 0x3ffff, 0x40000, 0xfffff, 0x10fffe, 0x10ffff};

TEST(Utf8SequencesTest, AreTheEncodingsOfTheRange) {
  std::mt19937 random(1);
  for (int round = 0; round < 600; ++round) {
    const auto pick = [&] {
      const uint32_t edge = kEdges[random() % std::size(kEdges)];
      return random() % 2 ? edge
                          : std::min(kMaxCodePoint, edge + static_cast<uint32_t>(random() % 5000));
    };
    uint32_t low = pick(), high = pick();
    if (low > high) std::swap(low, high);
    const CodePointSet set({{low, high}});
    const auto sequences = SequencesOf(set);
    for (int i = 0; i < 300; ++i) {
      const uint32_t c =
          i % 3 == 0 ? pick()
                     : std::min(kMaxCodePoint, low + static_cast<uint32_t>(random() % 70) - 35);
      if (c > kMaxCodePoint || (c >= 0xd800 && c <= 0xdfff)) continue;
      std::string bytes;
      AppendUtf8(c, &bytes);
      ASSERT_EQ(Has(sequences, bytes), c >= low && c <= high) << low << " " << high << " " << c;
      ASSERT_EQ(set.Has(c), c >= low && c <= high);
    }
  }
}

TEST(Utf8SequencesTest, OfAllCodePointsAreTheValidTexts) {
  const auto sequences = SequencesOf(CodePointSet().Complement());
  std::mt19937 random(2);
  int valid = 0;
  for (int round = 0; round < 300000; ++round) {
    std::string bytes;
    const size_t size = 1 + random() % 4;
    for (size_t i = 0; i < size; ++i) {
      bytes.push_back(static_cast<char>(i == 0         ? 0x80 + random() % 128
                                        : random() % 8 ? 0x80 + random() % 64
                                                       : random()));
    }
    const bool one = IsValidUtf8(bytes) && ReadCodePoint(bytes, 0).length == bytes.size();
    ASSERT_EQ(Has(sequences, bytes), one) << round;
    valid += one;
  }
  EXPECT_GT(valid, 1000);
}

TEST(CodePointSetTest, ComplementAndMergeEqualABitmap) {
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) {
    std::vector<CodePointRange> ranges;
    std::vector<bool> expected(300);
    for (size_t i = random() % 8; i > 0; --i) {
      const uint32_t low = random() % 300, high = std::min<uint32_t>(299, low + random() % 40);
      ranges.push_back({low, high});
      for (uint32_t c = low; c <= high; ++c) expected[c] = true;
    }
    const CodePointSet set(ranges);
    const CodePointSet complement = set.Complement();
    for (uint32_t c = 0; c < 300; ++c) {
      ASSERT_EQ(set.Has(c), expected[c]);
      ASSERT_EQ(complement.Has(c), !expected[c]);
    }
    for (size_t i = 1; i < set.ranges().size(); ++i) {
      ASSERT_GT(set.ranges()[i].low, set.ranges()[i - 1].high + 1) << "ranges touch";
    }
    EXPECT_TRUE(complement.Has(kMaxCodePoint));
    EXPECT_FALSE(complement.Has(0xd800));
  }
}

}  // namespace
}  // namespace fixpoint
