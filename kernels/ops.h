// The integer operations of a transformer step, as one table of plain functions per kernel level
// ("reference", "portable", "avx2", "vnni", "amx", "neon", "i8mm"). The reference level
// (kernels/reference/) is the specification; every other level gives the same bits.
// docs/NUMERICS.md derives the rules that the comments below state.
//
// All functions are pure apart from their outputs, thread-safe on disjoint outputs, never allocate,
// never log and use no floating point. Arguments are trusted: the bundle reader has checked every
// range before. Pointers to packed weights and KV blocks are 64-byte aligned.
//
// Notation: rs(x, n) = n == 0 ? x : (x + 2^(n-1)) >> n, arithmetic shift: nearest, ties toward
// +infinity.
//           sat8 clamps to [-127, 127], sat16 to [-32767, 32767].
//           narrow(v; p, M, k) = rs(int32(sat16(rs(v, p))) * M, k), then sat8, or the clamp of an
//           int16 site.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fixpoint {

inline constexpr int32_t kKvBlockTokens = 64;  // tokens in one KV cache block
inline constexpr int32_t kResidualLimit = (1 << 27) - 1;
inline constexpr int32_t kNormInputBits = 23;  // RMSNorm works on values below 2^23
inline constexpr int32_t kNormInputLimit = (1 << kNormInputBits) - 1;
inline constexpr int32_t kProductLimit = (1 << 21) - 1;  // 512 of them sum up below 2^30
inline constexpr int32_t kWideSiteLimit = 32512;  // 127 * 256: splits into hi, lo in [-128, 127]
inline constexpr int32_t kLogitLimit = (1 << 30) - 1;  // differences of two logits stay in int32
inline constexpr int32_t kMaxDepth = 131072;           // 127 * 127 * K + bias below 2^31
inline constexpr int32_t kMaxHiddenSize = 16384;       // sum of squares of 24-bit values below 2^60
inline constexpr int32_t kMaxContext = 131072;         // sum of 14-bit numerators below 2^31
inline constexpr int32_t kLinearAlign = 32;  // output ranges of `linear` start at multiples of it

// Two exact int8 planes of an int16 site: x = 256 * hi + lo. An int8 site has lo == nullptr.
// Rows are `stride` bytes apart; stride is a multiple of 64 and bytes behind the row's end are zero
// and readable.
struct ActivationPlanes {
  int8_t* hi = nullptr;  // [tokens][stride]
  int8_t* lo = nullptr;  // [tokens][stride] or nullptr
  size_t stride = 0;
};

// Requantization to int8 (or an int16 site): one multiplier per channel, shifts per tensor.
struct NarrowParams {
  const int16_t* multipliers = nullptr;  // [channels], each in [1, 2^15)
  int32_t p = 0;                         // [0, 30]
  int32_t k = 1;                         // [1, 30]
};

// Requantization to the residual stream or to logits: (int64(acc) * M + 2^(n-1)) >> n.
struct WideParams {
  const int32_t* multipliers = nullptr;  // [channels], each in [1, 2^31)
  int32_t n = 1;                         // [1, 62]
};

// acc[t][c] = bias[c] + sum_k x[t][k] * w[c][k]                                       int8 site
// acc[t][c] = bias[c] + (sum_k hi*w) + rs(sum_k lo*w, 8)                              int16 site
// for c in [output_begin, output_end). Exact in int32: the order of summation is free.
struct LinearArgs {
  const void* packed;  // from pack_weights, [outputs][depth]
  int32_t outputs;
  int32_t depth;
  const int32_t* bias;  // [outputs] or nullptr
  ActivationPlanes x;   // [tokens][depth]
  int32_t tokens;
  int32_t output_begin;  // multiple of kLinearAlign
  int32_t output_end;    // multiple of kLinearAlign, or outputs
  int32_t* acc;          // [tokens][acc_stride], column c at acc[t * acc_stride + c - output_begin]
  size_t acc_stride;  // in elements, multiple of 16, at least output_end rounded up to kLinearAlign
                      // less output_begin: what lies behind output_end may be written with junk
};

// h[t][j] = clamp(rs64(int64(row[j]) * M, n), +-kResidualLimit): one embedding row into the
// residual stream.
struct EmbedArgs {
  const int8_t* table;       // [vocab][hidden]
  WideParams requantize;     // multipliers [vocab]
  const int32_t* token_ids;  // [tokens]
  int32_t tokens, hidden;
  int32_t* h;  // [tokens][hidden]
};

// a = max(0, bit_width(max |h|) - kNormInputBits), for each row: 0 but for rare large rows
// x = clamp(rs(h, a), +-kNormInputLimit);  S = max(1, (epsilon >> 2a) + sum x^2) in uint64
// z = countl_zero(S) & ~1;  root = isqrt(S << z) (floor);  inv = min(2^62 / root (floor), 2^31 - 1)
// t = sat16(rs(x * inv, 62 - z/2 - fraction_bits))        so t = x / sqrt(S) * 2^fraction_bits
// out = sat8(rs(t * M[j], k)), or an int16 site: clamp to +-kWideSiteLimit, then split into planes
struct RmsNormArgs {
  const int32_t* h;  // [tokens][hidden]
  int32_t tokens, hidden;
  uint64_t epsilon;            // < 2^60
  int32_t fraction_bits;       // [8, 30]
  const int16_t* multipliers;  // [hidden]
  int32_t k;                   // [1, 30]
  ActivationPlanes out;        // [tokens][hidden]; lo == nullptr: int8 site
};

// Heads of q or k: one static int16 scale per tensor before RoPE, one int8 scale per head after it.
//   t = sat16(rs(int32(sat16(rs(acc, p))) * M, k))               `before`
//   RoPE over halves, i < d/2, c and s in Q14:
//   u[i]       = sat16(rs(t[i] * c[i] - t[i + d/2] * s[i], 14))
//   u[i + d/2] = sat16(rs(t[i + d/2] * c[i] + t[i] * s[i], 14))
//   optional Walsh-Hadamard of u over head_dim (Sylvester order, no scaling), exact in int32
//   out = sat8(narrow(u))                                        `after`
struct RotateHeadsArgs {
  const int32_t* acc;  // [tokens][acc_stride], heads * head_dim columns from here
  size_t acc_stride;
  int32_t tokens, heads, head_dim;
  NarrowParams before;  // multipliers [heads * head_dim]
  const int16_t* cos;  // Q14 [tokens][head_dim / 2], rows rope_stride apart, first row: first token
  const int16_t* sin;
  size_t rope_stride;  // in elements between the rows of consecutive positions
  bool hadamard;
  NarrowParams after;  // multipliers [heads * head_dim]
  int8_t* out;         // [tokens][out_stride]
  size_t out_stride;
};

// out = sat8(narrow(acc)): v heads.
struct NarrowArgs {
  const int32_t* acc;  // [tokens][acc_stride]
  size_t acc_stride;
  int32_t tokens, channels;
  NarrowParams requantize;
  int8_t* out;  // [tokens][out_stride]
  size_t out_stride;
};

// KV cache of one layer. Block b holds kKvBlockTokens tokens of every kv head, head h at
//   base + b * block_stride + h * 2 * kKvBlockTokens * head_dim:
//   K tile, then V tile, each kKvBlockTokens * head_dim bytes.
// K: groups of 16 keys, 4 dimensions together. V: 4 keys together (KTileIndex, VTileIndex).
// Both are what VNNI, AMX and sdot load as an operand without shuffling. head_dim is a multiple
// of 16.
struct KvLayer {
  int8_t* base = nullptr;
  size_t block_stride = 0;  // bytes between blocks
};
constexpr size_t KTileIndex(int32_t token, int32_t d, int32_t head_dim) {
  return static_cast<size_t>(token / 16) * 16 * head_dim + static_cast<size_t>(d / 4) * 64 +
         static_cast<size_t>(token % 16) * 4 + d % 4;
}
constexpr size_t VTileIndex(int32_t token, int32_t d, int32_t head_dim) {
  return static_cast<size_t>(token / 4) * 4 * head_dim + static_cast<size_t>(d) * 4 + token % 4;
}

// Writes k and v rows of `tokens` consecutive tokens, the first at cache position `position`.
struct KvWriteArgs {
  const int8_t* k;  // [tokens][stride], kv_heads * head_dim columns
  const int8_t* v;
  size_t stride;
  int32_t tokens, kv_heads, head_dim;
  int32_t position;            // cache position of the first token; the prefix is not counted
  const int32_t* block_table;  // block of cache positions [i * kKvBlockTokens, ...)
  KvLayer cache;
};

// Softmax numerator of a score s below the row's maximum m, all in int32:
//   d = min(m - s, d_max)
//   y = rs(rs(d, a) * C, n)                  log2 units with 15 fraction bits; the product is <
//   2^31 f = y & 32767 P = 16384 + f*(-11354 + f*(3922 + f*(-871 + f*111)))    each product rs(.,
//   15): 2^-f in Q14 e = min(rs(P, y >> 15), 16383)           0 where y >> 15 >= 16
struct ScoreParams {
  int32_t d_max;  // [1, 2^30)
  int32_t a;      // [0, 15]
  int32_t c;      // [1, 2^16); rs(d_max, a) * c + 2^(n-1) < 2^31
  int32_t n;      // [1, 30]
};

// Causal attention of `tokens` consecutive tokens of one sequence for kv heads [kv_head_begin,
// kv_head_end) and all query heads that share them. Token i sees the prefix and the cache positions
// 0 .. position + i. Two passes, never rescaled:
//   s_j = q . k_j;  m = max_j s_j;  e_j from ScoreParams;  Z = sum e_j
//   A_d = sum_j e_j * v_jd                   exact in int64
//   b = bit_width(Z);  R = min(2^61 / (Z << (31 - b)) (floor), 2^31 - 1);  s = max(0, b - 16)
//   t = sat16(rs(sat32(rs(A, s)) * R, 23 + b - s))          128 * A / Z
//   out = sat8(rs(t * M, k)), or an int16 site              NarrowParams with p = 0
struct AttentionArgs {
  const int8_t* q;  // [tokens][q_stride], num_heads * head_dim columns
  size_t q_stride;
  int32_t tokens, position;
  int32_t num_heads, kv_heads, head_dim;
  int32_t kv_head_begin, kv_head_end;
  KvLayer cache;
  const int32_t* block_table;
  const int16_t* prefix_k;  // [kv_heads][prefix_tokens][head_dim] in the scale of the int8 cache
  const int16_t* prefix_v;
  int32_t prefix_tokens;      // [0, 16]
  const ScoreParams* scores;  // [num_heads]
  NarrowParams requantize;    // multipliers [num_heads * head_dim], p = 0
  ActivationPlanes out;       // [tokens][num_heads * head_dim]
  void* scratch;              // attention_scratch_bytes(), 64-byte aligned, one per thread
};

// The same for one token and one kv head (kv_head_end = kv_head_begin + 1) by several threads, each
// with a part of the keys: score for all parts, then weigh for all parts, then finish, which writes
// the output. Sums over parts are exact, so the result is that of `attention`. Parts of one stage
// may run at once, with the same args; args.scratch is shared by all of them, bytes() in size, and
// keeps its contents from stage to stage.
struct AttentionParts {
  // keys: cache positions, the token's own included. group: query heads of the kv head.
  size_t (*bytes)(int32_t keys, int32_t parts, int32_t group, int32_t head_dim);
  void (*score)(const AttentionArgs&, int32_t part, int32_t parts);  // part in [0, parts)
  void (*weigh)(const AttentionArgs&, int32_t part, int32_t parts);
  void (*finish)(const AttentionArgs&, int32_t parts);
};

// h = clamp(h + rs64(int64(acc) * M, n), +-kResidualLimit), h within the limit before
struct ResidualAddArgs {
  const int32_t* acc;  // [tokens][acc_stride]
  size_t acc_stride;
  int32_t tokens, hidden;
  WideParams requantize;
  int32_t* h;  // [tokens][hidden]
};

// g, u = sat16(rs(int32(sat16(rs(acc, p))) * M, k)) each, then y = silu(g) in g's scale:
//   a = |g|;  i = min(rs(a * sigmoid_multiplier, sigmoid_shift), 32767)       |x| in Q11
//   w = T[i >> 8] + rs((T[(i >> 8) + 1] - T[i >> 8]) * (i & 255), 8)          T = kSigmoidTable
//   r = rs(a * w, 15);  y = g >= 0 ? a - r : -r
// t = clamp(rs(y * u, product_shift), +-kProductLimit)
// Walsh-Hadamard of t (Sylvester, no scaling) over blocks of hadamard_block, exact in int32
// out = narrow(t; out_requantize), int8 or an int16 site
struct SwiGluArgs {
  const int32_t* gate;  // [tokens][acc_stride]
  const int32_t* up;    // [tokens][acc_stride]
  size_t acc_stride;
  int32_t tokens, channels;
  NarrowParams gate_requantize, up_requantize;
  int32_t sigmoid_multiplier;   // [1, 2^15)
  int32_t sigmoid_shift;        // [1, 30]
  int32_t product_shift;        // [1, 30]
  int32_t hadamard_block;       // power of two dividing channels, 1 (none) .. 512
  NarrowParams out_requantize;  // multipliers [channels]
  ActivationPlanes out;         // [tokens][channels]
  int32_t* scratch;             // [channels], one per thread
};

// logits = clamp(rs64(int64(acc) * M, n), +-kLogitLimit)
struct LogitsArgs {
  const int32_t* acc;  // [tokens][acc_stride]
  size_t acc_stride;
  int32_t tokens;
  int32_t column_begin, column_end;
  WideParams requantize;  // [vocab]
  int32_t* logits;        // [tokens][logits_stride]
  size_t logits_stride;
};

struct Ops {
  const char* name;
  // Packed form of row-major weights [outputs][depth]. The packed buffer is 64-byte aligned and
  // owned by the caller.
  size_t (*packed_weight_bytes)(int32_t outputs, int32_t depth);
  // Packs outputs [output_begin, output_end) (begin a multiple of kLinearAlign), so that threads
  // can share the work.
  void (*pack_weights)(const int8_t* weights, int32_t outputs, int32_t depth, int32_t output_begin,
                       int32_t output_end, void* packed);
  void (*linear)(const LinearArgs&);
  void (*embed)(const EmbedArgs&);
  void (*rms_norm)(const RmsNormArgs&);
  void (*rotate_heads)(const RotateHeadsArgs&);
  void (*narrow)(const NarrowArgs&);
  void (*kv_write)(const KvWriteArgs&);
  // Bytes of scratch for AttentionArgs with at most max_tokens tokens a call and max_keys keys
  // (prefix included).
  size_t (*attention_scratch_bytes)(int32_t max_tokens, int32_t max_keys, int32_t num_heads,
                                    int32_t kv_heads, int32_t head_dim);
  void (*attention)(const AttentionArgs&);
  const AttentionParts* attention_parts;  // null where the level has none
  void (*residual_add)(const ResidualAddArgs&);
  void (*swiglu)(const SwiGluArgs&);
  void (*logits)(const LogitsArgs&);
  // Called once in each thread before it runs other functions of this table (AMX tile
  // configuration). May be null.
  void (*thread_init)();
};

}  // namespace fixpoint
