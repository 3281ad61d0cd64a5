// What a caller asks of the engine and what comes back. Integers only: the server converts the
// wire's decimals once.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/sampling_params.h"

namespace fixpoint {

inline constexpr int32_t kMaxTopLogprobs = 20;
inline constexpr int32_t kMaxStopIds = 32;

struct Request {
  std::string id;  // for logs only
  // 1 .. limits().max_prompt_tokens token ids; leading prefix tokens (BOS) may be present
  std::vector<int32_t> prompt;
  int32_t max_tokens = 0;  // >= 1 and prompt + max_tokens within the context
  SamplingParams sampling;
  std::vector<int32_t> stop_ids;  // beside the model's end-of-sequence ids
  bool ignore_eos = false;
  int32_t top_logprobs = -1;  // -1: none; 0: of the chosen token; n: and of the n best
  int32_t priority = 0;       // higher first; first come first served inside one priority
  absl::Time deadline = absl::InfiniteFuture();
};

enum class FinishReason { kStop, kLength, kCancelled, kDeadline, kError };

// Log-probability as fixed point: Q16 natural-log units, <= 0.
struct TokenLogprob {
  int32_t token_id = 0;
  int32_t logprob_q16 = 0;
};

// One event of a stream: a token, or the end (exactly one end, after which nothing comes).
struct Event {
  bool finished = false;
  // Token events.
  int32_t token_id = 0;
  int32_t index = 0;              // of the generated token, from 0
  TokenLogprob chosen;            // when top_logprobs >= 0
  std::vector<TokenLogprob> top;  // falling logprob, ties by rising id
  // End events.
  FinishReason reason = FinishReason::kStop;
  absl::Status error;          // for kError
  int32_t stop_token_id = -1;  // the end-of-sequence or stop id that ended it; such a token is not
                               // sent as a token event
  int32_t prompt_tokens = 0;   // absorbed prefix tokens included
  int32_t cached_tokens = 0;   // prompt tokens found in the cache or absorbed by the prefix
  int32_t generated_tokens = 0;  // the stop token included
};

}  // namespace fixpoint
