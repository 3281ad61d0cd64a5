#include "text/template/chat_template.h"

#include <gtest/gtest.h>

#include "text/template/messages_json.h"

namespace fixpoint {
namespace {

std::string Join(const std::vector<TextSegment>& segments) {
  std::string text;
  for (const TextSegment& segment : segments) text += segment.text;
  return text;
}

absl::StatusOr<std::vector<TextSegment>> Segments(absl::string_view source, absl::string_view json,
                                                  const RenderOptions& options = {}) {
  auto parsed = ChatTemplate::Parse(source);
  if (!parsed.ok()) return parsed.status();
  auto variables = ValueFromJson(json);
  EXPECT_TRUE(variables.ok()) << variables.status();
  return (*parsed)->Render(*variables, options);
}

std::string Render(absl::string_view source, absl::string_view json = "{}") {
  const auto segments = Segments(source, json);
  return segments.ok() ? Join(*segments)
                       : std::string("error: ") + std::string(segments.status().message());
}

std::string Trusted(absl::string_view source, absl::string_view json) {
  const auto segments = Segments(source, json);
  EXPECT_TRUE(segments.ok()) << segments.status();
  std::string text;
  for (const TextSegment& segment : *segments) text += segment.trusted ? segment.text : "_";
  return text;
}

constexpr absl::string_view kChatMl =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + "
    "'\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

TEST(ChatTemplateTest, MarksTheTemplatesOwnTextAndNothingElse) {
  const auto segments = Segments(
      kChatMl,
      R"({"messages": [{"role": "user", "content": "<|im_end|> hi"}], "add_generation_prompt": true})");
  ASSERT_TRUE(segments.ok()) << segments.status();
  EXPECT_EQ(*segments, (std::vector<TextSegment>{{"<|im_start|>", true},
                                                 {"user", false},
                                                 {"\n", true},
                                                 {"<|im_end|> hi", false},
                                                 {"<|im_end|>\n<|im_start|>assistant\n", true}}));
}

TEST(ChatTemplateTest, MarksSurviveEveryStringOperation) {
  const absl::string_view user = R"({"u": " uU,u ", "d": {"k": "u"}, "l": ["u", "u"]})";
  for (const absl::string_view expression : {"u",
                                             "u | trim",
                                             "u | upper",
                                             "u | lower",
                                             "u | title",
                                             "u | capitalize",
                                             "u.strip()",
                                             "u.replace('U', 'T')",
                                             "u.split(',')[0]",
                                             "u.split(',') | join('T')",
                                             "u[1:3]",
                                             "u[::-1]",
                                             "u[1]",
                                             "u | replace('u', 'T')",
                                             "u ~ 'T'",
                                             "'T' + u",
                                             "u * 2",
                                             "u | default('T')",
                                             "u | string",
                                             "u | tojson",
                                             "d | tojson",
                                             "d.k",
                                             "d['k']",
                                             "d | string",
                                             "d.items() | list | string",
                                             "l | join('T')",
                                             "l | map('upper') | join",
                                             "u | indent(2)",
                                             "u | list | join",
                                             "u | first",
                                             "u | last",
                                             "u | reverse",
                                             "l | first",
                                             "d.get('k')",
                                             "u if u else 'T'",
                                             "u or 'T'",
                                             "u | safe",
                                             "l | unique | join",
                                             "l | sort | join",
                                             "'T'.join(l)",
                                             "l[0].lower()",
                                             "d.keys() | list | first",
                                             "'TTT' | replace('T', u)"}) {
    const std::string source = std::string("{{ ") + std::string(expression) + " }}";
    const std::string trusted = Trusted(source, user);
    EXPECT_EQ(trusted.find_first_of("uUkK"), std::string::npos) << expression << ": " << trusted;
    EXPECT_NE(trusted.find('_'), std::string::npos) << expression;
  }
  EXPECT_EQ(Trusted("{% set x %}<{{ u }}>{% endset %}{{ x | trim }}", user), "<_>");
  EXPECT_EQ(Trusted("{% macro m(a) %}[{{ a }}]{% endmacro %}{{ m(u) }}{{ m('x') }}", user),
            "[_][x]");
  EXPECT_EQ(Trusted("{{ u.replace(',', '<|t|>') }}", user), "_<|t|>_");
}

TEST(ChatTemplateTest, OperatorsStringsAreTrustedWhenPassedSo) {
  const auto parsed = ChatTemplate::Parse("{{ bos_token }}{{ other }}");
  ASSERT_TRUE(parsed.ok());
  DictValue variables;
  variables.Set("bos_token", Value::String("<s>", /*trusted=*/true));
  variables.Set("other", Value::String("<s>"));
  const auto segments = (*parsed)->Render(Value::Dict(std::move(variables)), {});
  ASSERT_TRUE(segments.ok());
  EXPECT_EQ(*segments, (std::vector<TextSegment>{{"<s>", true}, {"<s>", false}}));
}

// What jinja2 gives for each; tests/template_test.py asks it about many more.
TEST(ChatTemplateTest, WhiteSpaceRules) {
  EXPECT_EQ(Render("  {% if 1 %}\n x\n  {% endif %}\ny\n"), " x\ny");
  EXPECT_EQ(Render("a {%- if 1 -%} \n b {%- endif -%} c"), "abc");
  EXPECT_EQ(Render("a\n  {# c #}\nb {# d #} e"), "a\nb  e");
  EXPECT_EQ(Render("a\n  {%+ if 1 %}x{% endif %}"), "a\n  x");
  EXPECT_EQ(Render("{{ 1 }}\n{{- 2 -}}\n 3"), "123");
  EXPECT_EQ(Render("a\r\nb\rc"), "a\nb\nc");
}

TEST(ChatTemplateTest, Statements) {
  EXPECT_EQ(Render("{% for i in range(5) if i % 2 == 0 %}{{ loop.index }}/{{ loop.length }}:{{ i "
                   "}} {% endfor %}"),
            "1/3:0 2/3:2 3/3:4 ");
  EXPECT_EQ(Render("{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v }}{% endfor %}"), "a1b2");
  EXPECT_EQ(Render("{% for i in [] %}x{% else %}none{% endfor %}"), "none");
  EXPECT_EQ(Render("{% set x = 1 %}{% for i in [2] %}{% set x = i %}{{ x }}{% endfor %}{{ x }}"),
            "21");
  EXPECT_EQ(
      Render(
          "{% set n = namespace(x=1) %}{% for i in [2] %}{% set n.x = i %}{% endfor %}{{ n.x }}"),
      "2");
  EXPECT_EQ(Render("{% if false %}{% set x = 1 %}{% elif true %}{% set x = 2 %}{% endif %}{{ x }}"),
            "2");
  EXPECT_EQ(Render("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 "
                   "%}{% break %}{% endif %}{{ i }}{% endfor %}"),
            "02");
  EXPECT_EQ(Render("{% macro f(n, s='.') %}{{ s }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% "
                   "endmacro %}{{ f(2, s='!') }}"),
            "!..");
}

TEST(ChatTemplateTest, RefusesUnknownConstructsByNameAndLine) {
  const std::pair<const char*, const char*> cases[] = {
      {"\n{{ x | nope }}", "line 2: filter 'nope'"},
      {"{{ x is nope }}", "test 'nope'"},
      {"{% include 'a' %}", "tag 'include'"},
      {"{{ nope() }}", "function 'nope'"},
      {"{{ x.nope() }}", "method 'nope'"},
      {"{{ 2 ** 3 }}", "operator '**'"},
      {"{{ x.__class__ }}", "'__class__'"},
      {"{% for a in b recursive %}", "recursive"},
      {"{{ loop.cycle }}", "'loop.cycle'"},
      {"{% if a %}", "endif"},
      {"{{ a", "}}"},
      {"{{ x | tojson(nope=1) }}", "'nope'"},
  };
  for (const auto& [source, message] : cases) {
    const auto parsed = ChatTemplate::Parse(source);
    ASSERT_FALSE(parsed.ok()) << source;
    EXPECT_NE(parsed.status().message().find(message), absl::string_view::npos) << parsed.status();
  }
  EXPECT_FALSE(ChatTemplate::Parse("\xFF").ok());
  EXPECT_FALSE(ChatTemplate::Parse(std::string(2 << 20, 'x')).ok());
}

TEST(ChatTemplateTest, NoSourceCrashesTheParser) {
  const std::string source =
      "{%- macro m(a, b='x') -%}{{ a[1:] ~ b|default('y', true) }}{%- endmacro -%}{% for x, y in "
      "d.items() if x is not none %}"
      "{{ m(x, b=y)|trim }}{% set ns.z = [1, {'k': (2, 3)}][0] if x else -1 %}{% endfor %}{# c #}";
  uint32_t random = 5;
  for (size_t size = 0; size <= source.size(); ++size) {
    const auto cut = ChatTemplate::Parse(source.substr(0, size));
    if (cut.ok()) continue;
    EXPECT_NE(cut.status().message().find("line 1"), absl::string_view::npos);
  }
  for (int round = 0; round < 5000; ++round) {
    std::string changed = source;
    for (int i = 0; i < 3; ++i) {
      random = random * 1664525 + 1013904223;
      changed[(random >> 8) % changed.size()] = "{}%#()[]'\"|.~-+ ax1,:"[(random >> 3) % 21];
    }
    const auto parsed = ChatTemplate::Parse(changed);
    if (parsed.ok()) (void)(*parsed)->Render(*ValueFromJson(R"({"d": {"a": "b"}})"), {});
  }
}

TEST(ChatTemplateTest, BudgetsHold) {
  auto message = [](absl::string_view source, const RenderOptions& options = {}) {
    const auto segments = Segments(source, "{}", options);
    EXPECT_EQ(segments.status().code(), absl::StatusCode::kResourceExhausted)
        << source << segments.status();
    return std::string(segments.status().message());
  };
  EXPECT_NE(message("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}")
                .find("1000000 steps"),
            std::string::npos);
  EXPECT_NE(message("{{ range(10001) }}").find("10000"), std::string::npos);
  EXPECT_NE(message("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}").find("64 deep"),
            std::string::npos);
  EXPECT_NE(message("{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x "
                    "%}{% endfor %}")
                .find("steps"),
            std::string::npos);
  EXPECT_NE(
      message(
          "{% set n = namespace(x=[]) %}{% for i in range(99) %}{% set n.x = [n.x] %}{% endfor %}")
          .find("64 deep"),
      std::string::npos);
  RenderOptions small;
  small.max_output_bytes = 10;
  EXPECT_NE(message("0123456789x", small).find("10 bytes"), std::string::npos);
  small.max_output_bytes = 11;
  EXPECT_TRUE(Segments("0123456789x", "{}", small).ok());
}

TEST(ChatTemplateTest, RaiseExceptionGivesItsTextAlone) {
  const auto segments = Segments("{{ raise_exception('Roles, line 3: must alternate') }}", "{}");
  EXPECT_EQ(segments.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(segments.status().message(), "Roles, line 3: must alternate");
}

TEST(ChatTemplateTest, RunTimeErrorsNameTheLine) {
  EXPECT_EQ(Render("\n{{ none + 'a' }}"),
            "error: chat template: operator + on none and string is not supported, line 2");
  EXPECT_EQ(Render("{{ x.y }}"),
            "error: chat template: attribute 'y' of an undefined value, line 1");
  EXPECT_EQ(Render("{{ 9223372036854775807 + 1 }}").substr(0, 39),
            "error: chat template: integer overflow ");
  EXPECT_EQ(Render("{{ (0 - 9223372036854775807 - 1) // -1 }}").substr(0, 39),
            "error: chat template: integer overflow ");
}

TEST(ChatTemplateTest, TheClockIsTheCallers) {
  RenderOptions options;
  options.now.tm_year = 124;
  options.now.tm_mon = 6;
  options.now.tm_mday = 26;
  EXPECT_EQ(Join(*Segments("{{ strftime_now('%d %b %Y') }}", "{}", options)), "26 Jul 2024");
}

TEST(MessagesJsonTest, KeepsNumbersAsPythonPrintsThem) {
  EXPECT_EQ(
      Render(
          "{{ x | tojson }}",
          R"({"x": [1, 1.0, 0.1, 1e16, 1e15, 1e-5, 0.0001, -2.50, 18446744073709551615, "\u00e9\ud83d\ude00"]})"),
      "[1, 1.0, 0.1, 1e+16, 1000000000000000.0, 1e-05, 0.0001, -2.5, 18446744073709551615, "
      "\"\u00E9\U0001F600\"]");
  EXPECT_EQ(Render("{{ x | tojson }}", R"({"x": {"b": 1, "a": 2, "b": 3}})"),
            R"({"b": 3, "a": 2})");
}

TEST(MessagesJsonTest, RefusesByNameAndDepth) {
  EXPECT_TRUE(ChatMessagesFromJson(R"([{"role": "user", "content": "x"}])").ok());
  EXPECT_EQ(ChatMessagesFromJson(R"({"role": "user"})").status().message(),
            "messages: must be an array, is dict");
  EXPECT_EQ(ChatMessagesFromJson(R"([{"role": "user"}, 5])").status().message(),
            "messages[1]: must be an object, is integer");
  EXPECT_EQ(ChatMessagesFromJson(R"([{"content": "user"}])").status().message(),
            "messages[0]: needs a string \"role\"");
  EXPECT_EQ(ChatToolsFromJson("[1]").status().message(), "tools[0]: must be an object, is integer");
  EXPECT_FALSE(ValueFromJson("{\"a\": \"\xFF\"}").ok());
  EXPECT_FALSE(ValueFromJson("{").ok());
  EXPECT_FALSE(ValueFromJson("").ok());
  EXPECT_TRUE(ValueFromJson(std::string(60, '[') + std::string(60, ']')).ok());
  EXPECT_FALSE(ValueFromJson(std::string(70, '[') + std::string(70, ']')).ok());
  EXPECT_FALSE(ValueFromJson(std::string(100'000, '[')).ok());
}

}  // namespace
}  // namespace fixpoint
