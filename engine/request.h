// What a caller asks of the engine and what comes back. Integers only: the server converts the
// wire's decimals once.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/sampling_params.h"
#include "engine/token_constraint.h"

namespace fixpoint {

inline constexpr int32_t kMaxTopLogprobs = 20;
inline constexpr int32_t kMaxStopIds = 32;
inline constexpr int32_t kMaxSaltBytes = 64;

// Draft tokens looked up in the request's own tokens and checked by the model: fewer steps, the
// same tokens.
enum class Speculation : uint8_t { kAuto, kOn, kOff };

struct Request {
  std::string id;  // for logs only
  // 1 .. limits().max_prompt_tokens token ids; leading prefix tokens (BOS) may be present
  std::vector<int32_t> prompt;
  int32_t max_tokens = 0;  // >= 1 and prompt + max_tokens within the context
  // Tokens that an earlier stream of the same request has given: fewer than max_tokens, none of
  // them an ending one. They count as generated; the first event has the index behind them.
  std::vector<int32_t> resume;
  SamplingParams sampling;
  LogitAdjustment adjust;
  std::shared_ptr<TokenConstraint> constraint;  // null: none. Used by this request alone
  std::vector<int32_t> stop_ids;                // beside the model's end-of-sequence ids
  bool ignore_eos = false;
  // No end-of-sequence token and no stop id is chosen before so many tokens; at most max_tokens.
  int32_t min_tokens = 0;
  int32_t top_logprobs = -1;  // -1: none; 0: of the chosen token; n: and of the n best
  // The same of the prompt's tokens, without those that the model's prefix absorbs and the first
  // behind them.
  int32_t prompt_logprobs = -1;
  Speculation speculation = Speculation::kAuto;
  // Blocks of keys and values are shared with requests of an equal salt only.
  std::string cache_salt;
  bool use_cache = true;  // false: neither takes nor leaves shared blocks
  int32_t priority = 0;   // higher first; first come first served inside one priority
  absl::Time deadline = absl::InfiniteFuture();
};

enum class FinishReason { kStop, kLength, kCancelled, kDeadline, kError };

// Log-probability as fixed point: Q16 natural-log units, <= 0.
struct TokenLogprob {
  int32_t token_id = 0;
  int32_t logprob_q16 = 0;
};

// One event of a stream: the log-probabilities of a prompt token, a token, or the end (exactly one
// end, after which nothing comes).
struct Event {
  bool finished = false;
  // Token events; with `of_prompt` about a token of the prompt.
  bool of_prompt = false;
  int32_t token_id = 0;
  int32_t index = 0;              // of the generated token, or in the prompt, from 0
  TokenLogprob chosen;            // when top_logprobs >= 0
  std::vector<TokenLogprob> top;  // falling logprob, ties by rising id
  // Of each event; prompt tokens found in the cache or absorbed by the prefix.
  int32_t cached_tokens = 0;
  // End events.
  FinishReason reason = FinishReason::kStop;
  absl::Status error;          // for kError
  int32_t stop_token_id = -1;  // the end-of-sequence or stop id that ended it; such a token is not
                               // sent as a token event
  int32_t prompt_tokens = 0;   // absorbed prefix tokens included
  int32_t generated_tokens = 0;  // resumed ones and the stop token included
};

}  // namespace fixpoint
