// Whether more fixed leading tokens than BOS make the static model better.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/thread_pool.h"
#include "calibrator/evaluate.h"
#include "calibrator/float_forward.h"
#include "text/tokenizer.h"

namespace fixpoint {

struct PrefixSearchInput {
  const Tokenizer* tokenizer = nullptr;
  std::string chat_template;
  const FloatPrefix* start = nullptr;  // BOS alone, or nothing
  const Windows* train = nullptr;      // statistics and outlier tokens; a few windows are used
  const Windows* held_out = nullptr;
  LogitSource* teacher = nullptr;  // float behind `start` on all of held_out
  // Judge with int16 at every down_in, as most of the trouble there can be bought off; else all
  // int8.
  bool allow_int16 = true;
};

struct PrefixCandidate {
  std::vector<int32_t> token_ids;
  std::string why;  // "start", "chat template", "outlier token"
  double kl = 0;    // of the untrained static model to float behind `start`
};

struct PrefixSearchResult {
  std::vector<PrefixCandidate> candidates;  // the first is `start`
  size_t best = 0;
};

// Candidates: start; start and the rest of the template's constant opening, where the template
// begins with `start`; start and each of the three tokens at which the input of a down_proj most
// often is far above its median. A longer one wins only with a KL at least 2 % lower.
absl::StatusOr<PrefixSearchResult> SearchPrefix(const PrefixSearchInput& input,
                                                FloatForward& float_forward, FloatForward& student,
                                                ThreadPool& pool,
                                                const std::function<void(double)>& progress);

}  // namespace fixpoint
