#include "server/chat_renderer.h"

#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "text/template/chat_template.h"
#include "text/template/messages_json.h"
#include "text/template/value.h"

namespace fixpoint {
namespace {

// Messages are bounded by kMaxPromptBytes; a template adds markup of its own.
constexpr size_t kMaxRenderedBytes = kMaxPromptBytes + (1 << 20);

// Spelling of a control token, which may take effect as such; undefined when there is none.
Value ControlToken(const TokenizerSpec& spec, int32_t id) {
  if (id < 0 || static_cast<size_t>(id) >= spec.tokens.size()) return Value();
  return Value::String(spec.tokens[id], /*trusted=*/true);
}

class Renderer {
 public:
  Renderer(std::unique_ptr<ChatTemplate> chat_template, const TokenizerSpec& spec)
      : template_(std::move(chat_template)),
        bos_(ControlToken(spec, spec.bos_id)),
        eos_(ControlToken(spec, spec.eos_ids.empty() ? -1 : spec.eos_ids[0])) {}

  absl::StatusOr<std::vector<TextSegment>> Render(const ParsedChat& chat) const {
    DictValue variables;
    variables.Set("messages", Messages(chat));
    variables.Set("add_generation_prompt", Value::Bool(chat.add_generation_prompt));
    if (!bos_.is_undefined()) variables.Set("bos_token", bos_);
    if (!eos_.is_undefined()) variables.Set("eos_token", eos_);
    if (!chat.tools_json.empty()) {
      absl::StatusOr<Value> tools = ChatToolsFromJson(chat.tools_json);
      if (!tools.ok())
        return absl::InvalidArgumentError(
            absl::StrCat("prompt.chat.tools_json: ", tools.status().message()));
      variables.Set("tools", *std::move(tools));
    }
    RenderOptions options;
    options.max_output_bytes = kMaxRenderedBytes;
    auto segments = template_->Render(Value::Dict(std::move(variables)), options);
    // A used-up budget is the conversation's fault too: trying again would not help.
    if (!segments.ok())
      return absl::InvalidArgumentError(absl::StrCat("prompt.chat: ", segments.status().message()));
    return segments;
  }

 private:
  static Value Messages(const ParsedChat& chat) {
    std::vector<Value> messages;
    for (const ParsedMessage& message : chat.messages) {
      DictValue fields;
      fields.Set("role", Value::String(message.role));
      fields.Set("content", Value::String(message.content));
      messages.push_back(Value::Dict(std::move(fields)));
    }
    return Value::List(std::move(messages));
  }

  const std::unique_ptr<ChatTemplate> template_;
  const Value bos_;
  const Value eos_;
};

}  // namespace

absl::StatusOr<ChatRenderer> MakeChatRenderer(const std::string& template_source,
                                              const TokenizerSpec& spec) {
  if (template_source.empty()) return ChatRenderer();
  auto parsed = ChatTemplate::Parse(template_source);
  if (!parsed.ok()) return Annotate(parsed.status(), "chat template of the bundle");
  auto renderer = std::make_shared<const Renderer>(*std::move(parsed), spec);
  return ChatRenderer([renderer](const ParsedChat& chat) { return renderer->Render(chat); });
}

}  // namespace fixpoint
