#include "calibrator/bundle_scales.h"

#include <cmath>
#include <memory>

#include "calibrator/evaluate.h"
#include "calibrator/float_forward.h"
#include "calibrator/test_quantized_model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

class BundleScalesTest : public testing::Test {
 protected:
  ThreadPool pool_{2};
  std::unique_ptr<FloatGemm> gemm_ = CreateCpuGemm(pool_);
};

Scales WithoutGains(Scales scales) {
  for (LayerScales& s : scales.layers) {
    for (int32_t i = 0; i < kLayerLinearSites; ++i)
      s.linear(static_cast<LayerSite>(i)).gain.clear();
    s.q_gain.clear();
    s.k_gain.clear();
    s.v_gain.clear();
  }
  scales.head_in.gain.clear();
  return scales;
}

// As exact as the multipliers, which are rounded to nearest, and 2^-15 for the units that are
// averages over multipliers.
void ExpectGains(const std::vector<float>& is, const std::vector<float>& expected,
                 const std::vector<int16_t>& multipliers) {
  ASSERT_EQ(is.size(), expected.size());
  for (size_t i = 0; i < is.size(); ++i) {
    ASSERT_GT(multipliers[i], 1000) << "channel " << i;
    ASSERT_NEAR(is[i] / expected[i], 1, 0.5 / multipliers[i] + std::ldexp(1, -15))
        << "channel " << i;
  }
}

void ExpectSite(const LinearSite& is, const LinearSite& expected,
                const std::vector<int16_t>& multipliers) {
  ExpectGains(is.gain, expected.gain, multipliers);
  EXPECT_EQ(is.scale, expected.scale);
  EXPECT_EQ(is.wide, expected.wide);
}

TEST_F(BundleScalesTest, GainsComeBackFromTheMultipliers) {
  for (const TestQuantizedOptions& options :
       {TestQuantizedOptions{.seed = 1}, TestQuantizedOptions{.seed = 2, .wide = true},
        TestQuantizedOptions{.seed = 3, .folded = true, .qk_hadamard = false}}) {
    const TestQuantized t = MakeTestQuantized(options, *gemm_, pool_);
    const auto scales = ScalesOfBundle(t.model, WithoutGains(t.scales), t.weights);
    ASSERT_TRUE(scales.ok()) << scales.status();
    for (size_t i = 0; i < t.scales.layers.size(); ++i) {
      SCOPED_TRACE(i);
      const LayerScales& is = scales->layers[i];
      const LayerScales& expected = t.scales.layers[i];
      const ModelLayer& l = t.model.layers[i];
      ExpectSite(is.attn_in, expected.attn_in, l.attn_norm.multipliers);
      ExpectGains(is.q_gain, expected.q_gain, l.q_after.multipliers);
      ExpectGains(is.k_gain, expected.k_gain, l.k_after.multipliers);
      ExpectGains(is.v_gain, expected.v_gain, l.v.multipliers);
      ExpectSite(is.o_in, expected.o_in, l.attn_out.multipliers);
      ExpectSite(is.mlp_in, expected.mlp_in, l.mlp_norm.multipliers);
      ExpectSite(is.down_in, expected.down_in, l.down_in.multipliers);
    }
    ExpectSite(scales->head_in, t.scales.head_in, t.model.final_norm.multipliers);
  }
}

TEST_F(BundleScalesTest, WeightsComeBackWithTheirSteps) {
  for (const bool folded : {false, true}) {
    const TestQuantized t = MakeTestQuantized({.seed = 5, .folded = folded}, *gemm_, pool_);
    const auto weights = WeightsOfBundle(t.model, t.rotated, WithoutGains(t.scales), folded, pool_);
    ASSERT_TRUE(weights.ok()) << weights.status();
    const auto check = [](const IntegerLinear& is, const IntegerLinear& expected,
                          double tolerance) {
      EXPECT_EQ(is.values, expected.values);
      ASSERT_EQ(is.steps.size(), expected.steps.size());
      for (size_t r = 0; r < is.steps.size(); ++r)
        ASSERT_NEAR(is.steps[r] / expected.steps[r], 1, tolerance) << "row " << r;
    };
    for (size_t i = 0; i < t.weights.layers.size(); ++i) {
      for (const LayerLinear& linear : kLayerLinears) {
        SCOPED_TRACE(linear.name);
        // Exact from 31-bit multipliers; 15-bit ones and the fit (of 64 weights a row for v) leave
        // a little.
        const bool wide = linear.site == LayerSite::kOIn || linear.site == LayerSite::kDownIn;
        check(weights->layers[i].*linear.integers, t.weights.layers[i].*linear.integers,
              wide ? 1e-6 : 4e-3);
      }
    }
    check(weights->embedding, t.weights.embedding, 1e-6);
    check(weights->head, t.weights.head, 1e-6);
    // Read as if nothing were folded, columns do not fit and steps are off.
    const auto wrong = WeightsOfBundle(t.model, t.rotated, WithoutGains(t.scales), !folded, pool_);
    ASSERT_TRUE(wrong.ok());
    double largest = 0;
    for (size_t r = 0; r < t.weights.layers[0].v.steps.size(); ++r) {
      largest =
          std::max(largest, std::fabs(wrong->layers[0].v.steps[r] /
                                          static_cast<double>(t.weights.layers[0].v.steps[r]) -
                                      1));
    }
    EXPECT_GT(largest, 0.02);
  }
}

// From the integers alone, with what the provenance tells: the simulation of the engine is as good
// as with the scales that the bundle was made of.
TEST_F(BundleScalesTest, ABundleCanBeSimulated) {
  for (const TestQuantizedOptions& options :
       {TestQuantizedOptions{.seed = 6}, TestQuantizedOptions{.seed = 7, .gains = false},
        TestQuantizedOptions{.seed = 8, .folded = true, .wide = true}}) {
    const TestQuantized t = MakeTestQuantized(options, *gemm_, pool_);
    const Scales scalars = WithoutGains(t.scales);
    const auto weights = WeightsOfBundle(t.model, t.rotated, scalars, options.folded, pool_);
    ASSERT_TRUE(weights.ok()) << weights.status();
    const auto scales = ScalesOfBundle(t.model, scalars, *weights);
    ASSERT_TRUE(scales.ok()) << scales.status();
    const FloatPrefix prefix = PrefixOfBundle(t.model, *scales);
    const ForwardModel own = MakeIntegerForwardModel(t.weights, t.rotated, t.online, *gemm_, pool_);
    const ForwardModel read = MakeIntegerForwardModel(*weights, t.rotated, t.online, *gemm_, pool_);
    FloatForward own_forward(own, *gemm_, pool_), read_forward(read, *gemm_, pool_);
    ForwardLogits original(own_forward, {.prefix = &t.prefix, .scales = &t.scales});
    ForwardLogits recovered(read_forward, {.prefix = &prefix, .scales = &*scales});
    auto executor = CpuExecutor::Create(
        t.model, {.threads = 2, .kv_cache_bytes = KvBlockBytes(t.model.config) * 4});
    ASSERT_TRUE(executor.ok()) << executor.status();
    ExecutorLogits integer(**executor);
    const Windows text = RandomTestWindows(4, 128, t.model.config.vocab_size, 98);
    const auto result = Compare(integer, {&original, &recovered}, text, pool_);
    ASSERT_TRUE(result.ok());
    EXPECT_LT((*result)[1].kl_mean, 1.1 * (*result)[0].kl_mean);
  }
}

TEST_F(BundleScalesTest, ThePrefixComesBack) {
  const TestQuantized t = MakeTestQuantized({.seed = 9}, *gemm_, pool_);
  const auto scales = ScalesOfBundle(t.model, WithoutGains(t.scales), t.weights);
  ASSERT_TRUE(scales.ok());
  const FloatPrefix prefix = PrefixOfBundle(t.model, *scales);
  EXPECT_EQ(prefix.token_ids, t.prefix.token_ids);
  ASSERT_EQ(prefix.layers.size(), t.prefix.layers.size());
  const int64_t d = t.model.config.head_dim;
  const int64_t per_head = 2 * d;
  const auto check = [&](const std::vector<float>& is, const std::vector<float>& expected,
                         const std::vector<double>& scale, const std::vector<float>& gain) {
    ASSERT_EQ(is.size(), expected.size());
    for (int64_t i = 0; i < static_cast<int64_t>(is.size()); ++i) {
      const int64_t head = i / per_head;
      const double step = scale[head] / gain[head * d + i % d];
      // Half a step of rounding, and the gain's own error.
      EXPECT_NEAR(is[i], expected[i], 0.501 * step + std::fabs(expected[i]) * std::ldexp(1, -12));
    }
  };
  for (size_t i = 0; i < prefix.layers.size(); ++i) {
    const LayerScales& s = t.scales.layers[i];
    check(prefix.layers[i].k, t.prefix.layers[i].k, s.k, s.k_gain);
    check(prefix.layers[i].v, t.prefix.layers[i].v, s.v, s.v_gain);
  }
}

TEST_F(BundleScalesTest, PartsOfDifferentModelsAreRefused) {
  const TestQuantized t = MakeTestQuantized({}, *gemm_, pool_);
  Scales scales = t.scales;
  scales.layers.pop_back();
  EXPECT_EQ(ScalesOfBundle(t.model, scales, t.weights).status().code(),
            absl::StatusCode::kInvalidArgument);
  scales = t.scales;
  scales.layers[1].down_in.wide = true;
  EXPECT_THAT(std::string(ScalesOfBundle(t.model, scales, t.weights).status().message()),
              testing::AllOf(testing::HasSubstr("layer 1"), testing::HasSubstr("down_in")));
  FloatModel other = t.rotated;
  other.layers[0].up_proj.rows -= 1;
  EXPECT_THAT(
      std::string(WeightsOfBundle(t.model, other, t.scales, false, pool_).status().message()),
      testing::AllOf(testing::HasSubstr("layer 0"), testing::HasSubstr("up_proj")));
}

}  // namespace
}  // namespace fixpoint
