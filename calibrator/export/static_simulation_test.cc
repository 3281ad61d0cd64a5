#include "calibrator/export/static_simulation.h"

#include <gtest/gtest.h>

#include <cmath>

#include "calibrator/random.h"
#include "calibrator/test_float_model.h"

namespace fixpoint {
namespace {

TEST(StaticInputGemmTest, ComputesWhatAnInt8LinearComputes) {
  ThreadPool pool(2);
  const std::unique_ptr<FloatGemm> gemm = CreateCpuGemm(pool);
  Random random(3);
  constexpr int64_t kRows = 5, kOutputs = 7, kDepth = 64;
  std::vector<float> x(kRows * kDepth), plain(kOutputs * kDepth), y(kRows * kOutputs);
  for (float& value : x) value = static_cast<float>(random.Normal());
  x[0] = 100, x[1] = -100, x[2] = 0.05f, x[3] = 0.15f;  // clipped both ways; ties at a scale of 0.1
  for (float& value : plain) value = static_cast<float>(random.Normal());
  IntegerLinear integers{.outputs = kOutputs, .depth = kDepth};
  for (int64_t i = 0; i < kOutputs * kDepth; ++i)
    integers.values.push_back(static_cast<int8_t>(random.Below(255) - 127));
  for (int64_t i = 0; i < kOutputs; ++i)
    integers.steps.push_back(static_cast<float>(0.01 + 0.01 * random.Uniform()));
  ExportSite site{.scale = 0.1f, .quantized = true};
  StaticInputGemm simulated(*gemm, pool);
  simulated.Replace(plain.data(), GemmType::kFloat32, integers, &site);
  const GemmArgs args{.rows = kRows,
                      .outputs = kOutputs,
                      .depth = kDepth,
                      .x = x.data(),
                      .x_stride = kDepth,
                      .w = plain.data(),
                      .w_stride = kDepth,
                      .y = y.data(),
                      .y_stride = kOutputs};
  simulated.Multiply(args);
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t n = 0; n < kOutputs; ++n) {
      int32_t sum = 0;
      for (int64_t k = 0; k < kDepth; ++k) {
        const float q = std::nearbyint(x[r * kDepth + k] / 0.1f);
        sum += static_cast<int32_t>(q < -128  ? -128
                                    : q > 127 ? 127
                                              : q) *
               integers.values[n * kDepth + k];
      }
      // The sum is exact; scaling rounds twice to float32.
      const double expected = static_cast<double>(sum) * 0.1f * integers.steps[n];
      EXPECT_NEAR(y[r * kOutputs + n], expected, std::abs(expected) * 3e-7) << r << ", " << n;
    }
  }
  // Unquantized, it is the plain product again.
  site.quantized = false;
  simulated.Multiply(args);
  double expected = 0;
  for (int64_t k = 0; k < kDepth; ++k) expected += static_cast<double>(x[k]) * plain[k];
  EXPECT_NEAR(y[0], expected, 1e-3);
}

ExportModel Rounded(const FloatModel& model, ThreadPool& pool, float scale, bool quantized) {
  ExportModel result = RoundExport(model, pool);
  result.sites.resize(model.layers.size());
  for (auto& sites : result.sites) sites.fill({.scale = scale, .quantized = quantized});
  return result;
}

double MeanDifference(const std::vector<float>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::abs(a[i] - b[i]);
  return sum / static_cast<double>(a.size());
}

TEST(StaticSimulationTest, UnquantizedItIsTheBf16Model) {
  ThreadPool pool(2);
  const std::unique_ptr<FloatGemm> gemm = CreateCpuGemm(pool);
  const FloatModel model = MakeTestFloatModel({.tied = false});
  ExportModel exported = Rounded(model, pool, 0.05f, false);
  const std::vector<int32_t> ids = {1, 7, 250, 33, 8, 99, 140, 3};
  const std::vector<double> expected = NaiveLogits(exported.model, ids);
  StaticSimulation simulation(exported, *gemm, pool);
  std::vector<float> logits(expected.size());
  const auto run = [&] {
    simulation.forward().Run({.token_ids = ids.data(), .sequences = 1, .tokens = 8},
                             StaticSimulation::Options());
    simulation.forward().Logits(0, 8, logits.data());
    return MeanDifference(logits, expected);
  };
  // Logits of size 2.5; activations in bf16 (2^-9) through two layers.
  const double bf16 = run();
  EXPECT_LT(bf16, 0.03);
  // Activations near 1 in steps of 0.05: visible, and not destructive.
  for (auto& sites : exported.sites)
    for (ExportSite& site : sites) site.quantized = true;
  const double int8 = run();
  EXPECT_GT(int8, bf16);
  EXPECT_LT(int8, 0.3);
  // Clipped at 0.127 the model is another one.
  for (auto& sites : exported.sites)
    for (ExportSite& site : sites) site.scale = 0.001f;
  EXPECT_GT(run(), 0.5);
}

}  // namespace
}  // namespace fixpoint
