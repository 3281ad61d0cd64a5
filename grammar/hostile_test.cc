// Texts made to hurt: each must be refused, or be served within the bounds, and quickly. Time is
// the process's own, so that a busy machine does not matter; the bound is many times what they
// take.
#include <ctime>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/substitute.h"
#include "gmock/gmock.h"
#include "grammar/constraint_factory.h"
#include "grammar/test_grammar.h"
#include "gtest/gtest.h"
#include "text/utf8.h"

namespace fixpoint {
namespace {

using testing::AnyOf;
using testing::HasSubstr;

constexpr double kMostSeconds = 1.0;

std::string Repeat(absl::string_view text, int count) {
  std::string result;
  for (int i = 0; i < count; ++i) absl::StrAppend(&result, text);
  return result;
}

std::string Numbered(int count, const std::function<std::string(int)>& one) {
  std::string result;
  for (int i = 0; i < count; ++i) absl::StrAppend(&result, i > 0 ? "," : "", one(i));
  return result;
}

class HostileTest : public testing::Test {
 protected:
  HostileTest() : tokenizer_(SmallTokenizer()) {
    factory_ = *ConstraintFactory::Create(*tokenizer_, tokenizer_->spec().eos_ids);
  }

  // The error, empty when it is none.
  std::string Regex(const std::string& pattern) { return Timed(false, pattern); }
  std::string Schema(const std::string& schema) { return Timed(true, schema); }

  // Compiles, then takes 40 tokens.
  std::string Timed(bool is_schema, const std::string& text) {
    const std::clock_t start = std::clock();
    const auto seconds = [&] { return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC; };
    auto constraint = is_schema ? factory_->JsonSchema(text) : factory_->Regex(text);
    EXPECT_LT(seconds(), kMostSeconds) << "compiling " << text.substr(0, 200);
    if (!constraint.ok()) {
      EXPECT_EQ(constraint.status().code(), absl::StatusCode::kInvalidArgument);
      return std::string(constraint.status().message());
    }
    std::mt19937 random(1);
    for (int step = 0; step < 40; ++step) {
      const auto allowed = AllowedTokens(**constraint, tokenizer_->vocab_size());
      EXPECT_FALSE(allowed.empty()) << text.substr(0, 200);
      if (allowed.empty()) break;
      const int32_t token = allowed[random() % allowed.size()];
      EXPECT_TRUE((*constraint)->Accept(token));
    }
    EXPECT_LT(seconds(), 3 * kMostSeconds) << "running " << text.substr(0, 200);
    return "";
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ConstraintFactory> factory_;
};

TEST_F(HostileTest, Expressions) {
  // Backtracking engines take forever; this one follows all readings at once.
  EXPECT_EQ(Regex("(a+)+b"), "");
  EXPECT_EQ(Regex("(a|a)*b"), "");
  EXPECT_EQ(Regex("(a?){50}a{50}"), "");
  EXPECT_EQ(Regex(Repeat("(a*)*", 500) + "b"), "");
  EXPECT_EQ(Regex(Repeat("(", 32) + "a" + Repeat(")*", 32)), "");
  // Exponentially many deterministic states.
  EXPECT_EQ(Regex("[ab]*a[ab]{8}"), "");
  EXPECT_THAT(Regex("[ab]*a[ab]{30}"),
              AnyOf(HasSubstr("deterministic states"), HasSubstr("steps")));
  EXPECT_THAT(Regex("(.*a.*){40}(.*b.*){40}x{9}[ab]*a.{20}"),
              AnyOf(HasSubstr("deterministic states"), HasSubstr("steps")));
  // Sizes.
  EXPECT_THAT(Regex("a{1000000}"), HasSubstr("more than 100000 states"));
  EXPECT_THAT(Regex("a{99999999999999999999}"), HasSubstr("more than 100000 states"));
  EXPECT_THAT(Regex("(((a{1000}){1000}){1000}){1000}"), HasSubstr("more than 100000 states"));
  EXPECT_THAT(Regex("((((){100000}){100000}){100000}){100000}"), HasSubstr("more than"));
  EXPECT_THAT(Regex(".{5000}"), HasSubstr("more than"));
  EXPECT_THAT(Regex(Repeat("(", 33) + "a" + Repeat(")", 33)), HasSubstr("deeper than 32"));
  EXPECT_THAT(Regex(Repeat("(", 60000)), HasSubstr("deeper than 32"));
  EXPECT_THAT(Regex(Repeat("a|", 40000)), HasSubstr("bytes, more than 65536"));
  EXPECT_EQ(Regex(Repeat("a|", 30000)), "");
  std::string every_other = "[";
  for (uint32_t c = 0x1000; every_other.size() < 60000; c += 2) AppendUtf8(c, &every_other);
  EXPECT_EQ(Regex(every_other + "]"), "");
  EXPECT_THAT(Regex(every_other + "]{50}"), HasSubstr("more than"));
}

TEST_F(HostileTest, Schemas) {
  // Deep, wide, long.
  EXPECT_THAT(Schema(Repeat(R"({"items":)", 40) + "{}" + Repeat("}", 40)),
              HasSubstr("deeper than 32"));
  EXPECT_THAT(Schema(Repeat(R"({"items":)", 5000) + "{}" + Repeat("}", 5000)),
              HasSubstr("deeper than 64"));
  EXPECT_THAT(Schema(Repeat("[", 60000)), HasSubstr("cannot be read"));
  EXPECT_THAT(Schema(R"({"maxItems":1000000000,"items":{}})"),
              HasSubstr("more than 100000 states"));
  EXPECT_THAT(Schema(R"({"minItems":9223372036854775807})"), HasSubstr("more than 100000 states"));
  EXPECT_THAT(Schema(R"({"type":"string","maxLength":4294967295})"),
              HasSubstr("more than 100000 states"));
  EXPECT_THAT(Schema(R"({"type":"string","maxLength":60000})"), HasSubstr("deterministic states"));
  EXPECT_EQ(Schema(R"({"type":"string","maxLength":2000})"), "");
  const std::string many =
      Numbered(3000, [](int i) { return absl::StrCat("\"v", i * 7919, "\""); });
  EXPECT_EQ(Schema(absl::StrCat(R"({"enum":[)", many, "]}")), "");
  const std::string properties =
      Numbered(2500, [](int i) { return absl::StrCat("\"p", i, "\":{\"type\":\"null\"}"); });
  EXPECT_THAT(Schema(absl::StrCat(R"({"properties":{)", properties, "}}")),
              AnyOf(HasSubstr("steps"), HasSubstr("more than")));
  const std::string some =
      Numbered(200, [](int i) { return absl::StrCat("\"p", i, "\":{\"type\":\"null\"}"); });
  EXPECT_EQ(Schema(absl::StrCat(R"({"properties":{)", some, "}}")), "");
  // References: cycles, ladders that double at each step, long chains.
  EXPECT_THAT(Schema(R"({"anyOf":[{"$ref":"#"},true]})"), HasSubstr("refers to itself"));
  const auto ladder = [](const char* format, int steps) {
    std::string defs;
    for (int i = 0; i < steps; ++i) {
      const std::string next = absl::StrCat("{\"$ref\":\"#/$defs/d", i + 1, "\"}");
      absl::StrAppend(&defs, "\"d", i, "\":", absl::Substitute(format, next), ",");
    }
    return absl::StrCat("{\"$defs\":{", defs, "\"d", steps, "\":{\"type\":\"null\"}},",
                        "\"$ref\":\"#/$defs/d0\"}");
  };
  EXPECT_EQ(Schema(ladder(R"({"anyOf":[$0,{"allOf":[$0]},{"anyOf":[$0]}]})", 40)), "");
  EXPECT_EQ(Schema(ladder(R"({"prefixItems":[$0,$0,$0],"minItems":3})", 30)), "");
  EXPECT_THAT(Schema(ladder(R"({"items":$0,"minItems":1})", 70)),
              HasSubstr("no text of at most 64"));
  EXPECT_THAT(Schema(ladder("$0", 600)), HasSubstr("no text of at most 64"));
  // Readings that cannot be told apart.
  const std::string twins = Numbered(100, [](int i) {
    return absl::StrCat(R"({"properties":{"a":{"items":{}},"b)", i, "\":{}}}");
  });
  EXPECT_EQ(Schema(absl::StrCat(R"({"anyOf":[)", twins, "]}")), "");
  const std::string lists = Numbered(300, [](int i) {
    return absl::StrCat(R"({"items":{"type":"string","maxLength":)", i, "}}");
  });
  EXPECT_THAT(Schema(absl::StrCat(R"({"items":{"anyOf":[)", lists, "]}}")), HasSubstr("more than"));
  const std::string patterns = Numbered(100, [](int i) {
    return absl::StrCat(R"({"items":{"pattern":"^(a|b|ab|aab){0,)", i % 20, "}x*$\"}}");
  });
  EXPECT_EQ(Schema(absl::StrCat(R"({"anyOf":[)", patterns, "]}")), "");
  EXPECT_THAT(Schema(R"({"pattern":"[ab]*a[ab]{30}"})"),
              AnyOf(HasSubstr("deterministic states"), HasSubstr("steps")));
}

}  // namespace
}  // namespace fixpoint
