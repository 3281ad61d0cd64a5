// A conversation as the model sees it.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "text/template/value.h"
#include "text/text_segment.h"
#include "text/tokenizer.h"

namespace fixpoint {

struct ChatInput {
  Value messages;                   // a list, from ChatMessagesFromJson
  Value tools = Value::MakeNone();  // a list, or none
  bool add_generation_prompt = true;
};

// Renders a chat template (Jinja source) with the tokenizer's own bos and eos strings.
// INVALID_ARGUMENT when the template is empty, does not parse, or refuses the messages. `tokenizer`
// may be null: then bos_token and eos_token are empty.
absl::StatusOr<std::vector<TextSegment>> RenderChat(const std::string& chat_template,
                                                    const Tokenizer* tokenizer,
                                                    const ChatInput& input);

}  // namespace fixpoint
