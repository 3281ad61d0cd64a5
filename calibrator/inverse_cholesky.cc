#include "calibrator/inverse_cholesky.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "absl/strings/str_format.h"
#include "base/aligned_buffer.h"
#include "base/check.h"

namespace fixpoint {
namespace {

constexpr int64_t kTile = kCholeskyTile;
// Rows of a packed right operand that are used at a time: 128 KiB of them stay in the L2 cache.
constexpr int64_t kDepthBlock = 4 * kTile;

// c [64][c_stride] -= a [64][a_stride] * b [depth][64]. kRows x (2 * kBytes) of c are held in
// registers.
template <int kBytes, int kRows>
[[gnu::always_inline]] inline void SubtractProductBody(const double* a, int64_t a_stride,
                                                       const double* b, int64_t depth, double* c,
                                                       int64_t c_stride) {
  typedef double Vector __attribute__((vector_size(kBytes), aligned(8), may_alias));
  constexpr int64_t kLanes = kBytes / 8;
  for (int64_t column = 0; column < kTile; column += 2 * kLanes) {
    for (int64_t row = 0; row < kTile; row += kRows) {
      Vector sum[kRows][2] = {};
      for (int64_t k = 0; k < depth; ++k) {
        const Vector* right = reinterpret_cast<const Vector*>(b + k * kTile + column);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const double left = a[(row + r) * a_stride + k];
          sum[r][0] += left * right[0];
          sum[r][1] += left * right[1];
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        Vector* out = reinterpret_cast<Vector*>(c + (row + r) * c_stride + column);
        out[0] -= sum[r][0];
        out[1] -= sum[r][1];
      }
    }
  }
}

using SubtractProductFunction = void (*)(const double* a, int64_t a_stride, const double* b,
                                         int64_t depth, double* c, int64_t c_stride);

void SubtractProductBaseline(const double* a, int64_t a_stride, const double* b, int64_t depth,
                             double* c, int64_t c_stride) {
  SubtractProductBody<16, 4>(a, a_stride, b, depth, c, c_stride);
}

#ifdef __x86_64__
[[gnu::target("avx2,fma")]] void SubtractProductAvx2(const double* a, int64_t a_stride,
                                                     const double* b, int64_t depth, double* c,
                                                     int64_t c_stride) {
  SubtractProductBody<32, 4>(a, a_stride, b, depth, c, c_stride);
}

[[gnu::target("avx512f,avx2,fma")]] void SubtractProductAvx512(const double* a, int64_t a_stride,
                                                               const double* b, int64_t depth,
                                                               double* c, int64_t c_stride) {
  SubtractProductBody<64, 8>(a, a_stride, b, depth, c, c_stride);
}
#endif

SubtractProductFunction ChooseSubtractProduct() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f")) return SubtractProductAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return SubtractProductAvx2;
#endif
  return SubtractProductBaseline;
}

// The matrix in tiles: tile (i, j) starts at row 64 i, column 64 j.
class TiledMatrix {
 public:
  TiledMatrix(double* a, int64_t n, ThreadPool& pool)
      : a_(a),
        n_(n),
        tiles_(n / kTile),
        pool_(pool),
        left_(static_cast<size_t>(kTile * n)),
        right_(static_cast<size_t>(kTile * n)) {
    for (int i = 0; i < pool.thread_count(); ++i)
      packed_.emplace_back(static_cast<size_t>(kDepthBlock * kTile) * sizeof(double));
  }

  absl::Status Factorise();
  void InvertFactor();

 private:
  double* Tile(int64_t i, int64_t j) { return a_ + i * kTile * n_ + j * kTile; }
  void TransposeRowPanel(int64_t k);
  void UpdateTile(int64_t i, int64_t k);
  absl::Status FactoriseDiagonal(int64_t k, const std::vector<double>& original_diagonal);
  void SolveTile(int64_t i, int64_t k);
  void CopyRowPanel(int64_t i);
  void InvertTile(int64_t i, int64_t j, double* packed);
  void InvertDiagonal(int64_t i);

  double* const a_;
  const int64_t n_, tiles_;
  ThreadPool& pool_;
  const SubtractProductFunction subtract_product_ = ChooseSubtractProduct();
  std::vector<double> left_;   // a row panel as it is, [64][n]
  std::vector<double> right_;  // a row panel transposed, [n][64]
  std::vector<AlignedBuffer> packed_;
};

// Tile column after tile column, each from all that are left of it.
absl::Status TiledMatrix::Factorise() {
  std::vector<double> diagonal(static_cast<size_t>(n_));
  for (int64_t i = 0; i < n_; ++i) diagonal[i] = a_[i * n_ + i];
  for (int64_t k = 0; k < tiles_; ++k) {
    if (k > 0) {
      TransposeRowPanel(k);
      pool_.ParallelFor(tiles_ - k, 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) UpdateTile(k + i, k);
      });
    }
    if (absl::Status status = FactoriseDiagonal(k, diagonal); !status.ok()) return status;
    pool_.ParallelFor(tiles_ - k - 1, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) SolveTile(k + 1 + i, k);
    });
  }
  return absl::OkStatus();
}

void TiledMatrix::TransposeRowPanel(int64_t k) {
  pool_.ParallelFor(k, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t j = begin; j < end; ++j) {
      const double* from = Tile(k, j);
      double* to = right_.data() + j * kTile * kTile;
      for (int64_t r = 0; r < kTile; ++r) {
        for (int64_t c = 0; c < kTile; ++c) to[c * kTile + r] = from[r * n_ + c];
      }
    }
  });
}

// A_ik -= sum over j < k of L_ij L_kj^T.
void TiledMatrix::UpdateTile(int64_t i, int64_t k) {
  for (int64_t depth = 0; depth < k * kTile; depth += kDepthBlock) {
    subtract_product_(Tile(i, 0) + depth, n_, right_.data() + depth * kTile,
                      std::min(kDepthBlock, k * kTile - depth), Tile(i, k), n_);
  }
}

absl::Status TiledMatrix::FactoriseDiagonal(int64_t k,
                                            const std::vector<double>& original_diagonal) {
  double* const tile = Tile(k, k);
  // What is left of a diagonal element below its own rounding error is no sign of definiteness.
  const double epsilon = std::numeric_limits<double>::epsilon() * static_cast<double>(n_);
  for (int64_t c = 0; c < kTile; ++c) {
    double pivot = tile[c * n_ + c];
    for (int64_t d = 0; d < c; ++d) pivot -= tile[c * n_ + d] * tile[c * n_ + d];
    const int64_t row = k * kTile + c;
    if (!(pivot > epsilon * original_diagonal[row]) || !std::isfinite(pivot)) {
      return absl::FailedPreconditionError(
          absl::StrFormat("not positive definite: %g is left of the diagonal's %g at row %d", pivot,
                          original_diagonal[row], row));
    }
    pivot = std::sqrt(pivot);
    tile[c * n_ + c] = pivot;
    for (int64_t r = c + 1; r < kTile; ++r) {
      double x = tile[r * n_ + c];
      for (int64_t d = 0; d < c; ++d) x -= tile[r * n_ + d] * tile[c * n_ + d];
      tile[r * n_ + c] = x / pivot;
    }
  }
  return absl::OkStatus();
}

// L_ik L_kk^T = A_ik, row by row.
void TiledMatrix::SolveTile(int64_t i, int64_t k) {
  double transposed[kTile][kTile];  // L_kk^T
  const double* diagonal = Tile(k, k);
  for (int64_t r = 0; r < kTile; ++r) {
    for (int64_t c = 0; c <= r; ++c) transposed[c][r] = diagonal[r * n_ + c];
  }
  for (int64_t r = 0; r < kTile; ++r) {
    double* x = Tile(i, k) + r * n_;
    for (int64_t d = 0; d < kTile; ++d) {
      const double solved = x[d] / transposed[d][d];
      x[d] = solved;
      for (int64_t c = d + 1; c < kTile; ++c) x[c] -= solved * transposed[d][c];
    }
  }
}

// X = L^-1, tile row after tile row in place: X_ij = -L_ii^-1 sum over k in [j, i) of L_ik X_kj.
void TiledMatrix::InvertFactor() {
  for (int64_t i = 0; i < tiles_; ++i) {
    CopyRowPanel(i);
    pool_.ParallelFor(i, 1, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t j = begin; j < end; ++j) InvertTile(i, j, packed_[thread].as<double>());
    });
    InvertDiagonal(i);
  }
}

void TiledMatrix::CopyRowPanel(int64_t i) {
  for (int64_t r = 0; r < kTile; ++r) {
    const double* row = Tile(i, 0) + r * n_;
    std::copy(row, row + i * kTile, left_.data() + r * n_);
  }
}

void TiledMatrix::InvertTile(int64_t i, int64_t j, double* packed) {
  double* const out = Tile(i, j);
  for (int64_t r = 0; r < kTile; ++r) std::fill(out + r * n_, out + r * n_ + kTile, 0.0);
  for (int64_t depth = j * kTile; depth < i * kTile; depth += kDepthBlock) {
    const int64_t count = std::min(kDepthBlock, i * kTile - depth);
    for (int64_t r = 0; r < count; ++r) {
      const double* row = a_ + (depth + r) * n_ + j * kTile;
      std::copy(row, row + kTile, packed + r * kTile);
    }
    subtract_product_(left_.data() + depth, n_, packed, count, out, n_);
  }
  const double* diagonal = Tile(i, i);
  for (int64_t r = 0; r < kTile; ++r) {
    for (int64_t d = 0; d < r; ++d) {
      const double factor = diagonal[r * n_ + d];
      for (int64_t c = 0; c < kTile; ++c) out[r * n_ + c] -= factor * out[d * n_ + c];
    }
    const double inverse = 1 / diagonal[r * n_ + r];
    for (int64_t c = 0; c < kTile; ++c) out[r * n_ + c] *= inverse;
  }
}

// Zeros above the diagonal, because later rows multiply with the whole tile.
void TiledMatrix::InvertDiagonal(int64_t i) {
  double inverse[kTile][kTile] = {};
  double* const tile = Tile(i, i);
  for (int64_t r = 0; r < kTile; ++r) {
    inverse[r][r] = 1;
    for (int64_t d = 0; d < r; ++d) {
      for (int64_t c = 0; c <= d; ++c) inverse[r][c] -= tile[r * n_ + d] * inverse[d][c];
    }
    for (int64_t c = 0; c <= r; ++c) inverse[r][c] /= tile[r * n_ + r];
  }
  for (int64_t r = 0; r < kTile; ++r) std::copy(inverse[r], inverse[r] + kTile, tile + r * n_);
}

}  // namespace

absl::Status InvertCholeskyFactor(double* a, int64_t n, ThreadPool& pool) {
  CHECK(n > 0 && n % kCholeskyTile == 0) << "side " << n;
  TiledMatrix matrix(a, n, pool);
  if (absl::Status status = matrix.Factorise(); !status.ok()) return status;
  matrix.InvertFactor();
  return absl::OkStatus();
}

}  // namespace fixpoint
