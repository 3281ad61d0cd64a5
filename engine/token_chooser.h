// From a row of logits to the next token of a request: adjustments, masks, sampling, and what is
// reported about the token.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/engine_mailbox.h"
#include "engine/request.h"
#include "engine/sampler.h"

namespace fixpoint {

// Owns the working memory of one row. One thread at a time.
class TokenChooser {
 public:
  TokenChooser(int32_t vocab_size, int32_t logit_fraction_bits, std::vector<int32_t> eos_ids);

  int32_t vocab_size() const { return vocab_size_; }

  // The token behind the request's tokens, from its row of logits [vocab_size]. `position` is that
  // of the token in the whole context, the model's prefix included: the random numbers depend on
  // it.
  int32_t Choose(OpenRequest& request, const int32_t* logits, uint64_t position);

  // Whether the request's token behind `generated` tokens of its answer follows from SamplingParams
  // and the row's logits alone, and nothing is told of the logits: an executor may then choose it.
  static bool FollowsFromSampling(const Request& request, int32_t generated);

  // Notes a token of the answer for the rules of later ones. `Choose` does not.
  static void Note(OpenRequest& request, int32_t token);

  // Whether the token ends the answer.
  bool Ends(const Request& request, int32_t token) const;

  // What the model thought of `token` in a row of logits: for top_logprobs >= 0.
  void Describe(const int32_t* logits, int32_t token, int32_t top_logprobs, Event* event) const;

 private:
  const uint32_t* Allowed(OpenRequest& request);

  const int32_t vocab_size_;
  const int32_t logit_fraction_bits_;
  const std::vector<int32_t> eos_ids_;
  std::vector<uint32_t> weights_;
  std::vector<SampleCandidate> candidates_;
  std::vector<int32_t> adjusted_;
  std::vector<uint32_t> allowed_;
};

}  // namespace fixpoint
