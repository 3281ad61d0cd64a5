// Gradients of float_attention.h, for training.
#pragma once

#include <vector>

#include "base/aligned_buffer.h"
#include "base/thread_pool.h"
#include "calibrator/float_attention.h"

namespace fixpoint {

// All gradients are those of real values: unit * integer where the site is rounded.
struct AttentionBackwardArgs {
  FloatAttentionArgs forward;      // as it ran; start must be 0
  const float* q_units = nullptr;  // [heads], 1 for float values
  const float* k_units = nullptr;  // [kv_heads]
  const float* out = nullptr;      // [rows][heads * head_dim], the forward pass's result
  const float* d_out = nullptr;    // [rows][heads * head_dim]
  float* d_heads = nullptr;        // [rows][(heads + 2 * kv_heads) * head_dim]: of q, k, v
  double* d_prefix_k = nullptr;    // [kv_heads][prefix_tokens][head_dim], added to; may be null
  double* d_prefix_v = nullptr;
};

// Holds the threads' scratch memory. Results do not depend on the number of threads.
class AttentionBackward {
 public:
  AttentionBackward(FloatGemm& gemm, ThreadPool& pool)
      : gemm_(gemm), pool_(pool), scratch_(pool.thread_count()) {}
  void Run(const AttentionBackwardArgs& args);

 private:
  struct Scratch {
    AlignedBuffer weights, d_scores;     // [rows][keys] float
    AlignedBuffer operand, transposed;   // [rows][keys], [keys][rows] of the product's type
    AlignedBuffer d_out, d_out_operand;  // [rows][head_dim]
    AlignedBuffer d_q, d_k, d_v;         // [rows][head_dim], [tokens][head_dim] float
    AlignedBuffer row, prefix;           // a row of q; numerators of the prefix
  };
  // One kv head of one sequence: its gradients of k and v are summed here alone.
  struct Task {
    int32_t sequence = 0, kv_head = 0;
  };
  struct Block {
    int32_t begin = 0, tokens = 0;  // queries
    int32_t keys = 0;               // rounded up to whole groups
    int64_t rows = 0;               // tokens * group
  };
  void RunTask(const AttentionBackwardArgs& args, const Task& task, int64_t index, Scratch& s);
  void RunBlock(const AttentionBackwardArgs& args, const Task& task, const Block& block,
                int64_t index, Scratch& s);
  void GatherOutputGradient(const AttentionBackwardArgs& args, const Task& task, const Block& block,
                            Scratch& s);
  void Row(const AttentionBackwardArgs& args, const Task& task, const Block& block, int64_t row,
           int64_t index, Scratch& s);
  void StoreResults(const AttentionBackwardArgs& args, const Task& task, Scratch& s);

  FloatGemm& gemm_;
  ThreadPool& pool_;
  std::vector<Scratch> scratch_;
  std::vector<double> prefix_sums_;  // [tasks][2][prefix_tokens][head_dim]
};

}  // namespace fixpoint
