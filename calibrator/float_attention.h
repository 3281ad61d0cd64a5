// Causal attention of a batch of sequences in float, or on fake-quantized integers, behind a common
// prefix.
#pragma once

#include <cstdint>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/thread_pool.h"
#include "calibrator/gemm.h"

namespace fixpoint {

inline constexpr int32_t kQueryBlock = 64;  // tokens of one attention task

// K and V of `layers` layers: element (sequence, kv head, position, d), position in [0, capacity).
// Starts as zeros, because products run over whole groups of positions and later ones are masked
// only after that.
class KvBuffer {
 public:
  KvBuffer() = default;
  KvBuffer(GemmType type, int32_t layers, int32_t sequences, int32_t kv_heads, int32_t min_capacity,
           int32_t head_dim);

  GemmType type() const { return type_; }
  int32_t sequences() const { return sequences_; }
  int32_t capacity() const { return capacity_; }
  int64_t bytes() const { return static_cast<int64_t>(k_.size_bytes() + v_.size_bytes()); }
  void* k(int32_t layer, int32_t sequence, int32_t kv_head, int32_t position) {
    return k_.data() + Offset(layer, sequence, kv_head, position);
  }
  void* v(int32_t layer, int32_t sequence, int32_t kv_head, int32_t position) {
    return v_.data() + Offset(layer, sequence, kv_head, position);
  }

 private:
  int64_t Offset(int32_t layer, int32_t sequence, int32_t kv_head, int32_t position) const {
    return (((int64_t{layer} * sequences_ + sequence) * kv_heads_ + kv_head) * capacity_ +
            position) *
           head_dim_ * BytesOf(type_);
  }

  GemmType type_ = GemmType::kFloat32;
  int32_t layers_ = 0, sequences_ = 0, kv_heads_ = 0, capacity_ = 0, head_dim_ = 0;
  AlignedBuffer k_, v_;
};

struct AttentionShape {
  int32_t sequences = 0,
          tokens = 0;  // [sequences][tokens], token i of a sequence at position start + i
  int32_t start = 0;
  int32_t heads = 0, kv_heads = 0, head_dim = 0, prefix_tokens = 0;

  int32_t group() const { return heads / kv_heads; }
  // Offset of (sequence, token, head) in the q buffer, in elements: the rows of one task, all heads
  // of a kv head for a block of tokens, lie together.
  int64_t QOffset(int32_t sequence, int32_t token, int32_t head) const {
    const int32_t begin = token / kQueryBlock * kQueryBlock;
    const int32_t block = tokens - begin < kQueryBlock ? tokens - begin : kQueryBlock;
    const int64_t first =
        ((int64_t{sequence} * kv_heads + head / group()) * tokens + begin) * group();
    return (first + int64_t{head % group()} * block + (token - begin)) * head_dim;
  }
};

// out[token][head][d] = v_unit * sum_j softmax_j(score_unit * q . k_j) v_j over the prefix and the
// positions up to the token's. Units are 1 and 1/sqrt(head_dim) for float values; scales for
// integers.
struct FloatAttentionArgs {
  AttentionShape shape;
  const void* q = nullptr;  // of kv->type(), see QOffset
  KvBuffer* kv = nullptr;
  int32_t kv_layer = 0;
  const float* score_units = nullptr;  // [heads]
  const float* v_units = nullptr;      // [kv_heads]
  const float* prefix_k =
      nullptr;  // [kv_heads][prefix_tokens][head_dim], in the units of k and v in `kv`
  const float* prefix_v = nullptr;
  float* out = nullptr;  // [sequences * tokens][heads * head_dim]
};

// Holds the threads' scratch memory.
class FloatAttention {
 public:
  FloatAttention(FloatGemm& gemm, ThreadPool& pool)
      : gemm_(gemm), pool_(pool), scratch_(pool.thread_count()) {}
  void Run(const FloatAttentionArgs& args);

 private:
  struct Scratch {
    AlignedBuffer scores, weights, out, q_row, prefix;
  };
  struct Task {
    int32_t sequence, kv_head, begin, block,
        keys;  // query tokens [begin, begin + block); keys rounded up
  };
  void RunTask(const FloatAttentionArgs& args, const Task& task, Scratch& scratch);
  void Normalise(const FloatAttentionArgs& args, const Task& task, Scratch& scratch);

  FloatGemm& gemm_;
  ThreadPool& pool_;
  std::vector<Scratch> scratch_;
};

}  // namespace fixpoint
