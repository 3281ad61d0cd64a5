#include "calibrator/quantize.h"

#include <cmath>
#include <limits>
#include <memory>

#include "calibrator/evaluate.h"
#include "calibrator/float_forward.h"
#include "calibrator/random.h"
#include "calibrator/test_quantized_model.h"
#include "calibrator/vector_loops.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/reference/reference_ops.h"

namespace fixpoint {
namespace {

constexpr int32_t kTokens = 40;

class QuantizeTest : public testing::Test {
 protected:
  ThreadPool pool_{2};
  std::unique_ptr<FloatGemm> gemm_ = CreateCpuGemm(pool_);
};

// int8 or int16 activations of an op.
class Planes {
 public:
  Planes(int32_t tokens, int32_t channels, bool wide)
      : channels_(channels), wide_(wide), hi_(size_t(tokens) * channels), lo_(hi_.size()) {}
  ActivationPlanes planes() {
    return {hi_.data(), wide_ ? lo_.data() : nullptr, static_cast<size_t>(channels_)};
  }
  int32_t value(size_t i) const { return wide_ ? 256 * hi_[i] + lo_[i] : hi_[i]; }

 private:
  int32_t channels_;
  bool wide_;
  std::vector<int8_t> hi_, lo_;
};

// q = clamp(round(real * gain / scale)), in double.
double Expected(double real, double gain, double scale, bool wide) {
  const double limit = wide ? 32512 : 127;
  return std::clamp(std::nearbyint(real * gain * (wide ? 256 : 1) / scale), -limit, limit);
}

// Distances between the op's integers and those of the definition.
struct Distance {
  int64_t count = 0, different = 0, clipped = 0;
  double largest = 0;
  void Add(double is, double expected, bool wide) {
    ++count;
    different += is != expected;
    clipped += std::fabs(expected) == (wide ? 32512 : 127);
    largest = std::max(largest, std::fabs(is - expected));
  }
};

// 16-bit intermediates put an int8 result at most one step off, and that seldom. At an int16 site
// they are as coarse as its steps, and coarser where gains are large.
void ExpectClose(const Distance& d, bool wide) {
  EXPECT_GT(d.clipped, 0);
  EXPECT_LT(d.clipped, d.count / 2);
  EXPECT_LE(d.largest, wide ? 10 : 1);
  if (!wide) {
    EXPECT_LT(static_cast<double>(d.different), 0.03 * static_cast<double>(d.count));
  }
}

TEST_F(QuantizeTest, RoundWeightsIsNearestWithTheColumnsDividedByTheSitesGains) {
  const TestQuantized t = MakeTestQuantized({.seed = 3}, *gemm_, pool_);
  const IntegerWeights folded = RoundWeights(t.rotated, &t.scales, pool_);
  const auto check = [](const Matrix& w, const std::vector<float>& gain, const IntegerLinear& q) {
    ASSERT_EQ(q.outputs, w.rows);
    ASSERT_EQ(q.depth, w.cols);
    int64_t clipped = 0;
    for (int64_t r = 0; r < w.rows; ++r) {
      for (int64_t c = 0; c < w.cols; ++c) {
        const double real = w.row(r)[c] / (gain.empty() ? 1.0 : gain[c]) / q.steps[r];
        const int value = q.values[r * w.cols + c];
        ASSERT_LE(std::abs(value), 127);
        if (std::fabs(real) > 127.5) {
          ++clipped;
          ASSERT_EQ(value, real > 0 ? 127 : -127);
        } else {
          ASSERT_NEAR(value, real, 0.5001);
        }
      }
    }
    EXPECT_LT(clipped, w.rows * w.cols / 20);
  };
  for (size_t i = 0; i < t.rotated.layers.size(); ++i) {
    for (const LayerLinear& linear : kLayerLinears) {
      SCOPED_TRACE(linear.name);
      const Matrix& w = t.rotated.layers[i].*linear.weights;
      check(w, {}, t.weights.layers[i].*linear.integers);
      check(w, t.scales.layers[i].linear(linear.site).gain, folded.layers[i].*linear.integers);
    }
  }
  check(t.rotated.embedding, {}, folded.embedding);
  check(t.rotated.head_or_embedding(), t.scales.head_in.gain, folded.head);
}

TEST_F(QuantizeTest, TheBundleHoldsTheGivenIntegers) {
  const TestQuantized t = MakeTestQuantized({.folded = true}, *gemm_, pool_);
  const auto joined = [](std::initializer_list<const IntegerLinear*> parts) {
    std::vector<int8_t> all;
    for (const IntegerLinear* part : parts)
      all.insert(all.end(), part->values.begin(), part->values.end());
    return all;
  };
  for (size_t i = 0; i < t.model.layers.size(); ++i) {
    const ModelLayer& l = t.model.layers[i];
    const IntegerLayerWeights& w = t.weights.layers[i];
    EXPECT_EQ(l.qkv.weights, joined({&w.q, &w.k, &w.v}));
    EXPECT_EQ(l.gate_up.weights, joined({&w.gate, &w.up}));
    EXPECT_EQ(l.o_proj.weights, w.o.values);
    EXPECT_EQ(l.down_proj.weights, w.down.values);
  }
  EXPECT_EQ(t.model.embedding, t.weights.embedding.values);
  EXPECT_EQ(t.model.head.weights, t.weights.head.values);
}

TEST_F(QuantizeTest, NormsApplyGainAndScale) {
  for (const bool wide : {false, true}) {
    TestQuantized t = MakeTestQuantized({.wide = wide}, *gemm_, pool_);
    t.scales.layers[0].attn_in.scale *= 0.2;  // a clip below what 15 bits of t hold
    const auto model = QuantizeModel(t.rotated, t.weights, t.scales, t.ranges, t.prefix,
                                     t.online.down_block, t.online.qk_hadamard, pool_);
    ASSERT_TRUE(model.ok()) << model.status();
    const ModelConfig& c = model->config;
    const Norm& norm = model->layers[0].attn_norm;
    const LinearSite& site = t.scales.layers[0].attn_in;
    ASSERT_EQ(norm.wide, wide);
    Random random(5);
    std::vector<int32_t> h(kTokens * c.hidden_size);
    for (int32_t& x : h)
      x = static_cast<int32_t>(std::ldexp(random.Normal() * 2, c.residual_fraction_bits));
    for (int32_t t0 = 0; t0 < kTokens; t0 += 4) h[t0 * c.hidden_size + t0] *= 40;  // outliers
    Planes out(kTokens, c.hidden_size, wide);
    ReferenceOps().rms_norm({.h = h.data(),
                             .tokens = kTokens,
                             .hidden = c.hidden_size,
                             .epsilon = c.norm_epsilon,
                             .fraction_bits = norm.fraction_bits,
                             .multipliers = norm.multipliers.data(),
                             .k = norm.k,
                             .out = out.planes()});
    Distance d;
    for (int32_t token = 0; token < kTokens; ++token) {
      const int32_t* row = h.data() + token * c.hidden_size;
      double sum = 0;
      for (int32_t i = 0; i < c.hidden_size; ++i)
        sum += std::pow(std::ldexp(row[i], -c.residual_fraction_bits), 2);
      const double rms = std::sqrt(sum / c.hidden_size + t.rotated.config.rms_norm_eps);
      for (int32_t i = 0; i < c.hidden_size; ++i) {
        const double real = std::ldexp(row[i], -c.residual_fraction_bits) / rms;
        d.Add(out.value(token * c.hidden_size + i), Expected(real, site.gain[i], site.scale, wide),
              wide);
      }
    }
    ExpectClose(d, wide);
  }
}

// Accumulators whose real values are spread evenly up to `size`.
std::vector<int32_t> RandomAcc(const std::vector<float>& steps, double in_scale, double size,
                               uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> acc(kTokens * steps.size());
  for (size_t i = 0; i < acc.size(); ++i) {
    const double real = (2 * random.Uniform() - 1) * size;
    acc[i] = static_cast<int32_t>(real / (in_scale * steps[i % steps.size()]));
  }
  return acc;
}

NarrowParams Params(const NarrowRequantize& r) { return {r.multipliers.data(), r.p, r.k}; }

TEST_F(QuantizeTest, ValuesApplyGainAndScale) {
  const TestQuantized t = MakeTestQuantized({.seed = 2}, *gemm_, pool_);
  const LayerScales& s = t.scales.layers[1];
  const ModelConfig& c = t.model.config;
  const std::vector<float>& steps = t.weights.layers[1].v.steps;
  const int32_t channels = static_cast<int32_t>(steps.size());
  const std::vector<int32_t> acc = RandomAcc(steps, s.attn_in.scale, 80 * s.v[0], 6);
  std::vector<int8_t> out(acc.size());
  ReferenceOps().narrow({acc.data(), steps.size(), kTokens, channels, Params(t.model.layers[1].v),
                         out.data(), steps.size()});
  Distance d;
  for (size_t i = 0; i < acc.size(); ++i) {
    const size_t channel = i % steps.size();
    const double real = acc[i] * s.attn_in.scale * steps[channel];
    d.Add(out[i], Expected(real, s.v_gain[channel], s.v[channel / c.head_dim], false), false);
  }
  ExpectClose(d, false);
}

TEST_F(QuantizeTest, QueriesApplyGainAndScaleBehindTheHadamard) {
  for (const bool hadamard : {false, true}) {
    const TestQuantized t = MakeTestQuantized({.qk_hadamard = hadamard}, *gemm_, pool_);
    const LayerScales& s = t.scales.layers[0];
    const ModelLayer& l = t.model.layers[0];
    const ModelConfig& c = t.model.config;
    const std::vector<float>& steps = t.weights.layers[0].q.steps;
    const int32_t half = c.head_dim / 2;
    // RoPE grows a value by up to sqrt(2), and the 16 bits must hold it.
    const double size = 22000 * s.attn_in.scale * steps[0] /
                        std::ldexp(l.q_before.multipliers[0], -l.q_before.p - l.q_before.k);
    const std::vector<int32_t> acc = RandomAcc(steps, s.attn_in.scale, size, 8);
    std::vector<int8_t> out(acc.size());
    ReferenceOps().rotate_heads({.acc = acc.data(),
                                 .acc_stride = steps.size(),
                                 .tokens = kTokens,
                                 .heads = c.num_attention_heads,
                                 .head_dim = c.head_dim,
                                 .before = Params(l.q_before),
                                 .cos = t.model.rope_cos.data(),
                                 .sin = t.model.rope_sin.data(),
                                 .rope_stride = static_cast<size_t>(half),
                                 .hadamard = hadamard,
                                 .after = Params(l.q_after),
                                 .out = out.data(),
                                 .out_stride = steps.size()});
    Distance d;
    std::vector<float> x(c.head_dim);
    for (size_t first = 0; first < acc.size(); first += c.head_dim) {
      const int32_t channel = static_cast<int32_t>(first % steps.size());
      const double position = static_cast<double>(first / steps.size());
      for (int32_t i = 0; i < c.head_dim; ++i)
        x[i] = static_cast<float>(acc[first + i] * s.attn_in.scale * steps[channel + i]);
      for (int32_t i = 0; i < half; ++i) {
        const double angle = position * t.rotated.rope_inverse_frequency[i];
        const double a = x[i], b = x[i + half];
        x[i] = static_cast<float>(a * std::cos(angle) - b * std::sin(angle));
        x[i + half] = static_cast<float>(b * std::cos(angle) + a * std::sin(angle));
      }
      if (hadamard) Vec().hadamard(x.data(), c.head_dim, c.head_dim);
      for (int32_t i = 0; i < c.head_dim; ++i) {
        d.Add(out[first + i],
              Expected(x[i], s.q_gain[channel + i], s.q[channel / c.head_dim], false), false);
      }
    }
    ExpectClose(d, false);
  }
}

TEST_F(QuantizeTest, DownInputAppliesGainAndScale) {
  for (const bool wide : {false, true}) {
    TestQuantized t = MakeTestQuantized({.seed = 4}, *gemm_, pool_);
    t.scales.layers[0].down_in.wide = wide;
    const auto model = QuantizeModel(t.rotated, t.weights, t.scales, t.ranges, t.prefix,
                                     t.online.down_block, t.online.qk_hadamard, pool_);
    ASSERT_TRUE(model.ok()) << model.status();
    const ModelLayer& l = model->layers[0];
    const LayerScales& s = t.scales.layers[0];
    const ModelConfig& c = model->config;
    const IntegerLayerWeights& w = t.weights.layers[0];
    const size_t n = w.gate.steps.size();
    const std::vector<int32_t> gate = RandomAcc(w.gate.steps, s.mlp_in.scale, 3, 10);
    const std::vector<int32_t> up = RandomAcc(w.up.steps, s.mlp_in.scale, 3, 11);
    Planes out(kTokens, c.intermediate_size, wide);
    std::vector<int32_t> scratch(n);
    ReferenceOps().swiglu({.gate = gate.data(),
                           .up = up.data(),
                           .acc_stride = n,
                           .tokens = kTokens,
                           .channels = c.intermediate_size,
                           .gate_requantize = Params(l.gate),
                           .up_requantize = Params(l.up),
                           .sigmoid_multiplier = l.sigmoid_multiplier,
                           .sigmoid_shift = l.sigmoid_shift,
                           .product_shift = l.product_shift,
                           .hadamard_block = c.down_hadamard_block,
                           .out_requantize = Params(l.down_in),
                           .out = out.planes(),
                           .scratch = scratch.data()});
    Distance d;
    std::vector<float> x(n);
    for (int32_t token = 0; token < kTokens; ++token) {
      for (size_t i = 0; i < n; ++i) {
        const double g = gate[token * n + i] * s.mlp_in.scale * w.gate.steps[i];
        x[i] = static_cast<float>(g / (1 + std::exp(-g)) * up[token * n + i] * s.mlp_in.scale *
                                  w.up.steps[i]);
      }
      Vec().hadamard(x.data(), static_cast<int64_t>(n), c.down_hadamard_block);
      for (size_t i = 0; i < n; ++i) {
        d.Add(out.value(token * n + i), Expected(x[i], s.down_in.gain[i], s.down_in.scale, wide),
              wide);
      }
    }
    ExpectClose(d, wide);
  }
}

TEST_F(QuantizeTest, AttentionOutputAppliesGainAndScaleAndKeepsTheGainOfV) {
  const TestQuantized t = MakeTestQuantized({.wide = true}, *gemm_, pool_);
  const ModelConfig& c = t.model.config;
  const int32_t group = c.num_attention_heads / c.num_key_value_heads;
  for (size_t i = 0; i < t.model.layers.size(); ++i) {
    const NarrowRequantize& r = t.model.layers[i].attn_out;
    const LayerScales& s = t.scales.layers[i];
    for (size_t j = 0; j < r.multipliers.size(); ++j) {
      const double exact = s.v[j / c.head_dim / group] / 128 * s.o_in.gain[j] *
                           (s.o_in.wide ? 256 : 1) / s.o_in.scale;
      EXPECT_NEAR(std::ldexp(r.multipliers[j], -r.k) / exact, 1, 0.51 / r.multipliers[j]);
    }
  }
}

TEST_F(QuantizeTest, TinyRatiosGetTheSmallestMultiplier) {
  TestQuantized t = MakeTestQuantized({}, *gemm_, pool_);
  t.scales.layers[0].attn_in.gain[5] = 1e-6f;
  t.scales.layers[0].k_gain[3] = 1e-6f;
  const auto model = QuantizeModel(t.rotated, t.weights, t.scales, t.ranges, t.prefix,
                                   t.online.down_block, t.online.qk_hadamard, pool_);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_TRUE(ValidateModel(*model).ok());
  EXPECT_EQ(model->layers[0].attn_norm.multipliers[5], 1);
  EXPECT_EQ(model->layers[0].k_after.multipliers[3], 1);
  // The others stay exact: the shift is not that of a clip which no value can reach.
  EXPECT_GE(model->layers[0].attn_norm.fraction_bits, 15);
  EXPECT_LE(model->layers[0].k_after.p, 4);  // Hadamard over 16
}

TEST_F(QuantizeTest, BadScalesAreRefusedByName) {
  const TestQuantized good = MakeTestQuantized({}, *gemm_, pool_);
  const auto message = [&](const std::function<void(TestQuantized*)>& spoil) {
    TestQuantized t = good;
    spoil(&t);
    const auto model = QuantizeModel(t.rotated, t.weights, t.scales, t.ranges, t.prefix,
                                     t.online.down_block, t.online.qk_hadamard, pool_);
    EXPECT_EQ(model.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(model.status().message());
  };
  using testing::AllOf;
  using testing::HasSubstr;
  EXPECT_THAT(message([](TestQuantized* t) { t->scales.layers[1].o_in.gain.pop_back(); }),
              AllOf(HasSubstr("layer 1"), HasSubstr("o_in"), HasSubstr("63"), HasSubstr("64")));
  EXPECT_THAT(message([](TestQuantized* t) { t->scales.layers[0].v_gain[7] = 0; }),
              AllOf(HasSubstr("layer 0"), HasSubstr("v"), HasSubstr("7")));
  EXPECT_THAT(message([](TestQuantized* t) {
                t->scales.head_in.scale = std::numeric_limits<double>::quiet_NaN();
              }),
              AllOf(HasSubstr("head_in"), HasSubstr("nan")));
  EXPECT_THAT(message([](TestQuantized* t) { t->scales.layers[0].k.push_back(1); }),
              AllOf(HasSubstr("k"), HasSubstr("3 scales")));
  EXPECT_THAT(message([](TestQuantized* t) { t->scales.layers.pop_back(); }), HasSubstr("layers"));
  EXPECT_THAT(message([](TestQuantized* t) { t->weights.layers[1].up.steps.pop_back(); }),
              AllOf(HasSubstr("layer 1"), HasSubstr("up_proj")));
}

// The two round the same values at the same points. Where 16-bit intermediates tip one of a hundred
// roundings the other way, the errors behind it are others but as large: so both are as far from
// the model that rounds nothing, and no further from each other than two independent roundings.
TEST_F(QuantizeTest, TheEngineAgreesWithTheSimulation) {
  for (const TestQuantizedOptions& options :
       {TestQuantizedOptions{.gains = false}, TestQuantizedOptions{.seed = 2},
        TestQuantizedOptions{.seed = 3, .folded = true},
        TestQuantizedOptions{.seed = 4, .wide = true, .qk_hadamard = false}}) {
    SCOPED_TRACE(options.seed);
    const TestQuantized t = MakeTestQuantized(options, *gemm_, pool_);
    const ForwardModel model =
        MakeIntegerForwardModel(t.weights, t.rotated, t.online, *gemm_, pool_);
    FloatForward rounding(model, *gemm_, pool_), exact(model, *gemm_, pool_);
    ForwardLogits simulation(rounding, {.prefix = &t.prefix, .scales = &t.scales});
    ForwardLogits unrounded(exact, {.prefix = &t.prefix, .scales = &t.scales, .round = false});
    auto executor = CpuExecutor::Create(
        t.model, {.threads = 2, .kv_cache_bytes = KvBlockBytes(t.model.config) * 4});
    ASSERT_TRUE(executor.ok()) << executor.status();
    ExecutorLogits integer(**executor);
    const Windows text = RandomTestWindows(12, 128, t.model.config.vocab_size, 99);
    const auto to_float = Compare(unrounded, {&simulation, &integer}, text, pool_);
    const auto to_simulation = Compare(simulation, {&integer}, text, pool_);
    ASSERT_TRUE(to_float.ok() && to_simulation.ok());
    const double simulated = (*to_float)[0].kl_mean;
    EXPECT_GT(simulated, 1e-5);
    EXPECT_LT(simulated, 0.05);
    EXPECT_NEAR((*to_float)[1].kl_mean / simulated, 1, 0.15);
    EXPECT_LT((*to_simulation)[0].kl_mean, 1.5 * simulated);
    EXPECT_GT((*to_simulation)[0].top1_agreement, 0.92);
  }
}

}  // namespace
}  // namespace fixpoint
