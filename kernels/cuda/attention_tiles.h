// How the rows of a step are cut into tiles of attention. Plain C++, for whoever fills
// CudaAttentionArgs.
#pragma once

#include <cstdint>

#include "kernels/cuda/kernels.h"

namespace fixpoint {

// Consecutive tokens of one sequence in the flat batch.
struct AttentionRange {
  int32_t token = 0;  // row of the first one
  int32_t tokens = 0;
  int32_t position = 0;     // cache position of the first one
  int32_t table_begin = 0;  // of the sequence's block table
};

// Tiles of a range: as many tokens as fit max_rows rows with all `group` query heads of a kv head,
// or part of the group of one token where not even one fits.
constexpr int32_t CountTiles(int32_t tokens, int32_t group, int32_t max_rows) {
  if (group > max_rows) return tokens * ((group + max_rows - 1) / max_rows);
  const int32_t step = max_rows / group;
  return (tokens + step - 1) / step;
}

// Writes CountTiles() tiles, without their score fields, and returns how many.
constexpr int32_t MakeTiles(const AttentionRange& range, int32_t group, int32_t max_rows,
                            AttentionTile* tiles) {
  int32_t count = 0;
  const int32_t token_step = group > max_rows ? 1 : max_rows / group;
  const int32_t head_step = group > max_rows ? max_rows : group;
  for (int32_t i = 0; i < range.tokens; i += token_step) {
    const int32_t left = range.tokens - i;
    for (int32_t head = 0; head < group; head += head_step) {
      tiles[count++] = {.token = range.token + i,
                        .tokens = left < token_step ? left : token_step,
                        .position = range.position + i,
                        .head_begin = head,
                        .heads = group - head < head_step ? group - head : head_step,
                        .table_begin = range.table_begin,
                        .score_begin = 0,
                        .score_blocks = 0};
    }
  }
  return count;
}

// KV blocks that a tile's last token sees.
constexpr int32_t TileBlocks(const AttentionTile& tile) {
  return (tile.position + tile.tokens - 1) / kKvBlockTokens + 1;
}

}  // namespace fixpoint
