#include "engine/cuda_plan.h"

#include <algorithm>
#include <cstring>

#include "engine/philox.h"
#include "engine/sampler.h"

namespace fixpoint {
namespace {

constexpr size_t kAlignBytes = 16;
// Blocks of the grid that each multiprocessor should get, to even out their differences.
constexpr int64_t kPartsPerMultiprocessor = 4;

// Shorter sequences are one bucket: their splits are few anyway.
constexpr int32_t kLeastBucketBlocks = 4;

constexpr size_t RoundUp(size_t n) { return (n + kAlignBytes - 1) / kAlignBytes * kAlignBytes; }
constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

int32_t BlocksOf(const SequenceChunk& chunk) {
  const auto tokens = static_cast<int32_t>(chunk.token_ids.size());
  return (chunk.position + tokens - 1) / kKvBlockTokens + 1;
}

// What depends on the row alone is worked out here, once.
CudaSampleRow SampleRow(const RowChoice& choice, int32_t logit_fraction_bits) {
  if (choice.sampling == nullptr) return {};
  const SamplingParams& sampling = *choice.sampling;
  if (sampling.inverse_temperature_q16 == 0) return {.kind = SampleKind::kGreedy};
  return {.kind = SampleKind::kDraw,
          .top_k = sampling.top_k,
          .top_p_q16 = sampling.top_p_q16,
          .min_p_q16 = sampling.min_p_q16,
          .scale = MakeExpScale(sampling.inverse_temperature_q16, logit_fraction_bits),
          .random = TokenRandomBits(sampling.seed, choice.position)};
}

// As many splits as give every multiprocessor some blocks of the grid.
int32_t SplitBlocks(const CudaPlanShape& shape, int64_t tiles, int32_t longest) {
  const int64_t wanted = std::max<int64_t>(
      1, kPartsPerMultiprocessor * shape.multiprocessors / (tiles * shape.kv_heads));
  return static_cast<int32_t>(std::clamp<int64_t>(CeilDiv(longest, wanted), 1, kMaxSplitBlocks));
}

// What the launches of a bucket are told about attention.
struct BucketTiles {
  BucketTiles(const CudaPlanShape& shape, const CudaBucket& bucket)
      : count(bucket.tokens * CountTiles(1, shape.num_heads / shape.kv_heads, kDecodeRows)),
        split_blocks(SplitBlocks(shape, count, bucket.blocks)),
        splits(static_cast<int32_t>(CeilDiv(bucket.blocks, split_blocks))),
        score_keys(static_cast<int32_t>(shape.score_elements /
                                        (shape.kv_heads * bucket.tile_rows * kKvBlockTokens) *
                                        kKvBlockTokens)) {}
  int32_t count, split_blocks, splits;
  int32_t score_keys;  // all that there is room for
};

class Planner {
 public:
  Planner(const CudaPlanShape& shape, absl::Span<const SequenceChunk> chunks, int8_t* memory)
      : shape_(shape),
        chunks_(chunks),
        memory_(memory),
        group_(shape.num_heads / shape.kv_heads),
        prefill_rows_(PrefillRows(shape.head_dim)) {}

  CudaPlan Run(const std::optional<CudaBucket>& bucket) {
    if (bucket.has_value()) {
      DecodeAll(*bucket);
    } else {
      ChooseDecoding();
    }
    Count();
    if (bucket.has_value()) {
      plan_.tokens = bucket->tokens;
      plan_.num_rows = std::min(bucket->tokens, shape_.max_rows);
    }
    LayOut();
    Fill();
    return plan_;
  }

 private:
  // Chunks of few tokens decode, as far as the memory for it goes: which chunks depends on the
  // order of the chunks, what they result in does not.
  void ChooseDecoding() {
    int64_t keys = 0, tiles = 0;
    int32_t longest = 0, rows = 1;
    for (size_t i = 0; i < chunks_.size(); ++i) {
      const auto tokens = static_cast<int32_t>(chunks_[i].token_ids.size());
      if (tokens > kDecodeChunkTokens) continue;
      const int32_t count = CountTiles(tokens, group_, kDecodeRows);
      const int32_t blocks = std::max(longest, BlocksOf(chunks_[i]));
      const int32_t most_rows = std::max(rows, std::min(tokens * group_, kDecodeRows));
      const int64_t all_keys = keys + int64_t{count} * BlocksOf(chunks_[i]) * kKvBlockTokens;
      const int64_t all_tiles = tiles + count;
      if (all_keys * most_rows * shape_.kv_heads > shape_.score_elements) continue;
      const int32_t split_blocks = SplitBlocks(shape_, all_tiles, blocks);
      const int64_t splits = CeilDiv(blocks, split_blocks);
      if (all_tiles * shape_.kv_heads * splits * kDecodeRows > shape_.part_rows) continue;
      keys = all_keys;
      tiles = all_tiles;
      longest = blocks;
      rows = most_rows;
      plan_.split_blocks = split_blocks;
      plan_.splits = static_cast<int32_t>(splits);
      Decoding(i) = 1;
    }
    plan_.num_decode_tiles = static_cast<int32_t>(tiles);
    plan_.score_keys = static_cast<int32_t>(keys);
    plan_.row_stride = rows;
  }

  void DecodeAll(const CudaBucket& bucket) {
    for (size_t i = 0; i < chunks_.size(); ++i) Decoding(i) = 1;
    const BucketTiles tiles(shape_, bucket);
    plan_.num_decode_tiles = tiles.count;
    plan_.score_keys = tiles.score_keys;
    plan_.row_stride = bucket.tile_rows;
    plan_.split_blocks = tiles.split_blocks;
    plan_.splits = tiles.splits;
  }

  // Marks behind the piece's own contents: [chunks] bytes.
  int8_t& Decoding(size_t chunk) {
    return memory_[MaxPlanBytes(shape_) - static_cast<size_t>(shape_.max_tokens) + chunk];
  }

  void Count() {
    for (size_t i = 0; i < chunks_.size(); ++i) {
      const auto tokens = static_cast<int32_t>(chunks_[i].token_ids.size());
      plan_.tokens += tokens;
      plan_.num_rows += static_cast<int32_t>(chunks_[i].logit_indices.size());
      table_entries_ += BlocksOf(chunks_[i]);
      if (Decoding(i) == 0) plan_.num_prefill_tiles += CountTiles(tokens, group_, prefill_rows_);
    }
    plan_.wanted_rows = plan_.num_rows;
  }

  // The block tables come last: their length is not the bucket's.
  void LayOut() {
    const auto take = [&](int32_t count, size_t bytes) {
      const size_t at = plan_.used_bytes;
      plan_.used_bytes = RoundUp(at + static_cast<size_t>(count) * bytes);
      return at;
    };
    plan_.token_ids = take(plan_.tokens, sizeof(int32_t));
    plan_.positions = take(plan_.tokens, sizeof(int32_t));
    plan_.blocks = take(plan_.tokens, sizeof(int32_t));
    plan_.rows = take(plan_.num_rows, sizeof(int32_t));
    plan_.choices = take(plan_.num_rows, sizeof(CudaSampleRow));
    plan_.decode_tiles = take(plan_.num_decode_tiles, sizeof(AttentionTile));
    plan_.prefill_tiles = take(plan_.num_prefill_tiles, sizeof(AttentionTile));
    plan_.block_tables = take(table_entries_, sizeof(int32_t));
  }

  template <typename T>
  T* At(size_t offset) {
    return reinterpret_cast<T*>(memory_ + offset);
  }

  void Fill() {
    int32_t token = 0, row = 0, table = 0, score_begin = 0;
    AttentionTile* decode = At<AttentionTile>(plan_.decode_tiles);
    AttentionTile* prefill = At<AttentionTile>(plan_.prefill_tiles);
    for (size_t i = 0; i < chunks_.size(); ++i) {
      const SequenceChunk& chunk = chunks_[i];
      const auto tokens = static_cast<int32_t>(chunk.token_ids.size());
      for (int32_t t = 0; t < tokens; ++t) {
        const int32_t position = chunk.position + t;
        At<int32_t>(plan_.token_ids)[token + t] = chunk.token_ids[static_cast<size_t>(t)];
        At<int32_t>(plan_.positions)[token + t] = position;
        At<int32_t>(plan_.blocks)[token + t] =
            chunk.block_table[static_cast<size_t>(position / kKvBlockTokens)];
      }
      for (size_t k = 0; k < chunk.logit_indices.size(); ++k, ++row) {
        At<int32_t>(plan_.rows)[row] = token + chunk.logit_indices[k];
        At<CudaSampleRow>(plan_.choices)[row] = SampleRow(
            chunk.choices.empty() ? RowChoice{} : chunk.choices[k], shape_.logit_fraction_bits);
      }
      const AttentionRange range = {token, tokens, chunk.position, table};
      if (Decoding(i) != 0) {
        const int32_t count = MakeTiles(range, group_, kDecodeRows, decode);
        for (int32_t k = 0; k < count; ++k, ++decode) {
          decode->score_begin = score_begin;
          decode->score_blocks = TileBlocks(*decode);
          score_begin += decode->score_blocks * kKvBlockTokens;
        }
      } else {
        prefill += MakeTiles(range, group_, prefill_rows_, prefill);
      }
      const int32_t blocks = BlocksOf(chunk);
      std::memcpy(At<int32_t>(plan_.block_tables) + table, chunk.block_table.data(),
                  static_cast<size_t>(blocks) * sizeof(int32_t));
      table += blocks;
      token += tokens;
    }
    Pad(token, row, decode);
    for (size_t i = 0; i < chunks_.size(); ++i) Decoding(i) = 0;
  }

  // What a bucket has more than the chunks: tokens 0 at position 0 of a block that no sequence has,
  // rows that nobody reads, tiles without a token.
  void Pad(int32_t token, int32_t row, AttentionTile* tile) {
    for (; token < plan_.tokens; ++token) {
      At<int32_t>(plan_.token_ids)[token] = 0;
      At<int32_t>(plan_.positions)[token] = 0;
      At<int32_t>(plan_.blocks)[token] = shape_.padding_block;
    }
    for (; row < plan_.num_rows; ++row) {
      At<int32_t>(plan_.rows)[row] = 0;
      At<CudaSampleRow>(plan_.choices)[row] = {};
    }
    AttentionTile* const end = At<AttentionTile>(plan_.decode_tiles) + plan_.num_decode_tiles;
    for (; tile < end; ++tile) *tile = {};
  }

  const CudaPlanShape& shape_;
  const absl::Span<const SequenceChunk> chunks_;
  int8_t* const memory_;
  const int32_t group_, prefill_rows_;
  int32_t table_entries_ = 0;
  CudaPlan plan_;
};

}  // namespace

size_t MaxPlanBytes(const CudaPlanShape& shape) {
  const auto tokens = static_cast<size_t>(shape.max_tokens);
  // A chunk has at least one token, and one of its tokens at most as many tiles as its heads need
  // alone.
  const auto tiles =
      static_cast<size_t>(CountTiles(1, shape.num_heads / shape.kv_heads, kDecodeRows));
  const size_t ints = 3 * tokens + static_cast<size_t>(shape.max_rows) +
                      tokens * static_cast<size_t>(shape.max_sequence_blocks);
  return RoundUp(ints * sizeof(int32_t) +
                 static_cast<size_t>(shape.max_rows) * sizeof(CudaSampleRow) +
                 tokens * tiles * sizeof(AttentionTile) + 8 * kAlignBytes + tokens);
}

std::optional<CudaBucket> FindBucket(const CudaPlanShape& shape,
                                     absl::Span<const SequenceChunk> chunks) {
  const int32_t group = shape.num_heads / shape.kv_heads;
  int64_t tokens = 0, keys = 0;
  int32_t longest = 0, longest_chunk = 0;
  bool wanted = false;
  for (const SequenceChunk& chunk : chunks) {
    const auto count = static_cast<int32_t>(chunk.token_ids.size());
    if (count > kDecodeChunkTokens) return std::nullopt;
    tokens += count;
    longest_chunk = std::max(longest_chunk, count);
    longest = std::max(longest, BlocksOf(chunk));
    keys += int64_t{CountTiles(count, group, kDecodeRows)} * BlocksOf(chunk) * kKvBlockTokens;
    wanted = wanted || !chunk.logit_indices.empty();
  }
  if (!wanted || tokens > kMaxBucketTokens) return std::nullopt;
  CudaBucket bucket = {.tokens = 1, .blocks = kLeastBucketBlocks};
  while (bucket.tokens < tokens) bucket.tokens += std::min(bucket.tokens, 8);
  while (bucket.blocks < longest) bucket.blocks *= 2;
  bucket.tokens = std::min(bucket.tokens, shape.max_tokens);
  bucket.blocks = std::min(bucket.blocks, shape.max_sequence_blocks);
  const int32_t token_rows = std::min(group, kDecodeRows);
  bucket.tile_rows = longest_chunk == 1 ? token_rows : kDecodeRows / token_rows * token_rows;
  const BucketTiles tiles(shape, bucket);
  const int64_t part_rows = int64_t{tiles.count} * shape.kv_heads * tiles.splits * kDecodeRows;
  if (keys > tiles.score_keys || part_rows > shape.part_rows) return std::nullopt;
  return bucket;
}

CudaPlan MakePlan(const CudaPlanShape& shape, absl::Span<const SequenceChunk> chunks,
                  int8_t* memory, const std::optional<CudaBucket>& bucket) {
  return Planner(shape, chunks, memory).Run(bucket);
}

}  // namespace fixpoint
