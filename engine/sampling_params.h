// How the next token is chosen from a row of logits. Rules and order: docs/NUMERICS.md, "Sampling".
#pragma once

#include <cstdint>

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

}  // namespace fixpoint
