// Cholesky factorisation and inversion of the factor, in double, blocked and on the project's
// threads: what rounding with second moments (gptq.h) needs.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "base/thread_pool.h"

namespace fixpoint {

// Sides of the tiles that the work is cut into; matrices have a multiple of it as their side (pad
// with ones on the diagonal and zeros beside it).
inline constexpr int64_t kCholeskyTile = 64;

// a [n][n] row-major, n > 0 a multiple of kCholeskyTile, holds a symmetric positive definite A in
// its lower triangle, the diagonal included. Replaces that triangle by L^-1, where A = L L^T and L
// is lower triangular with a positive diagonal; what was above the diagonal is overwritten or left
// as it was. The number of threads does not change a bit of the result.
//
// Cost: 2/3 n^3 operations, at 30 to 40 GFLOP/s a core with AVX-512: 0.07 s for n = 1536 on one
// core, about 5 s for n = 8192 on two. Memory beside A: 1 KiB * n and 128 KiB a thread.
//
// FAILED_PRECONDITION when A is not positive definite to working precision (or not finite); it
// names the row.
absl::Status InvertCholeskyFactor(double* a, int64_t n, ThreadPool& pool);

}  // namespace fixpoint
