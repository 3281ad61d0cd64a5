// The golden digest: one hash that is the same for every kernel level, thread count, chunk size, KV
// layout and device.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/executor.h"
#include "text/tokenizer.h"

namespace fixpoint {

// The four built-in texts (a sentence, a paragraph, source code, many scripts) as token ids of this
// tokenizer; about 3, 20, 64 and 150 tokens with a vocabulary of usual size. An empty encoding,
// possible with a tiny vocabulary, becomes token 0.
std::vector<std::vector<int32_t>> GoldenPrompts(const Tokenizer& tokenizer);

// SHA-256, in lower-case hex, over the logits (little-endian int32) of every position of each
// prompt, in order. A prompt longer than the executor's context or KV cache counts up to there.
// Each prompt is prefilled in chunks of `chunk_tokens` tokens (0: as large as the executor's step
// allows), which does not change the digest. Uses the executor alone, overwrites its KV cache.
// INVALID_ARGUMENT for a negative chunk size or an empty prompt; errors of the executor are passed
// on.
absl::StatusOr<std::string> GoldenDigest(Executor& executor,
                                         absl::Span<const std::vector<int32_t>> prompts,
                                         int32_t chunk_tokens = 0);

}  // namespace fixpoint
