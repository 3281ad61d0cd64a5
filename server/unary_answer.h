// Choices put together in one message, for GenerateOnce.
#pragma once

#include <cstddef>

#include "absl/status/status.h"
#include "fixpoint/v1/generation.pb.h"
#include "server/choice.h"
#include "server/validation.h"
#include "text/tokenizer.h"

namespace fixpoint {

// A message that a gRPC client takes by default, and what a call may make the server keep.
inline constexpr size_t kMaxUnaryAnswerBytes = 4 << 20;

// Fills a response that is empty but for its identity. OUT_OF_RANGE once it would pass `max_bytes`;
// the call has failed then. Not thread-safe.
class UnaryAnswer {
 public:
  // `tokenizer` and `response` must outlive this.
  UnaryAnswer(const ParsedRequest& request, const Tokenizer* tokenizer,
              v1::GenerateOnceResponse* response, size_t max_bytes = kMaxUnaryAnswerBytes);

  absl::Status Add(PromptPart part);
  absl::Status Add(int32_t choice, AnswerDelta delta);
  void End(int32_t choice, const ChoiceEnd& end);

 private:
  template <typename To>
  absl::Status AddDelta(AnswerDelta delta, To* to);
  // Counts the bytes of what is about to be added.
  absl::Status Grow(size_t bytes);

  const Tokenizer* const tokenizer_;
  v1::GenerateOnceResponse* const response_;
  const size_t max_bytes_;
  size_t bytes_;
};

}  // namespace fixpoint
