#include <simdjson.h>

#include <algorithm>
#include <random>
#include <regex>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "grammar/compiled_grammar.h"
#include "grammar/constraint_factory.h"
#include "grammar/json_schema.h"
#include "grammar/test_grammar.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kSchemas[] = {
    R"({"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer","minimum":0},
        "tags":{"type":"array","items":{"type":"string"},"maxItems":3},"x":{"type":"number"},
        "ok":{"type":["boolean","null"]}},"required":["name","age"]})",
    R"({"$defs":{"n":{"type":"object","properties":{"v":{"enum":["a","ab","abc"]},
        "next":{"anyOf":[{"$ref":"#/$defs/n"},{"type":"null"}]}},"required":["v","next"]}},
        "$ref":"#/$defs/n"})",
    R"({"anyOf":[{"properties":{"a":{"type":"string"}},"required":["a"]},
        {"properties":{"a":{"type":"integer"},"b":{}},"required":["a"]}]})",
    R"({"type":"array","items":{"type":"string","minLength":2,"maxLength":5},"minItems":1})",
    R"({"properties":{"ab":{"type":"null"}},"additionalProperties":{"type":"string",
        "pattern":"^(a|ab)*\\d{2}$"}})",
    "{}"};

class ConstraintTest : public testing::Test {
 protected:
  ConstraintTest() : tokenizer_(SmallTokenizer()) {
    auto factory = ConstraintFactory::Create(*tokenizer_, {eos()});
    CHECK(factory.ok()) << factory.status().ToString();
    factory_ = *std::move(factory);
  }

  int32_t vocab() const { return tokenizer_->vocab_size(); }
  int32_t eos() const { return tokenizer_->spec().eos_ids[0]; }
  int32_t Id(absl::string_view bytes) const {
    for (int32_t id = 0; id < vocab(); ++id) {
      if (tokenizer_->TokenBytes(id) == bytes) return id;
    }
    CHECK(false) << "no token " << std::string(bytes);
    return -1;
  }
  std::shared_ptr<TokenConstraint> Schema(absl::string_view schema) {
    auto constraint = factory_->JsonSchema(schema);
    CHECK(constraint.ok()) << constraint.status().ToString();
    return *std::move(constraint);
  }

  // Random allowed tokens until the end; after `patience` of them those that close what is open.
  std::string Walk(TokenConstraint& constraint, std::mt19937& random, int patience) {
    std::string text;
    for (int step = 0; step < 100 * patience + 2000; ++step) {
      const std::vector<int32_t> allowed = AllowedTokens(constraint, vocab());
      CHECK(!allowed.empty()) << "dead end behind " << text;
      int32_t token = allowed[random() % allowed.size()];
      if (step >= patience) {
        for (const absl::string_view closing : {"0", "]", "}", "\""}) {
          const int32_t id = Id(closing);
          if (std::binary_search(allowed.begin(), allowed.end(), id)) token = id;
        }
        if (std::binary_search(allowed.begin(), allowed.end(), eos())) token = eos();
      }
      CHECK(constraint.Accept(token)) << "refused what the mask allows behind " << text;
      if (token == eos()) return text;
      absl::StrAppend(&text, tokenizer_->TokenBytes(token));
    }
    CHECK(false) << "no end: " << text;
    return text;
  }

  const std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ConstraintFactory> factory_;
};

TEST_F(ConstraintTest, RandomWalksGiveValuesOfTheSchema) {
  std::mt19937 random(3);
  simdjson::dom::parser parser;
  for (const char* schema : kSchemas) {
    Nfa nfa;
    const auto root = EmitJsonSchema(schema, &nfa);
    ASSERT_TRUE(root.ok()) << root.status();
    const auto automaton = Automaton::Build(nfa, *root, AllBytes());
    ASSERT_TRUE(automaton.ok()) << automaton.status();
    size_t longest = 0;
    for (int walk = 0; walk < 60; ++walk) {
      const auto constraint = Schema(schema);
      const std::string text = Walk(*constraint, random, static_cast<int>(random() % 60));
      ASSERT_TRUE(Matches(*automaton, text)) << schema << ": " << text;
      simdjson::dom::element value;
      ASSERT_EQ(parser.parse(text).get(value), simdjson::SUCCESS) << schema << ": " << text;
      longest = std::max(longest, text.size());
    }
    EXPECT_GT(longest, 20u) << schema;
  }
}

TEST_F(ConstraintTest, RandomWalksMatchTheExpression) {
  std::mt19937 random(4);
  for (const char* pattern : {"(ab|ba)*c{2,5}", "[a-c]+ [0-9]{1,3}(\\.[0-9]+)?",
                              "the (name|abc|aab)ing", "a|b|ab|", "(a*b){3}"}) {
    const std::regex oracle(pattern);
    for (int walk = 0; walk < 60; ++walk) {
      const auto constraint = factory_->Regex(pattern);
      ASSERT_TRUE(constraint.ok()) << constraint.status();
      std::string text;
      for (int step = 0; step < 1000; ++step) {
        const std::vector<int32_t> allowed = AllowedTokens(**constraint, vocab());
        ASSERT_FALSE(allowed.empty()) << pattern << ": " << text;
        const int32_t token = allowed[random() % allowed.size()];
        ASSERT_TRUE((*constraint)->Accept(token));
        if (token == eos()) break;
        absl::StrAppend(&text, tokenizer_->TokenBytes(token));
      }
      ASSERT_TRUE(std::regex_match(text, oracle)) << pattern << ": " << text;
    }
  }
}

// The mask is what trying each token alone says, at every state of some walks.
TEST_F(ConstraintTest, MaskEqualsTryingEachToken) {
  std::mt19937 random(5);
  int states = 0;
  for (const char* schema : kSchemas) {
    Nfa nfa;
    const auto root = EmitJsonSchema(schema, &nfa);
    ASSERT_TRUE(root.ok()) << root.status();
    const auto automaton = Automaton::Build(nfa, *root, AllBytes());
    ASSERT_TRUE(automaton.ok()) << automaton.status();
    for (int walk = 0; walk < 5; ++walk) {
      TextStates fresh(&*automaton);
      TextStates::State* state = fresh.Start();
      const auto constraint = Schema(schema);
      for (int step = 0; step < 60; ++step) {
        const std::vector<int32_t> allowed = AllowedTokens(*constraint, vocab());
        for (int32_t id = 0; id < vocab(); ++id) {
          TextStates::State* next = tokenizer_->IsControl(id) ? nullptr : state;
          for (const char c : tokenizer_->TokenBytes(id)) {
            if (next != nullptr) next = fresh.Next(next, static_cast<uint8_t>(c));
          }
          const bool expected = id == eos() ? state->may_end : next != nullptr;
          ASSERT_EQ(std::binary_search(allowed.begin(), allowed.end(), id), expected)
              << schema << ", token " << id << " '" << std::string(tokenizer_->TokenBytes(id))
              << "'";
        }
        ++states;
        const int32_t token = allowed[random() % allowed.size()];
        ASSERT_TRUE(constraint->Accept(token));
        if (token == eos()) break;
        for (const char c : tokenizer_->TokenBytes(token))
          state = fresh.Next(state, static_cast<uint8_t>(c));
      }
    }
  }
  EXPECT_GT(states, 300);
}

// With little room a mask leaves tokens out, never all, and the same ones whatever was met before.
TEST_F(ConstraintTest, AMaskCutShortKeepsTheSingleBytes) {
  const auto automaton = RegexAutomaton("([a-z]{1,3}[ \"]?){2,9}[0-9]{3}");
  ASSERT_TRUE(automaton.ok()) << automaton.status();
  const TokenTrie trie(*tokenizer_, {eos()});
  TextStates whole(&*automaton), warm(&*automaton, {.states = 3, .readings = 1000});
  TextStates few_readings(&*automaton, {.states = 1000, .readings = 3});
  int cut = 0;
  for (const char* text : {"a", "ab", "abc", "ab c", "abc\"de", "a b c 1"}) {
    TextStates cold(&*automaton, {.states = 3, .readings = 1000});
    const auto behind = [&](TextStates& states) {
      TextStates::State* state = states.Start();
      for (const char* c = text; *c != 0; ++c) {
        state = states.Next(state, static_cast<uint8_t>(*c));
      }
      return states.Mask(state, trie);
    };
    const std::vector<uint32_t> all = behind(whole), some = behind(cold);
    EXPECT_EQ(some, behind(warm)) << text;
    EXPECT_EQ(some, behind(few_readings)) << text;
    for (int32_t id = 0; id < vocab(); ++id) {
      if (HasBit(some, id)) {
        EXPECT_TRUE(HasBit(all, id)) << text << " " << id;
      } else if (HasBit(all, id)) {
        EXPECT_GT(tokenizer_->TokenBytes(id).size(), 1u) << text;
        ++cut;
      }
    }
  }
  EXPECT_GT(cut, 20);
}

TEST_F(ConstraintTest, TheEndIsAllowedWhereTheTextIsWholeAndStays) {
  const auto constraint = factory_->Regex("ab(ba)?");
  ASSERT_TRUE(constraint.ok()) << constraint.status();
  EXPECT_THAT(AllowedTokens(**constraint, vocab()), ElementsAre('a', Id("ab")));
  EXPECT_FALSE((*constraint)->Accept(eos()));
  EXPECT_FALSE((*constraint)->Accept('b'));
  EXPECT_FALSE((*constraint)->Accept(Id("<|control|>")));
  EXPECT_FALSE((*constraint)->Accept(-1));
  EXPECT_FALSE((*constraint)->Accept(vocab()));
  EXPECT_TRUE((*constraint)->Accept(Id("ab")));
  EXPECT_THAT(AllowedTokens(**constraint, vocab()), ElementsAre('b', Id("ba"), eos()));
  EXPECT_TRUE((*constraint)->Accept(Id("ba")));
  EXPECT_THAT(AllowedTokens(**constraint, vocab()), ElementsAre(eos()));
  EXPECT_TRUE((*constraint)->Accept(eos()));
  EXPECT_THAT(AllowedTokens(**constraint, vocab()), ElementsAre(eos()));
  EXPECT_TRUE((*constraint)->Accept(eos()));
  EXPECT_FALSE((*constraint)->Accept('a'));
}

TEST_F(ConstraintTest, AMaskOfALargerVocabularyIsClearedBehind) {
  const auto constraint = factory_->JsonObject();
  ASSERT_TRUE(constraint.ok()) << constraint.status();
  std::vector<uint32_t> mask(static_cast<size_t>((vocab() + 31) / 32) + 2, ~0u);
  (*constraint)->FillMask(absl::MakeSpan(mask));
  EXPECT_TRUE(HasBit(mask, '{'));
  EXPECT_EQ(mask[mask.size() - 1], 0u);
  EXPECT_EQ(mask[mask.size() - 2], 0u);
  for (int32_t id = vocab(); id < (vocab() + 31) / 32 * 32; ++id) EXPECT_FALSE(HasBit(mask, id));
}

TEST_F(ConstraintTest, ConstraintsOfOneGrammarDoNotDisturbEachOther) {
  std::mt19937 random(6);
  simdjson::dom::parser parser;
  std::vector<std::shared_ptr<TokenConstraint>> open;
  for (int i = 0; i < 8; ++i) open.push_back(Schema(kSchemas[0]));
  EXPECT_EQ(factory_->kept(), 1u);
  std::vector<std::string> texts(open.size());
  for (int step = 0; step < 400; ++step) {
    const size_t i = random() % open.size();
    const std::vector<int32_t> allowed = AllowedTokens(*open[i], vocab());
    const int32_t token = allowed[random() % allowed.size()];
    ASSERT_TRUE(open[i]->Accept(token));
    if (token != eos()) absl::StrAppend(&texts[i], tokenizer_->TokenBytes(token));
  }
  for (size_t i = 0; i < open.size(); ++i) {
    texts[i] += Walk(*open[i], random, 0);
    simdjson::dom::element value;
    ASSERT_EQ(parser.parse(texts[i]).get(value), simdjson::SUCCESS) << texts[i];
  }
}

// A lone constraint with all its states and one whose states were thrown away many times by others
// give the same masks: the bound on memory is not seen from outside.
TEST_F(ConstraintTest, StatesThatWereDroppedAreMadeAgain) {
  const char* schema = R"({"type":"array","items":{"type":"string","maxLength":4000}})";
  const auto trie = std::make_shared<TokenTrie>(*tokenizer_, std::vector<int32_t>{eos()});
  const auto compile = [&] {
    Nfa nfa;
    const auto root = EmitJsonSchema(schema, &nfa);
    CHECK(root.ok());
    auto automaton = Automaton::Build(nfa, *root, trie->single_bytes());
    CHECK(automaton.ok()) << automaton.status().ToString();
    return std::make_shared<CompiledGrammar>(*std::move(automaton), trie,
                                             std::vector<int32_t>{eos()});
  };
  const auto shared = compile();
  const auto unshared = compile();
  auto watched = std::make_unique<GrammarConstraint>(shared);
  auto alone = std::make_unique<GrammarConstraint>(unshared);
  GrammarConstraint busy(shared);
  ASSERT_TRUE(busy.Accept('[') && busy.Accept('"'));
  std::mt19937 random(7);
  size_t dropped = 0, bytes = 0;
  for (int step = 0; step < 60; ++step) {
    for (int i = 0; i < 60; ++i) {
      AllowedTokens(busy, vocab());
      ASSERT_TRUE(busy.Accept('x'));
    }
    const std::vector<int32_t> allowed = AllowedTokens(*watched, vocab());
    ASSERT_EQ(allowed, AllowedTokens(*alone, vocab())) << step;
    const int32_t token = allowed[random() % allowed.size()];
    ASSERT_TRUE(watched->Accept(token) && alone->Accept(token));
    dropped += shared->states_bytes() < bytes;
    bytes = shared->states_bytes();
    ASSERT_LE(bytes, 2 * CompiledGrammar::kMaxStatesBytes);
    if (token != eos()) continue;
    watched = std::make_unique<GrammarConstraint>(shared);
    alone = std::make_unique<GrammarConstraint>(unshared);
  }
  EXPECT_GE(dropped, 1u);
}

TEST_F(ConstraintTest, GrammarsAreKeptByTextAndBounded) {
  constexpr size_t kMost = ConstraintFactory::kMaxKeptBytes / CompiledGrammar::kMaxStatesBytes;
  for (size_t i = 0; i < kMost + 20; ++i) {
    ASSERT_TRUE(factory_->Regex(absl::StrCat("a{", i, "}")).ok());
    ASSERT_TRUE(factory_->Regex("often").ok());
    EXPECT_LE(factory_->kept(), kMost);
  }
  EXPECT_GT(factory_->kept(), 2u);
  // The same text as another kind is another grammar.
  EXPECT_FALSE(factory_->JsonSchema("often").ok());
  EXPECT_THAT(
      std::string(factory_->Regex(std::string(kMaxGrammarBytes + 1, 'a')).status().message()),
      HasSubstr("65537 bytes, more than 65536"));
}

TEST_F(ConstraintTest, TheFactoryMayBeUsedByManyThreadsAndGoBeforeItsConstraints) {
  std::vector<std::thread> threads;
  std::vector<std::string> texts(8);
  for (size_t t = 0; t < texts.size(); ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(static_cast<uint32_t>(t));
      for (int i = 0; i < 5; ++i) texts[t] = Walk(*Schema(kSchemas[t % 3]), random, 10);
    });
  }
  for (std::thread& thread : threads) thread.join();
  simdjson::dom::parser parser;
  for (const std::string& text : texts) {
    simdjson::dom::element value;
    EXPECT_EQ(parser.parse(text).get(value), simdjson::SUCCESS) << text;
  }
  const auto left = Schema(kSchemas[0]);
  factory_.reset();
  std::mt19937 random(9);
  EXPECT_FALSE(Walk(*left, random, 20).empty());
}

TEST_F(ConstraintTest, AModelThatCannotEndOrSpellIsRefused) {
  EXPECT_THAT(std::string(ConstraintFactory::Create(*tokenizer_, {}).status().message()),
              HasSubstr("no end-of-sequence token"));
  EXPECT_THAT(std::string(ConstraintFactory::Create(*tokenizer_, {vocab()}).status().message()),
              HasSubstr("is not among"));
}

}  // namespace
}  // namespace fixpoint
