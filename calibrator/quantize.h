// From a rotated float model and its static scales to the integers of a bundle.
#pragma once

#include "absl/status/statusor.h"
#include "base/thread_pool.h"
#include "bundle/model.h"
#include "calibrator/calibration.h"
#include "calibrator/float_model.h"

namespace fixpoint {

// Step of each output row's int8 weights: real weight = step * q. Needed by the simulation, which
// must use the very weights that the integer engine uses.
struct WeightSteps {
  struct Layer {
    std::vector<double> qkv, o_proj, gate_up, down_proj;  // [outputs]
  };
  std::vector<Layer> layers;
  std::vector<double> head, embedding;  // [vocab_size]
};

struct QuantizedModel {
  IntegerModel model;
  WeightSteps steps;
};

// `rotated` is the result of FoldAndRotate (norm gains 1, head separate). Errors name the layer and
// the tensor whose range cannot be represented.
absl::StatusOr<QuantizedModel> QuantizeModel(const FloatModel& rotated, const Scales& scales,
                                             const Ranges& ranges, const FloatPrefix& prefix,
                                             int32_t down_hadamard_block, bool qk_hadamard,
                                             ThreadPool& pool);

}  // namespace fixpoint
