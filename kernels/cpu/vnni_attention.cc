// Attention of int8 queries over the int8 KV cache. A "row" is one (token, query head); the rows of
// a kv head are numbered token first, so that kRows neighbours see nearly the same keys and share
// every load of K and V.
//
// Per block of rows: all scores (vpdpbusd with the query as q + 128, minus 128 * sum of the key),
// then per row the maximum, the numerators and their sum, then the weighted sum of V. The
// numerators are split as e = 128 * high + low into two byte planes of 0..127, which are the
// unsigned operand that vpdpbusd wants. A plane's sum stays below 127 * 127 * kMaxContext < 2^31,
// so int32 holds it for every context and the planes meet only at the end, in int64.
#include "kernels/cpu/vnni.h"
#include "kernels/cpu/vnni_common.h"

namespace fixpoint::vnni {
namespace {

static_assert(int64_t{127} * 127 * kMaxContext <= INT32_MAX);

// Scores: 6 rows x 64 keys = 24 accumulators.
constexpr int32_t kRows = 6;
// Weighted sums: 3 rows x 4 vectors of 16 channels x 2 planes = 24 accumulators.
constexpr int32_t kValueRows = 3;
constexpr int32_t kMaxPrefix = 16;
constexpr int32_t kMaxHeadDim = 512;

FIXPOINT_INLINE size_t RoundUp64(size_t n) { return (n + 63) / 64 * 64; }

// Where things lie in the caller's scratch; `stride` is the number of cache keys rounded up to a
// block.
struct Scratch {
  FIXPOINT_INLINE Scratch(void* base, size_t keys)
      : stride(RoundUp64(keys)),
        key_sums(static_cast<int32_t*>(base)),
        scores(key_sums + stride),
        high(reinterpret_cast<uint8_t*>(scores + kRows * stride)),
        low(high + kRows * stride) {}
  size_t stride;
  int32_t* key_sums;  // [stride]         128 * sum over d of the key
  int32_t* scores;    // [kRows][stride]
  uint8_t* high;      // [kRows][stride]
  uint8_t* low;       // [kRows][stride]
};

// One row of the block in hand.
struct Row {
  int32_t token, head;
  int32_t keys;  // cache positions that it sees
  int32_t largest;
  int32_t prefix_scores[kMaxPrefix];  // later the numerators
  SoftmaxReciprocal reciprocal;
  alignas(64) uint8_t query[kMaxHeadDim];  // q + 128
};

struct HeadWork {
  const AttentionArgs* args;
  Scratch scratch;
  int32_t kv_head;
  int32_t summed_blocks;  // blocks of keys whose key_sums are there
};

FIXPOINT_INLINE const int8_t* KTile(const HeadWork& work, int32_t block) {
  const AttentionArgs& args = *work.args;
  return args.cache.base + static_cast<size_t>(args.block_table[block]) * args.cache.block_stride +
         static_cast<size_t>(work.kv_head) * 2 * kKvBlockTokens * args.head_dim;
}

FIXPOINT_INLINE __m512i Broadcast4(const uint8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, 4);
  return _mm512_set1_epi32(four);
}

void SumKeys(HeadWork& work, int32_t block) {
  const int8_t* tile = KTile(work, block);
  const __m512i weight = _mm512_set1_epi8(static_cast<char>(128));
  for (int32_t group = 0; group < 4; ++group) {
    __m512i sum = _mm512_setzero_si512();
    for (int32_t d = 0; d < work.args->head_dim; d += 4, tile += 64) {
      sum = _mm512_dpbusd_epi32(sum, weight, _mm512_load_si512(tile));
    }
    _mm512_store_si512(work.scratch.key_sums + block * kKvBlockTokens + group * 16, sum);
  }
}

// Scores of kCount rows against the 64 keys of a block.
template <int kCount>
FIXPOINT_INLINE void ScoreBlock(const HeadWork& work, const Row* rows, int32_t block) {
  const int32_t head_dim = work.args->head_dim;
  const int8_t* tile = KTile(work, block);
  const size_t group_bytes = static_cast<size_t>(head_dim) * 16;
  __m512i acc[kCount][4];
#pragma GCC unroll 8
  for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) acc[r][g] = _mm512_setzero_si512();
  }
  for (int32_t d = 0; d < head_dim; d += 4, tile += 64) {
    __m512i keys[4];
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) keys[g] = _mm512_load_si512(tile + g * group_bytes);
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
      _mm512_store_si512(work.scratch.scores + r * work.scratch.stride + at,
                         _mm512_sub_epi32(acc[r][g], sums));
    }
  }
}

template <int kCount>
void ScoreRows(HeadWork& work, const Row* rows) {
  const int32_t blocks = (rows[kCount - 1].keys + kKvBlockTokens - 1) / kKvBlockTokens;
  for (int32_t block = 0; block < blocks; ++block) {
    if (block >= work.summed_blocks) {
      SumKeys(work, block);
      work.summed_blocks = block + 1;
    }
    ScoreBlock<kCount>(work, rows, block);
  }
}

int32_t DotPrefix(const int8_t* q, const int16_t* key, int32_t head_dim) {
  __m512i sum = _mm512_setzero_si512();
  for (int32_t d = 0; d < head_dim; d += 32) {
    const int32_t left = head_dim - d;
    const __mmask32 mask = left >= 32 ? ~__mmask32{0} : (__mmask32{1} << left) - 1;
    const __m512i a = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(mask, q + d));
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(a, _mm512_maskz_loadu_epi16(mask, key + d)));
  }
  return _mm512_reduce_add_epi32(sum);
}

// First key or value of the kv head in prefix_k or prefix_v.
FIXPOINT_INLINE const int16_t* PrefixRow(const HeadWork& work, const int16_t* all, int32_t j) {
  const AttentionArgs& args = *work.args;
  return all + (static_cast<size_t>(work.kv_head) * args.prefix_tokens + j) * args.head_dim;
}

void StartRow(const HeadWork& work, int32_t index, Row& row) {
  const AttentionArgs& args = *work.args;
  const int32_t group = args.num_heads / args.kv_heads;
  row.token = index / group;
  row.head = work.kv_head * group + index % group;
  row.keys = args.position + row.token + 1;
  const int8_t* q = args.q + static_cast<size_t>(row.token) * args.q_stride +
                    static_cast<size_t>(row.head) * args.head_dim;
  for (int32_t d = 0; d < args.head_dim; d += 16) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q + d));
    _mm_store_si128(reinterpret_cast<__m128i*>(row.query + d),
                    _mm_xor_si128(x, _mm_set1_epi8(static_cast<char>(128))));
  }
  row.largest = INT32_MIN;
  for (int32_t j = 0; j < args.prefix_tokens; ++j) {
    row.prefix_scores[j] = DotPrefix(q, PrefixRow(work, args.prefix_k, j), args.head_dim);
    if (row.prefix_scores[j] > row.largest) row.largest = row.prefix_scores[j];
  }
}

// Softmax numerators of 2 x 16 distances (largest - score, >= 0), as 32 words in the order of the
// keys.
struct Numerators {
  explicit FIXPOINT_INLINE Numerators(const ScoreParams& params)
      : limit(_mm512_set1_epi32(params.d_max)),
        factor(_mm512_set1_epi32(params.c)),
        first(params.a),
        second(params.n) {}

  FIXPOINT_INLINE __m512i Log2(__m512i distance) const {
    return second(_mm512_mullo_epi32(first(_mm512_min_epi32(distance, limit)), factor));
  }
  FIXPOINT_INLINE __m512i operator()(__m512i d0, __m512i d1) const {
    const __m512i y0 = Log2(d0), y1 = Log2(d1);
    const __m512i low15 = _mm512_set1_epi32(32767);
    const __m512i f = _mm512_packs_epi32(_mm512_and_si512(y0, low15), _mm512_and_si512(y1, low15));
    // y < 2^31, so its integer part is below 2^16: saturated to 32767 it still shifts everything
    // out.
    const __m512i whole = _mm512_packs_epi32(_mm512_srli_epi32(y0, 15), _mm512_srli_epi32(y1, 15));
    // vpmulhrsw(a, b) is rs(a * b, 15).
    __m512i p = _mm512_set1_epi16(111);
    p = _mm512_add_epi16(_mm512_mulhrs_epi16(p, f), _mm512_set1_epi16(-871));
    p = _mm512_add_epi16(_mm512_mulhrs_epi16(p, f), _mm512_set1_epi16(3922));
    p = _mm512_add_epi16(_mm512_mulhrs_epi16(p, f), _mm512_set1_epi16(-11354));
    p = _mm512_add_epi16(_mm512_mulhrs_epi16(p, f), _mm512_set1_epi16(16384));
    // Half of 2^whole is 0 for whole == 0, and shifts by 16 or more give 0. p + half <= 32768 is
    // read as unsigned.
    const __m512i half = _mm512_srli_epi16(_mm512_sllv_epi16(_mm512_set1_epi16(1), whole), 1);
    const __m512i e = _mm512_min_epu16(_mm512_srlv_epi16(_mm512_add_epi16(p, half), whole),
                                       _mm512_set1_epi16(16383));
    return _mm512_permutexvar_epi64(_mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0), e);
  }
  __m512i limit, factor;
  Round first, second;
};

void FindLargest(const int32_t* scores, Row& row) {
  __m512i largest = _mm512_set1_epi32(row.largest);
  for (int32_t j = 0; j < row.keys; j += 16) {
    largest = _mm512_mask_max_epi32(largest, TailMask16(row.keys - j), largest,
                                    _mm512_load_si512(scores + j));
  }
  row.largest = _mm512_reduce_max_epi32(largest);
}

// Numerator planes of row `r` of the block, zero up to `padded` keys; its prefix numerators and
// reciprocal.
void SoftmaxRow(const HeadWork& work, int32_t r, int32_t padded, Row& row) {
  const Scratch& scratch = work.scratch;
  const int32_t* scores = scratch.scores + r * scratch.stride;
  uint8_t* high = scratch.high + r * scratch.stride;
  uint8_t* low = scratch.low + r * scratch.stride;
  FindLargest(scores, row);
  const ScoreParams& params = work.args->scores[row.head];
  const Numerators numerators(params);
  const __m512i largest = _mm512_set1_epi32(row.largest);
  __m512i sum = _mm512_setzero_si512();
  for (int32_t j = 0; j < padded; j += 32) {
    const int32_t left = row.keys - j;
    const __mmask32 mask = left >= 32 ? ~__mmask32{0} : left <= 0 ? 0 : (__mmask32{1} << left) - 1;
    const __m512i e = _mm512_maskz_mov_epi16(
        mask, numerators(_mm512_sub_epi32(largest, _mm512_load_si512(scores + j)),
                         _mm512_sub_epi32(largest, _mm512_load_si512(scores + j + 16))));
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(e, _mm512_set1_epi16(1)));
    _mm256_store_si256(reinterpret_cast<__m256i*>(high + j),
                       _mm512_cvtepi16_epi8(_mm512_srli_epi16(e, 7)));
    _mm256_store_si256(reinterpret_cast<__m256i*>(low + j),
                       _mm512_cvtepi16_epi8(_mm512_and_si512(e, _mm512_set1_epi16(127))));
  }
  // At most (kMaxContext + prefix) numerators below 2^14: below 2^31 + 2^18, so unsigned.
  uint64_t total = static_cast<uint32_t>(_mm512_reduce_add_epi32(sum));
  for (int32_t j = 0; j < work.args->prefix_tokens; ++j) {
    row.prefix_scores[j] = SoftmaxNumerator(row.largest - row.prefix_scores[j], params);
    total += static_cast<uint64_t>(row.prefix_scores[j]);
  }
  row.reciprocal = ReciprocalOfSum(total);
}

// 8 channels: int32 sums of the planes in, 128 * A / Z as int32 lanes out.
FIXPOINT_INLINE __m256i Normalize(const HeadWork& work, const Row& row, int32_t d, __m256i high,
                                  __m256i low) {
  __m512i a = _mm512_add_epi64(_mm512_slli_epi64(_mm512_cvtepi32_epi64(high), 7),
                               _mm512_cvtepi32_epi64(low));
  for (int32_t j = 0; j < work.args->prefix_tokens; ++j) {
    const int16_t* v = PrefixRow(work, work.args->prefix_v, j) + d;
    const __m512i value =
        _mm512_cvtepi16_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(v)));
    a = _mm512_add_epi64(a, _mm512_mul_epi32(value, _mm512_set1_epi64(row.prefix_scores[j])));
  }
  a = ClampWide(Round64(row.reciprocal.pre_shift)(a), 0x7fffffff);
  a = _mm512_mul_epi32(a, _mm512_set1_epi64(row.reciprocal.reciprocal));
  return _mm512_cvtepi64_epi32(ClampWide(Round64(row.reciprocal.post_shift)(a), 32767));
}

FIXPOINT_INLINE void StoreChannels(const HeadWork& work, const Row& row, int32_t d, __m512i high,
                                   __m512i low) {
  const AttentionArgs& args = *work.args;
  const __m256i first =
      Normalize(work, row, d, _mm512_castsi512_si256(high), _mm512_castsi512_si256(low));
  const __m256i second = Normalize(work, row, d + 8, _mm512_extracti64x4_epi64(high, 1),
                                   _mm512_extracti64x4_epi64(low, 1));
  const int32_t channel = row.head * args.head_dim + d;
  const __m512i mean = _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
  const __m512i multipliers = LoadMultipliers(args.requantize.multipliers + channel, 0xffff);
  StoreSite(Round(args.requantize.k)(Times16(mean, multipliers)), args.out.hi, args.out.lo,
            static_cast<size_t>(row.token) * args.out.stride + channel, 0xffff);
}

// Channels [d, d + 16 * kVectors) of kCount rows, the first being row `r` of the block.
template <int kCount, int kVectors>
FIXPOINT_INLINE void ValueBlock(const HeadWork& work, const Row* rows, int32_t r, int32_t keys,
                                int32_t d) {
  const size_t stride = work.scratch.stride;
  const uint8_t* high_plane = work.scratch.high + r * stride;
  const uint8_t* low_plane = work.scratch.low + r * stride;
  const size_t quad_bytes = static_cast<size_t>(work.args->head_dim) * 4;
  __m512i high[kCount][kVectors], low[kCount][kVectors];
#pragma GCC unroll 4
  for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) high[i][v] = low[i][v] = _mm512_setzero_si512();
  }
  for (int32_t start = 0; start < keys; start += kKvBlockTokens) {
    const int8_t* tile = KTile(work, start / kKvBlockTokens) +
                         static_cast<size_t>(kKvBlockTokens) * work.args->head_dim +
                         static_cast<size_t>(d) * 4;
    const int32_t end = keys - start < kKvBlockTokens ? keys : start + kKvBlockTokens;
    for (int32_t j = start; j < end; j += 4, tile += quad_bytes) {
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
      StoreChannels(work, rows[i], d + 16 * v, high[i][v], low[i][v]);
    }
  }
}

template <int kCount>
void ValueRows(const HeadWork& work, const Row* rows, int32_t r) {
  const int32_t keys = rows[kCount - 1].keys, head_dim = work.args->head_dim;
  int32_t d = 0;
  for (; d + 64 <= head_dim; d += 64) ValueBlock<kCount, 4>(work, rows, r, keys, d);
  for (; d < head_dim; d += 16) ValueBlock<kCount, 1>(work, rows, r, keys, d);
}

template <int kCount>
void AttendRows(HeadWork& work, int32_t first) {
  Row rows[kCount];
  for (int32_t r = 0; r < kCount; ++r) StartRow(work, first + r, rows[r]);
  ScoreRows<kCount>(work, rows);
  const auto padded = static_cast<int32_t>(RoundUp64(rows[kCount - 1].keys));
  for (int32_t r = 0; r < kCount; ++r) SoftmaxRow(work, r, padded, rows[r]);
  constexpr int kFirst = kCount < kValueRows ? kCount : kValueRows;
  ValueRows<kFirst>(work, rows, 0);
  if constexpr (kCount > kFirst) ValueRows<kCount - kFirst>(work, rows + kFirst, kFirst);
}

void AttendHead(const AttentionArgs& args, int32_t kv_head) {
  HeadWork work{&args, Scratch(args.scratch, static_cast<size_t>(args.position) + args.tokens),
                kv_head, 0};
  const int32_t rows = args.tokens * (args.num_heads / args.kv_heads);
  int32_t row = 0;
  for (; row + kRows <= rows; row += kRows) AttendRows<kRows>(work, row);
  switch (rows - row) {
    case 1:
      return AttendRows<1>(work, row);
    case 2:
      return AttendRows<2>(work, row);
    case 3:
      return AttendRows<3>(work, row);
    case 4:
      return AttendRows<4>(work, row);
    case 5:
      return AttendRows<5>(work, row);
    default:
      return;
  }
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
      for (size_t d = 0; d < head_dim; ++d) v_tile[d * 4 + slot % 4] = args.v[row + d];
    }
    t += count;
  }
}

}  // namespace

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
