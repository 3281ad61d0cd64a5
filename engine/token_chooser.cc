#include "engine/token_chooser.h"

#include <algorithm>
#include <utility>

#include "absl/types/span.h"
#include "base/check.h"
#include "engine/logit_rules.h"

namespace fixpoint {
namespace {

bool Contains(const std::vector<int32_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

TokenChooser::TokenChooser(int32_t vocab_size, int32_t logit_fraction_bits,
                           std::vector<int32_t> eos_ids)
    : vocab_size_(vocab_size),
      logit_fraction_bits_(logit_fraction_bits),
      eos_ids_(std::move(eos_ids)),
      weights_(static_cast<size_t>(vocab_size)),
      candidates_(static_cast<size_t>(vocab_size)),
      adjusted_(static_cast<size_t>(vocab_size)),
      allowed_(static_cast<size_t>(MaskWords(vocab_size))) {}

// The mask of this token, null where every token may be chosen.
const uint32_t* TokenChooser::Allowed(OpenRequest& request) {
  const Request& r = request.request;
  const bool too_short = request.generated() < r.min_tokens;
  if (r.constraint == nullptr && !too_short) return nullptr;
  if (r.constraint != nullptr) {
    r.constraint->FillMask(absl::MakeSpan(allowed_));
  } else {
    AllowAll(vocab_size_, allowed_.data());
  }
  if (too_short) {
    // Where a mask leaves nothing but endings, the answer ends: something must be chosen.
    std::vector<int32_t> endings = r.stop_ids;
    if (!r.ignore_eos) endings.insert(endings.end(), eos_ids_.begin(), eos_ids_.end());
    Forbid(endings, vocab_size_, allowed_.data());
  }
  return allowed_.data();
}

int32_t TokenChooser::Choose(OpenRequest& request, const int32_t* logits, uint64_t position) {
  const int32_t* row = logits;
  if (!request.request.adjust.empty()) {
    row = AdjustLogits(logits, vocab_size_, logit_fraction_bits_, request.request.adjust,
                       request.counts, adjusted_.data());
  }
  const int32_t token =
      SampleToken(row, vocab_size_, logit_fraction_bits_, request.request.sampling, position,
                  {weights_.data(), candidates_.data()}, Allowed(request));
  CHECK_GE(token, 0) << "a constraint allowed no token";
  return token;
}

bool TokenChooser::FollowsFromSampling(const Request& request, int32_t generated) {
  return request.adjust.empty() && request.constraint == nullptr &&
         generated >= request.min_tokens && request.top_logprobs < 0;
}

void TokenChooser::Note(OpenRequest& request, int32_t token) {
  if (request.request.adjust.counts_tokens()) request.counts.AddAnswer(token);
  if (request.request.constraint == nullptr) return;
  CHECK(request.request.constraint->Accept(token)) << "a constraint refused a token it allowed";
}

bool TokenChooser::Ends(const Request& request, int32_t token) const {
  return (!request.ignore_eos && Contains(eos_ids_, token)) || Contains(request.stop_ids, token);
}

void TokenChooser::Describe(const int32_t* logits, int32_t token, int32_t top_logprobs,
                            Event* event) const {
  const LogNormalizer normalizer = ComputeLogNormalizer(logits, vocab_size_, logit_fraction_bits_);
  event->chosen = {token, LogprobQ16(normalizer, logits[token])};
  SampleCandidate top[kMaxTopLogprobs];
  const int32_t found = TopTokens(logits, vocab_size_, top_logprobs, top);
  event->top.reserve(static_cast<size_t>(found));
  for (int32_t i = 0; i < found; ++i)
    event->top.push_back({top[i].id, LogprobQ16(normalizer, top[i].logit)});
}

}  // namespace fixpoint
