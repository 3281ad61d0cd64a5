// The functions of the "amx" table (levels.h) that differ from the vnni level. Weights are packed
// as the vnni level does.
#pragma once

#include "kernels/ops.h"

namespace fixpoint::amx {

// Loads the tile configuration that Linear and Attention expect into this thread.
void ThreadInit();
void Linear(const LinearArgs& args);

// Needs the tile configuration of ThreadInit, too.
size_t AttentionScratchBytes(int32_t max_tokens, int32_t max_keys, int32_t num_heads,
                             int32_t kv_heads, int32_t head_dim);
void Attention(const AttentionArgs& args);

}  // namespace fixpoint::amx
