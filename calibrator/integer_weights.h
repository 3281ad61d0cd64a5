// Weights of a rotated model rounded to int8, once: training runs on them, the simulation runs on
// them, and the bundle holds the same integers.
#pragma once

#include <cstdint>
#include <vector>

#include "base/thread_pool.h"
#include "calibrator/calibration.h"
#include "calibrator/float_model.h"

namespace fixpoint {

// real weight (r, c) = steps[r] * values[r][c], values in [-127, 127].
struct IntegerLinear {
  int64_t outputs = 0, depth = 0;
  std::vector<int8_t> values;  // [outputs][depth]
  std::vector<float> steps;    // [outputs], > 0
};

struct IntegerLayerWeights {
  IntegerLinear q, k, v, o, gate, up, down;
};

struct IntegerWeights {
  std::vector<IntegerLayerWeights> layers;
  IntegerLinear embedding, head;
};

// Rounds to nearest with Int8RowStep (forward_weights.h) as each row's step. With `folded`, columns
// are divided by the gains of their linear site first, so that a gain changes the rounding and not
// the function.
IntegerWeights RoundWeights(const FloatModel& rotated, const Scales* folded, ThreadPool& pool);

// The seven linears of a layer with the site that feeds each, for loops over all of them.
struct LayerLinear {
  Matrix FloatLayer::*weights;
  IntegerLinear IntegerLayerWeights::*integers;
  LayerSite site;
  const char* name;  // "q_proj", ...
};
inline constexpr int32_t kLinearsPerLayer = 7;
extern const LayerLinear kLayerLinears[kLinearsPerLayer];

}  // namespace fixpoint
