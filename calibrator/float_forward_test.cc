#include "calibrator/float_forward.h"

#include <cmath>
#include <numeric>

#include "calibrator/random.h"
#include "calibrator/ranges.h"
#include "calibrator/test_float_model.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

std::vector<int32_t> RandomIds(int64_t n, int32_t vocab, uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> ids(n);
  for (int32_t& id : ids) id = static_cast<int32_t>(random.Below(vocab));
  return ids;
}

class FloatForwardTest : public testing::Test {
 protected:
  void Load(const TestFloatOptions& options, WeightKind kind) {
    source_ = MakeTestFloatModel(options);
    model_ = MakeForwardModel(source_, {}, kind, *gemm_, pool_);
    forward_ = std::make_unique<FloatForward>(model_, *gemm_, pool_);
  }

  std::vector<float> Run(const std::vector<int32_t>& ids, int32_t sequences,
                         const ForwardOptions& options) {
    const int32_t tokens = static_cast<int32_t>(ids.size()) / sequences;
    forward_->Run({.token_ids = ids.data(), .sequences = sequences, .tokens = tokens}, options);
    std::vector<float> logits(ids.size() * source_.config.vocab_size);
    forward_->Logits(0, static_cast<int64_t>(ids.size()), logits.data());
    return logits;
  }

  ThreadPool pool_{2};
  std::unique_ptr<FloatGemm> gemm_ = CreateCpuGemm(pool_);
  FloatModel source_;
  ForwardModel model_;
  std::unique_ptr<FloatForward> forward_;
};

// 1e-4: float32 rounding over about 15 operations on logits of size 5 (rotate_test.cc).
void ExpectNear(const std::vector<float>& a, const double* b, double tolerance) {
  for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], tolerance) << i;
}

TEST_F(FloatForwardTest, EqualsTheTextbookForSeveralShapes) {
  for (const TestFloatOptions& options :
       {TestFloatOptions{},
        TestFloatOptions{
            .seed = 2, .layers = 3, .heads = 6, .kv_heads = 1, .qkv_bias = true, .tied = false},
        TestFloatOptions{.seed = 3,
        .hidden = 48,
        .heads = 3,
        .kv_heads = 3,
        .head_dim = 32,
        .intermediate = 100}}) {
    Load(options, WeightKind::kFloat32);
    // 150 tokens: three query blocks, the last one short.
    const std::vector<int32_t> ids = RandomIds(150, 300, 9);
    ExpectNear(Run(ids, 1, {}), NaiveLogits(source_, ids).data(), 1e-4);
  }
}

TEST_F(FloatForwardTest, SequencesOfABatchDoNotSeeEachOther) {
  Load({}, WeightKind::kFloat32);
  const std::vector<int32_t> ids = RandomIds(3 * 70, 300, 10);
  const std::vector<float> logits = Run(ids, 3, {});
  for (int s = 0; s < 3; ++s) {
    const std::vector<int32_t> one(ids.begin() + s * 70, ids.begin() + (s + 1) * 70);
    const std::vector<float> part(logits.begin() + s * 70 * 300,
                                  logits.begin() + (s + 1) * 70 * 300);
    ExpectNear(part, NaiveLogits(source_, one).data(), 1e-4);
  }
}

TEST_F(FloatForwardTest, TokensBehindAComputedPrefixSeeItAsIfTheyFollowedIt) {
  Load({.seed = 4, .qkv_bias = true}, WeightKind::kFloat32);
  const std::vector<int32_t> all = RandomIds(3 + 80, 300, 11);
  const FloatPrefix prefix = forward_->ComputePrefix(absl::MakeConstSpan(all).subspan(0, 3));
  EXPECT_EQ(prefix.size(), 3);
  EXPECT_EQ(prefix.layers[1].k.size(), 2u * 3 * 16);
  const std::vector<int32_t> text(all.begin() + 3, all.end());
  ExpectNear(Run(text, 1, {.prefix = &prefix}), NaiveLogits(source_, all).data() + 3 * 300, 1e-4);
}

TEST_F(FloatForwardTest, OneTokenAtATimeWithAKvBufferGivesTheSameLogits) {
  Load({.seed = 5}, WeightKind::kFloat32);
  const std::vector<int32_t> ids = RandomIds(2 * 75, 300, 12);
  const std::vector<int32_t> bos = {7};
  const FloatPrefix prefix = forward_->ComputePrefix(bos);
  const std::vector<float> whole = Run(ids, 2, {.prefix = &prefix});
  KvBuffer kv(forward_->kv_type(), 2, 2, 2, 75, 16);
  std::vector<float> logits(2 * 300);
  for (int32_t t = 0; t < 75; ++t) {
    const int32_t step[] = {ids[t], ids[75 + t]};
    forward_->Run({.token_ids = step, .sequences = 2, .tokens = 1, .start = t},
                  {.prefix = &prefix, .kv = &kv});
    forward_->Logits(0, 2, logits.data());
    for (int s = 0; s < 2; ++s) {
      for (int v = 0; v < 300; ++v)
        ASSERT_NEAR(logits[s * 300 + v], whole[(s * 75 + t) * 300 + v], 1e-4);
    }
  }
}

TEST_F(FloatForwardTest, Int8WeightsAreTheRoundedWeights) {
  Load({.seed = 6}, WeightKind::kInt8);
  const std::vector<int32_t> ids = RandomIds(90, 300, 13);
  const std::vector<float> logits = Run(ids, 1, {});
  FloatModel rounded = source_;
  const auto round = [](Matrix& w) {
    for (int64_t r = 0; r < w.rows; ++r) {
      const double step = Int8RowStep(w.row(r), w.cols);
      for (int64_t c = 0; c < w.cols; ++c) {
        w.row(r)[c] = static_cast<float>(
            step * std::clamp(std::nearbyint(w.row(r)[c] / step), -127.0, 127.0));
      }
    }
  };
  rounded.head = rounded.embedding;
  rounded.config.tie_word_embeddings = false;
  for (Matrix* w : {&rounded.embedding, &rounded.head}) round(*w);
  for (FloatLayer& l : rounded.layers) {
    for (Matrix* w :
         {&l.q_proj, &l.k_proj, &l.v_proj, &l.o_proj, &l.gate_proj, &l.up_proj, &l.down_proj})
      round(*w);
  }
  // Two bf16 planes carry 2^-17; K, V and softmax weights go through bf16 once (2^-9 each, averaged
  // over keys).
  const double tolerance = gemm_->fast_bf16() ? 0.03 : 3e-4;
  ExpectNear(logits, NaiveLogits(rounded, ids).data(), tolerance);
}

// Scales so fine that clipping and rounding hardly act: static mode must then come back to the
// float function.
TEST_F(FloatForwardTest, WideSitesWithFineHeadsComeCloseToFloat) {
  Load({.seed = 7}, WeightKind::kInt8);
  const std::vector<int32_t> ids = RandomIds(64, 300, 14);
  StatisticsCollector collector(source_.config, pool_.thread_count());
  const std::vector<float> plain = Run(ids, 1, {.statistics = &collector});
  const Statistics statistics = collector.Result();
  Scales narrow = ChooseScales(statistics, HeadClip::kMax);
  Scales wide = narrow;
  for (size_t i = 0; i < wide.layers.size(); ++i) {
    for (int j = 0; j < kLayerLinearSites; ++j) {
      wide.layers[i].linear(static_cast<LayerSite>(j)) =
          ScaleSite(statistics.layers[i].linear[j], true);
    }
  }
  wide.head_in = ScaleSite(statistics.head_in, true);
  const auto rms = [&](const std::vector<float>& logits) {
    double sum = 0;
    for (size_t i = 0; i < logits.size(); ++i) sum += std::pow(logits[i] - plain[i], 2);
    return std::sqrt(sum / static_cast<double>(logits.size()));
  };
  const double narrow_error = rms(Run(ids, 1, {.scales = &narrow}));
  const double wide_error = rms(Run(ids, 1, {.scales = &wide}));
  // int8 q, k and v remain in both; every other rounding is 256 times finer.
  EXPECT_LT(wide_error, 0.6 * narrow_error);
  EXPECT_LT(narrow_error, 0.2);
  EXPECT_GT(narrow_error, 0.001);
}

TEST_F(FloatForwardTest, ResumingAtALayerGivesTheSameBits) {
  Load({.seed = 9, .layers = 4}, WeightKind::kInt8);
  const std::vector<int32_t> ids = RandomIds(70, 300, 16);
  for (const int32_t stride : {1, 3}) {
    LayerCheckpoints checkpoints{.stride = stride};
    const std::vector<float> whole = Run(ids, 1, {.record = &checkpoints});
    EXPECT_EQ(checkpoints.residual.size(), stride == 1 ? 4u : 2u);
    for (const int32_t first : {0, 1, 3, 4}) {
      EXPECT_EQ(Run(ids, 1, {.resume = &checkpoints, .first_layer = first}), whole) << first;
    }
  }
}

TEST_F(FloatForwardTest, StatisticsSeeEveryTokenOnce) {
  Load({.seed = 8}, WeightKind::kFloat32);
  const std::vector<int32_t> ids = RandomIds(2 * 33, 300, 15);
  StatisticsCollector collector(source_.config, pool_.thread_count());
  const ForwardOptions options{.statistics = &collector};
  const std::vector<float> logits = Run(ids, 2, options);
  Run(ids, 2, options);
  const Statistics s = collector.Result();
  EXPECT_EQ(s.tokens, 2 * 66);
  for (const LayerStatistics& layer : s.layers) {
    EXPECT_EQ(layer.linear[0].total(), 132 * 64);
    EXPECT_EQ(layer.linear[3].total(), 132 * 128);
    EXPECT_EQ(layer.q[3].total(), 132 * 16);
    EXPECT_EQ(layer.v[1].total(), 132 * 16);
  }
  EXPECT_EQ(s.head_in.total(), 132 * 64);
  float largest = 0;
  for (const float logit : logits) largest = std::max(largest, std::fabs(logit));
  EXPECT_EQ(s.ranges.logits, largest);
  EXPECT_GT(s.ranges.residual, 1);
  EXPECT_GE(s.ranges.layers[0].product,
            s.layers[0].linear[3].largest);  // no Hadamard here: the same tensor
}

}  // namespace
}  // namespace fixpoint
