// Rounds the weights of a whole model with GPTQ, layer after layer, each with the static-quantized
// inputs that the layers before it really give.
#pragma once

#include <functional>

#include "absl/status/statusor.h"
#include "base/thread_pool.h"
#include "calibrator/calibration.h"
#include "calibrator/evaluate.h"
#include "calibrator/forward_weights.h"
#include "calibrator/gptq.h"
#include "calibrator/integer_weights.h"

namespace fixpoint {

struct WeightRoundingInput {
  const FloatModel* rotated = nullptr;
  OnlineTransforms online;
  const Scales* scales = nullptr;  // with the int16 sites that the model will have
  const FloatPrefix* prefix = nullptr;
  const Windows* windows = nullptr;  // all of them are used
  GptqOptions gptq;
};

// Embedding: to nearest. A linear whose moments are not positive definite is rounded to nearest,
// and `warn` is told. Memory: windows * tokens * hidden * 4 bytes and the moments of one layer.
absl::StatusOr<IntegerWeights> RoundWithStaticInputs(const WeightRoundingInput& input,
                                                     FloatGemm& gemm, ThreadPool& pool,
                                                     const std::function<void(double)>& progress,
                                                     const std::function<void(std::string)>& warn);

}  // namespace fixpoint
