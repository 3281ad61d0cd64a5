// The functions behind the "neon" and "i8mm" tables (levels.h); what each does is said in ops.h.
// Both have the elementwise operations of fixpoint::neon.
#pragma once

#include "kernels/ops.h"

// Packed weights: panels of 16 outputs, one after the other, each a contiguous stream
// [depth16/n][16 outputs][n inputs] of bytes, where depth16 is the depth rounded up to 16. Padding
// is 0. neon: n = 4, one sdot operand is 4 outputs. i8mm: n = 8, one smmla operand is 2 outputs.
#define FIXPOINT_DECLARE_ARM_LEVEL(level)                                                       \
  namespace fixpoint::level {                                                                   \
  size_t PackedWeightBytes(int32_t outputs, int32_t depth);                                     \
  void PackWeights(const int8_t* weights, int32_t outputs, int32_t depth, int32_t output_begin, \
                   int32_t output_end, void* packed);                                           \
  void Linear(const LinearArgs& args);                                                          \
  size_t AttentionScratchBytes(int32_t max_tokens, int32_t max_keys, int32_t num_heads,         \
                               int32_t kv_heads, int32_t head_dim);                             \
  void Attention(const AttentionArgs& args);                                                    \
  }
FIXPOINT_DECLARE_ARM_LEVEL(neon)
FIXPOINT_DECLARE_ARM_LEVEL(i8mm)
#undef FIXPOINT_DECLARE_ARM_LEVEL

namespace fixpoint::neon {

void Embed(const EmbedArgs& args);
void RmsNorm(const RmsNormArgs& args);
void RotateHeads(const RotateHeadsArgs& args);
void NarrowRows(const NarrowArgs& args);
void ResidualAdd(const ResidualAddArgs& args);
void SwiGlu(const SwiGluArgs& args);
void Logits(const LogitsArgs& args);
void KvWrite(const KvWriteArgs& args);

}  // namespace fixpoint::neon
