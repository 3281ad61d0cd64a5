#include "server/chat_renderer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/fake_engine/fake_engine.h"

namespace fixpoint {
namespace {

using ::testing::HasSubstr;

constexpr char kTemplate[] =
    "{{ bos_token }}{% for m in messages %}{{ m.role }}={{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if tools %}tools={{ tools|length }}{% endif %}{% if add_generation_prompt %}assistant={% "
    "endif %}";

ParsedChat Chat(const std::string& content) { return {.messages = {{"user", content}}}; }

std::string Text(const std::vector<TextSegment>& segments) {
  std::string text;
  for (const TextSegment& segment : segments)
    text += segment.trusted ? "[" + segment.text + "]" : segment.text;
  return text;
}

class ChatRendererTest : public testing::Test {
 protected:
  ChatRenderer Make(const std::string& source) {
    return *MakeChatRenderer(source, FakeTokenizer()->spec());
  }
};

TEST_F(ChatRendererTest, TemplateAndControlTokensAreTrustedMessagesAreNot) {
  EXPECT_EQ(Text(*Make(kTemplate)(Chat("<eos>hi"))), "[<bos>]user[=]<eos>hi[<eos>assistant=]");
}

TEST_F(ChatRendererTest, GenerationPromptAndToolsAreOptions) {
  ParsedChat chat = Chat("hi");
  chat.add_generation_prompt = false;
  chat.tools_json = R"([{"name": "a"}, {"name": "b"}])";
  EXPECT_THAT(Text(*Make(kTemplate)(chat)), testing::EndsWith("tools=]2"));
}

TEST_F(ChatRendererTest, BadToolsAreNamed) {
  ParsedChat chat = Chat("hi");
  for (const char* tools : {"{", "{}", "[1]", "null"}) {
    chat.tools_json = tools;
    const absl::Status status = Make(kTemplate)(chat).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << tools;
    EXPECT_THAT(std::string(status.message()), HasSubstr("prompt.chat.tools_json"));
  }
  chat.tools_json = std::string(100000, '[');
  EXPECT_EQ(Make(kTemplate)(chat).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ChatRendererTest, RefusalsAndBudgetsAreInvalidArgument) {
  absl::Status status = Make("{{ raise_exception('only one user turn') }}")(Chat("x")).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("only one user turn"));
  status = Make("{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}")(
               Chat("x"))
               .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ChatRendererTest, TheDateNeverChanges) {
  EXPECT_EQ(Text(*Make("{{ strftime_now('%d %b %Y') }}")(Chat("x"))), "26 Jul 2024");
}

TEST_F(ChatRendererTest, NoTemplateGivesNoRendererAndABrokenOneAnError) {
  EXPECT_EQ(Make(""), nullptr);
  EXPECT_FALSE(MakeChatRenderer("{% for %}", FakeTokenizer()->spec()).ok());
}

}  // namespace
}  // namespace fixpoint
