// What a step tells the device, as one piece of memory that is copied to it: token ids, positions,
// KV blocks, tiles of attention, how tokens are chosen. Made on the host from the chunks of the
// step.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "absl/types/span.h"
#include "engine/executor.h"
#include "kernels/cuda/attention_tiles.h"

namespace fixpoint {

struct CudaPlanShape {
  int32_t max_tokens = 0;           // in a step
  int32_t max_rows = 0;             // logit rows in a step
  int32_t max_sequence_blocks = 0;  // KV blocks of one sequence
  int32_t num_heads = 0, kv_heads = 0, head_dim = 0;
  int32_t multiprocessors = 0;
  // Room of attend_decode, over all kv heads, in elements. What does not fit goes to
  // attend_prefill.
  int64_t score_elements = 0;
  int64_t part_rows = 0;  // [parts][kDecodeRows]
  int32_t logit_fraction_bits = 0;
  // KV block that no sequence has, for what padding writes. Only steps of a bucket have padding.
  int32_t padding_block = 0;
};

// Chunks of at most so many tokens count as decoding: a token, and a few that are proposed to be
// checked at once.
inline constexpr int32_t kDecodeChunkTokens = 8;

// A step that only decodes, in steps so coarse that one CUDA graph serves many of them: whatever a
// launch is told follows from the bucket, everything else is in the piece of memory. Tokens and
// rows are padded, lengths rounded up; splits are exact whatever their number, so no bit depends on
// it.
struct CudaBucket {
  int32_t tokens = 0;     // 1, 2, 4, 8, 16, 24, ..., kMaxBucketTokens, at most max_tokens
  int32_t blocks = 0;     // of the longest sequence: 4, 8, 16, ..., at most max_sequence_blocks
  int32_t tile_rows = 0;  // of the largest tile: of chunks of one token, or of longer ones
  auto operator<=>(const CudaBucket&) const = default;
};

// Beyond that a step takes so long that its launches do not matter.
inline constexpr int32_t kMaxBucketTokens = 64;

// Offsets into the piece, in bytes, and the counts of a step.
struct CudaPlan {
  size_t token_ids = 0;     // int32 [tokens]
  size_t positions = 0;     // int32 [tokens]
  size_t blocks = 0;        // int32 [tokens] KV block of each position
  size_t rows = 0;          // int32 [num_rows] of the flat batch
  size_t choices = 0;       // CudaSampleRow [num_rows]
  size_t decode_tiles = 0;  // AttentionTile [num_decode_tiles]
  size_t prefill_tiles = 0;
  size_t block_tables = 0;  // int32, one sequence behind the other
  size_t used_bytes = 0;
  int32_t tokens = 0, num_rows = 0;  // with padding
  int32_t wanted_rows = 0;           // without: the first of num_rows
  int32_t num_decode_tiles = 0, num_prefill_tiles = 0;
  int32_t score_keys = 0, row_stride = 0;  // of the decode tiles: CudaDecodeArgs
  int32_t split_blocks = 1, splits = 1;
};

// Bytes that the piece of any step within the shape fits in.
size_t MaxPlanBytes(const CudaPlanShape& shape);

// The bucket of a step that wants logits and has chunks of at most kDecodeChunkTokens tokens only,
// if it fits the limits of buckets and of attend_decode. At most 11 x 10 x 2 different ones.
std::optional<CudaBucket> FindBucket(const CudaPlanShape& shape,
                                     absl::Span<const SequenceChunk> chunks);

// Fills `memory` (MaxPlanBytes, aligned to 16) from chunks that have passed CheckStep. No
// allocation. With the step's bucket, all fields but used_bytes and wanted_rows follow from it.
CudaPlan MakePlan(const CudaPlanShape& shape, absl::Span<const SequenceChunk> chunks,
                  int8_t* memory, const std::optional<CudaBucket>& bucket = std::nullopt);

}  // namespace fixpoint
