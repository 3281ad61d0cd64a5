// From a rotated float model, its rounded weights and its static scales to the integers of a
// bundle.
#pragma once

#include "absl/status/statusor.h"
#include "base/thread_pool.h"
#include "bundle/model.h"
#include "calibrator/calibration.h"
#include "calibrator/float_model.h"
#include "calibrator/integer_weights.h"

namespace fixpoint {

// The bundle holds `weights` as they are; scales and gains become multipliers, rounded to nearest.
// A narrow multiplier M is off by at most 1 / (2M) of its value, where the largest M of a tensor is
// in [2^14, 2^15): a row whose ratio of scales lies far below the tensor's largest is less exact. A
// ratio too small for any multiplier gets 1.
//
// `rotated` is the result of FoldAndRotate (norm gains 1, head separate) and gives configuration,
// RoPE and biases. `ranges` are those of the model with the gains of `scales` applied.
// INVALID_ARGUMENT for shapes that do not fit or a scale or gain that is not positive; OUT_OF_RANGE
// names the layer and the tensor whose range cannot be represented.
absl::StatusOr<IntegerModel> QuantizeModel(const FloatModel& rotated, const IntegerWeights& weights,
                                           const Scales& scales, const Ranges& ranges,
                                           const FloatPrefix& prefix, int32_t down_hadamard_block,
                                           bool qk_hadamard, ThreadPool& pool);

}  // namespace fixpoint
