#include "calibrator/train/attention_backward.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "calibrator/vector_loops.h"

namespace fixpoint {
namespace {

void* Reserve(AlignedBuffer& buffer, int64_t bytes) {
  if (static_cast<int64_t>(buffer.size_bytes()) < bytes)
    buffer = AlignedBuffer(static_cast<size_t>(bytes));
  return buffer.data();
}

int32_t RoundUp(int32_t n, int32_t multiple) { return (n + multiple - 1) / multiple * multiple; }

void ToOperand(const float* x, int64_t n, GemmType type, void* out) {
  if (type == GemmType::kBf16)
    Vec().to_bf16(x, n, static_cast<uint16_t*>(out));
  else
    std::memcpy(out, x, n * sizeof(float));
}

// out[column][row] = x[row][column], in squares that stay in the first cache.
template <typename T>
void Transpose(const T* x, int64_t rows, int64_t columns, T* out) {
  constexpr int64_t kSquare = 32;
  for (int64_t r0 = 0; r0 < rows; r0 += kSquare) {
    const int64_t r1 = std::min(rows, r0 + kSquare);
    for (int64_t c0 = 0; c0 < columns; c0 += kSquare) {
      const int64_t c1 = std::min(columns, c0 + kSquare);
      for (int64_t c = c0; c < c1; ++c) {
        for (int64_t r = r0; r < r1; ++r) out[c * rows + r] = x[r * columns + c];
      }
    }
  }
}

}  // namespace

void AttentionBackward::Run(const AttentionBackwardArgs& args) {
  const AttentionShape& shape = args.forward.shape;
  CHECK_EQ(shape.start, 0);
  const int64_t tasks = int64_t{shape.sequences} * shape.kv_heads;
  const int64_t prefix = int64_t{shape.prefix_tokens} * shape.head_dim;
  prefix_sums_.assign(tasks * 2 * prefix, 0);
  pool_.ParallelFor(tasks, 1, [&](int64_t first, int64_t last, int thread) {
    for (int64_t i = first; i < last; ++i) {
      RunTask(args,
              {.sequence = static_cast<int32_t>(i / shape.kv_heads),
               .kv_head = static_cast<int32_t>(i % shape.kv_heads)},
              i, scratch_[thread]);
    }
  });
  if (args.d_prefix_k == nullptr) return;
  for (int64_t i = 0; i < tasks; ++i) {
    const int64_t head = i % shape.kv_heads;
    for (int64_t j = 0; j < prefix; ++j) {
      args.d_prefix_k[head * prefix + j] += prefix_sums_[(2 * i) * prefix + j];
      args.d_prefix_v[head * prefix + j] += prefix_sums_[(2 * i + 1) * prefix + j];
    }
  }
}

void AttentionBackward::RunTask(const AttentionBackwardArgs& args, const Task& task, int64_t index,
                                Scratch& s) {
  const AttentionShape& shape = args.forward.shape;
  const int64_t padded = int64_t{RoundUp(shape.tokens, kQueryBlock)} * shape.head_dim;
  std::memset(Reserve(s.d_k, padded * 4), 0, padded * 4);
  std::memset(Reserve(s.d_v, padded * 4), 0, padded * 4);
  for (int32_t begin = 0; begin < shape.tokens; begin += kQueryBlock) {
    Block block{.begin = begin, .tokens = std::min(kQueryBlock, shape.tokens - begin)};
    block.keys = RoundUp(block.begin + block.tokens, kQueryBlock);
    block.rows = int64_t{shape.group()} * block.tokens;
    RunBlock(args, task, block, index, s);
  }
  StoreResults(args, task, s);
}

void AttentionBackward::RunBlock(const AttentionBackwardArgs& args, const Task& task,
                                 const Block& block, int64_t index, Scratch& s) {
  const FloatAttentionArgs& f = args.forward;
  const AttentionShape& shape = f.shape;
  const GemmType type = f.kv->type();
  const int64_t d = shape.head_dim;
  const int64_t area = block.rows * block.keys;
  Reserve(s.weights, area * 4);
  Reserve(s.d_scores, area * 4);
  Reserve(s.operand, area * 4);
  Reserve(s.transposed, area * 4);
  const void* q =
      static_cast<const std::byte*>(f.q) +
      shape.QOffset(task.sequence, block.begin, task.kv_head * shape.group()) * BytesOf(type);
  const void* k = f.kv->k(f.kv_layer, task.sequence, task.kv_head, 0);
  const void* v = f.kv->v(f.kv_layer, task.sequence, task.kv_head, 0);
  GatherOutputGradient(args, task, block, s);
  const GemmArgs scores{.type = type,
                        .rows = block.rows,
                        .outputs = block.keys,
                        .depth = d,
                        .x = q,
                        .x_stride = d,
                        .w = k,
                        .w_stride = d,
                        .y = s.weights.as<float>(),
                        .y_stride = block.keys};
  gemm_.MultiplyHere(scores);
  GemmArgs d_weights = scores;
  d_weights.x = s.d_out_operand.data();
  d_weights.w = v;
  d_weights.y = s.d_scores.as<float>();
  gemm_.MultiplyHere(d_weights);

  Reserve(s.d_q, block.rows * d * 4);
  for (int64_t row = 0; row < block.rows; ++row) Row(args, task, block, row, index, s);

  // d_v += weights^T * d_out, d_k += d_scores^T * q, d_q += d_scores * k.
  const auto transpose = [&] {
    if (type == GemmType::kBf16)
      Transpose(s.operand.as<uint16_t>(), block.rows, block.keys, s.transposed.as<uint16_t>());
    else
      Transpose(s.operand.as<float>(), block.rows, block.keys, s.transposed.as<float>());
  };
  GemmArgs by_key{.type = type,
                  .rows = block.keys,
                  .outputs = d,
                  .depth = block.rows,
                  .x = s.transposed.data(),
                  .x_stride = block.rows,
                  .w = s.d_out_operand.data(),
                  .w_stride = d,
                  .w_by_depth = true,
                  .y = s.d_v.as<float>(),
                  .y_stride = d,
                  .accumulate = true};
  ToOperand(s.weights.as<float>(), area, type, s.operand.data());
  transpose();
  gemm_.MultiplyHere(by_key);
  ToOperand(s.d_scores.as<float>(), area, type, s.operand.data());
  transpose();
  by_key.w = q;
  by_key.y = s.d_k.as<float>();
  gemm_.MultiplyHere(by_key);
  gemm_.MultiplyHere({.type = type,
                      .rows = block.rows,
                      .outputs = d,
                      .depth = block.keys,
                      .x = s.operand.data(),
                      .x_stride = block.keys,
                      .w = k,
                      .w_stride = d,
                      .w_by_depth = true,
                      .y = s.d_q.as<float>(),
                      .y_stride = d,
                      .accumulate = true});
  const int64_t stride = int64_t{shape.heads + 2 * shape.kv_heads} * d;
  for (int64_t row = 0; row < block.rows; ++row) {
    const int64_t head = int64_t{task.kv_head} * shape.group() + row / block.tokens;
    const int64_t token = int64_t{task.sequence} * shape.tokens + block.begin + row % block.tokens;
    float* from = s.d_q.as<float>() + row * d;
    Vec().scale_bias(from, d, 1 / args.q_units[head], nullptr, nullptr);
    std::memcpy(args.d_heads + token * stride + head * d, from, d * sizeof(float));
  }
}

// The rows of this task, in the order of q: all tokens of the first head of the group, then of the
// next.
void AttentionBackward::GatherOutputGradient(const AttentionBackwardArgs& args, const Task& task,
                                             const Block& block, Scratch& s) {
  const AttentionShape& shape = args.forward.shape;
  const int64_t d = shape.head_dim;
  Reserve(s.d_out, block.rows * d * 4);
  Reserve(s.d_out_operand, block.rows * d * 4);
  for (int64_t row = 0; row < block.rows; ++row) {
    const int64_t head = int64_t{task.kv_head} * shape.group() + row / block.tokens;
    const int64_t token = int64_t{task.sequence} * shape.tokens + block.begin + row % block.tokens;
    std::memcpy(s.d_out.as<float>() + row * d, args.d_out + (token * shape.heads + head) * d,
                d * sizeof(float));
  }
  ToOperand(s.d_out.as<float>(), block.rows * d, args.forward.kv->type(), s.d_out_operand.data());
}

// One query of one head: softmax again, then its weights and the gradients of its scores, times the
// unit of the scores. What the prefix adds to the gradient of q goes to d_q.
void AttentionBackward::Row(const AttentionBackwardArgs& args, const Task& task, const Block& block,
                            int64_t row, int64_t index, Scratch& s) {
  const FloatAttentionArgs& f = args.forward;
  const AttentionShape& shape = f.shape;
  const int64_t d = shape.head_dim;
  const int32_t prefix_tokens = shape.prefix_tokens;
  const int64_t keys = block.begin + row % block.tokens + 1;
  const int64_t head = int64_t{task.kv_head} * shape.group() + row / block.tokens;
  const int64_t token = int64_t{task.sequence} * shape.tokens + block.begin + row % block.tokens;
  const float unit = f.score_units[head];
  const float v_unit = f.v_units[task.kv_head];
  float* weights = s.weights.as<float>() + row * block.keys;
  float* d_scores = s.d_scores.as<float>() + row * block.keys;
  const float* d_out = s.d_out.as<float>() + row * d;
  float* d_q = s.d_q.as<float>() + row * d;
  std::memset(d_q, 0, d * sizeof(float));

  float* q = static_cast<float*>(Reserve(s.row, d * 4));
  float* numerators = static_cast<float*>(Reserve(s.prefix, (prefix_tokens + 1) * 4));
  const float* prefix_k = f.prefix_k + int64_t{task.kv_head} * prefix_tokens * d;
  const float* prefix_v = f.prefix_v + int64_t{task.kv_head} * prefix_tokens * d;
  float max = Vec().max(weights, keys);
  if (prefix_tokens > 0) {
    const int64_t offset =
        shape.QOffset(task.sequence, block.begin, task.kv_head * shape.group()) + row * d;
    if (f.kv->type() == GemmType::kBf16)
      Vec().from_bf16(static_cast<const uint16_t*>(f.q) + offset, d, q);
    else
      std::memcpy(q, static_cast<const float*>(f.q) + offset, d * sizeof(float));
    for (int32_t p = 0; p < prefix_tokens; ++p) {
      numerators[p] = Vec().dot(q, prefix_k + p * d, d);
      max = std::max(max, numerators[p]);
    }
  }
  float sum =
      prefix_tokens > 0 ? Vec().exp_row(numerators, prefix_tokens, max, unit, numerators) : 0;
  sum += Vec().exp_row(weights, keys, max, unit, weights);
  const float delta = Vec().dot(d_out, args.out + (token * shape.heads + head) * d, d);
  Vec().softmax_backward(weights, d_scores, keys, 1 / sum, v_unit, delta);
  Vec().scale_bias(d_scores, keys, unit, nullptr, nullptr);
  std::fill(weights + keys, weights + block.keys, 0.0f);
  std::fill(d_scores + keys, d_scores + block.keys, 0.0f);

  for (int32_t p = 0; p < prefix_tokens; ++p) {
    const float weight = numerators[p] / sum;
    const float d_weight = v_unit * Vec().dot(d_out, prefix_v + p * d, d);
    const float d_score = unit * weight * (d_weight - delta);
    Vec().add_scaled(d_q, prefix_k + p * d, d_score, d);
    if (args.d_prefix_k == nullptr) continue;
    double* sums = prefix_sums_.data() + (2 * index * prefix_tokens + p) * d;
    double* v_sums = sums + int64_t{prefix_tokens} * d;
    const float to_k = d_score / args.k_units[task.kv_head];
    for (int64_t i = 0; i < d; ++i) sums[i] += to_k * q[i];
    for (int64_t i = 0; i < d; ++i) v_sums[i] += weight * d_out[i];
  }
}

void AttentionBackward::StoreResults(const AttentionBackwardArgs& args, const Task& task,
                                     Scratch& s) {
  const AttentionShape& shape = args.forward.shape;
  const int64_t d = shape.head_dim;
  const int64_t stride = int64_t{shape.heads + 2 * shape.kv_heads} * d;
  for (int32_t token = 0; token < shape.tokens; ++token) {
    float* to = args.d_heads + (int64_t{task.sequence} * shape.tokens + token) * stride +
                int64_t{shape.heads + task.kv_head} * d;
    float* d_k = s.d_k.as<float>() + int64_t{token} * d;
    Vec().scale_bias(d_k, d, 1 / args.k_units[task.kv_head], nullptr, nullptr);
    std::memcpy(to, d_k, d * sizeof(float));
    std::memcpy(to + int64_t{shape.kv_heads} * d, s.d_v.as<float>() + int64_t{token} * d,
                d * sizeof(float));
  }
}

}  // namespace fixpoint
