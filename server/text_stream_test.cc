#include "server/text_stream.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "server/fake_engine/fake_engine.h"

namespace fixpoint {
namespace {

struct Result {
  std::string text;
  std::string stopped_by;
  size_t tokens = 0;  // pushed before the stop
  bool operator==(const Result& other) const {
    return text == other.text && stopped_by == other.stopped_by && tokens == other.tokens;
  }
};

std::ostream& operator<<(std::ostream& out, const Result& result) {
  return out << "'" << result.text << "' stopped by '" << result.stopped_by << "' after "
             << result.tokens;
}

// Tokens of the fake tokenizer are bytes: text goes in byte by byte.
Result Feed(const std::string& bytes, const std::vector<std::string>& stop_strings) {
  const auto tokenizer = FakeTokenizer();
  TextStream stream(tokenizer.get(), stop_strings);
  Result result;
  for (const char byte : bytes) {
    result.text += stream.Push(static_cast<uint8_t>(byte));
    ++result.tokens;
    if (stream.stopped()) break;
  }
  result.text += stream.Finish();
  if (stream.stopped()) result.stopped_by = stream.stop_string();
  return result;
}

// The definition, searched the slow way: the stop string that ends first, of several the longest.
Result Expected(const std::string& text, const std::vector<std::string>& stop_strings) {
  for (size_t end = 1; end <= text.size(); ++end) {
    std::string best;
    for (const std::string& stop : stop_strings) {
      if (stop.size() <= end && stop.size() > best.size() &&
          text.compare(end - stop.size(), stop.size(), stop) == 0) {
        best = stop;
      }
    }
    if (!best.empty()) return {text.substr(0, end - best.size()), best, end};
  }
  return {text, "", text.size()};
}

TEST(TextStreamTest, WithoutStopStringsTextPassesThrough) {
  EXPECT_EQ(Feed("hello", {}), (Result{"hello", "", 5}));
}

TEST(TextStreamTest, StopStringAcrossTokensIsNotInTheText) {
  EXPECT_EQ(Feed("one STOP two", {"STOP"}), (Result{"one ", "STOP", 8}));
}

TEST(TextStreamTest, TextThatOnlyBeginsLikeAStopStringComesInTheEnd) {
  EXPECT_EQ(Feed("one STO", {"STOP"}), (Result{"one STO", "", 7}));
  EXPECT_EQ(Feed("one STO two", {"STOP"}), (Result{"one STO two", "", 11}));
}

TEST(TextStreamTest, TheStopStringThatEndsFirstWinsThenTheLonger) {
  EXPECT_EQ(Feed("abcdef", {"abcdef", "cd"}), (Result{"ab", "cd", 4}));
  EXPECT_EQ(Feed("abcdef", {"cd", "bcd"}), (Result{"a", "bcd", 4}));
}

TEST(TextStreamTest, RepetitiveStopStringsFallBackCorrectly) {
  EXPECT_EQ(Feed("aaab", {"aab"}), (Result{"a", "aab", 4}));
  EXPECT_EQ(Feed("abababac", {"ababac"}), (Result{"ab", "ababac", 8}));
}

TEST(TextStreamTest, CodePointsAreNeverSplit) {
  const auto tokenizer = FakeTokenizer();
  TextStream stream(tokenizer.get(), {});
  const std::string euro = "\xE2\x82\xAC";
  EXPECT_EQ(stream.Push(0xE2), "");
  EXPECT_EQ(stream.Push(0x82), "");
  EXPECT_EQ(stream.Push(0xAC), euro);
  EXPECT_EQ(stream.Push(0xE2), "");
  EXPECT_EQ(stream.Finish(), "\xEF\xBF\xBD");
}

TEST(TextStreamTest, StopStringMayCompleteInTheHeldBackBytes) {
  // The lone lead byte becomes U+FFFD when the answer ends; a stop string of that character then
  // applies too.
  EXPECT_EQ(Feed("ab\xE2", {"b\xEF\xBF\xBD"}), (Result{"a", "b\xEF\xBF\xBD", 3}));
}

TEST(TextStreamTest, RandomTextsEqualTheSlowSearch) {
  std::mt19937 random(7);
  const auto word = [&](size_t most) {
    std::string text;
    for (size_t length = 1 + random() % most; text.size() < length;)
      text += static_cast<char>('a' + random() % 2);
    return text;
  };
  int stops = 0;
  for (int round = 0; round < 5000; ++round) {
    std::vector<std::string> stop_strings(1 + random() % 4);
    for (std::string& stop : stop_strings) stop = word(6);
    const std::string text = word(24);
    const Result expected = Expected(text, stop_strings);
    stops += expected.stopped_by.empty() ? 0 : 1;
    ASSERT_EQ(Feed(text, stop_strings), expected) << text;
  }
  EXPECT_GT(stops, 1000);  // the texts were worth searching
}

// Merged tokens bring several bytes at once; the text must be the same as byte by byte.
TEST(TextStreamTest, TokenBordersDoNotMatter) {
  TokenizerSpec spec = FakeTokenizer()->spec();
  for (const char* token : {"ab", "ba", "aab", "bab\xC3"}) {
    spec.tokens.emplace_back(token);
    spec.types.push_back(TokenType::kNormal);
  }
  auto tokenizer = Tokenizer::Create(spec);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  std::mt19937 random(11);
  for (int round = 0; round < 2000; ++round) {
    std::vector<int32_t> ids(12);
    std::string bytes;
    for (int32_t& id : ids) {
      const std::vector<int32_t> choices = {
          'a', 'b', 0xA9, kFakeVocab, kFakeVocab + 1, kFakeVocab + 2, kFakeVocab + 3};
      id = choices[random() % choices.size()];
      bytes += spec.tokens[id];
    }
    const std::vector<std::string> stop_strings = {"aabb", "bb\xC3\xA9"};
    TextStream stream(tokenizer->get(), stop_strings);
    std::string text;
    for (const int32_t id : ids) {
      if (!stream.stopped()) text += stream.Push(id);
    }
    text += stream.Finish();
    ASSERT_EQ(text, Feed(bytes, stop_strings).text);
  }
}

}  // namespace
}  // namespace fixpoint
