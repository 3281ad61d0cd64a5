#include "grammar/regex.h"

#include <random>
#include <regex>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "grammar/json_rules.h"
#include "grammar/test_grammar.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

using testing::HasSubstr;

// A random expression over a, b, c that std::regex (ECMAScript) reads alike.
std::string RandomPattern(std::mt19937& random, int depth) {
  const auto atom = [&]() -> std::string {
    switch (random() % (depth > 0 ? 9 : 7)) {
      case 0:
      case 1:
        return "a";
      case 2:
        return "b";
      case 3:
        return ".";
      case 4:
        return "[ab]";
      case 5:
        return "[^a]";
      case 6:
        return "c";
      default:
        return absl::StrCat(random() % 2 ? "(" : "(?:", RandomPattern(random, depth - 1), ")");
    }
  };
  std::string pattern;
  for (uint32_t branches = 1 + random() % 2; branches > 0; --branches) {
    for (uint32_t parts = random() % 4; parts > 0; --parts) {
      pattern += atom();
      static const char* const kQuantifiers[] = {"",    "",     "",      "*",  "+",    "?",
                                                 "{2}", "{1,}", "{0,2}", "*?", "{1,3}"};
      pattern += kQuantifiers[random() % std::size(kQuantifiers)];
    }
    if (branches > 1) pattern += "|";
  }
  return pattern;
}

std::vector<std::string> ShortTexts(const std::string& letters, size_t longest) {
  std::vector<std::string> texts = {""};
  for (size_t i = 0; i < texts.size(); ++i) {
    if (texts[i].size() == longest) break;
    for (const char c : letters) texts.push_back(texts[i] + c);
  }
  return texts;
}

TEST(RegexTest, RandomExpressionsEqualTheStandardLibrary) {
  std::mt19937 random(17);
  const auto texts = ShortTexts("abc", 5);
  int matched = 0, too_large = 0;
  for (int round = 0; round < 400; ++round) {
    const std::string pattern = RandomPattern(random, 1 + round % 5 / 2);
    const std::regex oracle(pattern);
    const bool search = round % 2 == 0;
    const auto automaton =
        RegexAutomaton(pattern, search ? RegexMatch::kSearch : RegexMatch::kWhole);
    if (!automaton.ok()) {
      EXPECT_THAT(std::string(automaton.status().message()),
                  testing::AnyOf(HasSubstr("steps"), HasSubstr("deterministic states")))
          << pattern;
      ++too_large;
      continue;
    }
    TextStates states(&*automaton);
    for (const std::string& text : texts) {
      const bool expected =
          search ? std::regex_search(text, oracle) : std::regex_match(text, oracle);
      ASSERT_EQ(Matches(states, text), expected) << pattern << " on '" << text << "'";
      matched += expected;
    }
  }
  EXPECT_GT(matched, 10000);
  EXPECT_LT(too_large, 10);
}

TEST(RegexTest, AnchorsFixTheEndsOfASearch) {
  const auto texts = ShortTexts("ab", 6);
  for (const char* pattern : {"^ab", "ab$", "^ab$", "^a|b$", "a|^bb|bab$", "^", "$", "^$|^aa"}) {
    const std::regex oracle(pattern);
    const auto automaton = RegexAutomaton(pattern, RegexMatch::kSearch);
    ASSERT_TRUE(automaton.ok()) << automaton.status();
    for (const std::string& text : texts) {
      ASSERT_EQ(Matches(*automaton, text), std::regex_search(text, oracle))
          << pattern << " " << text;
    }
  }
}

struct Case {
  const char* pattern;
  std::vector<std::string> in;
  std::vector<std::string> out;
};

TEST(RegexTest, ClassesAndEscapes) {
  const Case cases[] = {
      {"\\d{3}-\\d{4}", {"555-0123"}, {"555-012", "555-01234", "5a5-0123"}},
      {"\\w+", {"aZ_9"}, {"", "a-b", "\xc3\xa9"}},
      {"\\W", {"-", "\xc3\xa9"}, {"a", "_"}},
      {"[\\s\\S]", {"\n", "x", "\xe2\x82\xac"}, {"", "xx"}},
      {"\\s", {" ", "\t", "\xc2\xa0", "\xe3\x80\x80"}, {"x"}},
      {".", {"x", "\xf0\x9f\x98\x80"}, {"\n", "\r", "\xe2\x80\xa8", "\x80"}},
      {"[a-c\\-x]", {"a", "b", "c", "-", "x"}, {"d"}},
      {"[-a]", {"-", "a"}, {"b"}},
      {"[a-]", {"-", "a"}, {"b"}},
      {"[^\\d]", {"x"}, {"5"}},
      {"\\x41\\u0042\\u{43}", {"ABC"}, {"abc"}},
      {"\\uD83D\\uDE00", {"\xf0\x9f\x98\x80"}, {""}},
      {"\\t\\n\\r\\f\\v\\.\\\\\\/", {"\t\n\r\f\v.\\/"}, {""}},
      {"a{,2}", {"a{,2}"}, {"aa"}},
      {"\\{x\\}|{y}", {"{x}", "{y}"}, {"x"}},
      {"(?<year>\\d+)(?P<m>x)", {"12x"}, {"12"}},
      {"[\xc3\xa9-\xc3\xaf]\xe2\x82\xac", {"\xc3\xa9\xe2\x82\xac", "\xc3\xab\xe2\x82\xac"}, {"e"}},
      {"(a|b)*c|", {"", "c", "abbac"}, {"ab"}},
      {"^(a|)$", {"", "a"}, {"aa"}},
      {"(?:(?:a{2}){2}){2}", {"aaaaaaaa"}, {"aaaaaaa", "aaaaaaaaa"}},
  };
  for (const Case& c : cases) {
    const auto automaton = RegexAutomaton(c.pattern);
    ASSERT_TRUE(automaton.ok()) << c.pattern << ": " << automaton.status();
    for (const std::string& text : c.in)
      EXPECT_TRUE(Matches(*automaton, text)) << c.pattern << text;
    for (const std::string& text : c.out) {
      EXPECT_FALSE(Matches(*automaton, text)) << c.pattern << " on " << text;
    }
  }
}

TEST(RegexTest, WhatIsNotSupportedIsNamedWithItsOffset) {
  const std::pair<const char*, const char*> cases[] = {
      {"ab(?=c)", "offset 2: look-around"},
      {"(?<!c)", "offset 0: look-around"},
      {"(a)\\1", "offset 3: back-references"},
      {"\\k<a>", "offset 0: back-references"},
      {"x\\bfoo", "offset 1: word boundaries"},
      {"\\p{L}", "offset 0: Unicode properties"},
      {"(?i)a", "offset 0: flags"},
      {"a^b", "offset 1: '^'"},
      {"a$b", "offset 2: '$'"},
      {"(a$)", "offset 2: '$'"},
      {"*a", "offset 0: '*' repeats nothing"},
      {"a**", "offset 2: a repetition of a repetition"},
      {"a++", "offset 2: possessive"},
      {"a{3,2}", "offset 1: the repetition's counts"},
      {"{2}", "offset 0: a repetition of nothing"},
      {"(a", "offset 0: the group is not closed"},
      {"a)", "offset 1: ')' closes no group"},
      {"[a", "offset 0: the class is not closed"},
      {"[]", "offset 0: an empty class"},
      {"[z-a]", "offset 2: the range"},
      {"[\\d-z]", "offset 3: a range between"},
      {"[[:alpha:]]", "offset 1: POSIX"},
      {"[^\\s\\S]", "offset 0: the class has no characters"},
      {"\\q", "offset 0: unknown escape '\\q'"},
      {"\\uD800", "offset 0: not a Unicode scalar"},
      {"\\xg0", "offset 0: hexadecimal"},
      {"a\\", "offset 1: '\\' at the end"},
      {"\\01", "offset 0: octal"},
      {"\xff", "not valid UTF-8"},
  };
  for (const auto& [pattern, error] : cases) {
    const auto regex = ParseRegex(pattern);
    ASSERT_FALSE(regex.ok()) << pattern;
    EXPECT_EQ(regex.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(regex.status().message()), HasSubstr(error)) << pattern;
  }
}

TEST(RegexTest, JsonSpellingIsWhatAJsonWriterWrites) {
  const auto automaton = RegexAutomaton("[\\s\\S]{2}", RegexMatch::kWhole, Spelling::kJsonString);
  ASSERT_TRUE(automaton.ok()) << automaton.status();
  for (const char* text : {"\\\"\\\\", "\\n\\t", "\\u0001x", "\xc3\xa9/", "\\u001f\\b"}) {
    EXPECT_TRUE(Matches(*automaton, text)) << text;
  }
  for (const char* text : {"\"a", "\\a", "\n\n", "\\u0041x", "\\/x", "abc"}) {
    EXPECT_FALSE(Matches(*automaton, text)) << text;
  }
}

TEST(RegexTest, BytesThatAreNoTokensAreLeftOut) {
  ByteSet available;
  for (const char c : {'a', 'b'}) available.set(static_cast<uint8_t>(c));
  const auto some =
      RegexAutomaton("a|bc|bbc|[bd]a", RegexMatch::kWhole, Spelling::kUtf8, available);
  ASSERT_TRUE(some.ok()) << some.status();
  EXPECT_TRUE(Matches(*some, "a"));
  EXPECT_TRUE(Matches(*some, "ba"));
  EXPECT_FALSE(Matches(*some, "bc"));
  EXPECT_FALSE(Matches(*some, "da"));
  for (int32_t state = 0; state < some->num_states(); ++state) {
    for (int32_t c = 0; c < some->num_classes(); ++c) {
      const int32_t next = some->Next(state, c);
      if (next != Automaton::kNone) {
        EXPECT_LE(some->Need(next), kMaxNesting) << "leads nowhere";
      }
    }
  }
  const auto none = RegexAutomaton("ac+", RegexMatch::kWhole, Spelling::kUtf8, available);
  EXPECT_THAT(std::string(none.status().message()), HasSubstr("no text"));
}

}  // namespace
}  // namespace fixpoint
