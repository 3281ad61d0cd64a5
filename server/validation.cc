#include "server/validation.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/status_macros.h"
#include "text/utf8.h"

namespace fixpoint {
namespace {

absl::Status OutOfRange(absl::string_view field, absl::string_view limit, absl::string_view value) {
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": ", value, " is outside the limit: ", limit));
}

// Valid UTF-8 without NUL. The text itself never goes into the message.
absl::Status CheckText(absl::string_view field, absl::string_view text) {
  for (size_t position = 0; position < text.size();) {
    const Utf8Front front = ClassifyUtf8(text.substr(position));
    if (front.kind != Utf8Prefix::kValid) {
      return absl::InvalidArgumentError(absl::StrCat(field, ": invalid UTF-8 at byte ", position));
    }
    if (text[position] == '\0') {
      return absl::InvalidArgumentError(absl::StrCat(field, ": NUL at byte ", position));
    }
    position += front.length;
  }
  return absl::OkStatus();
}

absl::Status CheckBytes(absl::string_view field, size_t bytes, size_t least, size_t most) {
  if (bytes >= least && bytes <= most) return absl::OkStatus();
  return OutOfRange(field, absl::StrCat(least, " to ", most, " bytes"),
                    absl::StrCat(bytes, " bytes"));
}

template <typename Ids>
absl::StatusOr<std::vector<int32_t>> CheckedIds(absl::string_view field, const Ids& ids,
                                                int32_t vocab_size) {
  std::vector<int32_t> out;
  out.reserve(static_cast<size_t>(ids.size()));
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] >= static_cast<uint32_t>(vocab_size)) {
      return OutOfRange(absl::StrCat(field, "[", i, "]"),
                        absl::StrCat("below vocab_size ", vocab_size), absl::StrCat(ids[i]));
    }
    out.push_back(static_cast<int32_t>(ids[i]));
  }
  return out;
}

absl::Status ParseChat(const v1::Chat& chat, const RequestLimits& limits, ParsedChat* out) {
  if (chat.messages_size() < 1 || chat.messages_size() > kMaxChatMessages) {
    return OutOfRange("prompt.chat.messages", absl::StrCat("1 to ", kMaxChatMessages, " messages"),
                      absl::StrCat(chat.messages_size(), " messages"));
  }
  size_t total_bytes = 0;
  for (int i = 0; i < chat.messages_size(); ++i) {
    const v1::ChatMessage& message = chat.messages(i);
    const std::string field = absl::StrCat("prompt.chat.messages[", i, "]");
    RETURN_IF_ERROR(CheckBytes(field + ".role", message.role().size(), 1, kMaxRoleBytes));
    RETURN_IF_ERROR(CheckText(field + ".role", message.role()));
    total_bytes += message.content().size();
    RETURN_IF_ERROR(
        CheckBytes("prompt.chat.messages, all contents", total_bytes, 0, limits.max_prompt_bytes));
    RETURN_IF_ERROR(CheckText(field + ".content", message.content()));
    out->messages.push_back({message.role(), message.content()});
  }
  if (chat.has_tools_json()) {
    RETURN_IF_ERROR(
        CheckBytes("prompt.chat.tools_json", chat.tools_json().size(), 1, kMaxToolsBytes));
    RETURN_IF_ERROR(CheckText("prompt.chat.tools_json", chat.tools_json()));
    out->tools_json = chat.tools_json();
  }
  if (chat.has_add_generation_prompt()) out->add_generation_prompt = chat.add_generation_prompt();
  return absl::OkStatus();
}

// A share in [0, 1] as Q16. NaN fails every comparison, so the conditions are written to be true
// for good values only.
absl::StatusOr<uint32_t> ShareQ16(absl::string_view field, double value, uint32_t least) {
  const double lowest = least / 65536.0;
  if (!(value >= lowest && value <= 1.0)) {
    return OutOfRange(field, absl::StrCat(lowest, " to 1"), absl::StrCat(value));
  }
  return static_cast<uint32_t>(std::llround(value * 65536.0));
}

absl::Status ParseSampling(const v1::Sampling& sampling, const RequestLimits& limits,
                           SamplingParams* out) {
  const double temperature = sampling.temperature();
  if (temperature != 0) {
    if (!(temperature >= kMinTemperature && temperature <= kMaxTemperature)) {
      return OutOfRange("sampling.temperature",
                        absl::StrCat("0 or ", kMinTemperature, " to ", kMaxTemperature),
                        absl::StrCat(temperature));
    }
    out->inverse_temperature_q16 = static_cast<uint32_t>(std::llround(65536.0 / temperature));
  }
  if (sampling.top_k() > static_cast<uint32_t>(limits.engine.vocab_size)) {
    return OutOfRange("sampling.top_k", absl::StrCat("0 to vocab_size ", limits.engine.vocab_size),
                      absl::StrCat(sampling.top_k()));
  }
  out->top_k = static_cast<int32_t>(sampling.top_k());
  if (sampling.has_top_p()) {
    ASSIGN_OR_RETURN(out->top_p_q16, ShareQ16("sampling.top_p", sampling.top_p(), 1));
  }
  if (sampling.has_min_p()) {
    ASSIGN_OR_RETURN(out->min_p_q16, ShareQ16("sampling.min_p", sampling.min_p(), 0));
  }
  out->seed = sampling.seed();
  return absl::OkStatus();
}

absl::Status ParseStopping(const v1::Stopping& stopping, const RequestLimits& limits,
                           ParsedRequest* out) {
  if (stopping.has_max_tokens()) {
    if (stopping.max_tokens() < 1) {
      return OutOfRange("stopping.max_tokens",
                        absl::StrCat("1 to ", limits.engine.max_context_tokens), "0");
    }
    out->max_tokens = stopping.max_tokens();
  }
  if (stopping.stop_strings_size() > kMaxStopStrings) {
    return OutOfRange("stopping.stop_strings", absl::StrCat("at most ", kMaxStopStrings),
                      absl::StrCat(stopping.stop_strings_size()));
  }
  for (int i = 0; i < stopping.stop_strings_size(); ++i) {
    const std::string field = absl::StrCat("stopping.stop_strings[", i, "]");
    RETURN_IF_ERROR(CheckBytes(field, stopping.stop_strings(i).size(), 1, kMaxStopStringBytes));
    RETURN_IF_ERROR(CheckText(field, stopping.stop_strings(i)));
    out->stop_strings.push_back(stopping.stop_strings(i));
  }
  if (stopping.stop_ids_size() > kMaxStopIds) {
    return OutOfRange("stopping.stop_ids", absl::StrCat("at most ", kMaxStopIds),
                      absl::StrCat(stopping.stop_ids_size()));
  }
  ASSIGN_OR_RETURN(out->stop_ids,
                   CheckedIds("stopping.stop_ids", stopping.stop_ids(), limits.engine.vocab_size));
  out->ignore_eos = stopping.ignore_eos();
  return absl::OkStatus();
}

template <typename WireRequest>
absl::StatusOr<ParsedRequest> ParseAny(const WireRequest& request, const RequestLimits& limits) {
  ParsedRequest out;
  ASSIGN_OR_RETURN(out.prompt, ParsePrompt(request.prompt(), limits));
  RETURN_IF_ERROR(ParseSampling(request.sampling(), limits, &out.sampling));
  RETURN_IF_ERROR(ParseStopping(request.stopping(), limits, &out));
  if (request.output().has_top_logprobs()) {
    const uint32_t value = request.output().top_logprobs();
    const auto most = static_cast<uint32_t>(std::min(kMaxTopLogprobs, limits.engine.vocab_size));
    if (value > most) {
      return OutOfRange("output.top_logprobs", absl::StrCat("0 to ", most), absl::StrCat(value));
    }
    out.top_logprobs = static_cast<int32_t>(value);
  }
  if (request.priority() < -kMaxPriority || request.priority() > kMaxPriority) {
    return OutOfRange("priority", absl::StrCat(-kMaxPriority, " to ", kMaxPriority),
                      absl::StrCat(request.priority()));
  }
  out.priority = request.priority();
  return out;
}

}  // namespace

absl::StatusOr<ParsedPrompt> ParsePrompt(const v1::Prompt& prompt, const RequestLimits& limits) {
  ParsedPrompt out;
  switch (prompt.kind_case()) {
    case v1::Prompt::kText:
      out.kind = ParsedPrompt::Kind::kText;
      RETURN_IF_ERROR(CheckBytes("prompt.text", prompt.text().size(), 1, limits.max_prompt_bytes));
      RETURN_IF_ERROR(CheckText("prompt.text", prompt.text()));
      out.text = prompt.text();
      return out;
    case v1::Prompt::kTokenIds: {
      out.kind = ParsedPrompt::Kind::kTokenIds;
      const auto& ids = prompt.token_ids().ids();
      if (ids.empty() || ids.size() > limits.engine.max_prompt_tokens) {
        return OutOfRange("prompt.token_ids",
                          absl::StrCat("1 to ", limits.engine.max_prompt_tokens, " ids"),
                          absl::StrCat(ids.size(), " ids"));
      }
      ASSIGN_OR_RETURN(out.token_ids,
                       CheckedIds("prompt.token_ids.ids", ids, limits.engine.vocab_size));
      return out;
    }
    case v1::Prompt::kChat:
      out.kind = ParsedPrompt::Kind::kChat;
      RETURN_IF_ERROR(ParseChat(prompt.chat(), limits, &out.chat));
      return out;
    case v1::Prompt::KIND_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("prompt: not set; one of text, token_ids and chat is required");
}

absl::StatusOr<ParsedRequest> ParseRequest(const v1::GenerateRequest& request,
                                           const RequestLimits& limits) {
  return ParseAny(request, limits);
}

absl::StatusOr<ParsedRequest> ParseRequest(const v1::GenerateOnceRequest& request,
                                           const RequestLimits& limits) {
  return ParseAny(request, limits);
}

absl::StatusOr<std::vector<int32_t>> ParseDetokenize(const v1::DetokenizeRequest& request,
                                                     const RequestLimits& limits) {
  const auto& ids = request.token_ids().ids();
  if (ids.empty() || ids.size() > limits.engine.max_context_tokens) {
    return OutOfRange("token_ids", absl::StrCat("1 to ", limits.engine.max_context_tokens, " ids"),
                      absl::StrCat(ids.size(), " ids"));
  }
  return CheckedIds("token_ids.ids", ids, limits.engine.vocab_size);
}

absl::Status CheckPromptTokens(size_t prompt_tokens, const RequestLimits& limits) {
  if (prompt_tokens >= 1 && prompt_tokens <= static_cast<size_t>(limits.engine.max_prompt_tokens)) {
    return absl::OkStatus();
  }
  return OutOfRange("prompt", absl::StrCat("1 to ", limits.engine.max_prompt_tokens, " tokens"),
                    absl::StrCat(prompt_tokens, " tokens"));
}

absl::StatusOr<Request> BuildEngineRequest(const ParsedRequest& parsed, std::vector<int32_t> prompt,
                                           const RequestLimits& limits) {
  RETURN_IF_ERROR(CheckPromptTokens(prompt.size(), limits));
  const int32_t context = limits.engine.max_context_tokens;
  const auto prompt_tokens = static_cast<int32_t>(prompt.size());
  const auto room = static_cast<uint32_t>(context - prompt_tokens);
  if (parsed.max_tokens.value_or(1) > room) {
    return OutOfRange("stopping.max_tokens",
                      absl::StrCat("at most ", room, ", which a prompt of ", prompt_tokens,
                                   " tokens leaves of the context of ", context),
                      absl::StrCat(*parsed.max_tokens));
  }
  Request request;
  request.prompt = std::move(prompt);
  request.max_tokens =
      static_cast<int32_t>(parsed.max_tokens.value_or(std::min(kDefaultMaxTokens, room)));
  request.sampling = parsed.sampling;
  request.stop_ids = parsed.stop_ids;
  request.ignore_eos = parsed.ignore_eos;
  request.top_logprobs = parsed.top_logprobs;
  request.priority = parsed.priority;
  return request;
}

}  // namespace fixpoint
