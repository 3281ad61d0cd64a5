#include "calibrator/train/parameters.h"

#include <cmath>
#include <numeric>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

using Kind = ParameterLayout::Kind;
using testing::Each;
using testing::IsEmpty;

constexpr int32_t kLayers = 3, kHidden = 5, kHeads = 4, kKvHeads = 2, kHeadDim = 2;
constexpr int32_t kIntermediate = 7, kPrefixTokens = 3;

FloatConfig Config() {
  FloatConfig c;
  c.hidden_size = kHidden;
  c.intermediate_size = kIntermediate;
  c.num_hidden_layers = kLayers;
  c.num_attention_heads = kHeads;
  c.num_key_value_heads = kKvHeads;
  c.head_dim = kHeadDim;
  return c;
}

Scales Base() {
  Scales scales;
  scales.layers.resize(kLayers);
  for (LayerScales& layer : scales.layers) {
    for (int32_t i = 0; i < kLayerLinearSites; ++i)
      layer.linear(static_cast<LayerSite>(i)).scale = 0.5 + i;
    layer.q.assign(kHeads, 2);
    layer.k.assign(kKvHeads, 3);
    layer.v.assign(kKvHeads, 4);
  }
  scales.layers[1].down_in.wide = true;
  scales.head_in.scale = 9;
  return scales;
}

FloatPrefix Prefix() {
  FloatPrefix prefix{.token_ids = {1, 2, 3}};
  prefix.layers.resize(kLayers);
  for (FloatPrefix::Layer& layer : prefix.layers) {
    layer.k.resize(kKvHeads * kPrefixTokens * kHeadDim);
    layer.v.resize(layer.k.size());
    std::iota(layer.k.begin(), layer.k.end(), 0.0f);
    std::iota(layer.v.begin(), layer.v.end(), 100.0f);
  }
  return prefix;
}

// Counts how often each place of the vector is named.
class Cover {
 public:
  explicit Cover(int64_t size) : times_(size) {}
  void Add(int64_t begin, int64_t count) {
    for (int64_t i = begin; i < begin + count; ++i) {
      ASSERT_TRUE(i >= 0 && i < static_cast<int64_t>(times_.size())) << i;
      ++times_[i];
    }
  }
  const std::vector<int>& times() const { return times_; }

 private:
  std::vector<int> times_;
};

TEST(ParameterLayoutTest, PiecesCoverTheVectorExactlyOnce) {
  for (const int32_t prefix_tokens : {0, kPrefixTokens}) {
    const ParameterLayout layout(Config(), prefix_tokens);
    Cover cover(layout.size());
    layout.ForEachPiece([&](Kind, int64_t begin, int64_t count) { cover.Add(begin, count); });
    EXPECT_THAT(cover.times(), Each(1)) << prefix_tokens;
  }
}

TEST(ParameterLayoutTest, OffsetsCoverTheVectorExactlyOnceAndLieInTheirPieces) {
  const ParameterLayout layout(Config(), kPrefixTokens);
  Cover cover(layout.size());
  std::vector<Kind> kinds(layout.size());
  layout.ForEachPiece([&](Kind kind, int64_t begin, int64_t count) {
    std::fill_n(kinds.begin() + begin, count, kind);
  });
  const auto add = [&](Kind kind, int64_t begin, int64_t count) {
    cover.Add(begin, count);
    for (int64_t i = begin; i < begin + count; ++i) EXPECT_EQ(kinds[i], kind) << i;
  };
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    for (int32_t i = 0; i < kLayerLinearSites; ++i) {
      const LayerSite site = static_cast<LayerSite>(i);
      add(Kind::kScale, layout.LinearScale(layer, site), 1);
      add(Kind::kLinearGain, layout.LinearGain(layer, site), layout.Channels(site));
    }
    add(Kind::kScale, layout.HeadScales(layer), layout.all_heads());
    add(Kind::kHeadGain, layout.HeadGains(layer), layout.all_heads() * layout.head_dim());
    add(Kind::kPrefix, layout.Prefix(layer), layout.prefix_per_layer());
  }
  add(Kind::kScale, layout.LinearScale(kLayers, LayerSite::kAttnIn), 1);
  add(Kind::kLinearGain, layout.LinearGain(kLayers, LayerSite::kAttnIn), kHidden);
  EXPECT_THAT(cover.times(), Each(1));
  EXPECT_EQ(layout.Channels(LayerSite::kOIn), kHeads * kHeadDim);
  EXPECT_EQ(layout.Channels(LayerSite::kDownIn), kIntermediate);
  EXPECT_EQ(layout.prefix_per_layer(), 2 * kKvHeads * kPrefixTokens * kHeadDim);
}

TEST(MoveScalesTest, ZerosLeaveEverythingAndGainsEmpty) {
  const ParameterLayout layout(Config(), kPrefixTokens);
  const std::vector<float> zeros(layout.size());
  const Scales moved = MoveScales(Base(), layout, zeros);
  for (int32_t i = 0; i < kLayers; ++i) {
    const LayerScales& layer = moved.layers[i];
    for (int32_t j = 0; j < kLayerLinearSites; ++j) {
      const LinearSite& site = layer.linear(static_cast<LayerSite>(j));
      EXPECT_EQ(site.scale, 0.5 + j);
      EXPECT_EQ(site.wide, i == 1 && j == 3);
      EXPECT_THAT(site.gain, IsEmpty());
    }
    EXPECT_THAT(layer.q, Each(2.0));
    EXPECT_THAT(layer.k, Each(3.0));
    EXPECT_THAT(layer.v, Each(4.0));
    EXPECT_TRUE(layer.q_gain.empty() && layer.k_gain.empty() && layer.v_gain.empty());
  }
  EXPECT_EQ(moved.head_in.scale, 9);
  EXPECT_THAT(moved.head_in.gain, IsEmpty());
}

TEST(MoveScalesTest, ScalesAndGainsAreMultipliedByExp) {
  const ParameterLayout layout(Config(), 0);
  Scales base = Base();
  base.layers[2].mlp_in.gain = {1, 2, 3, 4, 5};  // of an earlier training
  std::vector<float> p(layout.size());
  const float two = std::log(2.0f);  // 1e-6: float32 log and exp
  p[layout.LinearScale(0, LayerSite::kOIn)] = two;
  p[layout.LinearScale(kLayers, LayerSite::kAttnIn)] = -two;
  p[layout.LinearGain(1, LayerSite::kDownIn) + 6] = two;
  p[layout.LinearGain(2, LayerSite::kMlpIn) + 1] = two;
  p[layout.LinearGain(kLayers, LayerSite::kAttnIn) + 4] = -two;
  p[layout.HeadScales(0) + 1] = two;                              // q of head 1
  p[layout.HeadScales(0) + kHeads] = -two;                        // k of head 0
  p[layout.HeadScales(0) + kHeads + kKvHeads + 1] = two;          // v of head 1
  p[layout.HeadGains(2) + 3] = two;                               // q, head 1, channel 1
  p[layout.HeadGains(2) + (kHeads + kKvHeads) * kHeadDim] = two;  // v, head 0, channel 0
  const Scales moved = MoveScales(base, layout, p);

  EXPECT_NEAR(moved.layers[0].o_in.scale, 3, 1e-6);
  EXPECT_EQ(moved.layers[0].attn_in.scale, 0.5);
  EXPECT_EQ(moved.layers[1].o_in.scale, 1.5);
  EXPECT_NEAR(moved.head_in.scale, 4.5, 1e-6);
  EXPECT_TRUE(moved.layers[1].down_in.wide);

  const auto near = [](std::vector<float> expected) {
    return testing::Pointwise(testing::FloatNear(1e-6f), std::move(expected));
  };
  EXPECT_THAT(moved.layers[1].down_in.gain, near({1, 1, 1, 1, 1, 1, 2}));
  EXPECT_THAT(moved.layers[2].mlp_in.gain, near({1, 4, 3, 4, 5}));
  EXPECT_THAT(moved.head_in.gain, near({1, 1, 1, 1, 0.5f}));
  EXPECT_THAT(moved.layers[0].down_in.gain, IsEmpty());

  EXPECT_NEAR(moved.layers[0].q[1], 4, 1e-6);
  EXPECT_EQ(moved.layers[0].q[0], 2);
  EXPECT_NEAR(moved.layers[0].k[0], 1.5, 1e-6);
  EXPECT_EQ(moved.layers[0].k[1], 3);
  EXPECT_NEAR(moved.layers[0].v[1], 8, 1e-6);
  EXPECT_THAT(moved.layers[2].q_gain, near({1, 1, 1, 2, 1, 1, 1, 1}));
  EXPECT_THAT(moved.layers[2].k_gain, IsEmpty());
  EXPECT_THAT(moved.layers[2].v_gain, near({2, 1, 1, 1}));
  EXPECT_THAT(moved.layers[0].q_gain, IsEmpty());
}

TEST(MovePrefixTest, AddsToKThenV) {
  const ParameterLayout layout(Config(), kPrefixTokens);
  std::vector<float> p(layout.size());
  p[layout.Prefix(1)] = 0.5f;
  p[layout.Prefix(1) + layout.prefix_per_layer() / 2] = -0.25f;
  p[layout.Prefix(2) + layout.prefix_per_layer() - 1] = 8;
  const FloatPrefix base = Prefix();
  FloatPrefix expected = base;
  expected.layers[1].k[0] += 0.5f;
  expected.layers[1].v[0] -= 0.25f;
  expected.layers[2].v.back() += 8;
  const FloatPrefix moved = MovePrefix(base, layout, p);
  EXPECT_EQ(moved.token_ids, base.token_ids);
  for (int32_t i = 0; i < kLayers; ++i) {
    EXPECT_EQ(moved.layers[i].k, expected.layers[i].k) << i;
    EXPECT_EQ(moved.layers[i].v, expected.layers[i].v) << i;
  }
}

TEST(MovePrefixTest, NothingToMoveWithoutAPrefix) {
  const ParameterLayout layout(Config(), 0);
  FloatPrefix none;
  none.layers.resize(kLayers);
  const FloatPrefix moved = MovePrefix(none, layout, std::vector<float>(layout.size(), 1));
  EXPECT_EQ(moved.size(), 0);
  EXPECT_THAT(moved.layers[0].k, IsEmpty());
}

}  // namespace
}  // namespace fixpoint
