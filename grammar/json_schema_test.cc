#include "grammar/json_schema.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "grammar/json_rules.h"
#include "grammar/test_grammar.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

using testing::HasSubstr;

absl::StatusOr<Automaton> SchemaAutomaton(absl::string_view schema) {
  Nfa nfa;
  auto root = EmitJsonSchema(schema, &nfa);
  if (!root.ok()) return root.status();
  return Automaton::Build(nfa, *root, AllBytes());
}

struct Case {
  const char* schema;
  std::vector<std::string> in;
  std::vector<std::string> out;
};

void Check(const std::vector<Case>& cases) {
  for (const Case& c : cases) {
    const auto automaton = SchemaAutomaton(c.schema);
    ASSERT_TRUE(automaton.ok()) << c.schema << ": " << automaton.status();
    for (const std::string& text : c.in) {
      EXPECT_TRUE(Matches(*automaton, text)) << c.schema << " on " << text;
    }
    for (const std::string& text : c.out) {
      EXPECT_FALSE(Matches(*automaton, text)) << c.schema << " on " << text;
    }
  }
}

TEST(JsonSchemaTest, Scalars) {
  Check({
      {R"({"type":"string"})",
       {R"("")", R"("a b")", R"("\"\\\/\b\n\u00e9\uD83D\ude00")", "\"\xc3\xa9\xf0\x9f\x98\x80\""},
       {"\"a", "a", "\"a\nb\"", R"("\x")", R"("\uD800")", R"("\uDC00")", "\"\x80\"",
        "\"\xed\xa0\x80\"", " \"a\"", "\"a\" "}},
      {R"({"type":"number"})",
       {"0", "-0", "12", "-3.25", "1e9", "0.5E-12", "1e+05"},
       {"01", "+1", ".5", "1.", "1e", "1e100", "--1", "1234567890123456789", "NaN"}},
      {R"({"type":"integer"})",
       {"0", "7", "-12", "999999999999999999", "-999999999999999999"},
       {"-0", "01", "1.0", "1e2", "1000000000000000000", ""}},
      {R"({"type":"boolean"})", {"true", "false"}, {"True", "null", "tru"}},
      {R"({"type":"null"})", {"null"}, {"nul", "nulll"}},
      {R"({"type":["integer","null"],"minimum":5})", {"5", "null", "77"}, {"4", "true", "-5"}},
  });
}

TEST(JsonSchemaTest, AnyValue) {
  const std::vector<std::string> values = {
      "1", "\"x\"", "null", "[]", "{}", R"({"a":[1,{"b": null}], "c":"d"})", "[1, 2,[3]]"};
  for (const char* schema : {"{}", "true", R"({"title":"anything","x-extra":1})"}) {
    Check({{schema, values, {"", "[1,]", "{,}", "[1,  2]", "{\"a\" :1}", "[ 1]", "{\"a\":1,}"}}});
  }
  Check({{R"({"type":"object"})", {"{}", R"({"a":1})"}, {"[]", "1"}},
         {R"({"type":"array"})", {"[]", R"([{"a":1}])"}, {"{}", "1"}}});
}

TEST(JsonSchemaTest, Objects) {
  Check({
      {R"({"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"string"}},
           "required":["a","b"]})",
       {R"({"a":1,"b":"x"})", R"({"a": 1, "b": "x"})"},
       {R"({"b":"x","a":1})", R"({"a":1})", R"({"a":1,"b":"x","c":1})", "{}",
        R"({"a":"1","b":"x"})"}},
      {R"({"properties":{"a":{"const":1},"b":{"const":2},"c":{"const":3}},"required":["b"]})",
       {R"({"b":2})", R"({"a":1,"b":2})", R"({"b":2,"c":3})", R"({"a":1,"b":2,"c":3})"},
       {"{}", R"({"a":1})", R"({"a":1,"c":3})", R"({,"b":2})", R"({"b":2,})", R"({"a":1"b":2})"}},
      {R"({"properties":{"a":{"const":1},"b":{"const":2}}})",
       {"{}", R"({"a":1})", R"({"b":2})", R"({"a":1,"b":2})"},
       {R"({"b":2,"a":1})", R"({"c":1})", R"({"a":1,"a":1})"}},
      {R"({"type":"object","properties":{},"additionalProperties":false})", {"{}"}, {R"({"a":1})"}},
      {R"({"type":"object","additionalProperties":{"type":"integer"}})",
       {"{}", R"({"x":1})", R"({"x":1, "y":2})"},
       {R"({"x":"1"})"}},
      {R"({"properties":{"ab":{"const":1},"\u00e9":{"const":2}},"required":["ab"],
           "additionalProperties":{"type":"null"}})",
       {R"({"ab":1})", R"({"ab":1,"a":null})", R"({"ab":1,"abc":null,"":null})",
        "{\"ab\":1,\"\xc3\xa9\":2}", "{\"ab\":1,\"\xc3\xaa\":null}",
        "{\"ab\":1,\"\xc3\xa9z\":null}"},
       {R"({"ab":1,"ab":null})", "{\"ab\":1,\"\xc3\xa9\":null}", R"({"a":null})",
        R"({"ab":1,"a":1})"}},
      {R"({"required":["k"],"additionalProperties":{"const":1}})",
       {R"({"k":1})", R"({"k":1,"z":1})"},
       {R"({"k":2})", "{}"}},
      {R"({"type":"object","required":["k"]})", {R"({"k":[]})", R"({"k":1,"z":2})"}, {"{}"}},
      {R"({"properties":{"q\"~/\n":true},"required":["q\"~/\n"]})",
       {"{\"q\\\"~/\\u000a\":1}"},
       {"{}"}},
  });
}

TEST(JsonSchemaTest, Arrays) {
  Check({
      {R"({"type":"array","items":{"type":"integer"}})",
       {"[]", "[1]", "[1,2, 3]"},
       {"[\"\"]", "[,]"}},
      {R"({"items":{"type":"integer"},"minItems":2,"maxItems":3})",
       {"[1,2]", "[1,2,3]"},
       {"[]", "[1]", "[1,2,3,4]"}},
      {R"({"items":{"type":"integer"},"minItems":2})", {"[1,2]", "[1,2,3,4,5]"}, {"[1]"}},
      {R"({"items":{"type":"integer"},"maxItems":0})", {"[]"}, {"[1]"}},
      {R"({"items":false})", {"[]"}, {"[1]"}},
      {R"({"prefixItems":[{"type":"integer"},{"type":"string"}]})",
       {"[]", "[1]", R"([1,"a"])"},
       {R"(["a"])", R"([1,"a",2])"}},
      {R"({"prefixItems":[{"type":"integer"}],"maxItems":5,"items":false})",
       {"[]", "[1]"},
       {"[1,1]", "[1,null]"}},
      {R"({"prefixItems":[{"const":1}],"items":{"const":2},"minItems":2,"maxItems":3})",
       {"[1,2]", "[1,2,2]"},
       {"[1]", "[1,1]", "[1,2,2,2]"}},
  });
}

TEST(JsonSchemaTest, Strings) {
  Check({
      {R"({"type":"string","minLength":2,"maxLength":3})",
       {R"("ab")", R"("abc")", "\"\xc3\xa9\xf0\x9f\x98\x80\"", R"("\n\uD83D\uDE00\"")"},
       {R"("a")", R"("abcd")", R"("")"}},
      {R"({"minLength":1})", {R"("a")", R"("abcdef")"}, {R"("")"}},
      {R"({"maxLength":1})", {R"("")", R"("a")"}, {R"("ab")"}},
      {R"({"type":"string","pattern":"^[A-Z]{2}\\d+$"})",
       {R"("AB1")"},
       {R"("aB1")", R"("AB")", "AB1"}},
      {R"({"type":"string","pattern":"b\"c"})", {R"("ab\"cd")", R"("b\"c\n")"}, {R"("ab")"}},
      {R"({"format":"date"})", {R"("2024-02-28")"}, {R"("2024-13-01")", R"("2024-02-30")"}},
      {R"({"format":"date-time"})",
       {R"("2024-12-31T23:59:59.5Z")", R"("2024-12-31T23:59:59+01:00")"},
       {R"("2024-12-31 23:59:59")"}},
      {R"({"format":"uuid"})", {R"("123e4567-e89b-12d3-a456-426614174000")"}, {R"("123e4567")"}},
      {R"({"format":"ipv4"})", {R"("192.168.0.255")"}, {R"("192.168.0.256")", R"("1.2.3")"}},
      {R"({"format":"email"})", {R"("a.b@c-d.org")"}, {R"("a.b@c")", R"("@c.org")"}},
      {R"({"format":"uri"})", {R"("https://example.org/a/b?c=d")"}, {R"("example")"}},
  });
}

TEST(JsonSchemaTest, EnumerationsAndAlternatives) {
  Check({
      {R"({"enum":["a",1,null,true,{"x":[1,2]},"q\"\u00e9"]})",
       {R"("a")", "1", "null", "true", R"({"x":[1,2]})", "\"q\\\"\xc3\xa9\""},
       {"2", R"("b")", "false", "{}"}},
      {R"({"type":"string","enum":["a",1]})", {R"("a")"}, {"1"}},
      {R"({"const":"x"})", {R"("x")"}, {R"("y")"}},
      {R"({"anyOf":[{"type":"integer"},{"type":"array","items":{"type":"null"}}]})",
       {"1", "[null]"},
       {"[1]", "null"}},
      {R"({"oneOf":[{"properties":{"k":{"const":"a"},"n":{"type":"integer"}},"required":["k","n"]},
                    {"properties":{"k":{"const":"b"},"s":{"type":"string"}},"required":["k","s"]}]})",
       {R"({"k":"a","n":1})", R"({"k":"b","s":""})"},
       {R"({"k":"a","s":""})", R"({"k":"b","n":1})"}},
      {R"({"allOf":[{"type":"null"}],"description":"x"})", {"null"}, {"1"}},
  });
}

TEST(JsonSchemaTest, References) {
  Check({
      {R"({"$defs":{"n":{"type":"object","properties":{"v":{"type":"integer"},
             "next":{"anyOf":[{"$ref":"#/$defs/n"},{"type":"null"}]}},"required":["v","next"]}},
           "$ref":"#/$defs/n"})",
       {R"({"v":1,"next":null})", R"({"v":1,"next":{"v":2,"next":{"v":3,"next":null}}})"},
       {R"({"v":1})", R"({"v":1,"next":{"v":2,"next":1}})"}},
      {R"({"type":"object","properties":{"child":{"$ref":"#"}}})",
       {"{}", R"({"child":{}})", R"({"child":{"child":{"child":{}}}})"},
       {R"({"child":1})"}},
      {R"({"definitions":{"a b":{"type":"null"},"c/d~e":{"type":"boolean"}},
           "prefixItems":[{"$ref":"#/definitions/a%20b"},{"$ref":"#/definitions/c~1d~0e"}],"minItems":2})",
       {"[null,true]"},
       {"[true,null]"}},
  });
}

// Alternatives that differ in nothing that was read so far: each level doubles the readings, and
// those beyond kMaxReadings are given up without a dead end.
TEST(JsonSchemaTest, ReadingsAreBounded) {
  const auto automaton = SchemaAutomaton(R"({"$defs":{"t":{"anyOf":[
      {"type":"array","items":{"anyOf":[{"$ref":"#/$defs/t"},{"const":1}]}},
      {"type":"array","items":{"anyOf":[{"$ref":"#/$defs/t"},{"const":2}]}}]}},"$ref":"#/$defs/t"})");
  ASSERT_TRUE(automaton.ok()) << automaton.status();
  const auto nested = [](const std::string& inside) {
    return std::string(20, '[') + inside + std::string(20, ']');
  };
  TextStates states(&*automaton);
  EXPECT_TRUE(Matches(states, nested("[],[]")));
  EXPECT_FALSE(Matches(states, nested("3")));
  TextStates::State* state = states.Start();
  for (int depth = 0; depth < 28; ++depth) {
    ASSERT_LE(state->readings.size(), static_cast<size_t>(kMaxReadings));
    state = states.Next(state, '[');
    ASSERT_NE(state, nullptr);
  }
  EXPECT_EQ(state->readings.size(), static_cast<size_t>(kMaxReadings));
}

TEST(JsonSchemaTest, NestingIsBounded) {
  const auto automaton = SchemaAutomaton(R"({"type":"array","items":{"$ref":"#"}})");
  ASSERT_TRUE(automaton.ok()) << automaton.status();
  const auto nested = [](size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  // The items of the outermost array are at one call.
  EXPECT_TRUE(Matches(*automaton, nested(kMaxNesting + 1)));
  EXPECT_FALSE(Matches(*automaton, nested(kMaxNesting + 2)));
}

// Deeper and deeper as long as it is allowed: what is allowed can always be finished, also where a
// leaf needs some nesting of its own, or the way back does.
TEST(JsonSchemaTest, NestingEndsWithoutADeadEnd) {
  const std::string leaf =
      R"({"prefixItems":[{"prefixItems":[{"prefixItems":[{"const":1}],"minItems":1}],"minItems":1}],
          "minItems":1})";
  for (const char* alternatives :
       {R"({"$ref":"#/$defs/leaf"},{"properties":{"k":{"$ref":"#/$defs/t"}},"required":["k"]})",
        R"({"const":1},{"prefixItems":[{"$ref":"#/$defs/t"},{"$ref":"#/$defs/leaf"}],"minItems":2},
           {"prefixItems":[{"const":2}],"minItems":1})"}) {
    const auto automaton =
        SchemaAutomaton(absl::StrCat(R"({"$defs":{"leaf":)", leaf, R"(,"t":{"anyOf":[)",
                                     alternatives, R"(]}},"$ref":"#/$defs/t"})"));
    ASSERT_TRUE(automaton.ok()) << automaton.status();
    TextStates states(&*automaton);
    TextStates::State* state = states.Start();
    std::string text;
    while (!state->may_end) {
      int next = 0;
      for (const char open : {'[', '{'}) {
        if (states.Next(state, static_cast<uint8_t>(open)) != nullptr) next = open;
      }
      while (next < 256 && states.Next(state, static_cast<uint8_t>(next)) == nullptr) ++next;
      ASSERT_LT(next, 256) << "dead end behind " << text;
      text.push_back(static_cast<char>(next));
      ASSERT_LT(text.size(), 10000u);
      state = states.Next(state, static_cast<uint8_t>(next));
    }
    EXPECT_GT(std::count(text.begin(), text.end(), ']') + std::count(text.begin(), text.end(), '}'),
              40);
  }
}

// Every number of a range, and those beside it.
TEST(JsonSchemaTest, IntegerRangesAreExact) {
  const int64_t edges[] = {-1205, -1000, -999, -100, -99, -12, -10, -9,  -1,   0,
                           1,     9,     10,   11,   99,  100, 101, 999, 1000, 1234};
  for (const int64_t min : edges) {
    for (const int64_t max : edges) {
      const std::string schema =
          absl::StrCat(R"({"type":"integer","minimum":)", min, R"(,"maximum":)", max, "}");
      const auto automaton = SchemaAutomaton(schema);
      ASSERT_EQ(automaton.ok(), min <= max) << schema;
      if (min > max) continue;
      TextStates states(&*automaton);
      for (int64_t value = -1300; value <= 1300; ++value) {
        ASSERT_EQ(Matches(states, absl::StrCat(value)), value >= min && value <= max)
            << schema << " on " << value;
      }
    }
  }
  Check({{R"({"type":"integer","exclusiveMinimum":3,"exclusiveMaximum":5})", {"4"}, {"3", "5"}},
         {R"({"type":"integer","minimum":0,"maximum":9223372036854775807})",
          {"0", "999999999999999999"},
          {"-1", "1000000000000000000"}},
         {R"({"type":"integer","minimum":-1e300,"maximum":18446744073709551615})",
          {"0", "-999999999999999999", "999999999999999999"},
          {"1e5"}},
         {R"({"type":"integer","minimum":10.0})", {"10", "11"}, {"9"}},
         {R"({"type":"integer","maximum":-987654321012345678})",
          {"-987654321012345678", "-999999999999999999"},
          {"-987654321012345677", "1"}}});
}

TEST(JsonSchemaTest, NumberRangesAreExact) {
  for (const int min : {-12, -1, 0, 1, 9, 10}) {
    for (const int max : {-11, 0, 1, 10, 11, 100}) {
      for (int excluded = 0; excluded < 4; ++excluded) {
        const bool above = excluded & 1, below = excluded & 2;
        const std::string schema = absl::StrCat(
            R"({"type":"number",")", above ? "exclusiveMinimum" : "minimum", "\":", min, ",\"",
            below ? "exclusiveMaximum" : "maximum", "\":", max, "}");
        const auto automaton = SchemaAutomaton(schema);
        ASSERT_EQ(automaton.ok(), min < max || (min == max && excluded == 0)) << schema;
        if (!automaton.ok()) continue;
        TextStates states(&*automaton);
        for (int hundredths = -1300; hundredths <= 10100; hundredths += 25) {
          std::string text =
              absl::StrCat(hundredths < 0 ? "-" : "", std::abs(hundredths) / 100, ".",
                           std::abs(hundredths) % 100 / 10, hundredths % 10 ? "5" : "");
          if (hundredths % 100 == 0) text = absl::StrCat(hundredths / 100);
          const double value = hundredths / 100.0;
          const bool inside =
              (above ? value > min : value >= min) && (below ? value < max : value <= max);
          ASSERT_EQ(Matches(states, text), inside) << schema << " on " << text;
        }
      }
    }
  }
  Check({{R"({"type":"number","minimum":0,"maximum":1})",
          {"0.0", "1.0", "0.123456789"},
          {"1.1", "1e0"}},
         {R"({"type":"number","minimum":-1e300,"maximum":18446744073709551615})",
          {"0", "-12.5", "999999999999999998.5"},
          {"1e5"}},
         {R"({"type":"number","exclusiveMinimum":0})", {"0.000000001", "5", "7.0"}, {"0", "0.0"}}});
}

TEST(JsonSchemaTest, ErrorsNameThePlace) {
  const std::pair<const char*, const char*> cases[] = {
      {"{", "cannot be read"},
      {"1", "#: a schema must be an object"},
      {R"({"type":"strin"})", "#/type: must be object"},
      {R"({"type":[]})", "#/type: must not be empty"},
      {R"({"type":["null","null"]})", "#/type: names 'null' twice"},
      {R"({"type":"integer","multipleOf":3})", "#/multipleOf: is not supported"},
      {R"({"properties":{"a/b":{"not":{}}}})", "#/properties/a~1b/not: is not supported"},
      {R"({"items":{"if":{}}})", "#/items/if: is not supported"},
      {R"({"patternProperties":{}})", "#/patternProperties: is not supported"},
      {R"({"uniqueItems":true})", "#/uniqueItems: is not supported unless false"},
      {R"({"type":"integer","minimum":0.5})", "#/minimum: is supported for whole numbers only"},
      {R"({"type":"integer","minimum":3,"maximum":2})", "#: no integer is inside"},
      {R"({"type":"number","exclusiveMaximum":2000000})", "larger than 1000000"},
      {R"({"minLength":-1})", "#/minLength: must be a whole number"},
      {R"({"minLength":3,"maxLength":2})", "#/minLength: is larger than maxLength"},
      {R"({"minItems":3,"maxItems":2})", "#/minItems: at most 2 items"},
      {R"s({"pattern":"a(?=b)"})s", "#/pattern: regular expression, offset 1: look-around"},
      {R"({"pattern":"a","minLength":1})", "only one is supported"},
      {R"({"format":"hostname"})", "#/format: 'hostname' is not supported"},
      {R"({"enum":[]})", "#/enum: has no value"},
      {R"({"required":["a"],"additionalProperties":false})",
       "#/required: names 'a', which additionalProperties forbids"},
      {R"({"type":"number","minimum":1e300})", "larger than 9007199254740992"},
      {R"({"items":[{}]})", "#/items: a schema must be an object"},
      {R"({"exclusiveMinimum":true})", "#/exclusiveMinimum: must be a number"},
      {R"({"enum":["a"],"minLength":1})", "#/minLength: is not supported beside enum"},
      {R"({"anyOf":[],"x-y":1})", "#/anyOf: must not be empty"},
      {R"({"anyOf":[{}],"type":"null"})", "#/type: is not supported beside anyOf"},
      {R"({"allOf":[{},{}]})", "#/allOf: is supported with one"},
      {R"({"$ref":"http://x"})", "#/$ref: only places of this schema"},
      {R"({"$ref":"#/$defs/a"})", "'#/$defs/a': no such place"},
      {R"({"$ref":"#/$defs/a","type":"null","$defs":{"a":{}}})",
       "#/type: is not supported beside $ref"},
      {R"({"type":"null","type":"null"})", "#/type: stands twice"},
      {R"({"properties":{"a":{},"a":{}}})", "#/properties/a: stands twice"},
      {R"({"required":[1]})", "#/required: must be a list of strings"},
      {R"({"$ref":"#"})", "no text of at most 64"},
      {R"({"anyOf":[{"$ref":"#"},{"type":"null"}]})",
       "# refers to itself without anything in between"},
      {R"({"$defs":{"a":{"anyOf":[{"type":"null"},{"$ref":"#/$defs/b"}]},
                    "b":{"anyOf":[{"type":"null"},{"$ref":"#/$defs/a"}]}},"$ref":"#/$defs/a"})",
       "refers to itself without anything in between"},
      {R"({"properties":{"a":{"$ref":"#"}},"required":["a"]})", "no text of at most 64"},
      {"false", "no text"},
      {R"({"pattern":"^a$","anyOf":[true]})", "#/pattern: is not supported beside anyOf"},
  };
  for (const auto& [schema, error] : cases) {
    const auto automaton = SchemaAutomaton(schema);
    ASSERT_FALSE(automaton.ok()) << schema;
    EXPECT_EQ(automaton.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(automaton.status().message()), HasSubstr(error)) << schema;
  }
}

TEST(JsonQuotedTest, EscapesWhatJsonDemands) {
  EXPECT_EQ(JsonQuoted("a\"\\\n\x01\xc3\xa9/"), "\"a\\\"\\\\\\u000a\\u0001\xc3\xa9/\"");
}

}  // namespace
}  // namespace fixpoint
