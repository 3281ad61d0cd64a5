// For tests: the CPU's products without bf16, so that results are as exact as float32 allows.
#pragma once

#include "calibrator/gemm.h"

namespace fixpoint {

class Float32Gemm : public FloatGemm {
 public:
  explicit Float32Gemm(FloatGemm& cpu) : cpu_(cpu) {}
  bool fast_bf16() const override { return false; }
  void Multiply(const GemmArgs& args) override { cpu_.Multiply(args); }
  void MultiplyHere(const GemmArgs& args) override { cpu_.MultiplyHere(args); }
  void ForgetWeights() override { cpu_.ForgetWeights(); }

 private:
  FloatGemm& cpu_;
};

}  // namespace fixpoint
