#include "calibrator/chat_render.h"

#include <memory>
#include <utility>

#include "base/status_macros.h"
#include "text/template/chat_template.h"

namespace fixpoint {
namespace {

Value TokenText(const Tokenizer* tokenizer, int32_t id) {
  return Value::String(tokenizer && id >= 0 ? std::string(tokenizer->TokenBytes(id)) : "",
                       /*trusted=*/true);
}

}  // namespace

absl::StatusOr<std::vector<TextSegment>> RenderChat(const std::string& chat_template,
                                                    const Tokenizer* tokenizer,
                                                    const ChatInput& input) {
  if (chat_template.empty()) return absl::InvalidArgumentError("the model has no chat template");
  ASSIGN_OR_RETURN(const std::unique_ptr<ChatTemplate> parsed, ChatTemplate::Parse(chat_template));
  DictValue variables;
  variables.Set("messages", input.messages);
  if (!input.tools.is_none()) variables.Set("tools", input.tools);
  variables.Set("add_generation_prompt", Value::Bool(input.add_generation_prompt));
  variables.Set("bos_token", TokenText(tokenizer, tokenizer ? tokenizer->spec().bos_id : -1));
  const bool has_eos = tokenizer && !tokenizer->spec().eos_ids.empty();
  variables.Set("eos_token",
                TokenText(tokenizer, has_eos ? tokenizer->spec().eos_ids.front() : -1));
  return parsed->Render(Value::Dict(std::move(variables)), RenderOptions{});
}

}  // namespace fixpoint
