#include <iostream>

#include "absl/strings/match.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "calibrator/chat_render.h"
#include "calibrator/verbs.h"
#include "text/template/messages_json.h"

namespace fixpoint {
namespace {

constexpr uint64_t kMaxJsonBytes = 16 << 20;
constexpr uint64_t kMaxTemplateBytes = 1 << 20;

}  // namespace

absl::Status RunRender(const RenderFlags& flags) {
  TextModel model;
  if (absl::EndsWith(flags.model, ".jinja")) {
    ASSIGN_OR_RETURN(model.chat_template, ReadWholeFile(flags.model, kMaxTemplateBytes));
  } else {
    ASSIGN_OR_RETURN(model, LoadTextModel(flags.model));
  }
  ChatInput input;
  input.add_generation_prompt = !flags.no_generation_prompt;
  ASSIGN_OR_RETURN(const std::string messages, ReadWholeFile(flags.messages, kMaxJsonBytes));
  ASSIGN_OR_RETURN(input.messages, ChatMessagesFromJson(messages));
  if (!flags.tools.empty()) {
    ASSIGN_OR_RETURN(const std::string tools, ReadWholeFile(flags.tools, kMaxJsonBytes));
    ASSIGN_OR_RETURN(input.tools, ChatToolsFromJson(tools));
  }
  ASSIGN_OR_RETURN(const std::vector<TextSegment> segments,
                   RenderChat(model.chat_template, model.tokenizer.get(), input));
  for (const TextSegment& segment : segments) std::cout << segment.text;
  return absl::OkStatus();
}

}  // namespace fixpoint
