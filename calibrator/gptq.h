// Rounding of weights that makes up for the errors made so far (GPTQ): with the second moments of
// the layer's integer inputs, the error of each rounded column is carried into the columns that are
// still float.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "base/thread_pool.h"
#include "calibrator/float_model.h"
#include "calibrator/integer_weights.h"

namespace fixpoint {

// Sum over calibration tokens of x x^T for one linear site, x the dequantized input in units of the
// site's scale (integers; a common factor does not matter). Gathered by MomentsCollector
// (second_moments.h).
struct SecondMoments {
  int64_t depth = 0;
  std::vector<float> sums;  // [depth][depth], symmetric
};

struct GptqOptions {
  // >= 0: share of the mean diagonal that is added to the diagonal. With few tokens a channel the
  // moments fit noise: at 2,048 tokens down_proj of SmolLM2-135M loses 43 % against rounding to
  // nearest with 0.01 (held-out text), nothing with 0.1.
  double damping = 0.1;
  int32_t block = 128;  // > 0: columns whose later effects are applied together
};

// Rounds w [outputs][depth] to int8 with steps[r] > 0 per row (given: they are not changed),
// columns in the order of falling diagonal. In units of the step, with v the row as it has become:
//   q = clamp(round(v[i]), -127, 127), nearest, ties to even, v starting as w * (1 / step);
//   v[j] -= (v[i] - q) * U[i][j] / U[i][i] for all later j, U upper, U^T U = (moments +
//   damping)^-1.
// Result: the sum over tokens of (w x - step q x)^2 is lowered against rounding to nearest. A
// column whose diagonal is 0 is rounded to nearest and changes no other. With a diagonal matrix all
// are.
//
// Rows are independent, and the number of threads does not change an integer. Cost: the
// factorisation (inverse_cholesky.h: 2/3 depth^3 in double) and outputs * depth^2 in float32. On
// one core with AVX-512 [1536][576] takes 0.03 s and [576][1536] 0.11 s, the 210 linears of
// SmolLM2-135M about 7 s; [4096][8192] would take about 10 s on two. Memory: 12 * depth^2 bytes,
// and 192 * depth a thread.
//
// FAILED_PRECONDITION when the damped moments are not positive definite or not finite;
// INVALID_ARGUMENT for options out of range and weights that are not finite.
absl::StatusOr<IntegerLinear> RoundWithMoments(const Matrix& w, const std::vector<float>& steps,
                                               const SecondMoments& moments,
                                               const GptqOptions& options, ThreadPool& pool);

}  // namespace fixpoint
