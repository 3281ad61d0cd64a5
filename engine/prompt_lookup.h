// Draft tokens for speculative decoding without a draft model: what followed the last tokens when
// they came before, in the prompt or in the answer (prompt lookup). Drafts are only proposals that
// the model checks, so nothing here can change an answer.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "engine/request.h"

namespace fixpoint {

// Of one sequence, whose tokens only grow. Memory: 8 to 16 bytes a token. One thread at a time.
class PromptLookup {
 public:
  static constexpr int32_t kNgram = 3;       // tokens that must have come before
  static constexpr int32_t kMaxDrafts = 15;  // with the known token one tile of 16 rows

  explicit PromptLookup(Speculation mode) : mode_(mode) {}

  // Takes in what Propose would take in first: for a time when nobody waits for it. `tokens`: all
  // known ones.
  void Learn(absl::Span<const int32_t> tokens) {
    if (mode_ != Speculation::kOff) Index(tokens);
  }

  // Appends drafts behind `tokens`, all tokens of the sequence: at most `most` and kMaxDrafts. May
  // append none. kAuto proposes as many as recent steps make likely to be right, and after misses
  // none for some tokens.
  void Propose(absl::Span<const int32_t> tokens, int32_t most, std::vector<int32_t>* drafts);

  // A step has checked `drafted` of them, the first `accepted` were right.
  void Report(int32_t drafted, int32_t accepted);

 private:
  void Index(absl::Span<const int32_t> tokens);
  int32_t* Slot(absl::Span<const int32_t> tokens, int32_t end);
  void Grow(absl::Span<const int32_t> tokens);

  Speculation mode_;
  // Hash table: where the n-gram that ends at a position came last. Values are end positions, 0
  // empty; compared in full.
  std::vector<int32_t> slots_;
  int32_t entries_ = 0;
  int32_t indexed_ = 0;  // n-grams that end at or before this position are in the table
  int32_t length_ = 4;   // kAuto: drafts of the next proposal
  int32_t misses_ = 0;   // kAuto: proposals in a row of which nothing was right
  int32_t rest_ = 0;     // kAuto: proposals to leave out
};

}  // namespace fixpoint
