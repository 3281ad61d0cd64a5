// Attention and the KV cache. Rows, each a (token, query head) of one kv head, go in blocks of
// kRows; a block of 64 keys or values is widened to 16 bits once for all of them, so that scores
// and weighted sums are dot products of 16-bit values.
#include "kernels/cpu/isa_arithmetic.h"
#include "kernels/cpu/portable.h"

namespace fixpoint::FIXPOINT_LEVEL {
namespace {

constexpr int32_t kRows = 16;
constexpr int32_t kMaxPrefix = 16;

size_t RoundUp64(size_t n) { return (n + 63) / 64 * 64; }

// The caller's scratch; `keys` counts cache positions.
struct Scratch {
  Scratch(void* base, size_t keys, int32_t head_dim)
      : stride(RoundUp64(keys)),
        sums(static_cast<int64_t*>(base)),
        scores(reinterpret_cast<int32_t*>(sums + static_cast<size_t>(kRows) * head_dim)),
        wide(reinterpret_cast<int16_t*>(scores + kRows * stride)),
        query(wide + static_cast<size_t>(kKvBlockTokens) * head_dim) {}
  size_t stride;
  int64_t* sums;    // [kRows][head_dim]
  int32_t* scores;  // [kRows][stride], later the numerators in the lower halves of the same memory
  int16_t* wide;    // [64][head_dim] keys, or [head_dim][64] values
  int16_t* query;   // [kRows][head_dim]
};

struct Row {
  int32_t token, head;
  int32_t keys;  // cache positions that it sees
  int32_t largest;
  int32_t prefix_scores[kMaxPrefix];  // later the numerators
  uint64_t total;
};

struct HeadWork {
  const AttentionArgs* args;
  Scratch scratch;
  int32_t kv_head;
};

const int8_t* KTile(const HeadWork& work, int32_t block) {
  const AttentionArgs& args = *work.args;
  return args.cache.base + static_cast<size_t>(args.block_table[block]) * args.cache.block_stride +
         static_cast<size_t>(work.kv_head) * 2 * kKvBlockTokens * args.head_dim;
}

const int16_t* PrefixRow(const HeadWork& work, const int16_t* all, int32_t j) {
  const AttentionArgs& args = *work.args;
  return all + (static_cast<size_t>(work.kv_head) * args.prefix_tokens + j) * args.head_dim;
}

int32_t Dot(const int16_t* __restrict a, const int16_t* __restrict b, int32_t n) {
  int32_t sum = 0;
  for (int32_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// K tile -> [64][head_dim].
void WidenKeys(const int8_t* __restrict tile, int32_t head_dim, int16_t* __restrict out) {
  for (int32_t group = 0; group < kKvBlockTokens; group += 16) {
    for (int32_t d = 0; d < head_dim; d += 4, tile += 64) {
      for (int32_t key = 0; key < 16; ++key) {
        int16_t* to = out + static_cast<size_t>(group + key) * head_dim + d;
        for (int32_t i = 0; i < 4; ++i) to[i] = tile[key * 4 + i];
      }
    }
  }
}

// V tile -> [head_dim][64].
void WidenValues(const int8_t* __restrict tile, int32_t head_dim, int16_t* __restrict out) {
  for (int32_t quad = 0; quad < kKvBlockTokens; quad += 4) {
    for (int32_t d = 0; d < head_dim; ++d, tile += 4) {
      int16_t* to = out + static_cast<size_t>(d) * kKvBlockTokens + quad;
      for (int32_t i = 0; i < 4; ++i) to[i] = tile[i];
    }
  }
}

void StartRow(const HeadWork& work, int32_t index, int16_t* __restrict query, Row& row) {
  const AttentionArgs& args = *work.args;
  const int32_t group = args.num_heads / args.kv_heads;
  row.token = index / group;
  row.head = work.kv_head * group + index % group;
  row.keys = args.position + row.token + 1;
  row.largest = INT32_MIN;
  const int8_t* q = args.q + static_cast<size_t>(row.token) * args.q_stride +
                    static_cast<size_t>(row.head) * args.head_dim;
  for (int32_t d = 0; d < args.head_dim; ++d) query[d] = q[d];
  for (int32_t j = 0; j < args.prefix_tokens; ++j) {
    row.prefix_scores[j] = Dot(query, PrefixRow(work, args.prefix_k, j), args.head_dim);
    if (row.prefix_scores[j] > row.largest) row.largest = row.prefix_scores[j];
  }
}

// Keys of block `start / 64` that the row sees.
int32_t KeysInBlock(const Row& row, int32_t start) {
  const int32_t left = row.keys - start;
  return left < 0 ? 0 : left < kKvBlockTokens ? left : kKvBlockTokens;
}

void ScoreRows(const HeadWork& work, Row* rows, int32_t count) {
  const Scratch& s = work.scratch;
  const int32_t head_dim = work.args->head_dim;
  for (int32_t start = 0; start < rows[count - 1].keys; start += kKvBlockTokens) {
    WidenKeys(KTile(work, start / kKvBlockTokens), head_dim, s.wide);
    for (int32_t r = 0; r < count; ++r) {
      int32_t* scores = s.scores + r * s.stride + start;
      const int32_t n = KeysInBlock(rows[r], start);
      for (int32_t j = 0; j < n; ++j) {
        scores[j] = Dot(s.query + static_cast<size_t>(r) * head_dim,
                        s.wide + static_cast<size_t>(j) * head_dim, head_dim);
        if (scores[j] > rows[r].largest) rows[r].largest = scores[j];
      }
    }
  }
}

// SoftmaxNumerator of arithmetic.h without branches and 64-bit steps.
void NumeratorPiece(const ScoreParams& params, int32_t largest, const int32_t* __restrict scores,
                    int32_t n, int32_t* __restrict out) {
  const int32_t first_half = params.a > 0 ? 1 << (params.a - 1) : 0,
                second_half = 1 << (params.n - 1);
  const auto times = [](int32_t p, int32_t f) { return (p * f + (1 << 14)) >> 15; };
  for (int32_t j = 0; j < n; ++j) {
    const int32_t distance = largest - scores[j];
    const int32_t d = distance < params.d_max ? distance : params.d_max;
    const int32_t y = (((d + first_half) >> params.a) * params.c + second_half) >> params.n;
    const int32_t f = y & 32767;
    const int32_t p = times(times(times(times(111, f) - 871, f) + 3922, f) - 11354, f) + 16384;
    const int32_t whole = (y >> 15) < 16 ? y >> 15 : 16;
    const int32_t half = (1 << whole) >> 1;
    const int32_t e = (p + half) >> whole;  // 0 for whole == 16, as p <= 16384
    out[j] = e < 16383 ? e : 16383;
  }
}

// Writes the numerators as int16 over the row's scores, zero up to the end of the last block of the
// row block.
void SoftmaxRow(const HeadWork& work, int32_t* scores, size_t padded, Row& row) {
  const ScoreParams& params = work.args->scores[row.head];
  auto* numerators = reinterpret_cast<unsigned char*>(scores);
  int32_t e[kKvBlockTokens];
  row.total = 0;
  // The 2-byte results trail behind the 4-byte scores that are still to be read.
  for (int32_t start = 0; static_cast<size_t>(start) < padded; start += kKvBlockTokens) {
    const int32_t n = KeysInBlock(row, start);
    int16_t narrow[kKvBlockTokens];
    NumeratorPiece(params, row.largest, scores + start, n, e);
    int32_t sum = 0;
    for (int32_t j = 0; j < n; ++j) sum += e[j];
    for (int32_t j = 0; j < kKvBlockTokens; ++j) narrow[j] = j < n ? static_cast<int16_t>(e[j]) : 0;
    __builtin_memcpy(numerators + static_cast<size_t>(start) * 2, narrow, sizeof(narrow));
    row.total += static_cast<uint64_t>(sum);
  }
  for (int32_t j = 0; j < work.args->prefix_tokens; ++j) {
    row.prefix_scores[j] = SoftmaxNumerator(row.largest - row.prefix_scores[j], params);
    row.total += static_cast<uint64_t>(row.prefix_scores[j]);
  }
}

void SumValues(const HeadWork& work, const Row* rows, int32_t count) {
  const Scratch& s = work.scratch;
  const int32_t head_dim = work.args->head_dim;
  __builtin_memset(s.sums, 0, static_cast<size_t>(count) * head_dim * sizeof(int64_t));
  int16_t numerators[kKvBlockTokens];
  for (int32_t start = 0; start < rows[count - 1].keys; start += kKvBlockTokens) {
    WidenValues(
        KTile(work, start / kKvBlockTokens) + static_cast<size_t>(kKvBlockTokens) * head_dim,
        head_dim, s.wide);
    for (int32_t r = 0; r < count; ++r) {
      __builtin_memcpy(numerators,
                       reinterpret_cast<const unsigned char*>(s.scores + r * s.stride) +
                           static_cast<size_t>(start) * 2,
                       sizeof(numerators));
      int64_t* sums = s.sums + static_cast<size_t>(r) * head_dim;
      for (int32_t d = 0; d < head_dim; ++d) {
        // 64 * 16383 * 127 fits int32.
        sums[d] +=
            Dot(numerators, s.wide + static_cast<size_t>(d) * kKvBlockTokens, kKvBlockTokens);
      }
    }
  }
}

void FinishRow(const HeadWork& work, int64_t* sums, const Row& row) {
  const AttentionArgs& args = *work.args;
  for (int32_t j = 0; j < args.prefix_tokens; ++j) {
    const int16_t* value = PrefixRow(work, args.prefix_v, j);
    for (int32_t d = 0; d < args.head_dim; ++d) {
      sums[d] += int64_t{row.prefix_scores[j]} * value[d];
    }
  }
  const SoftmaxReciprocal reciprocal = ReciprocalOfSum(row.total);
  const int32_t channel = row.head * args.head_dim;
  const size_t at = static_cast<size_t>(row.token) * args.out.stride + channel;
  for (int32_t d = 0; d < args.head_dim; ++d) {
    const int32_t mean = NormalizeWeighted(sums[d], reciprocal);
    StoreActivation(RoundShift(mean * args.requantize.multipliers[channel + d], args.requantize.k),
                    args.out.hi + at + d, args.out.lo == nullptr ? nullptr : args.out.lo + at + d);
  }
}

void AttendRows(const HeadWork& work, int32_t first, int32_t count) {
  const Scratch& s = work.scratch;
  const int32_t head_dim = work.args->head_dim;
  Row rows[kRows];
  for (int32_t r = 0; r < count; ++r) {
    StartRow(work, first + r, s.query + static_cast<size_t>(r) * head_dim, rows[r]);
  }
  ScoreRows(work, rows, count);
  const size_t padded = RoundUp64(rows[count - 1].keys);
  for (int32_t r = 0; r < count; ++r) {
    SoftmaxRow(work, s.scores + r * s.stride, padded, rows[r]);
  }
  SumValues(work, rows, count);
  for (int32_t r = 0; r < count; ++r) {
    FinishRow(work, s.sums + static_cast<size_t>(r) * head_dim, rows[r]);
  }
}

void AttendHead(const AttentionArgs& args, int32_t kv_head) {
  const HeadWork work{
      &args, Scratch(args.scratch, static_cast<size_t>(args.position) + args.tokens, args.head_dim),
      kv_head};
  const int32_t rows = args.tokens * (args.num_heads / args.kv_heads);
  for (int32_t row = 0; row < rows; row += kRows) {
    AttendRows(work, row, rows - row < kRows ? rows - row : kRows);
  }
}

}  // namespace

void KvWrite(const KvWriteArgs& args) {
  const auto head_dim = static_cast<size_t>(args.head_dim);
  for (int32_t t = 0; t < args.tokens; ++t) {
    const int32_t position = args.position + t, slot = position % kKvBlockTokens;
    int8_t* block =
        args.cache.base +
        static_cast<size_t>(args.block_table[position / kKvBlockTokens]) * args.cache.block_stride;
    for (int32_t head = 0; head < args.kv_heads; ++head) {
      int8_t* k_tile = block + head * 2 * kKvBlockTokens * head_dim;
      int8_t* k_out = k_tile + slot / 16 * 16 * head_dim + slot % 16 * 4;
      int8_t* v_out = k_tile + kKvBlockTokens * head_dim + slot / 4 * 4 * head_dim + slot % 4;
      const size_t row = static_cast<size_t>(t) * args.stride + head * head_dim;
      for (size_t d = 0; d < head_dim; d += 4)
        __builtin_memcpy(k_out + d * 16, args.k + row + d, 4);
      for (size_t d = 0; d < head_dim; ++d) v_out[d * 4] = args.v[row + d];
    }
  }
}

size_t AttentionScratchBytes(int32_t /*max_tokens*/, int32_t max_keys, int32_t /*num_heads*/,
                             int32_t /*kv_heads*/, int32_t head_dim) {
  const size_t keys = RoundUp64(static_cast<size_t>(max_keys)), dim = static_cast<size_t>(head_dim);
  return kRows * dim * sizeof(int64_t) + kRows * keys * sizeof(int32_t) +
         (kKvBlockTokens + kRows) * dim * sizeof(int16_t);
}

void Attention(const AttentionArgs& args) {
  for (int32_t head = args.kv_head_begin; head < args.kv_head_end; ++head) AttendHead(args, head);
}

}  // namespace fixpoint::FIXPOINT_LEVEL
