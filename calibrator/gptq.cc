#include "calibrator/gptq.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <numeric>
#include <utility>

#include "absl/strings/str_format.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "calibrator/gemm.h"
#include "calibrator/inverse_cholesky.h"
#include "calibrator/vector_loops.h"

namespace fixpoint {
namespace {

constexpr float kLimit = 127;
// Rows that a thread rounds together: enough to reuse what it reads of U, few enough to share 576
// rows evenly.
constexpr int64_t kRowChunk = 48;

int64_t CheckedDepth(const SecondMoments& moments) {
  CHECK(moments.depth > 0) << "second moments of no channel";
  CHECK_EQ(static_cast<int64_t>(moments.sums.size()), moments.depth * moments.depth);
  return moments.depth;
}

float RoundToInt8(float v) { return std::nearbyint(std::clamp(v, -kLimit, kLimit)); }

// How errors travel between columns.
struct Compensation {
  std::vector<int32_t> order;  // [depth], columns of w in the order of rounding
  std::vector<float> carry;    // [depth][depth]: -U[i][j] / U[i][i] for j > i, in that order
};

// The diagonal after damping. Columns that never saw an input get 1: any positive number keeps them
// apart from the others.
absl::StatusOr<std::vector<double>> DampedDiagonal(const SecondMoments& moments, double damping) {
  const int64_t n = moments.depth;
  std::vector<double> diagonal(n);
  for (int64_t i = 0; i < n; ++i) {
    diagonal[i] = moments.sums[i * n + i];
    if (!(diagonal[i] >= 0) || !std::isfinite(diagonal[i])) {
      return absl::FailedPreconditionError(
          absl::StrFormat("second moments: %g on the diagonal at channel %d", diagonal[i], i));
    }
  }
  const double mean = std::reduce(diagonal.begin(), diagonal.end()) / static_cast<double>(n);
  for (int64_t i = 0; i < n; ++i) {
    if (diagonal[i] > 0) {
      diagonal[i] += damping * mean;
      continue;
    }
    const float* row = moments.sums.data() + i * n;
    if (std::any_of(row, row + n, [](float x) { return x != 0; })) {
      return absl::FailedPreconditionError(absl::StrFormat(
          "second moments: channel %d has 0 on the diagonal and other values beside it", i));
    }
    diagonal[i] = 1;
  }
  return diagonal;
}

// U comes from one factorisation: with the columns in reverse, A = L L^T, and L^-1 read backwards
// is U.
absl::StatusOr<Compensation> Compensate(const SecondMoments& moments, double damping,
                                        ThreadPool& pool) {
  const int64_t n = moments.depth;
  ASSIGN_OR_RETURN(const std::vector<double> diagonal, DampedDiagonal(moments, damping));
  Compensation result;
  result.order.resize(n);
  std::iota(result.order.begin(), result.order.end(), 0);
  std::stable_sort(result.order.begin(), result.order.end(), [&](int32_t a, int32_t b) {
    return moments.sums[a * n + a] > moments.sums[b * n + b];
  });

  const int64_t side = (n + kCholeskyTile - 1) / kCholeskyTile * kCholeskyTile;
  std::vector<double> a(static_cast<size_t>(side * side));
  pool.ParallelFor(side, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      double* row = a.data() + i * side;
      row[i] = 1;
      if (i >= n) continue;
      const int32_t from = result.order[n - 1 - i];
      row[i] = diagonal[from];
      for (int64_t j = 0; j < i; ++j) row[j] = moments.sums[from * n + result.order[n - 1 - j]];
    }
  });
  RETURN_IF_ERROR(Annotate(InvertCholeskyFactor(a.data(), side, pool),
                           absl::StrFormat("second moments of %d channels, damped by %g of the "
                                           "mean, in the order of rising diagonal",
                                           n, damping)));
  result.carry.resize(static_cast<size_t>(n * n));
  pool.ParallelFor(n, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const double* row = a.data() + (n - 1 - i) * side;
      const double scale = -1 / row[n - 1 - i];
      for (int64_t j = i + 1; j < n; ++j)
        result.carry[i * n + j] = static_cast<float>(row[n - 1 - j] * scale);
    }
  });
  return result;
}

// Rounds rows of one matrix; each thread has one.
class ChunkRounder {
 public:
  ChunkRounder(const Matrix& w, const std::vector<float>& steps, const Compensation& compensation,
               int64_t block, FloatGemm& gemm)
      : w_(w),
        steps_(steps),
        order_(compensation.order),
        carry_(compensation.carry),
        depth_(w.cols),
        block_(std::min<int64_t>(block, w.cols)),
        gemm_(gemm),
        values_(static_cast<size_t>(kRowChunk * depth_)),
        errors_(static_cast<size_t>(kRowChunk * block_)) {}

  // Rows [begin, end), at most kRowChunk. False when a weight is not finite.
  bool Round(int64_t begin, int64_t end, int8_t* out) {
    const int64_t rows = end - begin;
    for (int64_t r = 0; r < rows; ++r) {
      if (!LoadRow(begin + r, values_.data() + r * depth_)) return false;
    }
    for (int64_t first = 0; first < depth_; first += block_) {
      const int64_t last = std::min(depth_, first + block_);
      for (int64_t r = 0; r < rows; ++r) {
        RoundBlock(values_.data() + r * depth_, first, last, errors_.data() + r * block_,
                   out + (begin + r) * depth_);
      }
      if (last < depth_) CarryBeyond(rows, first, last);
    }
    return true;
  }

 private:
  bool LoadRow(int64_t r, float* values) const {
    const float inverse = 1 / steps_[r];
    bool finite = true;
    for (int64_t i = 0; i < depth_; ++i) {
      values[i] = w_.row(r)[order_[i]] * inverse;
      finite &= std::isfinite(values[i]);
    }
    return finite;
  }

  void RoundBlock(float* values, int64_t first, int64_t last, float* errors, int8_t* out) const {
    for (int64_t i = first; i < last; ++i) {
      const float q = RoundToInt8(values[i]);
      const float error = values[i] - q;
      out[order_[i]] = static_cast<int8_t>(q);
      errors[i - first] = error;
      Vec().add_scaled(values + i + 1, carry_.data() + i * depth_ + i + 1, error, last - i - 1);
    }
  }

  // What the errors of columns [first, last) do to the columns behind.
  void CarryBeyond(int64_t rows, int64_t first, int64_t last) {
    gemm_.MultiplyHere({.rows = rows,
                        .outputs = depth_ - last,
                        .depth = last - first,
                        .x = errors_.data(),
                        .x_stride = block_,
                        .w = carry_.data() + first * depth_ + last,
                        .w_stride = depth_,
                        .w_by_depth = true,
                        .y = values_.data() + last,
                        .y_stride = depth_,
                        .accumulate = true});
  }

  const Matrix& w_;
  const std::vector<float>& steps_;
  const std::vector<int32_t>& order_;
  const std::vector<float>& carry_;
  const int64_t depth_, block_;
  FloatGemm& gemm_;
  std::vector<float> values_;  // [kRowChunk][depth], in units of the step, in the order of rounding
  std::vector<float> errors_;  // [kRowChunk][block]
};

}  // namespace

absl::StatusOr<IntegerLinear> RoundWithMoments(const Matrix& w, const std::vector<float>& steps,
                                               const SecondMoments& moments,
                                               const GptqOptions& options, ThreadPool& pool) {
  CHECK_EQ(CheckedDepth(moments), w.cols);
  CHECK_EQ(static_cast<int64_t>(steps.size()), w.rows);
  for (const float step : steps) CHECK(step > 0) << "step " << step;
  if (!(options.damping >= 0) || !std::isfinite(options.damping)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("GPTQ damping must be finite and at least 0, not %g", options.damping));
  }
  if (options.block < 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("GPTQ block must be at least 1, not %d", options.block));
  }
  ASSIGN_OR_RETURN(const Compensation compensation, Compensate(moments, options.damping, pool));

  IntegerLinear result{.outputs = w.rows, .depth = w.cols, .steps = steps};
  result.values.resize(static_cast<size_t>(w.rows * w.cols));
  const std::unique_ptr<FloatGemm> gemm = CreateCpuGemm(pool);
  std::vector<std::unique_ptr<ChunkRounder>> rounders(pool.thread_count());
  std::atomic<int64_t> not_finite = -1;
  pool.ParallelFor(w.rows, kRowChunk, [&](int64_t begin, int64_t end, int thread) {
    if (rounders[thread] == nullptr) {
      rounders[thread] =
          std::make_unique<ChunkRounder>(w, steps, compensation, options.block, *gemm);
    }
    if (!rounders[thread]->Round(begin, end, result.values.data())) not_finite = begin;
  });
  if (not_finite >= 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("a weight in rows %d to %d is not finite in units of its step",
                        not_finite.load(), std::min(w.rows, not_finite + kRowChunk) - 1));
  }
  return result;
}

}  // namespace fixpoint
