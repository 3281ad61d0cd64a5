// Attention on AMX tiles. The cache's layout is that of the operands: 16 keys of the K tile by 64
// dimensions, and 64 keys of the V tile by 16 channels, are one tile each.
//
// Per block of up to 32 rows (attention_rows.h), in halves of 16: all scores, then per row the
// softmax, then the weighted sums of both byte planes. Rows beyond the last one are computed with
// whatever is in memory and never looked at. Few rows, and head_dims that do not fill a tile, are
// left to the vnni level.
#include "kernels/cpu/amx.h"
#include "kernels/cpu/amx_tiles.h"
#include "kernels/cpu/attention_rows.h"
#include "kernels/cpu/vnni.h"

namespace fixpoint::amx {
namespace {

constexpr int32_t kHalf = 16;
constexpr int32_t kRows = 2 * kHalf;
constexpr int32_t kMinRows = 8;  // below, the vnni level is faster
constexpr size_t kTileBytes = 1024;

// Where things lie in the caller's scratch; `stride` is the number of cache keys rounded up to a
// block, plus a cache line: rows 2^n bytes apart would share a few sets of the cache.
struct Scratch {
  FIXPOINT_INLINE Scratch(void* base, size_t keys)
      : stride(RoundUp64(keys) + 64),
        scores(static_cast<int32_t*>(base)),
        high(reinterpret_cast<uint8_t*>(scores + kRows * stride)),
        low(high + kRows * stride) {}
  FIXPOINT_INLINE static size_t Bytes(size_t keys) { return (RoundUp64(keys) + 64) * kRows * 6; }
  size_t stride;
  int32_t* scores;  // [kRows][stride]
  uint8_t* high;    // [kRows][stride]
  uint8_t* low;     // [kRows][stride]
};

struct Block {
  // The rows are left as they are: their memory is the size of a cache.
  FIXPOINT_INLINE Block(const AttentionArgs& args, int32_t kv_head, size_t keys)
      : head{args, kv_head}, scratch(args.scratch, keys) {}
  KvHead head;
  Scratch scratch;
  int32_t count;   // rows
  int32_t blocks;  // of keys that the last row sees
  Row rows[kRows];
  alignas(64) int8_t queries[kRows * kMaxHeadDim];  // [kRows][head_dim]
};

// Tiles 0..3: [half * 2 + group of keys]; 4, 5: queries of the halves; 6, 7: keys.
template <bool kSecond>
FIXPOINT_INLINE void Scores(const Block& b) {
  const auto head_dim = static_cast<size_t>(b.head.args.head_dim);
  const size_t row_bytes = b.scratch.stride * sizeof(int32_t);
  const int8_t* second_queries = b.queries + kHalf * head_dim;
  for (int32_t block = 0; block < b.blocks; ++block) {
    const int8_t* tile = KTile(b.head, block);
    int32_t* out = b.scratch.scores + static_cast<size_t>(block) * kKvBlockTokens;
    for (int32_t pair = 0; pair < 2; ++pair, tile += 32 * head_dim, out += 32) {
      _tile_zero(0);
      _tile_zero(1);
      if constexpr (kSecond) {
        _tile_zero(2);
        _tile_zero(3);
      }
      for (size_t d = 0; d < head_dim; d += 64) {
        _tile_loadd(6, tile + d * 16, 64);
        _tile_loadd(7, tile + head_dim * 16 + d * 16, 64);
        _tile_loadd(4, b.queries + d, head_dim);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        if constexpr (kSecond) {
          _tile_loadd(5, second_queries + d, head_dim);
          _tile_dpbssd(2, 5, 6);
          _tile_dpbssd(3, 5, 7);
        }
      }
      _tile_stored(0, out, row_bytes);
      _tile_stored(1, out + 16, row_bytes);
      if constexpr (kSecond) {
        _tile_stored(2, out + kHalf * b.scratch.stride, row_bytes);
        _tile_stored(3, out + kHalf * b.scratch.stride + 16, row_bytes);
      }
    }
  }
}

// Channels [d, d + 32) of the rows from `first`. Tiles 0, 1: high; 2, 3: low; 4, 5: the planes; 6,
// 7: values.
FIXPOINT_INLINE void Values(const Block& b, int32_t first, int32_t count, int32_t d) {
  const size_t stride = b.scratch.stride;
  const auto head_dim = static_cast<size_t>(b.head.args.head_dim);
  const uint8_t* high = b.scratch.high + static_cast<size_t>(first) * stride;
  const uint8_t* low = b.scratch.low + static_cast<size_t>(first) * stride;
  alignas(64) int32_t sums[4][kHalf * 16];
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int32_t block = 0; block < b.blocks; ++block) {
    const int8_t* tile =
        KTile(b.head, block) + kKvBlockTokens * head_dim + static_cast<size_t>(d) * 4;
    const size_t key = static_cast<size_t>(block) * kKvBlockTokens;
    _tile_loadd(6, tile, head_dim * 4);
    _tile_loadd(4, high + key, stride);
    _tile_dpbusd(0, 4, 6);
    _tile_loadd(7, tile + 64, head_dim * 4);
    _tile_dpbusd(1, 4, 7);
    _tile_loadd(5, low + key, stride);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  _tile_stored(2, sums[2], 64);
  _tile_stored(3, sums[3], 64);
  MemoryBarrier();
  for (int32_t r = 0; r < count; ++r) {
    for (int32_t i = 0; i < 2; ++i) {
      StoreChannels(b.head, b.rows[first + r], d + 16 * i, _mm512_load_si512(sums[i] + r * 16),
                    _mm512_load_si512(sums[2 + i] + r * 16));
    }
  }
}

void AttendBlock(Block& b, int32_t first) {
  const auto head_dim = static_cast<size_t>(b.head.args.head_dim);
  for (int32_t r = 0; r < b.count; ++r) {
    __builtin_memcpy(b.queries + static_cast<size_t>(r) * head_dim,
                     StartRow(b.head, first + r, b.rows[r]), head_dim);
  }
  b.blocks = (b.rows[b.count - 1].keys + kKvBlockTokens - 1) / kKvBlockTokens;
  MemoryBarrier();
  if (b.count > kHalf) {
    Scores<true>(b);
  } else {
    Scores<false>(b);
  }
  MemoryBarrier();
  const Scratch& s = b.scratch;
  for (int32_t r = 0; r < b.count; ++r) {
    const size_t row = static_cast<size_t>(r) * s.stride;
    SoftmaxRow(b.head, s.scores + row, b.blocks * kKvBlockTokens, s.high + row, s.low + row,
               b.rows[r]);
  }
  MemoryBarrier();
  for (int32_t half = 0; half < b.count; half += kHalf) {
    const int32_t left = b.count - half;
    for (int32_t d = 0; d < b.head.args.head_dim; d += 32) {
      Values(b, half, left < kHalf ? left : kHalf, d);
    }
  }
}

}  // namespace

size_t AttentionScratchBytes(int32_t max_tokens, int32_t max_keys, int32_t num_heads,
                             int32_t kv_heads, int32_t head_dim) {
  const size_t vnni =
      vnni::AttentionScratchBytes(max_tokens, max_keys, num_heads, kv_heads, head_dim);
  const size_t here = Scratch::Bytes(static_cast<size_t>(max_keys));
  return here > vnni ? here : vnni;
}

void Attention(const AttentionArgs& args) {
  const int32_t rows = args.tokens * (args.num_heads / args.kv_heads);
  if (rows < kMinRows || args.head_dim % 64 != 0) return vnni::Attention(args);
  const auto keys = static_cast<size_t>(args.position) + static_cast<size_t>(args.tokens);
  for (int32_t head = args.kv_head_begin; head < args.kv_head_end; ++head) {
    Block block(args, head, keys);
    for (int32_t row = 0; row < rows; row += kRows) {
      block.count = rows - row < kRows ? rows - row : kRows;
      AttendBlock(block, row);
    }
  }
}

}  // namespace fixpoint::amx
