// Small random checkpoints for the calibrator's tests.
#pragma once

#include <cstdint>
#include <vector>

#include "calibrator/float_model.h"

namespace fixpoint {

struct TestFloatOptions {
  uint64_t seed = 1;
  int32_t layers = 2;
  int32_t hidden = 64;
  int32_t heads = 4;
  int32_t kv_heads = 2;
  int32_t head_dim = 16;
  int32_t intermediate = 128;
  int32_t vocab = 300;
  int32_t context = 1024;
  bool qkv_bias = false;
  bool tied = true;
};

// Gaussian weights at the scale that keeps activations near 1, gains between 0.5 and 1.5.
FloatModel MakeTestFloatModel(const TestFloatOptions& options = {});

// Logits [tokens][vocab] by the textbook in double, one token after the other: what FloatForward is
// compared with.
std::vector<double> NaiveLogits(const FloatModel& model, const std::vector<int32_t>& token_ids);

}  // namespace fixpoint
