// How the next token is chosen from a row of logits. Rules and order: docs/NUMERICS.md, "Sampling".
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace fixpoint {

// All comparisons are between integers. The filters apply in the order temperature, top_k, top_p,
// min_p.
struct SamplingParams {
  uint32_t inverse_temperature_q16 =
      0;                       // round(65536 / temperature); 0: greedy (argmax, lowest id on ties)
  int32_t top_k = 0;           // 0: off; else [1, vocab]
  uint32_t top_p_q16 = 65536;  // [1, 65536]; 65536: off
  uint32_t min_p_q16 = 0;      // [0, 65536]; 0: off
  uint64_t seed = 0;  // key of the Philox generator; counter is the absolute token position
};

inline constexpr int32_t kMaxLogitBiases = 1024;
inline constexpr int32_t kMaxLogitBiasQ16 = 100 << 16;

// What is done to the logits before SamplingParams. Natural-log units with 16 fraction bits.
struct LogitAdjustment {
  std::vector<std::pair<int32_t, int32_t>> bias_q16;  // token id, added; rising ids
  uint32_t repetition_q16 = 65536;  // [655, 6553600]: positive logits are divided by it, others
                                    // multiplied; for each token of prompt and answer. 65536: off
  int32_t presence_q16 = 0;         // [-131072, 131072], taken off tokens of the answer
  int32_t frequency_q16 = 0;        // the same for each time that the token came

  bool empty() const { return bias_q16.empty() && !counts_tokens(); }
  // Whether it depends on the tokens so far.
  bool counts_tokens() const {
    return repetition_q16 != 65536 || presence_q16 != 0 || frequency_q16 != 0;
  }
};

}  // namespace fixpoint
