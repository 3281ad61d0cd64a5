#include "calibrator/prefix.h"

#include <algorithm>
#include <string>
#include <utility>

#include "calibrator/chat_render.h"
#include "calibrator/random.h"

namespace fixpoint {
namespace {

// Ids of what the template writes in front of a user's first words. Empty when there is no usable
// template.
std::vector<int32_t> TemplateOpening(const Tokenizer& tokenizer, const std::string& chat_template) {
  DictValue message;
  message.Set("role", Value::String("user"));
  message.Set("content", Value::String("x"));
  const absl::StatusOr<std::vector<TextSegment>> segments = RenderChat(
      chat_template, &tokenizer, {.messages = Value::List({Value::Dict(std::move(message))})});
  // A template that refuses this simplest conversation only costs variety of the text.
  if (!segments.ok()) return {};
  std::vector<TextSegment> leading;
  for (const TextSegment& segment : *segments) {
    // The user's words are not trusted, nor are dictionary keys such as the role, which may come
    // before them.
    if (!segment.trusted && segment.text.find('x') != std::string::npos) break;
    leading.push_back(segment);
  }
  return tokenizer.EncodeSegments(leading);
}

}  // namespace

std::vector<int32_t> ConstantOpening(const Tokenizer& tokenizer, const std::string& chat_template) {
  // With and without a system message: what both have in common stands in front of every chat.
  std::vector<int32_t> common;
  for (const bool with_system : {false, true}) {
    std::vector<Value> messages;
    const auto add = [&](const char* role, const char* content) {
      DictValue message;
      message.Set("role", Value::String(role));
      message.Set("content", Value::String(content));
      messages.push_back(Value::Dict(std::move(message)));
    };
    if (with_system) add("system", "x");
    add("user", "x");
    const absl::StatusOr<std::vector<TextSegment>> segments =
        RenderChat(chat_template, &tokenizer, {.messages = Value::List(std::move(messages))});
    if (!segments.ok()) return {};
    const std::vector<int32_t> ids = tokenizer.EncodeSegments(*segments);
    if (!with_system) {
      common = ids;
      continue;
    }
    size_t same = 0;
    while (same < std::min(common.size(), ids.size()) && common[same] == ids[same]) ++same;
    common.resize(same);
  }
  return common;
}

std::vector<int32_t> BosAlone(const Tokenizer& tokenizer) {
  if (tokenizer.spec().bos_id < 0) return {};
  return {tokenizer.spec().bos_id};
}

std::vector<int32_t> ChoosePrefix(const Tokenizer& tokenizer, const std::string& chat_template) {
  if (tokenizer.spec().bos_id >= 0) return BosAlone(tokenizer);
  const std::vector<int32_t> opening = TemplateOpening(tokenizer, chat_template);
  if (opening.empty() || !tokenizer.IsControl(opening.front())) return {};
  return {opening.front()};
}

std::vector<Opening> ChooseOpenings(const Tokenizer& tokenizer, const std::string& chat_template,
                                    const std::vector<int32_t>& prefix, int32_t count,
                                    uint64_t seed) {
  std::vector<int32_t> chat = TemplateOpening(tokenizer, chat_template);
  if (chat.size() >= prefix.size() && std::equal(prefix.begin(), prefix.end(), chat.begin())) {
    chat.erase(chat.begin(), chat.begin() + static_cast<int64_t>(prefix.size()));
  }
  std::vector<int32_t> ordinary;
  const TokenizerSpec& spec = tokenizer.spec();
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    if (spec.types[id] == TokenType::kNormal && !tokenizer.IsControl(id)) ordinary.push_back(id);
  }
  if (ordinary.empty()) ordinary.push_back(0);
  Random random(seed, /*stream=*/2);
  std::vector<Opening> openings;
  for (int32_t i = 0; i < count; ++i) {
    if (i % 3 == 2 && !chat.empty())
      openings.push_back({.token_ids = chat, .allow_control = true});
    else
      openings.push_back(
          {.token_ids = {ordinary[random.Below(static_cast<int64_t>(ordinary.size()))]}});
  }
  return openings;
}

std::vector<int32_t> ControlIds(const Tokenizer& tokenizer) {
  std::vector<int32_t> ids;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    if (tokenizer.IsControl(id)) ids.push_back(id);
  }
  return ids;
}

}  // namespace fixpoint
