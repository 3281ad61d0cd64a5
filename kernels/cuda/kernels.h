// The integer kernels for NVIDIA GPUs, as one table of launch functions without any CUDA type. The
// sources (*.cu in this folder) are compiled twice: by nvcc for the device ("cuda") and, for tests
// on machines without a GPU, by the host's compiler against kernels/cuda/emulator.h ("emulated").
// Both give the bits of kernels/reference/; rules and notation are those of kernels/ops.h.
//
// All pointers are the device's. A function enqueues its work on `stream` and returns 0, or the
// cudaError_t of the launch as an int; errors of the running kernel turn up at the next
// synchronization. Arguments are trusted. No function allocates or synchronizes. Thread-safe on
// disjoint outputs; the emulated ones run before they return.
//
// Alignment: planes, weights, accumulators, q and cache start at multiples of 16 bytes; activation
// and weight strides are multiples of 64 bytes, and bytes behind a row's end are zero.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/ops.h"
#include "kernels/reference/sampling.h"

namespace fixpoint {

struct CudaStream;  // cudaStream_t; the emulator ignores it

// Accumulators of a linear layer as the matrix products leave them: partial sums over `splits`
// ranges of the depth, and for an int16 site a second plane for the low bytes. The consumer puts
// them together, which is exact:
//   acc(t, c) = bias[c] + sum_s data[s][t][c]  (+ rs(sum_s data[plane_stride + s][t][c], 8))
struct Accumulators {
  const int32_t* data = nullptr;  // [planes][splits][tokens][stride]
  size_t stride = 0;              // elements between tokens, a multiple of 16
  size_t split_stride = 0;        // elements between splits
  size_t plane_stride = 0;        // elements between the planes; 0: an int8 site, one plane
  int32_t splits = 1;
  const int32_t* bias = nullptr;  // [outputs] or nullptr
};

// Products of at most kSkinnyTokens rows of both planes together read each weight once; more rows
// are done kSkinnyTokens at a time.
inline constexpr int32_t kSkinnyTokens = 64;
inline constexpr int32_t kGemmDepthStep = 64;   // depths and their strides are multiples of it
inline constexpr int32_t kGemmOutputStep = 16;  // outputs are padded with zero rows up to it
struct CudaGemmArgs {
  const int8_t* weights;  // [outputs][depth], row-major as cuBLASLt takes it too
  int32_t outputs;        // multiple of kGemmOutputStep
  int32_t depth;          // multiple of kGemmDepthStep; columns behind the real depth are zero
  ActivationPlanes x;     // [tokens][depth]
  int32_t tokens;
  int32_t splits;  // [1, 65535] ranges of the depth, each a partial sum of its own
  int32_t* acc;    // [planes][splits][tokens][acc_stride]
  size_t acc_stride;
  size_t split_stride, plane_stride;  // in elements
};

// RmsNormArgs without the rows. multipliers == nullptr: no norm.
struct CudaNorm {
  uint64_t epsilon = 0;
  int32_t fraction_bits = 8;
  const int16_t* multipliers = nullptr;
  int32_t k = 1;
  ActivationPlanes out;
};

// EmbedArgs, then rms_norm of the same rows.
struct CudaEmbedArgs {
  EmbedArgs embed;  // of its multipliers only the tokens' are read
  CudaNorm norm;
};

// ResidualAddArgs, then rms_norm of the same rows (norm.multipliers may be null).
struct CudaResidualArgs {
  Accumulators acc;
  int32_t tokens, hidden;
  WideParams requantize;
  int32_t* h;  // [tokens][hidden]
  CudaNorm norm;
};

// rms_norm of chosen rows: out[i] = norm(h[rows[i]]).
struct CudaGatherNormArgs {
  const int32_t* h;  // [..][hidden]
  const int32_t* rows;
  int32_t num_rows, hidden;
  CudaNorm norm;
};

// SwiGluArgs; gate is column c, up column channels + c of the accumulators.
struct CudaSwiGluArgs {
  Accumulators acc;
  int32_t tokens, channels;
  NarrowParams gate_requantize, up_requantize;
  int32_t sigmoid_multiplier, sigmoid_shift, product_shift;
  int32_t hadamard_block;
  NarrowParams out_requantize;
  ActivationPlanes out;
};

// The KV cache on the device. Block b, kv head h is at base + b * block_stride + h * 2 *
// kKvBlockTokens * head_dim: K as [token][dim], then V transposed, [dim][token]: int8 matrix
// instructions take operands whose summed index is contiguous, and that is the dimension for K and
// the token for V.
constexpr size_t CudaKIndex(int32_t token, int32_t d, int32_t head_dim) {
  return static_cast<size_t>(token) * head_dim + d;
}
constexpr size_t CudaVIndex(int32_t token, int32_t d, int32_t head_dim) {
  return static_cast<size_t>(kKvBlockTokens) * head_dim + static_cast<size_t>(d) * kKvBlockTokens +
         token;
}

// rotate_heads of q and k, narrow of v, and kv_write, from the accumulators of the qkv layer: rows
// q heads, k heads, v heads.
struct CudaRotateArgs {
  Accumulators acc;
  int32_t tokens, num_heads, kv_heads, head_dim;
  NarrowParams q_before, q_after, k_before, k_after, v;
  const int16_t* cos;  // Q14 [positions][head_dim / 2]; row rope_begin + positions[t]
  const int16_t* sin;
  int32_t rope_begin;  // tokens of the fixed prefix
  bool hadamard;
  const int32_t* positions;  // [tokens] cache position
  const int32_t* blocks;     // [tokens] KV block of that position
  int8_t* q;                 // [tokens][q_stride]
  size_t q_stride;
  KvLayer cache;
};

// Rows of attention that share a pass over the keys of one kv head: `tokens` consecutive tokens of
// a sequence times `heads` query heads of the group. Row r is token r / heads, head head_begin + r
// % heads of the group.
struct AttentionTile {
  int32_t token;         // row of the flat batch of the first token
  int32_t tokens;        // 1 if head_begin or heads say a part of the group; a tile of zeros is
                         // padding, which attend_decode passes over
  int32_t position;      // cache position of the first token
  int32_t head_begin;    // in the group
  int32_t heads;         // tokens * heads <= kDecodeRows or PrefillRows()
  int32_t table_begin;   // of the sequence's block table in block_tables
  int32_t score_begin;   // decode: first key of the tile in the score memory
  int32_t score_blocks;  // decode: KV blocks of its keys
};

inline constexpr int32_t kDecodeRows = 8;    // rows of a tile of attend_decode
inline constexpr int32_t kPrefillRows = 32;  // most rows of a tile of attend_prefill
constexpr int32_t PrefillRows(int32_t head_dim) {
  return head_dim <= 128 ? kPrefillRows : kPrefillRows / 2;
}
// Sums over so many keys stay in int32: 16383 * 127 * 1024 < 2^31.
inline constexpr int32_t kMaxSplitBlocks = 1024 / kKvBlockTokens;
static_assert(int64_t{16383} * 127 * kMaxSplitBlocks * kKvBlockTokens < (int64_t{1} << 31));
inline constexpr int32_t kMaxPrefixTokens = 16;

// AttentionArgs of many sequences at once.
struct CudaAttentionArgs {
  const int8_t* q;  // [tokens][q_stride]
  size_t q_stride;
  int32_t num_heads, kv_heads, head_dim;
  const AttentionTile* tiles;
  int32_t num_tiles;
  const int32_t* block_tables;
  KvLayer cache;
  const int16_t* prefix_k;  // [kv_heads][prefix_tokens][head_dim]
  const int16_t* prefix_v;
  int32_t prefix_tokens;      // [0, kMaxPrefixTokens]
  const ScoreParams* scores;  // [num_heads]
  NarrowParams requantize;    // p = 0
  ActivationPlanes out;       // [tokens][num_heads * head_dim]
};

// Attention with the keys cut into `splits` ranges of split_blocks KV blocks, for steps whose tiles
// alone would not fill the device. Three launches: scores and their maxima; numerators and
// weighted sums of each range; the merge. All sums are exact, so the split cannot change a bit.
struct CudaDecodeArgs {
  CudaAttentionArgs attention;
  int32_t split_blocks;   // [1, kMaxSplitBlocks]
  int32_t splits;         // enough for the longest tile
  int32_t row_stride;     // rows of the scores, [largest tile's rows, kDecodeRows]
  int32_t score_keys;     // keys of all tiles, in whole blocks
  int32_t* scores;        // [kv_heads][score_keys][row_stride]
  int32_t* maxima;        // [num_tiles][kv_heads][splits][kDecodeRows]
  int32_t* denominators;  // the same shape
  int32_t* sums;          // [num_tiles][kv_heads][splits][kDecodeRows][head_dim]
};

// LogitsArgs for all columns.
struct CudaLogitsArgs {
  Accumulators acc;
  int32_t rows, vocab;
  WideParams requantize;
  int32_t* logits;  // [rows][vocab]
};

enum class SampleKind : int32_t {
  kNothing,  // the row's logits are wanted, or it is padding: its token is -1
  kGreedy,   // the largest logit, the lowest id on ties
  kDraw,
};

// How the token of a row is chosen: the SamplingParams of engine/sampling_params.h and what depends
// on the token's position.
struct CudaSampleRow {
  SampleKind kind = SampleKind::kNothing;
  // Of kDraw only, from here.
  int32_t top_k = 0;  // 0: off; larger than the vocabulary is as good as off
  uint32_t top_p_q16 = 65536, min_p_q16 = 0;
  ExpScale scale;       // of the temperature
  uint64_t random = 0;  // of the seed and the token's position
};

// Tokens by the rules of engine/sampler.h, without a mask. Sums are exact and ties go by id, so the
// order in which threads work cannot change a token.
struct CudaSampleArgs {
  const int32_t* logits;         // [rows][vocab], |logit| < 2^30
  int32_t rows, vocab;           // vocab in [1, 2^20]
  const CudaSampleRow* choices;  // [rows]
  int32_t* tokens;               // [rows]
};

struct CudaKernels {
  const char* name;  // "cuda", "emulated"
  int (*gemm)(const CudaGemmArgs&, CudaStream*);
  int (*embed)(const CudaEmbedArgs&, CudaStream*);
  int (*residual)(const CudaResidualArgs&, CudaStream*);
  int (*gather_norm)(const CudaGatherNormArgs&, CudaStream*);
  int (*swiglu)(const CudaSwiGluArgs&, CudaStream*);
  int (*rotate)(const CudaRotateArgs&, CudaStream*);
  int (*attend_prefill)(const CudaAttentionArgs&, CudaStream*);
  int (*attend_decode)(const CudaDecodeArgs&, CudaStream*);
  int (*logits)(const CudaLogitsArgs&, CudaStream*);
  int (*sample)(const CudaSampleArgs&, CudaStream*);
};

const CudaKernels& DeviceKernels();    // target fixpoint_kernels_cuda
const CudaKernels& EmulatedKernels();  // target fixpoint_kernels_emulated

}  // namespace fixpoint
