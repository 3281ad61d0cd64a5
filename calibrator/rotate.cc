#include "calibrator/rotate.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "calibrator/random.h"
#include "calibrator/vector_loops.h"

namespace fixpoint {
namespace {

constexpr int64_t kRowsAtOnce = 4096;  // temporary of the rotation: this many rows

class Rotation {
 public:
  Rotation(FloatModel& model, const RotationOptions& options, FloatGemm& gemm, ThreadPool& pool)
      : model_(model), options_(options), gemm_(gemm), pool_(pool) {
    if (options.residual) q_ = RandomOrthogonal(model.config.hidden_size, options.seed, pool);
  }

  OnlineTransforms Run() {
    const FloatConfig& c = model_.config;
    if (model_.head.rows == 0) model_.head = model_.embedding;
    model_.config.tie_word_embeddings = false;
    FoldInput(model_.final_norm, {&model_.head});
    TurnColumns(model_.embedding);

    OnlineTransforms online;
    online.down_block = HadamardBlock(c.intermediate_size, options_.max_down_block);
    const int32_t v_block = options_.v_hadamard ? HadamardBlock(c.head_dim, c.head_dim) : 1;
    online.qk_hadamard =
        options_.qk_hadamard && HadamardBlock(c.head_dim, c.head_dim) == c.head_dim;
    for (FloatLayer& layer : model_.layers) {
      FoldInput(layer.attn_norm, {&layer.q_proj, &layer.k_proj, &layer.v_proj});
      FoldInput(layer.mlp_norm, {&layer.gate_proj, &layer.up_proj});
      HadamardRows(layer.v_proj, v_block);
      if (!layer.v_bias.empty()) Vec().hadamard(layer.v_bias.data(), layer.v_proj.rows, v_block);
      HadamardColumns(layer.o_proj, v_block);
      HadamardColumns(layer.down_proj, online.down_block);
      TurnRows(layer.o_proj);
      TurnRows(layer.down_proj);
    }
    return online;
  }

 private:
  // Moves a norm's gain into the weights behind it and turns their columns.
  void FoldInput(std::vector<float>& gain, const std::vector<Matrix*>& consumers) {
    for (Matrix* w : consumers) {
      pool_.ParallelFor(w->rows, 64, [&](int64_t begin, int64_t end, int) {
        for (int64_t r = begin; r < end; ++r) {
          float* row = w->row(r);
          for (int64_t c = 0; c < w->cols; ++c) row[c] *= gain[c];
        }
      });
      TurnColumns(*w);
    }
    std::fill(gain.begin(), gain.end(), 1.0f);
  }

  // W = W Q^T
  void TurnColumns(Matrix& w) {
    if (q_.empty()) return;
    temporary_.resize(std::min(w.rows, kRowsAtOnce) * w.cols);
    for (int64_t begin = 0; begin < w.rows; begin += kRowsAtOnce) {
      const int64_t rows = std::min(kRowsAtOnce, w.rows - begin);
      gemm_.Multiply({.rows = rows,
                      .outputs = w.cols,
                      .depth = w.cols,
                      .x = w.row(begin),
                      .x_stride = w.cols,
                      .w = q_.data(),
                      .w_stride = w.cols,
                      .y = temporary_.data(),
                      .y_stride = w.cols});
      std::memcpy(w.row(begin), temporary_.data(), rows * w.cols * sizeof(float));
    }
  }

  // W = Q W
  void TurnRows(Matrix& w) {
    if (q_.empty()) return;
    temporary_.resize(w.rows * w.cols);
    gemm_.Multiply({.rows = w.rows,
                    .outputs = w.cols,
                    .depth = w.rows,
                    .x = q_.data(),
                    .x_stride = w.rows,
                    .w = w.data.data(),
                    .w_stride = w.cols,
                    .w_by_depth = true,
                    .y = temporary_.data(),
                    .y_stride = w.cols});
    std::memcpy(w.data.data(), temporary_.data(), w.rows * w.cols * sizeof(float));
  }

  void HadamardColumns(Matrix& w, int32_t block) {
    if (block == 1) return;
    pool_.ParallelFor(w.rows, 16, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) Vec().hadamard(w.row(r), w.cols, block);
    });
  }

  // Each run of `block` rows becomes H times itself: butterflies between whole rows.
  void HadamardRows(Matrix& w, int32_t block) {
    if (block == 1) return;
    const float factor = 1 / std::sqrt(static_cast<float>(block));
    pool_.ParallelFor(w.rows / block, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t b = begin; b < end; ++b) {
        for (int32_t width = 1; width < block; width *= 2) {
          for (int32_t r = 0; r < block; ++r) {
            if (r & width) continue;
            float* upper = w.row(b * block + r);
            float* lower = w.row(b * block + r + width);
            for (int64_t c = 0; c < w.cols; ++c) {
              const float sum = upper[c] + lower[c];
              lower[c] = upper[c] - lower[c];
              upper[c] = sum;
            }
          }
        }
        for (int64_t i = 0; i < block * w.cols; ++i) w.row(b * block)[i] *= factor;
      }
    });
  }

  FloatModel& model_;
  const RotationOptions& options_;
  FloatGemm& gemm_;
  ThreadPool& pool_;
  std::vector<float> q_;  // [hidden][hidden], empty: identity
  std::vector<float> temporary_;
};

}  // namespace

OnlineTransforms FoldAndRotate(FloatModel& model, const RotationOptions& options, FloatGemm& gemm,
                               ThreadPool& pool) {
  return Rotation(model, options, gemm, pool).Run();
}

std::vector<float> RandomOrthogonal(int64_t n, uint64_t seed, ThreadPool& pool) {
  std::vector<double> rows(n * n);
  Random random(seed, /*stream=*/1);
  for (double& value : rows) value = random.Normal();
  // Modified Gram-Schmidt: each finished row is taken out of all later ones. A Gaussian matrix of
  // this size is conditioned well enough (about n) for double to lose 3 to 4 digits only.
  for (int64_t i = 0; i < n; ++i) {
    double* pivot = rows.data() + i * n;
    double norm = 0;
    for (int64_t c = 0; c < n; ++c) norm += pivot[c] * pivot[c];
    const double inverse = 1 / std::sqrt(norm);
    for (int64_t c = 0; c < n; ++c) pivot[c] *= inverse;
    pool.ParallelFor(n - i - 1, 32, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = i + 1 + begin; r < i + 1 + end; ++r) {
        double* row = rows.data() + r * n;
        double dot[8] = {};
        int64_t c = 0;
        for (; c + 8 <= n; c += 8) {
          for (int j = 0; j < 8; ++j) dot[j] += row[c + j] * pivot[c + j];
        }
        for (; c < n; ++c) dot[0] += row[c] * pivot[c];
        const double sum =
            ((dot[0] + dot[1]) + (dot[2] + dot[3])) + ((dot[4] + dot[5]) + (dot[6] + dot[7]));
        for (c = 0; c < n; ++c) row[c] -= sum * pivot[c];
      }
    });
  }
  return std::vector<float>(rows.begin(), rows.end());
}

int32_t HadamardBlock(int32_t n, int32_t limit) {
  CHECK(n >= 1 && limit >= 1) << n << ", " << limit;
  int32_t block = 1;
  while (block * 2 <= limit && n % (block * 2) == 0) block *= 2;
  return block;
}

}  // namespace fixpoint
