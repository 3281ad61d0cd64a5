// Attention with sdot over the KV cache as it is.
#include "kernels/cpu/neon.h"
#include "kernels/cpu/neon_attention_rows.h"

namespace fixpoint::neon {

size_t AttentionScratchBytes(int32_t /*max_tokens*/, int32_t max_keys, int32_t /*num_heads*/,
                             int32_t /*kv_heads*/, int32_t /*head_dim*/) {
  return Scratch::Bytes(static_cast<size_t>(max_keys));
}

void Attention(const AttentionArgs& args) { AttendHeads<DotSums>(args); }

}  // namespace fixpoint::neon
