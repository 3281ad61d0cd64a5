// What a server computes from an exported checkpoint, in the calibrator's own forward pass: int8
// linears with static inputs where a site is quantized, bf16 products elsewhere, attention in
// float, no prefix.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "base/aligned_buffer.h"
#include "base/thread_pool.h"
#include "calibrator/export/export_model.h"
#include "calibrator/float_forward.h"
#include "calibrator/gemm.h"

namespace fixpoint {

// Products as `gemm` makes them, except with chosen weights, where
//   y[r][n] = s_x * steps[n] * sum_k clamp(round(x[r][k] / s_x), -128, 127) * values[n][k]
// as long as the weights' site is quantized.
class StaticInputGemm : public FloatGemm {
 public:
  // Both must outlive it.
  StaticInputGemm(FloatGemm& gemm, ThreadPool& pool) : gemm_(gemm), pool_(pool) {}

  // From now on the weights at `w` ([outputs][depth] of `type`) stand for `integers`, which are
  // copied. `site` is looked at in every product and must outlive this.
  void Replace(const void* w, GemmType type, const IntegerLinear& integers, const ExportSite* site);

  bool fast_bf16() const override { return gemm_.fast_bf16(); }
  void Multiply(const GemmArgs& args) override;
  void MultiplyHere(const GemmArgs& args) override { gemm_.MultiplyHere(args); }

 private:
  struct Linear {
    std::vector<float> float_values;  // one of the two holds the integers
    std::vector<uint16_t> bf16_values;
    std::vector<float> steps;
    const ExportSite* site = nullptr;
  };

  void QuantizeInput(const GemmArgs& args, float scale);

  FloatGemm& gemm_;
  ThreadPool& pool_;
  absl::flat_hash_map<const void*, Linear> linears_;
  AlignedBuffer input_;  // [rows][depth] of the product's type
};

// Refers to an ExportModel whose sites may change between runs.
class StaticSimulation {
 public:
  // `model`, `gemm` and `pool` must outlive it. Copies all weights in bf16, the int8 ones too.
  StaticSimulation(const ExportModel& model, FloatGemm& gemm, ThreadPool& pool);
  StaticSimulation(const StaticSimulation&) = delete;

  FloatForward& forward() { return *forward_; }
  const FloatConfig& config() const { return model_.config(); }
  // Linear inputs in bf16, as servers have them.
  static ForwardOptions Options() {
    ForwardOptions options;
    options.precise_activations = false;
    return options;
  }

 private:
  StaticInputGemm gemm_;
  ForwardModel model_;
  std::unique_ptr<FloatForward> forward_;
};

}  // namespace fixpoint
