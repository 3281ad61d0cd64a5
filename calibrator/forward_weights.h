// Weights of a FloatModel made ready for the forward pass: in float32 as they are, rounded to bf16,
// or as the int8 integers that the bundle will hold.
#pragma once

#include <cstdint>
#include <vector>

#include "base/thread_pool.h"
#include "calibrator/float_model.h"
#include "calibrator/gemm.h"
#include "calibrator/integer_weights.h"
#include "calibrator/rotate.h"

namespace fixpoint {

enum class WeightKind {
  kFloat32,  // views into the FloatModel: no copy
  kBf16,     // bf16 where the GEMM has it, else kFloat32
  kInt8,  // step * q with q in [-127, 127]; q is stored in bf16 (exact), or in float32 without fast
          // bf16
};

struct ForwardLinear {
  int64_t outputs = 0, depth = 0;
  GemmType type = GemmType::kFloat32;
  const float* float_view = nullptr;  // [outputs][depth], when neither of the two below
  std::vector<float> float_values;    // [outputs][depth]
  std::vector<uint16_t> bf16_values;  // [outputs][depth]
  std::vector<float> steps;           // [outputs]; empty: 1
  const float* bias = nullptr;        // [outputs] or null

  const void* values() const {
    if (!bf16_values.empty()) return bf16_values.data();
    return float_values.empty() ? float_view : float_values.data();
  }
};

struct ForwardLayer {
  const float* attn_norm = nullptr;
  ForwardLinear q, k, v, o, gate, up, down;
  const float* mlp_norm = nullptr;
};

// Refers to the FloatModel that it was made of, which must outlive it and stay unchanged.
struct ForwardModel {
  const FloatModel* source = nullptr;
  OnlineTransforms online;
  WeightKind kind = WeightKind::kFloat32;
  std::vector<float> embedding_steps;  // kInt8: rows of the embedding are rounded too
  std::vector<ForwardLayer> layers;
  ForwardLinear head;

  const FloatConfig& config() const { return source->config; }
};

// kInt8 rounds with Int8RowStep, close to what the bundle will hold.
ForwardModel MakeForwardModel(const FloatModel& model, const OnlineTransforms& online,
                              WeightKind kind, const FloatGemm& gemm, ThreadPool& pool);

// kInt8 with the very integers and steps of `weights`, made of `rotated` or read from its bundle
// (bundle_scales.h); `rotated` gives configuration and biases. Requires equal shapes. Embedding
// rows are rounded to nearest with the steps of `weights`, as RoundWeights does.
ForwardModel MakeIntegerForwardModel(const IntegerWeights& weights, const FloatModel& rotated,
                                     const OnlineTransforms& online, const FloatGemm& gemm,
                                     ThreadPool& pool);

// New integers and steps of the same shapes, in place: GPTQ and folded gains round again.
void ReplaceLinear(const IntegerLinear& from, ForwardLinear* to, ThreadPool& pool);
void ReplaceLayer(const IntegerLayerWeights& from, ForwardLayer* to, ThreadPool& pool);

// Step of an int8 row: the clip with the least squared error among the row's maximum and a few
// values below it.
double Int8RowStep(const float* row, int64_t n);

}  // namespace fixpoint
