// What happens to a row of logits before sampling: logit bias, repetition, presence and frequency
// penalties, and masks of tokens that may not be chosen. Integers only (also built with
// -mgeneral-regs-only), pure functions. docs/NUMERICS.md, "Sampling", gives the reasons.
//
// F = logit_fraction_bits, sat(x) clamps to |x| < 2^30, a token's bias b, its count n in the
// answer:
//   S(v)         v of 16 fraction bits in F: v << (F - 16), or rs(v, 16 - F) when F < 16
//   bias         x = sat(logit + S(b))
//   repetition   when the token is in the prompt or the answer, r = repetition_q16:
//                x = sat(floor((x * 2^17 + r) / (2 * r))) for x > 0, sat(rs(x * r, 16)) otherwise
//   presence,    when n > 0:
//   frequency    x = sat(x - S(presence_q16 + frequency_q16 * n))
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "engine/sampling_params.h"

namespace fixpoint {

// How often each token came, for one request. Memory and the cost of a row grow with the number of
// different tokens, not with the vocabulary. One thread at a time.
class TokenCounts {
 public:
  struct Entry {
    int32_t id = 0;
    int32_t in_answer = 0;
    bool in_prompt = false;
  };

  // Ids are not negative.
  void AddPrompt(absl::Span<const int32_t> ids);
  void AddAnswer(int32_t id);

  // Each id once.
  const std::vector<Entry>& entries() const { return entries_; }
  // The id's entry, null when it never came.
  const Entry* Find(int32_t id) const;

 private:
  Entry& Get(int32_t id);
  size_t SlotOf(int32_t id) const;
  void Grow();

  std::vector<Entry> entries_;
  // Hash table with linear probing, a power of two at most half full: index into entries_, -1
  // empty. The standard containers compute their load in floating point.
  std::vector<int32_t> slots_;
};

// The row to sample from: `logits` itself when `adjust` changes nothing in it, else `copy`
// [vocab_size], which then holds the adjusted row. Requires |logit| < 2^30, `adjust` in its ranges
// with bias ids below vocab_size; entries of `counts` at or above vocab_size are passed over.
const int32_t* AdjustLogits(const int32_t* logits, int32_t vocab_size, int32_t logit_fraction_bits,
                            const LogitAdjustment& adjust, const TokenCounts& counts,
                            int32_t* copy);

// Masks are bitmaps of allowed tokens as SampleToken takes them: id i is bit i % 32 of word i / 32,
// (vocab_size + 31) / 32 words.
inline constexpr int32_t MaskWords(int32_t vocab_size) { return (vocab_size + 31) / 32; }

// Sets every bit below vocab_size and clears the others of the last word.
void AllowAll(int32_t vocab_size, uint32_t* allowed);

// Clears the bits of `ids`, passing over ids outside the vocabulary. False and nothing changed when
// no token would be left: something must be chosen.
bool Forbid(absl::Span<const int32_t> ids, int32_t vocab_size, uint32_t* allowed);

}  // namespace fixpoint
