// The functions behind the "portable" table (levels.h); what each does is said in ops.h. The same
// sources, compiled again with AVX2 enabled and FIXPOINT_LEVEL=avx2, give the "avx2" level all but
// its own linear layers. Shapes of loops are chosen so that gcc and clang vectorise them; with
// -mgeneral-regs-only they stay scalar.
#pragma once

#include "kernels/ops.h"

#ifndef FIXPOINT_LEVEL
#define FIXPOINT_LEVEL portable
#endif

// Weights as they come, row-major.
namespace fixpoint::portable {
size_t PackedWeightBytes(int32_t outputs, int32_t depth);
void PackWeights(const int8_t* weights, int32_t outputs, int32_t depth, int32_t output_begin,
                 int32_t output_end, void* packed);
void Linear(const LinearArgs& args);
}  // namespace fixpoint::portable

// Panels of 16 outputs [depth/2 rounded up][16 outputs][2 inputs]; see avx2_linear.cc.
namespace fixpoint::avx2 {
size_t PackedWeightBytes(int32_t outputs, int32_t depth);
void PackWeights(const int8_t* weights, int32_t outputs, int32_t depth, int32_t output_begin,
                 int32_t output_end, void* packed);
void Linear(const LinearArgs& args);
}  // namespace fixpoint::avx2

#define FIXPOINT_DECLARE_LEVEL(level)                                                   \
  namespace fixpoint::level {                                                           \
  void Embed(const EmbedArgs& args);                                                    \
  void RmsNorm(const RmsNormArgs& args);                                                \
  void RotateHeads(const RotateHeadsArgs& args);                                        \
  void NarrowRows(const NarrowArgs& args);                                              \
  void ResidualAdd(const ResidualAddArgs& args);                                        \
  void SwiGlu(const SwiGluArgs& args);                                                  \
  void Logits(const LogitsArgs& args);                                                  \
  void KvWrite(const KvWriteArgs& args);                                                \
  size_t AttentionScratchBytes(int32_t max_tokens, int32_t max_keys, int32_t num_heads, \
                               int32_t kv_heads, int32_t head_dim);                     \
  void Attention(const AttentionArgs& args);                                            \
  }
FIXPOINT_DECLARE_LEVEL(portable)
FIXPOINT_DECLARE_LEVEL(avx2)
#undef FIXPOINT_DECLARE_LEVEL
