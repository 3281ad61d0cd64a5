// Attention on AMX tiles. The cache's layout is that of the operands: 16 keys of the K tile by 64
// dimensions, and 64 keys of the V tile by 16 channels, are one tile each.
//
// Up to 32 rows (attention_rows.h) go over the keys twice, a KV block at a time: first for the
// largest score of each row, then, with the scores made again, for numerators and weighted sums. So
// everything but K and V stays in the nearest caches at any context, which is worth more than the
// products. Rows beyond the last one are computed with whatever is in memory and never looked at.
// Few rows, and head_dims that do not fill a tile, are left to the vnni level.
#include "kernels/cpu/amx.h"
#include "kernels/cpu/amx_tiles.h"
#include "kernels/cpu/attention_rows.h"
#include "kernels/cpu/vnni.h"

namespace fixpoint::amx {
namespace {

constexpr int32_t kHalf = 16;
constexpr int32_t kRows = 2 * kHalf;
constexpr int32_t kMinRows = 8;  // below, the vnni level is faster
// Blocks whose numerators are kept before they are multiplied with their values: each time the sums
// go to tiles and back.
constexpr int32_t kGroup = 8;
constexpr int32_t kTileInts = 256;

// In the caller's scratch. A row of planes has a cache line more than its keys: rows 2^n bytes
// apart would share a few sets of the cache.
struct Scratch {
  static constexpr size_t kStride = kGroup * kKvBlockTokens + 64;
  int32_t scores[kRows][kKvBlockTokens];
  uint8_t high[kRows][kStride];
  uint8_t low[kRows][kStride];
  int32_t largest[kRows][16];  // lanes
  int32_t totals[kRows][16];   // lanes
  int32_t sums[];              // tiles: [half][head_dim / 32][high 2, low 2][16][16]
};

struct Block {
  FIXPOINT_INLINE Block(const AttentionArgs& args, int32_t kv_head)
      : head{args, kv_head}, scratch(*static_cast<Scratch*>(args.scratch)) {}
  KvHead head;
  Scratch& scratch;
  int32_t count;   // rows
  int32_t blocks;  // of keys that the last row sees
  Row rows[kRows];
  WordScale scales[kRows];
  bool words[kRows];                                // whether the scale is used
  alignas(64) int8_t queries[kRows * kMaxHeadDim];  // [kRows][head_dim]
};

// Scores against 32 keys from `keys` on. Tiles 0..3: [half * 2 + group of 16 keys]; 4, 5: queries
// of the halves; 6, 7: keys.
template <bool kSecond>
FIXPOINT_INLINE void Scores(const Block& b, const int8_t* keys, int32_t* out) {
  constexpr size_t kRowBytes = kKvBlockTokens * sizeof(int32_t);
  const auto head_dim = static_cast<size_t>(b.head.args.head_dim);
  const int8_t* second_queries = b.queries + kHalf * head_dim;
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (kSecond) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (size_t d = 0; d < head_dim; d += 64) {
    _tile_loadd(6, keys + d * 16, 64);
    _tile_loadd(7, keys + head_dim * 16 + d * 16, 64);
    _tile_loadd(4, b.queries + d, head_dim);
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    if constexpr (kSecond) {
      _tile_loadd(5, second_queries + d, head_dim);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    }
  }
  _tile_stored(0, out, kRowBytes);
  _tile_stored(1, out + 16, kRowBytes);
  if constexpr (kSecond) {
    _tile_stored(2, out + kHalf * kKvBlockTokens, kRowBytes);
    _tile_stored(3, out + kHalf * kKvBlockTokens + 16, kRowBytes);
  }
}

// Calls row(block, r) for each block and row when the block's scores are there, then end(block).
template <bool kSecond, typename DoRow, typename End>
FIXPOINT_INLINE void ForScores(const Block& b, const DoRow& row, const End& end) {
  for (int32_t block = 0; block < b.blocks; ++block) {
    const int8_t* keys = KTile(b.head, block);
    int32_t* scores = b.scratch.scores[0];
    MemoryBarrier();
    Scores<kSecond>(b, keys, scores);
    Scores<kSecond>(b, keys + static_cast<size_t>(b.head.args.head_dim) * 32, scores + 32);
    MemoryBarrier();
    for (int32_t r = 0; r < b.count; ++r) row(block, r);
    end(block);
  }
}

FIXPOINT_INLINE void UpdateLargest(const Block& b, int32_t block, int32_t r) {
  const int32_t* scores = b.scratch.scores[r];
  const int32_t keys = b.rows[r].keys - block * kKvBlockTokens;
  __m512i most = _mm512_load_si512(b.scratch.largest[r]);
  if (keys >= kKvBlockTokens) {
    for (int32_t j = 0; j < kKvBlockTokens; j += 16) {
      most = _mm512_max_epi32(most, _mm512_load_si512(scores + j));
    }
  } else {
    for (int32_t j = 0; j < keys; j += 16) {
      most = _mm512_mask_max_epi32(most, TailMask16(keys - j), most, _mm512_load_si512(scores + j));
    }
  }
  _mm512_store_si512(b.scratch.largest[r], most);
}

template <bool kSecond>
void FindLargestScores(Block& b) {
  for (int32_t r = 0; r < b.count; ++r) {
    _mm512_store_si512(b.scratch.largest[r], _mm512_set1_epi32(b.rows[r].largest));
  }
  ForScores<kSecond>(
      b,
      [&](int32_t block, int32_t r) __attribute__((always_inline)) { UpdateLargest(b, block, r); },
      [](int32_t) {});
  for (int32_t r = 0; r < b.count; ++r) {
    Row& row = b.rows[r];
    row.largest = _mm512_reduce_max_epi32(_mm512_load_si512(b.scratch.largest[r]));
    const ScoreParams& params = b.head.args.scores[row.head];
    b.words[r] = WordNumerators::Fits(params);
    if (b.words[r]) b.scales[r] = MakeWordScale(params, row.largest);
  }
}

// Numerators of row r against a block, as planes.
FIXPOINT_INLINE void MakeNumerators(const Block& b, int32_t block, int32_t r) {
  Scratch& s = b.scratch;
  const int32_t at = block % kGroup * kKvBlockTokens;
  uint8_t *high = s.high[r] + at, *low = s.low[r] + at;
  const Row& row = b.rows[r];
  const int32_t keys = row.keys - block * kKvBlockTokens;
  const __m512i sum =
      b.words[r] ? BlockNumerators(WordNumerators(b.scales[r]), s.scores[r], keys, high, low)
                 : BlockNumerators(Numerators(b.head.args.scores[row.head], row.largest),
                                   s.scores[r], keys, high, low);
  _mm512_store_si512(s.totals[r], _mm512_add_epi32(_mm512_load_si512(s.totals[r]), sum));
}

FIXPOINT_INLINE int32_t* Sums(const Block& b, int32_t half, int32_t d) {
  return b.scratch.sums + (half * b.head.args.head_dim + d) / 32 * (4 * kTileInts);
}

// Adds the products of the kept numerators of a half with the values of channels [d, d + 32). Tiles
// 0, 1: high; 2, 3: low; 4, 5: the planes; 6, 7: values.
FIXPOINT_INLINE void AddValues(const Block& b, int32_t first_block, int32_t end_block, int32_t half,
                               int32_t d) {
  const Scratch& s = b.scratch;
  const auto head_dim = static_cast<size_t>(b.head.args.head_dim);
  int32_t* sums = Sums(b, half, d);
  if (first_block == 0) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, 64);
    _tile_loadd(1, sums + kTileInts, 64);
    _tile_loadd(2, sums + 2 * kTileInts, 64);
    _tile_loadd(3, sums + 3 * kTileInts, 64);
  }
  for (int32_t block = first_block; block < end_block; ++block) {
    const int8_t* tile =
        KTile(b.head, block) + kKvBlockTokens * head_dim + static_cast<size_t>(d) * 4;
    const int32_t key = (block - first_block) * kKvBlockTokens;
    _tile_loadd(6, tile, head_dim * 4);
    _tile_loadd(4, &s.high[half * kHalf][key], Scratch::kStride);
    _tile_dpbusd(0, 4, 6);
    _tile_loadd(7, tile + 64, head_dim * 4);
    _tile_dpbusd(1, 4, 7);
    _tile_loadd(5, &s.low[half * kHalf][key], Scratch::kStride);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + kTileInts, 64);
  _tile_stored(2, sums + 2 * kTileInts, 64);
  _tile_stored(3, sums + 3 * kTileInts, 64);
}

FIXPOINT_INLINE void AddGroup(const Block& b, int32_t first_block) {
  const int32_t end = first_block + kGroup < b.blocks ? first_block + kGroup : b.blocks;
  MemoryBarrier();
  for (int32_t half = 0; half * kHalf < b.count; ++half) {
    for (int32_t d = 0; d < b.head.args.head_dim; d += 32) AddValues(b, first_block, end, half, d);
  }
  MemoryBarrier();
}

template <bool kSecond>
void WeighValues(Block& b) {
  for (int32_t r = 0; r < b.count; ++r) {
    _mm512_store_si512(b.scratch.totals[r], _mm512_setzero_si512());
  }
  ForScores<kSecond>(
      b,
      [&](int32_t block, int32_t r) __attribute__((always_inline)) { MakeNumerators(b, block, r); },
      [&](int32_t block) __attribute__((always_inline)) {
        if (block % kGroup == kGroup - 1 || block + 1 == b.blocks) {
          AddGroup(b, block / kGroup * kGroup);
        }
      });
}

void StoreRow(Block& b, int32_t r) {
  Row& row = b.rows[r];
  EndRow(b.head, _mm512_load_si512(b.scratch.totals[r]), row);
  for (int32_t d = 0; d < b.head.args.head_dim; d += 16) {
    const int32_t* high = Sums(b, r / kHalf, d / 32 * 32) + d % 32 * 16 + r % kHalf * 16;
    StoreChannels(b.head, row, d, _mm512_load_si512(high), _mm512_load_si512(high + 2 * kTileInts));
  }
}

template <bool kSecond>
void AttendBlock(Block& b, int32_t first) {
  const auto head_dim = static_cast<size_t>(b.head.args.head_dim);
  for (int32_t r = 0; r < b.count; ++r) {
    __builtin_memcpy(b.queries + static_cast<size_t>(r) * head_dim,
                     StartRow(b.head, first + r, b.rows[r]), head_dim);
  }
  b.blocks = (b.rows[b.count - 1].keys + kKvBlockTokens - 1) / kKvBlockTokens;
  FindLargestScores<kSecond>(b);
  WeighValues<kSecond>(b);
  for (int32_t r = 0; r < b.count; ++r) StoreRow(b, r);
}

}  // namespace

size_t AttentionScratchBytes(int32_t max_tokens, int32_t max_keys, int32_t num_heads,
                             int32_t kv_heads, int32_t head_dim) {
  const size_t vnni =
      vnni::AttentionScratchBytes(max_tokens, max_keys, num_heads, kv_heads, head_dim);
  const size_t here =
      sizeof(Scratch) + sizeof(int32_t) * 4 * kTileInts * 2 * (static_cast<size_t>(head_dim) / 32);
  return here > vnni ? here : vnni;
}

void Attention(const AttentionArgs& args) {
  const int32_t rows = args.tokens * (args.num_heads / args.kv_heads);
  if (rows < kMinRows || args.head_dim % 64 != 0) return vnni::Attention(args);
  for (int32_t head = args.kv_head_begin; head < args.kv_head_end; ++head) {
    Block block(args, head);
    for (int32_t row = 0; row < rows; row += kRows) {
      block.count = rows - row < kRows ? rows - row : kRows;
      if (block.count > kHalf) {
        AttendBlock<true>(block, row);
      } else {
        AttendBlock<false>(block, row);
      }
    }
  }
}

}  // namespace fixpoint::amx
