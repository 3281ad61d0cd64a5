// The basis in which a model quantizes well: norm gains folded into the weights, the residual
// stream turned by one random orthogonal matrix, Hadamard transforms around V, q/k and the input of
// down_proj. The float function stays the same.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "base/thread_pool.h"
#include "calibrator/float_model.h"
#include "calibrator/gemm.h"

namespace fixpoint {

struct RotationOptions {
  uint64_t seed = 0;
  bool residual = true;          // turn the residual stream
  int32_t max_down_block = 512;  // power of two; 1: no Hadamard in front of down_proj
  bool v_hadamard = true;
  bool qk_hadamard = true;  // only where head_dim is a power of two
};

// The transforms that have to run online, after FoldAndRotate. All are orthonormal in float; the
// integer engine leaves out the factors 1/sqrt, which the scales take up (calibrator/quantize.cc).
struct OnlineTransforms {
  int32_t down_block =
      1;  // Walsh-Hadamard over blocks of silu(gate) * up; weights of down_proj expect it
  bool qk_hadamard =
      false;  // Walsh-Hadamard over each head of q and k after RoPE: leaves q . k as it is
};

// In place: `model` gets gains of 1, an untied head and turned weights.
//   h' = Q h with Q orthogonal [hidden][hidden]: embedding E Q^T; q, k, v, gate, up, head W
//   diag(gain) Q^T; o, down Q W v head = H v (bias too), o columns turned alike, H over the largest
//   power of two that divides head_dim down columns times H over down_block, the largest power of
//   two <= max_down_block that divides intermediate_size
// The rounding is that of float32: logits change by about 1e-6 of their size.
OnlineTransforms FoldAndRotate(FloatModel& model, const RotationOptions& options, FloatGemm& gemm,
                               ThreadPool& pool);

// Row-major orthogonal [n][n], Haar-distributed: rows of a Gaussian matrix orthonormalised in
// double. Error about 1e-13 * n.
std::vector<float> RandomOrthogonal(int64_t n, uint64_t seed, ThreadPool& pool);

// Largest power of two that divides n and is at most `limit`.
int32_t HadamardBlock(int32_t n, int32_t limit);

}  // namespace fixpoint
