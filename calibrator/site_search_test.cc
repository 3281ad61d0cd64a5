#include "calibrator/site_search.h"

#include <cmath>
#include <map>

#include "calibrator/ranges.h"
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

TEST_F(SiteSearchTest, WideSitesOfTheStartAreNoCandidatesAndCountAsWork) {
  cost_ = {{{1, 3}, 0.02}, {{2, 3}, 0.05}};
  options_.kl_target = 0.011;
  narrow_.layers[2].down_in = {.scale = 7, .wide = true, .gain = {1, 2, 3}};
  const SiteSearchResult result = Search();
  EXPECT_THAT(Names(result), testing::ElementsAre("layers.1.down_in"));
  EXPECT_NEAR(result.kl_start, 0.03, 1e-12);
  EXPECT_EQ(result.scales.layers[2].down_in.scale, 7);
  EXPECT_THAT(result.scales.layers[2].down_in.gain, testing::ElementsAre(1, 2, 3));
  // Two down_proj of 192 * 64 among four layers of 64 * 64 * (3 + 1) + 3 * 192 * 64.
  EXPECT_NEAR(result.doubled_share, 2 * 12288.0 / (4 * (4 * 4096 + 3 * 12288)), 1e-12);
  // The work that is there leaves no room for more.
  options_.max_doubled_share = 0.1;
  const SiteSearchResult full = Search();
  EXPECT_THAT(Names(full), testing::IsEmpty());
  EXPECT_EQ(full.stop_reason, "work");
}

TEST_F(SiteSearchTest, GainsOfASiteOutliveItsWidening) {
  cost_ = {{{1, 3}, 0.05}};
  options_.kl_target = 0.011;
  narrow_.layers[1].down_in.gain = {4, 5};
  const SiteSearchResult result = Search();
  EXPECT_TRUE(result.scales.layers[1].down_in.wide);
  EXPECT_THAT(result.scales.layers[1].down_in.gain, testing::ElementsAre(4, 5));
}

class DropWideSitesTest : public SiteSearchTest {
 protected:
  // Three int16 sites, found while each cost much.
  DropWideSitesTest() {
    cost_ = {{{0, 1}, 0.03}, {{1, 3}, 0.02}, {{2, 3}, 0.05}};
    options_.kl_target = 0.0101;
    narrow_.layers[1].down_in.gain = {3, 4};
    result_ = Search();
    EXPECT_EQ(result_.chosen.size(), 3u);
  }

  void Drop() {
    Measurer measurer(this);
    EXPECT_TRUE(DropWideSites(config_, statistics_, options_, measurer, &result_).ok());
  }

  SiteSearchResult result_;
};

TEST_F(DropWideSitesTest, TakesBackWhatHasBecomeCheap) {
  cost_ = {{{0, 1}, 0.03}, {{1, 3}, 0.00005}, {{2, 3}, 0.05}};
  const double share = result_.doubled_share;
  Drop();
  EXPECT_THAT(Names(result_), testing::UnorderedElementsAre("layers.2.down_in", "layers.0.o_in"));
  EXPECT_FALSE(result_.scales.layers[1].down_in.wide);
  EXPECT_THAT(result_.scales.layers[1].down_in.gain, testing::ElementsAre(3, 4));
  EXPECT_EQ(result_.scales.layers[1].down_in.scale,
            ScaleSite(statistics_.layers[1].linear[3], false).scale);
  EXPECT_TRUE(result_.scales.layers[2].down_in.wide);
  EXPECT_NEAR(result_.kl_end, 0.01005, 1e-12);
  EXPECT_NEAR(result_.doubled_share, share - 12288.0 / (4 * (4 * 4096 + 3 * 12288)), 1e-12);
}

TEST_F(DropWideSitesTest, NeverCrossesTheTarget) {
  cost_ = {{{1, 3}, 0.00015}};  // 1.5 %: less than min_gain, but the target is 0.0101
  Drop();
  EXPECT_TRUE(result_.scales.layers[1].down_in.wide);
  EXPECT_FALSE(result_.scales.layers[2].down_in.wide);
  EXPECT_THAT(Names(result_), testing::ElementsAre("layers.1.down_in"));
}

TEST_F(DropWideSitesTest, KeepsWhatCostsMoreThanTheNoise) {
  options_.kl_target = 1;
  cost_ = {{{0, 1}, 0.0001}, {{1, 3}, 0.0003}, {{2, 3}, 0.0001}};
  Drop();
  EXPECT_THAT(Names(result_), testing::ElementsAre("layers.1.down_in"));
}

TEST_F(DropWideSitesTest, AMeasurementThatIsNoNumberKeepsTheSite) {
  class NotANumber : public SiteMeasurer {
    absl::Status SetBase(const Scales&) override { return absl::OkStatus(); }
    absl::StatusOr<double> Measure(const Scales&) override { return count_++ ? NAN : 0.01; }
    int count_ = 0;
  } measurer;
  ASSERT_TRUE(DropWideSites(config_, statistics_, options_, measurer, &result_).ok());
  EXPECT_EQ(result_.chosen.size(), 3u);
  EXPECT_EQ(result_.kl_end, 0.01);
}

// The site {1, 3} has a heavy tail: 1 value in 10,000 that is some 32 times the others.
class RefineScalesTest : public SiteSearchTest {
 protected:
  RefineScalesTest() {
    MagnitudeHistogram& h = statistics_.layers[1].linear[3];
    h.counts.assign(kHistogramBins, 0);
    for (int bin = 15 * kBinsPerOctave; bin < 16 * kBinsPerOctave; ++bin) h.counts[bin] = 10000;
    h.counts[21 * kBinsPerOctave] = 32;
    h.largest = 32.5f;
  }

  class Optimum : public SiteMeasurer {
   public:
    explicit Optimum(double scale) : scale_(scale) {}
    absl::Status SetBase(const Scales&) override { return absl::OkStatus(); }
    absl::StatusOr<double> Measure(const Scales& scales) override {
      ++measured_;
      return 0.01 + std::fabs(std::log(scales.layers[1].down_in.scale / scale_));
    }
    int measured() const { return measured_; }

   private:
    double scale_;
    int measured_ = 0;
  };

  int32_t Refine(SiteMeasurer& measurer) {
    const absl::StatusOr<int32_t> changed =
        RefineScales(config_, statistics_, refine_, measurer, &narrow_, [](double) {});
    EXPECT_TRUE(changed.ok()) << changed.status();
    return changed.value_or(-1);
  }

  ScaleSearchOptions refine_;
};

TEST_F(RefineScalesTest, ClimbsWhileTheLossFalls) {
  Optimum measurer(0.03 * 1.5 * 1.5 * 1.1);
  EXPECT_EQ(Refine(measurer), 1);
  EXPECT_NEAR(narrow_.layers[1].down_in.scale, 0.03 * 1.5 * 1.5, 1e-12);
  EXPECT_EQ(measurer.measured(), 1 + 3);  // the start, two steps, one too many
  EXPECT_EQ(narrow_.layers[2].down_in.scale, 0.03);
}

TEST_F(RefineScalesTest, GoesDownWhenUpDoesNotHelp) {
  Optimum measurer(0.03 / 1.3);
  EXPECT_EQ(Refine(measurer), 1);
  EXPECT_NEAR(narrow_.layers[1].down_in.scale, 0.03 / 1.3, 1e-12);
}

TEST_F(RefineScalesTest, LeavesAGoodScaleWideSitesAndEvenSitesAlone) {
  Optimum good(0.03);
  EXPECT_EQ(Refine(good), 0);
  EXPECT_EQ(narrow_.layers[1].down_in.scale, 0.03);
  narrow_.layers[1].down_in.wide = true;
  refine_.noise_factor = 1.01;  // all others are alike
  Optimum far(1);
  EXPECT_EQ(Refine(far), 0);
  EXPECT_EQ(far.measured(), 1);
  narrow_.layers[1].down_in.wide = false;
  refine_.max_sites = 0;
  EXPECT_EQ(Refine(far), 0);
}

TEST_F(RefineScalesTest, EndsWhateverTheMeasurerSays) {
  class Falling : public SiteMeasurer {
    absl::Status SetBase(const Scales&) override { return absl::OkStatus(); }
    absl::StatusOr<double> Measure(const Scales&) override { return kl_ *= 0.99; }
    double kl_ = 1;
  } falling;
  EXPECT_EQ(Refine(falling), 1);
  EXPECT_TRUE(std::isfinite(narrow_.layers[1].down_in.scale));
  narrow_ = ChooseScales();
  class NotANumber : public SiteMeasurer {
    absl::Status SetBase(const Scales&) override { return absl::OkStatus(); }
    absl::StatusOr<double> Measure(const Scales&) override { return count_++ ? NAN : 0.01; }
    int count_ = 0;
  } not_a_number;
  EXPECT_EQ(Refine(not_a_number), 0);
  EXPECT_EQ(narrow_.layers[1].down_in.scale, 0.03);
}

TEST_F(RefineScalesTest, PassesOnAFailedMeasurement) {
  class Broken : public SiteMeasurer {
    absl::Status SetBase(const Scales&) override { return absl::OkStatus(); }
    absl::StatusOr<double> Measure(const Scales&) override {
      if (count_++ == 0) return 0.01;
      return absl::DataLossError("lost");
    }
    int count_ = 0;
  } broken;
  const auto changed = RefineScales(config_, statistics_, refine_, broken, &narrow_, [](double) {});
  EXPECT_EQ(changed.status().code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace fixpoint
