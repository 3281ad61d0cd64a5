// What a caller may ask: the wire's request, checked and turned into what the engine takes. Pure
// functions; the HTTP routes can build the same ParsedRequest. Every refusal is INVALID_ARGUMENT
// and names field, limit and value; nothing is clamped.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/engine.h"
#include "engine/request.h"
#include "fixpoint/v1/generation.pb.h"
#include "server/constraint_spec.h"

namespace fixpoint {

inline constexpr int kMaxStopStrings = 4;
inline constexpr size_t kMaxStopStringBytes = 256;
inline constexpr int32_t kMaxPriority = 100;  // and -kMaxPriority
inline constexpr uint32_t kDefaultMaxTokens = 512;
inline constexpr int kMaxChatMessages = 1024;
inline constexpr size_t kMaxRoleBytes = 64;
inline constexpr size_t kMaxToolsBytes = 256 << 10;
inline constexpr uint32_t kMaxChoicesPerPrompt = 8;
inline constexpr size_t kMaxChoices = 32;  // prompts times choices of each
inline constexpr size_t kMaxConstraintBytes = 64 << 10;
inline constexpr size_t kMaxCacheSaltBytes = 64;

// The served model's limits.
struct RequestLimits {
  EngineLimits engine;
  size_t max_prompt_bytes = 0;   // of raw text, or of all messages together
  std::vector<int32_t> eos_ids;  // end an answer unless ignore_eos is asked for
};

struct ParsedMessage {
  std::string role;
  std::string content;
};

struct ParsedChat {
  std::vector<ParsedMessage> messages;
  std::string tools_json;  // empty: none. Only its size and encoding are checked here.
  bool add_generation_prompt = true;
};

// Exactly one kind; the others are empty.
struct ParsedPrompt {
  enum class Kind { kText, kTokenIds, kChat };
  Kind kind = Kind::kText;
  std::string text;
  std::vector<int32_t> token_ids;
  ParsedChat chat;
  std::string field = "prompt";  // for errors: "more_prompts[2]"
};

struct ParsedRequest {
  std::vector<ParsedPrompt> prompts;  // at least one; prompts x n is at most kMaxChoices
  int32_t n = 1;                      // choices for each
  SamplingParams sampling;
  LogitAdjustment adjust;
  std::optional<uint32_t> max_tokens;
  std::vector<std::string> stop_strings;
  std::vector<int32_t> stop_ids;
  bool ignore_eos = false;
  uint32_t min_tokens = 0;
  int32_t top_logprobs = -1;     // as Request::top_logprobs
  int32_t prompt_logprobs = -1;  // as Request::prompt_logprobs
  bool echo = false;
  std::vector<int32_t> resume;
  ConstraintSpec constraint;
  Speculation speculation = Speculation::kAuto;
  std::string cache_salt;
  bool use_cache = true;
  int32_t priority = 0;
};

// Everything that can be checked before the prompt is tokenized.
// `field` names the prompt in errors.
absl::StatusOr<ParsedPrompt> ParsePrompt(const v1::Prompt& prompt, const RequestLimits& limits,
                                         const std::string& field = "prompt");
absl::StatusOr<ParsedRequest> ParseRequest(const v1::GenerateRequest& request,
                                           const RequestLimits& limits);
absl::StatusOr<ParsedRequest> ParseRequest(const v1::GenerateOnceRequest& request,
                                           const RequestLimits& limits);
absl::StatusOr<std::vector<int32_t>> ParseDetokenize(const v1::DetokenizeRequest& request,
                                                     const RequestLimits& limits);

// The prompt's length against the context. `field` names the prompt in the error.
absl::Status CheckPromptTokens(absl::string_view field, size_t prompt_tokens,
                               const RequestLimits& limits);

// What is left to check once a prompt's ids are known, and the engine's request for its first
// choice: choice i has the seed sampling.seed + i. `id`, `deadline` and `constraint` stay to be
// set. `resume` may already hold max_tokens ids: then there is nothing to run.
absl::StatusOr<Request> BuildEngineRequest(const ParsedRequest& parsed, std::vector<int32_t> prompt,
                                           const RequestLimits& limits);

}  // namespace fixpoint
