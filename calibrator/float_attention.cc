#include "calibrator/float_attention.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "calibrator/vector_loops.h"

namespace fixpoint {
namespace {

float* Reserve(AlignedBuffer& buffer, int64_t count) {
  const size_t bytes = static_cast<size_t>(count) * sizeof(float);
  if (buffer.size_bytes() < bytes) buffer = AlignedBuffer(bytes);
  return buffer.as<float>();
}

int32_t RoundUp(int32_t n, int32_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace

KvBuffer::KvBuffer(GemmType type, int32_t layers, int32_t sequences, int32_t kv_heads,
                   int32_t min_capacity, int32_t head_dim)
    : type_(type),
      layers_(layers),
      sequences_(sequences),
      kv_heads_(kv_heads),
      capacity_(RoundUp(min_capacity, kQueryBlock)),
      head_dim_(head_dim) {
  const size_t bytes = static_cast<size_t>(Offset(layers, 0, 0, 0));
  k_ = AlignedBuffer(bytes);
  v_ = AlignedBuffer(bytes);
  if (bytes > 0) {
    std::memset(k_.data(), 0, bytes);
    std::memset(v_.data(), 0, bytes);
  }
}

void FloatAttention::Run(const FloatAttentionArgs& args) {
  const AttentionShape& s = args.shape;
  CHECK_LE(s.start + s.tokens, args.kv->capacity());
  const int32_t blocks = (s.tokens + kQueryBlock - 1) / kQueryBlock;
  const int64_t tasks = int64_t{s.sequences} * s.kv_heads * blocks;
  pool_.ParallelFor(tasks, 1, [&](int64_t first, int64_t last, int thread) {
    for (int64_t i = first; i < last; ++i) {
      // The longest rows first, so that the threads end together.
      Task task;
      task.begin =
          (blocks - 1 - static_cast<int32_t>(i / (s.sequences * s.kv_heads))) * kQueryBlock;
      task.sequence = static_cast<int32_t>(i / s.kv_heads % s.sequences);
      task.kv_head = static_cast<int32_t>(i % s.kv_heads);
      task.block = std::min(kQueryBlock, s.tokens - task.begin);
      task.keys = RoundUp(s.start + task.begin + task.block, kQueryBlock);
      RunTask(args, task, scratch_[thread]);
    }
  });
}

void FloatAttention::RunTask(const FloatAttentionArgs& args, const Task& task, Scratch& scratch) {
  const AttentionShape& s = args.shape;
  const GemmType type = args.kv->type();
  const int64_t rows = int64_t{s.group()} * task.block;
  float* scores = Reserve(scratch.scores, rows * task.keys);
  Reserve(scratch.weights, rows * task.keys);
  float* out = Reserve(scratch.out, rows * s.head_dim);
  gemm_.MultiplyHere(
      {.type = type,
       .rows = rows,
       .outputs = task.keys,
       .depth = s.head_dim,
       .x = static_cast<const std::byte*>(args.q) +
            s.QOffset(task.sequence, task.begin, task.kv_head * s.group()) * BytesOf(type),
       .x_stride = s.head_dim,
       .w = args.kv->k(args.kv_layer, task.sequence, task.kv_head, 0),
       .w_stride = s.head_dim,
       .y = scores,
       .y_stride = task.keys});
  Normalise(args, task, scratch);
  gemm_.MultiplyHere({.type = type,
                      .rows = rows,
                      .outputs = s.head_dim,
                      .depth = task.keys,
                      .x = scratch.weights.data(),
                      .x_stride = task.keys,
                      .w = args.kv->v(args.kv_layer, task.sequence, task.kv_head, 0),
                      .w_stride = s.head_dim,
                      .w_by_depth = true,
                      .y = out,
                      .y_stride = s.head_dim});

  const float* prefix_numerators = scratch.prefix.as<float>();
  const int32_t per_row = s.prefix_tokens + 1;
  for (int64_t row = 0; row < rows; ++row) {
    float* from = out + row * s.head_dim;
    const float* numerators = prefix_numerators + row * per_row;
    for (int32_t p = 0; p < s.prefix_tokens; ++p) {
      const float* v = args.prefix_v + (int64_t{task.kv_head} * s.prefix_tokens + p) * s.head_dim;
      Vec().add_scaled(from, v, numerators[p], s.head_dim);
    }
    Vec().scale_bias(from, s.head_dim, args.v_units[task.kv_head] / numerators[s.prefix_tokens],
                     nullptr, nullptr);
    const int64_t head = int64_t{task.kv_head} * s.group() + row / task.block;
    const int64_t token = int64_t{task.sequence} * s.tokens + task.begin + row % task.block;
    std::memcpy(args.out + (token * s.heads + head) * s.head_dim, from, s.head_dim * sizeof(float));
  }
}

// Scores to unnormalised softmax weights; the prefix's numerators and the row's sum go to
// scratch.prefix.
void FloatAttention::Normalise(const FloatAttentionArgs& args, const Task& task, Scratch& scratch) {
  const AttentionShape& s = args.shape;
  const bool bf16 = args.kv->type() == GemmType::kBf16;
  const int64_t rows = int64_t{s.group()} * task.block;
  const int32_t per_row = s.prefix_tokens + 1;
  float* numerators = Reserve(scratch.prefix, rows * per_row);
  float* q_row = Reserve(scratch.q_row, s.head_dim);
  const int64_t q_first = s.QOffset(task.sequence, task.begin, task.kv_head * s.group());
  for (int64_t row = 0; row < rows; ++row, numerators += per_row) {
    const int64_t keys = s.start + task.begin + row % task.block + 1;
    const float* scores = scratch.scores.as<float>() + row * task.keys;
    const float unit = args.score_units[task.kv_head * s.group() + row / task.block];
    float max = Vec().max(scores, keys);
    if (s.prefix_tokens > 0) {
      const float* q = static_cast<const float*>(args.q) + q_first + row * s.head_dim;
      if (bf16) {
        Vec().from_bf16(static_cast<const uint16_t*>(args.q) + q_first + row * s.head_dim,
                        s.head_dim, q_row);
        q = q_row;
      }
      for (int32_t p = 0; p < s.prefix_tokens; ++p) {
        numerators[p] =
            Vec().dot(q, args.prefix_k + (int64_t{task.kv_head} * s.prefix_tokens + p) * s.head_dim,
                      s.head_dim);
        max = std::max(max, numerators[p]);
      }
    }
    float sum =
        s.prefix_tokens > 0 ? Vec().exp_row(numerators, s.prefix_tokens, max, unit, numerators) : 0;
    if (bf16) {
      uint16_t* weights = scratch.weights.as<uint16_t>() + row * task.keys;
      sum += Vec().exp_row_bf16(scores, keys, max, unit, weights);
      std::fill(weights + keys, weights + task.keys, uint16_t{0});
    } else {
      float* weights = scratch.weights.as<float>() + row * task.keys;
      sum += Vec().exp_row(scores, keys, max, unit, weights);
      std::fill(weights + keys, weights + task.keys, 0.0f);
    }
    numerators[s.prefix_tokens] = sum;
  }
}

}  // namespace fixpoint
