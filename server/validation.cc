#include "server/validation.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/status_macros.h"
#include "server/field_checks.h"
#include "server/parse_sampling.h"

namespace fixpoint {
namespace {

absl::Status ParseChat(const v1::Chat& chat, const std::string& chat_field,
                       const RequestLimits& limits, ParsedChat* out) {
  if (chat.messages_size() < 1 || chat.messages_size() > kMaxChatMessages) {
    return OutOfRange(chat_field + ".messages",
                      absl::StrCat("1 to ", kMaxChatMessages, " messages"),
                      absl::StrCat(chat.messages_size(), " messages"));
  }
  size_t total_bytes = 0;
  for (int i = 0; i < chat.messages_size(); ++i) {
    const v1::ChatMessage& message = chat.messages(i);
    const std::string field = absl::StrCat(chat_field, ".messages[", i, "]");
    RETURN_IF_ERROR(CheckBytes(field + ".role", message.role().size(), 1, kMaxRoleBytes));
    RETURN_IF_ERROR(CheckText(field + ".role", message.role()));
    total_bytes += message.content().size();
    RETURN_IF_ERROR(CheckBytes(chat_field + ".messages, all contents", total_bytes, 0,
                               limits.max_prompt_bytes));
    RETURN_IF_ERROR(CheckText(field + ".content", message.content()));
    out->messages.push_back({message.role(), message.content()});
  }
  if (chat.has_tools_json()) {
    RETURN_IF_ERROR(
        CheckBytes(chat_field + ".tools_json", chat.tools_json().size(), 1, kMaxToolsBytes));
    RETURN_IF_ERROR(CheckText(chat_field + ".tools_json", chat.tools_json()));
    out->tools_json = chat.tools_json();
  }
  if (chat.has_add_generation_prompt()) out->add_generation_prompt = chat.add_generation_prompt();
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
  out->min_tokens = stopping.min_tokens();
  return absl::OkStatus();
}

// -1 when it is not set.
absl::StatusOr<int32_t> ParseLogprobs(absl::string_view field, bool is_set, uint32_t value,
                                      int32_t vocab_size) {
  if (!is_set) return -1;
  const auto most = static_cast<uint32_t>(std::min(kMaxTopLogprobs, vocab_size));
  if (value > most) {
    return OutOfRange(field, absl::StrCat("0 to ", most), absl::StrCat(value));
  }
  return static_cast<int32_t>(value);
}

absl::Status ParseOutput(const v1::Output& output, int32_t vocab_size, ParsedRequest* out) {
  ASSIGN_OR_RETURN(out->top_logprobs,
                   ParseLogprobs("output.top_logprobs", output.has_top_logprobs(),
                                 output.top_logprobs(), vocab_size));
  ASSIGN_OR_RETURN(out->prompt_logprobs,
                   ParseLogprobs("output.prompt_logprobs", output.has_prompt_logprobs(),
                                 output.prompt_logprobs(), vocab_size));
  out->echo = output.echo();
  return absl::OkStatus();
}

absl::Status ParseConstraint(const v1::Constraint& constraint, ConstraintSpec* out) {
  const char* field = "";
  switch (constraint.kind_case()) {
    case v1::Constraint::kJsonSchema:
      *out = {ConstraintKind::kJsonSchema, constraint.json_schema()};
      field = "constraint.json_schema";
      break;
    case v1::Constraint::kRegex:
      *out = {ConstraintKind::kRegex, constraint.regex()};
      field = "constraint.regex";
      break;
    case v1::Constraint::kJsonObject:
      if (!constraint.json_object()) {
        return OutOfRange("constraint.json_object", "true when set", "false");
      }
      *out = {ConstraintKind::kJsonObject, ""};
      return absl::OkStatus();
    case v1::Constraint::KIND_NOT_SET:
      return absl::InvalidArgumentError(
          "constraint: empty; one of json_schema, regex and json_object is required");
  }
  RETURN_IF_ERROR(CheckBytes(field, out->text.size(), 1, kMaxConstraintBytes));
  return CheckText(field, out->text);
}

// Prompts and how many choices they have together. The count is checked before any prompt is read.
template <typename WireRequest>
absl::Status ParsePrompts(const WireRequest& request, const RequestLimits& limits,
                          ParsedRequest* out) {
  const uint32_t n = request.has_n() ? request.n() : 1;
  if (n < 1 || n > kMaxChoicesPerPrompt) {
    return OutOfRange("n", absl::StrCat("1 to ", kMaxChoicesPerPrompt), absl::StrCat(n));
  }
  out->n = static_cast<int32_t>(n);
  const size_t prompts = 1 + static_cast<size_t>(request.more_prompts_size());
  if (prompts * n > kMaxChoices) {
    return OutOfRange("more_prompts", absl::StrCat("prompts times n at most ", kMaxChoices),
                      absl::StrCat(prompts, " times ", n));
  }
  ASSIGN_OR_RETURN(ParsedPrompt first, ParsePrompt(request.prompt(), limits));
  out->prompts.push_back(std::move(first));
  for (int i = 0; i < request.more_prompts_size(); ++i) {
    ASSIGN_OR_RETURN(ParsedPrompt more, ParsePrompt(request.more_prompts(i), limits,
                                                    absl::StrCat("more_prompts[", i, "]")));
    out->prompts.push_back(std::move(more));
  }
  return absl::OkStatus();
}

absl::Status ParseSpeculation(v1::Speculation wire, Speculation* out) {
  switch (wire) {
    case v1::SPECULATION_UNSPECIFIED:
    case v1::SPECULATION_AUTO:
      *out = Speculation::kAuto;
      return absl::OkStatus();
    case v1::SPECULATION_ON:
      *out = Speculation::kOn;
      return absl::OkStatus();
    case v1::SPECULATION_OFF:
      *out = Speculation::kOff;
      return absl::OkStatus();
    default:  // proto3 enumerations are open
      return OutOfRange("speculation", "0 to 3", absl::StrCat(static_cast<int>(wire)));
  }
}

// Fields that exclude each other.
absl::Status CheckTogether(const ParsedRequest& request) {
  const auto refused = [](absl::string_view field, absl::string_view other) {
    return absl::InvalidArgumentError(absl::StrCat(field, ": not together with ", other));
  };
  if (!request.resume.empty()) {
    const size_t choices = request.prompts.size() * static_cast<size_t>(request.n);
    if (choices > 1) {
      return OutOfRange("resume_token_ids", "a call with 1 choice",
                        absl::StrCat("one with ", choices));
    }
    if (request.prompt_logprobs >= 0) {
      return refused("output.prompt_logprobs", "resume_token_ids");
    }
  }
  if (request.constraint.kind != ConstraintKind::kNone) {
    if (request.ignore_eos) return refused("stopping.ignore_eos", "constraint");
    if (request.min_tokens > 0) return refused("stopping.min_tokens", "constraint");
  }
  return absl::OkStatus();
}

// The ids of an earlier stream hold no token that would have ended it.
absl::Status CheckResume(const Request& request, const RequestLimits& limits) {
  if (request.resume.size() > static_cast<size_t>(request.max_tokens)) {
    return OutOfRange("resume_token_ids", absl::StrCat("at most max_tokens ", request.max_tokens),
                      absl::StrCat(request.resume.size(), " ids"));
  }
  const auto holds = [](const std::vector<int32_t>& ids, int32_t id) {
    return std::find(ids.begin(), ids.end(), id) != ids.end();
  };
  for (size_t i = 0; i < request.resume.size(); ++i) {
    const int32_t id = request.resume[i];
    if (holds(request.stop_ids, id) || (!request.ignore_eos && holds(limits.eos_ids, id))) {
      return absl::InvalidArgumentError(absl::StrCat("resume_token_ids[", i, "]: ", id,
                                                     " ends an answer, so nothing can follow it"));
    }
  }
  return absl::OkStatus();
}

template <typename WireRequest>
absl::StatusOr<ParsedRequest> ParseAny(const WireRequest& request, const RequestLimits& limits) {
  const int32_t vocab_size = limits.engine.vocab_size;
  ParsedRequest out;
  RETURN_IF_ERROR(ParsePrompts(request, limits, &out));
  RETURN_IF_ERROR(ParseSampling(request.sampling(), vocab_size, &out.sampling, &out.adjust));
  RETURN_IF_ERROR(ParseStopping(request.stopping(), limits, &out));
  RETURN_IF_ERROR(ParseOutput(request.output(), vocab_size, &out));
  if (request.has_constraint()) {
    RETURN_IF_ERROR(ParseConstraint(request.constraint(), &out.constraint));
  }
  ASSIGN_OR_RETURN(out.resume,
                   CheckedIds("resume_token_ids", request.resume_token_ids(), vocab_size));
  RETURN_IF_ERROR(ParseSpeculation(request.speculation(), &out.speculation));
  RETURN_IF_ERROR(CheckBytes("cache_salt", request.cache_salt().size(), 0, kMaxCacheSaltBytes));
  out.cache_salt = request.cache_salt();
  if (request.has_use_cache()) out.use_cache = request.use_cache();
  if (request.priority() < -kMaxPriority || request.priority() > kMaxPriority) {
    return OutOfRange("priority", absl::StrCat(-kMaxPriority, " to ", kMaxPriority),
                      absl::StrCat(request.priority()));
  }
  out.priority = request.priority();
  RETURN_IF_ERROR(CheckTogether(out));
  return out;
}

}  // namespace

absl::StatusOr<ParsedPrompt> ParsePrompt(const v1::Prompt& prompt, const RequestLimits& limits,
                                         const std::string& field) {
  ParsedPrompt out;
  out.field = field;
  switch (prompt.kind_case()) {
    case v1::Prompt::kText:
      out.kind = ParsedPrompt::Kind::kText;
      RETURN_IF_ERROR(
          CheckBytes(field + ".text", prompt.text().size(), 1, limits.max_prompt_bytes));
      RETURN_IF_ERROR(CheckText(field + ".text", prompt.text()));
      out.text = prompt.text();
      return out;
    case v1::Prompt::kTokenIds: {
      out.kind = ParsedPrompt::Kind::kTokenIds;
      const auto& ids = prompt.token_ids().ids();
      if (ids.empty() || ids.size() > limits.engine.max_prompt_tokens) {
        return OutOfRange(field + ".token_ids",
                          absl::StrCat("1 to ", limits.engine.max_prompt_tokens, " ids"),
                          absl::StrCat(ids.size(), " ids"));
      }
      ASSIGN_OR_RETURN(out.token_ids,
                       CheckedIds(field + ".token_ids.ids", ids, limits.engine.vocab_size));
      return out;
    }
    case v1::Prompt::kChat:
      out.kind = ParsedPrompt::Kind::kChat;
      RETURN_IF_ERROR(ParseChat(prompt.chat(), field + ".chat", limits, &out.chat));
      return out;
    case v1::Prompt::KIND_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError(
      absl::StrCat(field, ": not set; one of text, token_ids and chat is required"));
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

absl::Status CheckPromptTokens(absl::string_view field, size_t prompt_tokens,
                               const RequestLimits& limits) {
  if (prompt_tokens >= 1 && prompt_tokens <= static_cast<size_t>(limits.engine.max_prompt_tokens)) {
    return absl::OkStatus();
  }
  return OutOfRange(field, absl::StrCat("1 to ", limits.engine.max_prompt_tokens, " tokens"),
                    absl::StrCat(prompt_tokens, " tokens"));
}

absl::StatusOr<Request> BuildEngineRequest(const ParsedRequest& parsed, std::vector<int32_t> prompt,
                                           const RequestLimits& limits) {
  RETURN_IF_ERROR(CheckPromptTokens("prompt", prompt.size(), limits));
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
  if (parsed.min_tokens > static_cast<uint32_t>(request.max_tokens)) {
    return OutOfRange("stopping.min_tokens",
                      absl::StrCat("at most max_tokens ", request.max_tokens),
                      absl::StrCat(parsed.min_tokens));
  }
  request.min_tokens = static_cast<int32_t>(parsed.min_tokens);
  request.sampling = parsed.sampling;
  request.adjust = parsed.adjust;
  request.stop_ids = parsed.stop_ids;
  request.ignore_eos = parsed.ignore_eos;
  request.resume = parsed.resume;
  request.top_logprobs = parsed.top_logprobs;
  request.prompt_logprobs = parsed.prompt_logprobs;
  request.speculation = parsed.speculation;
  request.cache_salt = parsed.cache_salt;
  request.use_cache = parsed.use_cache;
  request.priority = parsed.priority;
  RETURN_IF_ERROR(CheckResume(request, limits));
  return request;
}

}  // namespace fixpoint
