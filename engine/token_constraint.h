// What a token may be, given the tokens before it: the engine's side of a grammar. The server makes
// implementations of JSON schemas and regular expressions.
#pragma once

#include <cstdint>

#include "absl/types/span.h"

namespace fixpoint {

// The state of one answer. Called by one thread at a time, the engine's or one of its workers: each
// call must be quick (below a millisecond) and bounded in memory. Other answers' constraints are
// called at the same time.
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;
  // Sets the bits of the tokens that may come next and clears all others: token id i is bit i % 32
  // of mask[i / 32]; mask has (vocab_size + 31) / 32 words. End-of-sequence tokens are allowed
  // where the text may end. At least one bit is set.
  virtual void FillMask(absl::Span<uint32_t> mask) = 0;
  // The token was chosen; ending tokens are not reported. False if it was not allowed: only resumed
  // tokens can be wrong.
  virtual bool Accept(int32_t token_id) = 0;
};

}  // namespace fixpoint
