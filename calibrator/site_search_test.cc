#include "calibrator/site_search.h"

#include <map>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

// Four layers whose sites all have the same Gaussian-like histogram, and a model of the loss that
// the test decides.
class SiteSearchTest : public testing::Test {
 protected:
  SiteSearchTest() {
    config_.hidden_size = 64;
    config_.intermediate_size = 192;
    config_.num_hidden_layers = 4;
    config_.num_attention_heads = config_.num_key_value_heads = 4;
    config_.head_dim = 16;
    config_.vocab_size = 100;
    MagnitudeHistogram h{.counts = std::vector<double>(kHistogramBins), .largest = 4};
    for (int bin = 12 * kBinsPerOctave; bin < 18 * kBinsPerOctave; ++bin) h.counts[bin] = 100;
    statistics_.layers.resize(4);
    for (LayerStatistics& layer : statistics_.layers) {
      for (MagnitudeHistogram& site : layer.linear) site = h;
    }
    statistics_.head_in = h;
    narrow_ = ChooseScales();
    options_.candidates = 100;
  }

  Scales ChooseScales() {
    Scales scales;
    scales.layers.resize(4);
    for (LayerScales& layer : scales.layers)
      layer.attn_in = layer.o_in = layer.mlp_in = layer.down_in = {.scale = 0.03};
    scales.head_in = {.scale = 0.03};
    return scales;
  }

  // 0.01 and what each int8 site costs.
  double Loss(const Scales& scales) const {
    double kl = 0.01;
    if (hidden_ && !scales.layers[1].down_in.wide) return 0.12;
    for (int layer = 0; layer < 4; ++layer) {
      for (int site = 0; site < kLayerLinearSites; ++site) {
        const auto found = cost_.find({layer, site});
        if (found != cost_.end() && !scales.layers[layer].linear(static_cast<LayerSite>(site)).wide)
          kl += found->second;
      }
    }
    return kl;
  }

  class Measurer : public SiteMeasurer {
   public:
    explicit Measurer(SiteSearchTest* test) : test_(test) {}
    absl::Status SetBase(const Scales& scales) override {
      base_ = scales;
      return absl::OkStatus();
    }
    absl::StatusOr<double> Measure(const Scales& scales) override {
      ++test_->measured_;
      EXPECT_LE(Differences(scales), 1);  // from the base
      return test_->Loss(scales);
    }

   private:
    int Differences(const Scales& scales) const {
      int count = scales.head_in.wide != base_.head_in.wide;
      for (size_t i = 0; i < scales.layers.size(); ++i) {
        for (int site = 0; site < kLayerLinearSites; ++site) {
          count += scales.layers[i].linear(static_cast<LayerSite>(site)).wide !=
                   base_.layers[i].linear(static_cast<LayerSite>(site)).wide;
        }
      }
      return count;
    }

    SiteSearchTest* test_;
    Scales base_;
  };

  SiteSearchResult Search() {
    measured_ = 0;
    Measurer measurer(this);
    const auto result = SearchWideSites(config_, statistics_, narrow_, options_, measurer, nullptr);
    EXPECT_TRUE(result.ok());
    return *result;
  }

  static std::vector<std::string> Names(const SiteSearchResult& result) {
    std::vector<std::string> names;
    for (const SiteChoice& choice : result.chosen) names.push_back(choice.name);
    return names;
  }

  FloatConfig config_;
  Statistics statistics_;
  Scales narrow_;
  SiteSearchOptions options_;
  std::map<std::pair<int, int>, double> cost_;
  bool hidden_ = false;
  int measured_ = 0;
};

TEST_F(SiteSearchTest, TakesTheBestSitesUntilTheTargetHolds) {
  cost_ = {{{1, 3}, 0.02}, {{2, 3}, 0.05}, {{0, 1}, 0.004}};
  options_.kl_target = 0.02;
  const SiteSearchResult result = Search();
  EXPECT_THAT(Names(result), testing::ElementsAre("layers.2.down_in", "layers.1.down_in"));
  EXPECT_EQ(result.stop_reason, "target");
  EXPECT_NEAR(result.kl_start, 0.084, 1e-12);
  EXPECT_NEAR(result.kl_end, 0.014, 1e-12);
  EXPECT_NEAR(result.chosen[0].kl_before - result.chosen[0].kl_after, 0.05, 1e-12);
  EXPECT_TRUE(result.scales.layers[2].down_in.wide);
  EXPECT_FALSE(result.scales.layers[0].o_in.wide);
}

TEST_F(SiteSearchTest, MeasuresOnceWhenTheTargetHoldsFromTheStart) {
  options_.kl_target = 0.02;
  const SiteSearchResult result = Search();
  EXPECT_TRUE(result.chosen.empty());
  EXPECT_EQ(measured_, 1);
  EXPECT_EQ(result.stop_reason, "target");
}

TEST_F(SiteSearchTest, NeverDoublesMoreWorkThanAllowed) {
  for (int layer = 0; layer < 4; ++layer) {
    for (int site = 0; site < kLayerLinearSites; ++site) cost_[{layer, site}] = 0.01;
  }
  options_.max_doubled_share = 0.2;
  const SiteSearchResult result = Search();
  EXPECT_LE(result.doubled_share, 0.2);
  EXPECT_EQ(result.stop_reason, "work");
  // o_in is the cheapest site and pays the same: all four come first.
  ASSERT_GE(result.chosen.size(), 4u);
  for (int i = 0; i < 4; ++i) EXPECT_THAT(Names(result)[i], testing::EndsWith("o_in"));
}

TEST_F(SiteSearchTest, StopsWhenNothingPays) {
  cost_ = {{{3, 0}, 1e-7}};
  options_.kl_target = 0.001;
  const SiteSearchResult result = Search();
  EXPECT_TRUE(result.chosen.empty());
  EXPECT_EQ(result.stop_reason, "gain");
}

TEST_F(SiteSearchTest, GainsThatABadSiteHidBecomeVisibleInTheNextRound) {
  // While {1, 3} is int8, {2, 3} seems to gain nothing.
  hidden_ = true;
  cost_ = {{{1, 3}, 0.1}, {{2, 3}, 0.01}};
  options_.kl_target = 0.012;
  EXPECT_THAT(Names(Search()), testing::ElementsAre("layers.1.down_in", "layers.2.down_in"));
}

TEST_F(SiteSearchTest, PassesOnAFailedMeasurement) {
  class Broken : public SiteMeasurer {
    absl::Status SetBase(const Scales&) override { return absl::OkStatus(); }
    absl::StatusOr<double> Measure(const Scales&) override { return absl::DataLossError("lost"); }
  } broken;
  const auto result = SearchWideSites(config_, statistics_, narrow_, options_, broken, nullptr);
  EXPECT_EQ(result.status().code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace fixpoint
