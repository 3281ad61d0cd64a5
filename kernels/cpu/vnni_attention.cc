// Attention of int8 queries over the int8 KV cache. kRows neighbouring rows (attention_rows.h)
// share every load of K and V. Per block of rows: all scores (vpdpbusd with the query as q + 128,
// minus 128 * sum of the key), then per row the softmax, then the weighted sum of V.
#include "kernels/cpu/attention_rows.h"
#include "kernels/cpu/vnni.h"

namespace fixpoint::vnni {
namespace {

// Scores: 6 rows x 64 keys = 24 accumulators.
constexpr int32_t kRows = 6;
// Weighted sums: 3 rows x 4 vectors of 16 channels x 2 planes = 24 accumulators.
constexpr int32_t kValueRows = 3;

// Where things lie in the caller's scratch; `stride` is the number of cache keys rounded up to a
// block.
struct Scratch {
  FIXPOINT_INLINE Scratch(void* base, size_t keys, int32_t rows)
      : stride(RoundUp64(keys)),
        key_sums(static_cast<int32_t*>(base)),
        scores(key_sums + stride),
        high(reinterpret_cast<uint8_t*>(scores + rows * stride)),
        low(high + rows * stride) {}
  size_t stride;
  int32_t* key_sums;  // [stride]         128 * sum over d of the key
  int32_t* scores;    // [rows][stride]
  uint8_t* high;      // [rows][stride]
  uint8_t* low;       // [rows][stride]
};

struct HeadWork {
  KvHead head;
  Scratch scratch;
  int32_t summed_blocks;  // blocks of keys whose key_sums are there
};

constexpr int32_t Min(int32_t a, int32_t b) { return a < b ? a : b; }

// KV blocks [begin, end), and the number of keys from the sequence's first on to the last of them.
struct KeyRange {
  int32_t begin, end, keys;
};

// A row with its query + 128.
struct QueryRow {
  Row row;
  alignas(64) uint8_t query[kMaxHeadDim];
};

FIXPOINT_INLINE __m512i Broadcast4(const uint8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, 4);
  return _mm512_set1_epi32(four);
}

// K and V come from memory when a step has few rows, in pieces of a KV block each, at whose ends
// the CPU's own prefetcher stops. So lines are asked for two blocks ahead, four at a time.
FIXPOINT_INLINE int32_t Ahead(int32_t block, int32_t blocks) {
  return block + 2 < blocks ? block + 2 : blocks - 1;
}
FIXPOINT_INLINE void PrefetchLines(const int8_t* lines) {
  _mm_prefetch(lines, _MM_HINT_T0);
  _mm_prefetch(lines + 64, _MM_HINT_T0);
  _mm_prefetch(lines + 128, _MM_HINT_T0);
  _mm_prefetch(lines + 192, _MM_HINT_T0);
}

void SumKeys(HeadWork& work, int32_t block) {
  const int8_t* tile = KTile(work.head, block);
  const __m512i weight = _mm512_set1_epi8(static_cast<char>(128));
  for (int32_t group = 0; group < 4; ++group) {
    __m512i sum = _mm512_setzero_si512();
    for (int32_t d = 0; d < work.head.args.head_dim; d += 4, tile += 64) {
      sum = _mm512_dpbusd_epi32(sum, weight, _mm512_load_si512(tile));
    }
    _mm512_store_si512(work.scratch.key_sums + block * kKvBlockTokens + group * 16, sum);
  }
}

// Scores of kCount rows against the 64 keys of a block, the first row being `first` of the scratch.
// `ahead`: the tile of a later block.
template <int kCount>
FIXPOINT_INLINE void ScoreBlock(const HeadWork& work, const QueryRow* rows, int32_t first,
                                int32_t block, const int8_t* ahead) {
  const int32_t head_dim = work.head.args.head_dim;
  const int8_t* tile = KTile(work.head, block);
  const size_t group_bytes = static_cast<size_t>(head_dim) * 16;
  __m512i acc[kCount][4];
#pragma GCC unroll 8
  for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) acc[r][g] = _mm512_setzero_si512();
  }
  for (int32_t d = 0; d < head_dim; d += 4, tile += 64, ahead += 256) {
    __m512i keys[4];
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) keys[g] = _mm512_load_si512(tile + g * group_bytes);
    PrefetchLines(ahead);
#pragma GCC unroll 8
    for (int r = 0; r < kCount; ++r) {
      const __m512i query = Broadcast4(rows[r].query + d);
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g) acc[r][g] = _mm512_dpbusd_epi32(acc[r][g], query, keys[g]);
    }
  }
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) {
    const size_t at = static_cast<size_t>(block) * kKvBlockTokens + g * 16;
    const __m512i sums = _mm512_load_si512(work.scratch.key_sums + at);
#pragma GCC unroll 8
    for (int r = 0; r < kCount; ++r) {
      _mm512_store_si512(work.scratch.scores + (first + r) * work.scratch.stride + at,
                         _mm512_sub_epi32(acc[r][g], sums));
    }
  }
}

template <int kCount>
FIXPOINT_INLINE void ScoreRows(HeadWork& work, const QueryRow* rows, int32_t first,
                               const KeyRange& range) {
  for (int32_t block = range.begin; block < range.end; ++block) {
    if (block >= work.summed_blocks) {
      SumKeys(work, block);
      work.summed_blocks = block + 1;
    }
    ScoreBlock<kCount>(work, rows, first, block, KTile(work.head, Ahead(block, range.end)));
  }
}

// Channels [d, d + 16 * kVectors) of kCount rows, the first being row `r` of the scratch, into
// sums [kCount][high, low][head_dim].
template <int kCount, int kVectors>
void ValueBlock(const HeadWork& work, const KeyRange& range, int32_t r, int32_t d, int32_t* sums) {
  const size_t stride = work.scratch.stride;
  const auto head_dim = static_cast<size_t>(work.head.args.head_dim);
  const size_t quad_bytes = head_dim * 4;
  const auto tile_of = [&](int32_t block) {
    return KTile(work.head, block) + kKvBlockTokens * head_dim + static_cast<size_t>(d) * 4;
  };
  __m512i high[kCount][kVectors], low[kCount][kVectors];
#pragma GCC unroll 4
  for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) high[i][v] = low[i][v] = _mm512_setzero_si512();
  }
  for (int32_t block = range.begin; block < range.end; ++block) {
    const int8_t *tile = tile_of(block), *ahead = tile_of(Ahead(block, range.end));
    const size_t at = r * stride + static_cast<size_t>(block) * kKvBlockTokens;
    const uint8_t *high_plane = work.scratch.high + at, *low_plane = work.scratch.low + at;
    const int32_t keys = Min(kKvBlockTokens, range.keys - block * kKvBlockTokens);
    for (int32_t j = 0; j < keys; j += 4, tile += quad_bytes, ahead += quad_bytes) {
      if constexpr (kVectors == 4) PrefetchLines(ahead);
      __m512i values[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) values[v] = _mm512_load_si512(tile + v * 64);
#pragma GCC unroll 4
      for (int i = 0; i < kCount; ++i) {
        const __m512i h = Broadcast4(high_plane + i * stride + j);
        const __m512i l = Broadcast4(low_plane + i * stride + j);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          high[i][v] = _mm512_dpbusd_epi32(high[i][v], h, values[v]);
          low[i][v] = _mm512_dpbusd_epi32(low[i][v], l, values[v]);
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      int32_t* to = sums + 2 * i * head_dim + d + 16 * v;
      _mm512_store_si512(to, high[i][v]);
      _mm512_store_si512(to + head_dim, low[i][v]);
    }
  }
}

template <int kCount>
void ValueRows(const HeadWork& work, const KeyRange& range, int32_t r, int32_t* sums) {
  const int32_t head_dim = work.head.args.head_dim;
  int32_t d = 0;
  for (; d + 64 <= head_dim; d += 64) ValueBlock<kCount, 4>(work, range, r, d, sums);
  for (; d < head_dim; d += 16) ValueBlock<kCount, 1>(work, range, r, d, sums);
}

// The same for rows [r, count) of the scratch, kValueRows at most; returns how many there were.
int32_t ValueRows(const HeadWork& work, const KeyRange& range, int32_t r, int32_t count,
                  int32_t* sums) {
  switch (count - r) {
    case 1:
      ValueRows<1>(work, range, r, sums);
      return 1;
    case 2:
      ValueRows<2>(work, range, r, sums);
      return 2;
    default:
      ValueRows<kValueRows>(work, range, r, sums);
      return kValueRows;
  }
}

// The row's output from sums [high, low][head_dim].
void StoreRow(const KvHead& head, const Row& row, const int32_t* sums) {
  const int32_t head_dim = head.args.head_dim;
  for (int32_t d = 0; d < head_dim; d += 16) {
    StoreChannels(head, row, d, _mm512_load_si512(sums + d),
                  _mm512_load_si512(sums + head_dim + d));
  }
}

void Start(const HeadWork& work, int32_t index, QueryRow& row) {
  const int8_t* q = StartRow(work.head, index, row.row);
  for (int32_t d = 0; d < work.head.args.head_dim; d += 16) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q + d));
    _mm_store_si128(reinterpret_cast<__m128i*>(row.query + d),
                    _mm_xor_si128(x, _mm_set1_epi8(static_cast<char>(128))));
  }
}

template <int kCount>
void AttendRows(HeadWork& work, int32_t first) {
  QueryRow rows[kCount];
  for (int32_t r = 0; r < kCount; ++r) Start(work, first + r, rows[r]);
  const int32_t keys = rows[kCount - 1].row.keys;
  const KeyRange range{0, (keys + kKvBlockTokens - 1) / kKvBlockTokens, keys};
  ScoreRows<kCount>(work, rows, 0, range);
  const Scratch& s = work.scratch;
  for (int32_t r = 0; r < kCount; ++r) {
    Row& row = rows[r].row;
    const int32_t* scores = s.scores + r * s.stride;
    FindLargest(scores, row.keys, row);
    EndRow(work.head,
           RowPlanes(work.head, row, scores, row.keys, range.end * kKvBlockTokens,
                     s.high + r * s.stride, s.low + r * s.stride),
           row);
  }
  alignas(64) int32_t sums[kValueRows * 2 * kMaxHeadDim];
  for (int32_t r = 0; r < kCount;) {
    const int32_t count = ValueRows(work, range, r, kCount, sums);
    for (int32_t i = 0; i < count; ++i, ++r) {
      StoreRow(work.head, rows[r].row, sums + 2 * i * work.head.args.head_dim);
    }
  }
}

// Calls rows.operator()<kCount>(first) for all rows, kRows at once.
template <typename Rows>
FIXPOINT_INLINE void ForRows(int32_t count, const Rows& rows) {
  int32_t row = 0;
  for (; row + kRows <= count; row += kRows) rows.template operator()<kRows>(row);
  switch (count - row) {
    case 1:
      return rows.template operator()<1>(row);
    case 2:
      return rows.template operator()<2>(row);
    case 3:
      return rows.template operator()<3>(row);
    case 4:
      return rows.template operator()<4>(row);
    case 5:
      return rows.template operator()<5>(row);
    default:
      return;
  }
}

void AttendHead(const AttentionArgs& args, int32_t kv_head) {
  HeadWork work{
      {args, kv_head},
      Scratch(args.scratch, static_cast<size_t>(args.position) + static_cast<size_t>(args.tokens),
              kRows),
      0};
  ForRows(args.tokens * (args.num_heads / args.kv_heads),
          [&]<int kCount>(int32_t first) { AttendRows<kCount>(work, first); });
}

// What the parts of one kv head share; a row is a query head of the group.
struct Parts {
  FIXPOINT_INLINE Parts(const AttentionArgs& args, int32_t parts)
      : group(args.num_heads / args.kv_heads),
        scratch(args.scratch, static_cast<size_t>(args.position) + 1, group),
        largest(reinterpret_cast<int32_t*>(scratch.low + group * scratch.stride)),
        totals(largest + RoundUp64(static_cast<size_t>(parts) * group)),
        sums(totals + static_cast<size_t>(parts) * group * 16) {}
  int32_t group;
  Scratch scratch;
  int32_t* largest;  // [parts][group]
  int32_t* totals;   // [parts][group][16] lanes
  int32_t* sums;     // [parts][group][high, low][head_dim]

  int32_t* Totals(int32_t part, int32_t row) const {
    return totals + (static_cast<size_t>(part) * group + row) * 16;
  }
  int32_t* Sums(int32_t part, int32_t row, int32_t head_dim) const {
    return sums + (static_cast<size_t>(part) * group + row) * 2 * head_dim;
  }
};

FIXPOINT_INLINE KeyRange PartRange(const AttentionArgs& args, int32_t part, int32_t parts) {
  const int32_t keys = args.position + 1;
  const int64_t blocks = (keys + kKvBlockTokens - 1) / kKvBlockTokens;
  const auto begin = static_cast<int32_t>(blocks * part / parts);
  const auto end = static_cast<int32_t>(blocks * (part + 1) / parts);
  return {begin, end, Min(keys, end * kKvBlockTokens)};
}

// The largest score of row `r` over all parts, each of which has seen the prefix.
int32_t LargestOfParts(const Parts& p, int32_t parts, int32_t r) {
  int32_t largest = INT32_MIN;
  for (int32_t i = 0; i < parts; ++i) {
    if (p.largest[i * p.group + r] > largest) largest = p.largest[i * p.group + r];
  }
  return largest;
}

// Four tokens at once: their values lie side by side in the V tile.
void WriteFourValues(const int8_t* v, size_t stride, int32_t head_dim, int8_t* out) {
  for (int32_t d = 0; d < head_dim; d += 16) {
    __m128i x[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      x[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(v + i * stride + d));
    }
    const __m128i low01 = _mm_unpacklo_epi8(x[0], x[1]), high01 = _mm_unpackhi_epi8(x[0], x[1]);
    const __m128i low23 = _mm_unpacklo_epi8(x[2], x[3]), high23 = _mm_unpackhi_epi8(x[2], x[3]);
    auto* to = reinterpret_cast<__m128i*>(out + static_cast<size_t>(d) * 4);
    _mm_store_si128(to, _mm_unpacklo_epi16(low01, low23));
    _mm_store_si128(to + 1, _mm_unpackhi_epi16(low01, low23));
    _mm_store_si128(to + 2, _mm_unpacklo_epi16(high01, high23));
    _mm_store_si128(to + 3, _mm_unpackhi_epi16(high01, high23));
  }
}

// One token of a group of four: its byte in each 32-bit lane of the tile.
void WriteOneValue(const int8_t* v, int32_t head_dim, int32_t place, int8_t* out) {
  const __mmask64 mask = __mmask64{0x1111111111111111} << place;
  const __m128i shift = _mm_cvtsi32_si128(8 * place);
  for (int32_t d = 0; d < head_dim; d += 16) {
    const __m512i x = _mm512_sll_epi32(
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(v + d))), shift);
    _mm512_mask_storeu_epi8(out + static_cast<size_t>(d) * 4, mask, x);
  }
}

void WriteKey(const int8_t* k, int32_t head_dim, int8_t* out) {
  for (int32_t d = 0; d < head_dim; d += 4) __builtin_memcpy(out + d * 16, k + d, 4);
}

void WriteHead(const KvWriteArgs& args, int32_t head) {
  const size_t first = static_cast<size_t>(head) * args.head_dim;
  const auto head_dim = static_cast<size_t>(args.head_dim);
  for (int32_t t = 0; t < args.tokens;) {
    const int32_t position = args.position + t, slot = position % kKvBlockTokens;
    int8_t* k_tile =
        args.cache.base +
        static_cast<size_t>(args.block_table[position / kKvBlockTokens]) * args.cache.block_stride +
        first * 2 * kKvBlockTokens;
    int8_t* v_tile = k_tile + kKvBlockTokens * head_dim + slot / 4 * 4 * head_dim;
    const size_t row = static_cast<size_t>(t) * args.stride + first;
    const int32_t count = slot % 4 == 0 && args.tokens - t >= 4 ? 4 : 1;
    for (int32_t i = 0; i < count; ++i) {
      WriteKey(args.k + row + i * args.stride, args.head_dim,
               k_tile + (slot + i) / 16 * 16 * head_dim + (slot + i) % 16 * 4);
    }
    if (count == 4) {
      WriteFourValues(args.v + row, args.stride, args.head_dim, v_tile);
    } else {
      WriteOneValue(args.v + row, args.head_dim, slot % 4, v_tile);
    }
    t += count;
  }
}

}  // namespace

size_t AttentionPartsBytes(int32_t keys, int32_t parts, int32_t group, int32_t head_dim) {
  const auto rows = static_cast<size_t>(group), of_parts = static_cast<size_t>(parts) * rows;
  return RoundUp64(static_cast<size_t>(keys)) * (4 + rows * (4 + 2)) +
         4 * (RoundUp64(of_parts) + of_parts * (16 + 2 * static_cast<size_t>(head_dim)));
}

void ScorePart(const AttentionArgs& args, int32_t part, int32_t parts) {
  const Parts p(args, parts);
  const KeyRange range = PartRange(args, part, parts);
  HeadWork work{{args, args.kv_head_begin}, p.scratch, range.begin};
  ForRows(p.group, [&]<int kCount>(int32_t first) {
    QueryRow rows[kCount];
    for (int32_t r = 0; r < kCount; ++r) Start(work, first + r, rows[r]);
    ScoreRows<kCount>(work, rows, first, range);
    for (int32_t r = 0; r < kCount; ++r) {
      const size_t at = (first + r) * p.scratch.stride + range.begin * size_t{kKvBlockTokens};
      FindLargest(p.scratch.scores + at, range.keys - range.begin * kKvBlockTokens, rows[r].row);
      p.largest[part * p.group + first + r] = rows[r].row.largest;
    }
  });
}

void WeighPart(const AttentionArgs& args, int32_t part, int32_t parts) {
  const Parts p(args, parts);
  const KeyRange range = PartRange(args, part, parts);
  const HeadWork work{{args, args.kv_head_begin}, p.scratch, 0};
  const int32_t first_key = range.begin * kKvBlockTokens;
  for (int32_t r = 0; r < p.group; ++r) {
    Row row;
    row.head = args.kv_head_begin * p.group + r;
    row.largest = LargestOfParts(p, parts, r);
    const size_t at = r * p.scratch.stride + static_cast<size_t>(first_key);
    const __m512i total =
        RowPlanes(work.head, row, p.scratch.scores + at, range.keys - first_key,
                  range.end * kKvBlockTokens - first_key, p.scratch.high + at, p.scratch.low + at);
    _mm512_store_si512(p.Totals(part, r), total);
  }
  for (int32_t r = 0; r < p.group;) {
    r += ValueRows(work, range, r, p.group, p.Sums(part, r, args.head_dim));
  }
}

void FinishParts(const AttentionArgs& args, int32_t parts) {
  const Parts p(args, parts);
  const KvHead head{args, args.kv_head_begin};
  for (int32_t r = 0; r < p.group; ++r) {
    Row row;
    StartRow(head, r, row);
    row.largest = LargestOfParts(p, parts, r);
    __m512i total = _mm512_setzero_si512();
    for (int32_t i = 0; i < parts; ++i) {
      total = _mm512_add_epi32(total, _mm512_load_si512(p.Totals(i, r)));
    }
    EndRow(head, total, row);
    int32_t* sums = p.Sums(0, r, args.head_dim);
    for (int32_t i = 1; i < parts; ++i) {
      const int32_t* more = p.Sums(i, r, args.head_dim);
      for (int32_t d = 0; d < 2 * args.head_dim; d += 16) {
        _mm512_store_si512(
            sums + d, _mm512_add_epi32(_mm512_load_si512(sums + d), _mm512_load_si512(more + d)));
      }
    }
    StoreRow(head, row, sums);
  }
}

void KvWrite(const KvWriteArgs& args) {
  for (int32_t head = 0; head < args.kv_heads; ++head) WriteHead(args, head);
}

size_t AttentionScratchBytes(int32_t /*max_tokens*/, int32_t max_keys, int32_t /*num_heads*/,
                             int32_t /*kv_heads*/, int32_t /*head_dim*/) {
  // key_sums, scores and two byte planes a row (Scratch).
  return RoundUp64(static_cast<size_t>(max_keys)) * (4 + kRows * (4 + 2));
}

void Attention(const AttentionArgs& args) {
  for (int32_t head = args.kv_head_begin; head < args.kv_head_end; ++head) AttendHead(args, head);
}

}  // namespace fixpoint::vnni
