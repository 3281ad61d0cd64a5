// The functions behind the "vnni" table (levels.h); what each does is said in ops.h.
#pragma once

#include "kernels/ops.h"

namespace fixpoint::vnni {

// Packed weights: panels of 16 outputs, one after the other, each a contiguous stream
// [depth64/4][16 outputs][4 inputs] of bytes, where depth64 is the depth rounded up to 64. Padding
// is 0. Behind the panels -128 * the sum of each output's weights, int32. See vnni_linear.cc.
size_t PackedWeightBytes(int32_t outputs, int32_t depth);
void PackWeights(const int8_t* weights, int32_t outputs, int32_t depth, int32_t output_begin,
                 int32_t output_end, void* packed);
void Linear(const LinearArgs& args);

void Embed(const EmbedArgs& args);
void RmsNorm(const RmsNormArgs& args);
void RotateHeads(const RotateHeadsArgs& args);
void NarrowRows(const NarrowArgs& args);
void ResidualAdd(const ResidualAddArgs& args);
void SwiGlu(const SwiGluArgs& args);
void Logits(const LogitsArgs& args);

void KvWrite(const KvWriteArgs& args);
size_t AttentionScratchBytes(int32_t max_tokens, int32_t max_keys, int32_t num_heads,
                             int32_t kv_heads, int32_t head_dim);
void Attention(const AttentionArgs& args);

size_t AttentionPartsBytes(int32_t keys, int32_t parts, int32_t group, int32_t head_dim);
void ScorePart(const AttentionArgs& args, int32_t part, int32_t parts);
void WeighPart(const AttentionArgs& args, int32_t part, int32_t parts);
void FinishParts(const AttentionArgs& args, int32_t parts);

}  // namespace fixpoint::vnni
