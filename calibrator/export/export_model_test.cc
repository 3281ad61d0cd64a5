#include "calibrator/export/export_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "calibrator/random.h"
#include "calibrator/test_float_model.h"
#include "calibrator/vector_loops.h"

namespace fixpoint {
namespace {

const std::vector<int32_t> kIds = {1, 7, 250, 33, 8, 99, 140, 3};

LayerScales PlainScales() {
  LayerScales scales;
  for (int32_t i = 0; i < kLayerLinearSites; ++i)
    scales.linear(static_cast<LayerSite>(i)).scale = 0.02;
  return scales;
}

Scales PlainScales(const FloatModel& model) {
  Scales scales;
  scales.layers.assign(model.layers.size(), PlainScales());
  scales.head_in.scale = 0.02;
  return scales;
}

// Between 0.5 and 2, powers of two when the test wants bf16 to hold them.
std::vector<float> Gains(int64_t n, Random& random, bool exact) {
  std::vector<float> gains(static_cast<size_t>(n));
  for (float& gain : gains) {
    const double log2 = 2 * random.Uniform() - 1;
    gain = static_cast<float>(std::exp2(exact ? std::round(log2) : log2));
  }
  return gains;
}

double LargestDifference(const std::vector<double>& a, const std::vector<double>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

class CarryOverTest : public ::testing::Test {
 protected:
  FloatModel Carry(const FloatModel& model, const Scales& scales, GainKind kind) {
    return CarryOver(model, rotation_, scales, kind, *gemm_, pool_, &dropped_);
  }

  ThreadPool pool_{2};
  std::unique_ptr<FloatGemm> gemm_ = CreateCpuGemm(pool_);
  RotationOptions rotation_{.seed = 9, .max_down_block = 32};
  bool dropped_ = false;
};

TEST_F(CarryOverTest, WithoutGainsTheFunctionStays) {
  for (const bool bias : {false, true}) {
    const FloatModel model = MakeTestFloatModel({.qkv_bias = bias});
    const FloatModel carried = Carry(model, PlainScales(model), GainKind::kGain);
    EXPECT_FALSE(dropped_);
    EXPECT_FALSE(carried.config.tie_word_embeddings);
    EXPECT_EQ(carried.head.rows, model.config.vocab_size);
    EXPECT_NE(carried.embedding.data, model.embedding.data);
    for (const FloatLayer& layer : carried.layers)
      EXPECT_EQ(layer.attn_norm, std::vector<float>(layer.attn_norm.size(), 1.0f));
    // float32 rounding of the rotation, 1e-6 of logits of size 10.
    EXPECT_LT(LargestDifference(NaiveLogits(carried, kIds), NaiveLogits(model, kIds)), 1e-3);
  }
}

TEST_F(CarryOverTest, FoldedGainsLeaveTheFunctionAndSitInTheNorms) {
  const FloatModel model = MakeTestFloatModel();
  const FloatConfig& c = model.config;
  Random random(4);
  Scales scales = PlainScales(model);
  for (LayerScales& layer : scales.layers) {
    layer.attn_in.gain = Gains(c.hidden_size, random, false);
    layer.mlp_in.gain = Gains(c.hidden_size, random, false);
    layer.o_in.gain = Gains(c.num_attention_heads * c.head_dim, random, false);
    layer.down_in.gain = Gains(c.intermediate_size, random, false);
    layer.q_gain = Gains(c.num_attention_heads * c.head_dim, random, false);
  }
  scales.head_in.gain = Gains(c.hidden_size, random, false);
  const FloatModel carried = Carry(model, scales, GainKind::kFolded);
  EXPECT_FALSE(dropped_);
  for (size_t i = 0; i < carried.layers.size(); ++i) {
    for (int64_t j = 0; j < c.hidden_size; ++j)
      EXPECT_NEAR(carried.layers[i].attn_norm[j], scales.layers[i].attn_in.gain[j], 1.0 / 128);
  }
  EXPECT_LT(LargestDifference(NaiveLogits(carried, kIds), NaiveLogits(model, kIds)), 1e-3);
}

// Gains in the basis of their sites, applied by hand to the weights of the fully rotated model.
TEST_F(CarryOverTest, GainsScaleTheSignalWhereTheyAct) {
  const FloatModel model = MakeTestFloatModel({.qkv_bias = true});
  const FloatConfig& c = model.config;
  Random random(5);
  Scales scales = PlainScales(model);
  for (LayerScales& layer : scales.layers) {
    layer.attn_in.gain = Gains(c.hidden_size, random, true);
    layer.mlp_in.gain = Gains(c.hidden_size, random, true);
    layer.o_in.gain = Gains(c.num_attention_heads * c.head_dim, random, false);
    layer.down_in.gain = Gains(c.intermediate_size, random, false);
    layer.v_gain = Gains(c.num_key_value_heads * c.head_dim, random, false);
  }
  scales.head_in.gain = Gains(c.hidden_size, random, true);
  const FloatModel carried = Carry(model, scales, GainKind::kGain);
  EXPECT_FALSE(dropped_);

  FloatModel expected = model;
  RotationOptions online = rotation_;
  online.qk_hadamard = false;
  const OnlineTransforms transforms = FoldAndRotate(expected, online, *gemm_, pool_);
  ASSERT_EQ(transforms.down_block, 32);
  const auto columns = [](Matrix& w, const std::vector<float>& gain) {
    for (int64_t r = 0; r < w.rows; ++r)
      for (int64_t k = 0; k < w.cols; ++k) w.row(r)[k] *= gain[k];
  };
  for (size_t i = 0; i < expected.layers.size(); ++i) {
    FloatLayer& layer = expected.layers[i];
    const LayerScales& s = scales.layers[i];
    for (Matrix* w : {&layer.q_proj, &layer.k_proj, &layer.v_proj}) columns(*w, s.attn_in.gain);
    for (Matrix* w : {&layer.gate_proj, &layer.up_proj}) columns(*w, s.mlp_in.gain);
    columns(layer.o_proj, s.o_in.gain);
    columns(layer.down_proj, s.down_in.gain);
    for (int64_t r = 0; r < layer.v_proj.rows; ++r) {
      for (int64_t k = 0; k < layer.v_proj.cols; ++k) layer.v_proj.row(r)[k] *= s.v_gain[r];
      layer.v_bias[r] *= s.v_gain[r];
    }
    // The online transform, taken into the weights for NaiveLogits: H (H x) = x.
    for (int64_t r = 0; r < layer.down_proj.rows; ++r)
      Vec().hadamard(layer.down_proj.row(r), layer.down_proj.cols, transforms.down_block);
  }
  columns(expected.head, scales.head_in.gain);
  const std::vector<double> logits = NaiveLogits(expected, kIds);
  EXPECT_LT(LargestDifference(NaiveLogits(carried, kIds), logits), 1e-3);
  EXPECT_GT(LargestDifference(NaiveLogits(model, kIds), logits), 0.1) << "gains that do nothing";

  scales.layers[0].k_gain = Gains(c.num_key_value_heads * c.head_dim, random, false);
  Carry(model, scales, GainKind::kGain);
  EXPECT_TRUE(dropped_);
}

TEST(ExportSitesTest, BundleScalesWhereTheInputIsTheSame) {
  const FloatModel model = MakeTestFloatModel();
  Scales scales = PlainScales(model);
  scales.layers[0].mlp_in.wide = true;
  scales.layers[1].o_in.gain = {1, 2};
  Statistics statistics;
  statistics.layers.resize(2);
  for (LayerStatistics& layer : statistics.layers) {
    for (MagnitudeHistogram& histogram : layer.linear) {
      histogram.counts.assign(kHistogramBins, 0);
      histogram.counts[16 * kBinsPerOctave + 5] = 1000;  // near 1
      histogram.largest = 1.2f;
    }
  }
  const auto sites = ChooseExportSites(scales, statistics);
  const auto at = [&](int layer, LayerSite site) { return sites[layer][static_cast<int>(site)]; };
  EXPECT_EQ(at(0, LayerSite::kAttnIn).scale, 0.02f);
  EXPECT_EQ(at(0, LayerSite::kOIn).scale, 0.02f);
  EXPECT_EQ(at(1, LayerSite::kMlpIn).scale, 0.02f);
  EXPECT_TRUE(at(0, LayerSite::kAttnIn).quantized);
  EXPECT_FALSE(at(0, LayerSite::kMlpIn).quantized);
  for (const ExportSite& measured :
       {at(0, LayerSite::kMlpIn), at(0, LayerSite::kDownIn), at(1, LayerSite::kOIn)}) {
    EXPECT_NEAR(measured.scale * 127, 1.2, 0.2);
  }
}

TEST(RoundExportTest, IntegersAreNearWeightsAreBf16) {
  ThreadPool pool(2);
  const FloatModel model = MakeTestFloatModel({.qkv_bias = true, .tied = false});
  const ExportModel rounded = RoundExport(model, pool);
  ASSERT_EQ(rounded.integers.size(), 2u);
  for (size_t layer = 0; layer < 2; ++layer) {
    for (int32_t i = 0; i < kExportLinears; ++i) {
      const Matrix& w = model.layers[layer].*kExportLinearList[i].weights;
      const Matrix& bf16 = rounded.model.layers[layer].*kExportLinearList[i].weights;
      const IntegerLinear& q = rounded.integers[layer][i];
      ASSERT_EQ(static_cast<int64_t>(q.values.size()), w.rows * w.cols);
      for (int64_t j = 0; j < w.rows * w.cols; ++j) {
        const float step = q.steps[static_cast<size_t>(j / w.cols)];
        ASSERT_GT(step, 0);
        ASSERT_NE(q.values[j], -128);
        // Half a step, unless the value was clipped.
        if (std::abs(q.values[j]) < 127) {
          ASSERT_NEAR(q.values[j] * step, w.data[j], step * 0.50001f) << kExportLinearList[i].name;
        }
        ASSERT_NEAR(bf16.data[j], w.data[j], std::abs(w.data[j]) / 256);
      }
    }
  }
  for (const float value : rounded.model.head.data) {
    uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof(bits));
    ASSERT_EQ(bits & 0xffff, 0u);
  }
  EXPECT_EQ(LinearName(3, kExportLinearList[6]), "model.layers.3.mlp.down_proj");
}

}  // namespace
}  // namespace fixpoint
