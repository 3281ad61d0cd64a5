// A small random model all the way to integers, with random gains at every site, for the
// calibrator's tests.
#pragma once

#include <cstdint>

#include "base/thread_pool.h"
#include "bundle/model.h"
#include "calibrator/calibration.h"
#include "calibrator/evaluate.h"
#include "calibrator/float_model.h"
#include "calibrator/gemm.h"
#include "calibrator/integer_weights.h"
#include "calibrator/rotate.h"

namespace fixpoint {

struct TestQuantizedOptions {
  uint64_t seed = 1;
  bool gains = true;    // in [0.5, 2]; false: none
  bool folded = false;  // weights are divided by the gains of their site
  bool wide = false;    // every second linear site is int16
  bool qk_hadamard = true;
};

struct TestQuantized {
  FloatModel rotated;
  OnlineTransforms online;
  FloatPrefix prefix;  // of two tokens
  Scales scales;
  Ranges ranges;
  IntegerWeights weights;
  IntegerModel model;  // valid
};

TestQuantized MakeTestQuantized(const TestQuantizedOptions& options, FloatGemm& gemm,
                                ThreadPool& pool);

Windows RandomTestWindows(int32_t count, int32_t tokens, int32_t vocab, uint64_t seed);

}  // namespace fixpoint
