// Sampling and log-probabilities on integers: no floating point (also built with
// -mgeneral-regs-only), no allocation, pure functions of the logits, the parameters and the
// position. docs/NUMERICS.md, "Sampling", derives the rules.
//
// F = logit_fraction_bits, beta = inverse_temperature_q16, m = the largest logit,
// d = m - logit in [0, 2^31), T[i] = round(2^31 * 2^(-i/256)):
//   weight  y = rs64(d * C, n) = d * 2^-F * beta * 2^-16 * log2(e), 24 fraction bits (ExpScale)
//           i = bits 16 .. 23 of y, f = bits 0 .. 15
//           t = T[i] - rs64((T[i] - T[i+1]) * f, 16)
//           w = rs64(t, y >> 24), 0 when y >> 24 > 32; the largest logit has w = 2^31 exactly
//   order   falling logit, rising id on ties; each filter keeps a beginning of it
//   top_k   the first top_k tokens
//   top_p   the shortest beginning of what is left with
//           sum(w) * 65536 >= top_p_q16 * (sum over what is left)
//   min_p   tokens with w >= min_p_q16 * 2^15: min_p times the largest weight
//   draw    u = floor(r * W / 2^64), W = sum of the kept weights,
//           r = TokenRandomBits(seed, position); the token is the first one, in rising id, at
//           which the running sum of kept weights exceeds u
#pragma once

#include <cstdint>

#include "engine/sampling_params.h"
#include "kernels/reference/sampling.h"

namespace fixpoint {

inline constexpr int32_t kMaxLogitFractionBits = 30;

// Requires inverse_temperature_q16 >= 1 and 0 <= logit_fraction_bits <= kMaxLogitFractionBits.
ExpScale MakeExpScale(uint32_t inverse_temperature_q16, int32_t logit_fraction_bits);
// 2^31 * exp(-d / temperature), the `w` above.
uint32_t SamplingWeight(uint32_t distance, const ExpScale& scale);

struct SampleCandidate {
  int32_t logit = 0;
  int32_t id = 0;
};

// Working memory of one SampleToken, owned by the caller; both [vocab_size].
struct SamplerScratch {
  uint32_t* weights = nullptr;
  SampleCandidate* candidates = nullptr;
};

// The largest logit, the lowest id on ties.
int32_t Argmax(const int32_t* logits, int32_t vocab_size);

// Requires 1 <= vocab_size <= 2^20, |logit| < 2^30, parameters in their ranges. `allowed`: null, or
// the bitmap of engine/logit_rules.h; a token without its bit takes no part in any rule, greedy or
// not, as if the vocabulary did not have it. Bits at and above vocab_size are not read. -1 when no
// token is allowed, else an allowed token.
int32_t SampleToken(const int32_t* logits, int32_t vocab_size, int32_t logit_fraction_bits,
                    const SamplingParams& params, uint64_t position, const SamplerScratch& scratch,
                    const uint32_t* allowed = nullptr);

// The draw's last step: the first id at which the running sum of weights exceeds `draw`. Requires
// draw < sum of the weights.
int32_t TokenAtDraw(const uint32_t* weights, uint64_t draw);

// What all log-probabilities of one row share. They describe the model's own distribution:
// temperature 1, no filter.
struct LogNormalizer {
  int32_t max_logit = 0;
  int32_t logit_fraction_bits = 0;
  int64_t log_sum_q30 =
      0;  // ln(sum of exp(logit - max)), natural-log units with 30 fraction bits, >= 0
};
LogNormalizer ComputeLogNormalizer(const int32_t* logits, int32_t vocab_size,
                                   int32_t logit_fraction_bits);
// ln p of a logit of that row, Q16, <= 0, within 2^-15 of the exact value; clamped at -2^31 + 1.
int32_t LogprobQ16(const LogNormalizer& normalizer, int32_t logit);

// The first `count` tokens in falling logit, rising id. Writes min(count, vocab_size) candidates
// and returns how many.
int32_t TopTokens(const int32_t* logits, int32_t vocab_size, int32_t count, SampleCandidate* top);

}  // namespace fixpoint
