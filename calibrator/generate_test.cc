#include "calibrator/generate.h"

#include <algorithm>
#include <set>

#include "calibrator/test_float_model.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

class GenerateTest : public testing::Test {
 protected:
  Windows Write(const std::vector<Opening>& openings, GenerateOptions options) {
    FloatForward forward(model_, *gemm_, pool_);
    options.tokens = 40;
    return GenerateWindows(forward, source_.config, prefix_, openings, options, pool_,
                           [](double) {});
  }

  ThreadPool pool_{2};
  std::unique_ptr<FloatGemm> gemm_ = CreateCpuGemm(pool_);
  FloatModel source_ = MakeTestFloatModel();
  ForwardModel model_ = MakeForwardModel(source_, {}, WeightKind::kFloat32, *gemm_, pool_);
  FloatPrefix prefix_ = FloatForward(model_, *gemm_, pool_).ComputePrefix(std::vector<int32_t>{1});
};

TEST_F(GenerateTest, WindowsBeginWithTheirOpeningsAndRepeatWithTheSeed) {
  const std::vector<Opening> openings = {
      {.token_ids = {5}}, {.token_ids = {9, 8, 7}}, {.token_ids = {5}}};
  const Windows a = Write(openings, {.seed = 3});
  EXPECT_EQ(a.count(), 3);
  EXPECT_EQ(a.window(1)[0], 9);
  EXPECT_EQ(a.window(1)[2], 7);
  EXPECT_EQ(a.token_ids, Write(openings, {.seed = 3}).token_ids);
  EXPECT_NE(a.token_ids, Write(openings, {.seed = 4}).token_ids);
  // Equal openings go different ways.
  EXPECT_FALSE(std::equal(a.window(0), a.window(0) + 40, a.window(2)));
  // Writing one window at a time changes nothing but float rounding, which hardly ever tips a draw.
  const Windows alone = Write(openings, {.seed = 3, .max_kv_bytes = 1});
  EXPECT_TRUE(std::equal(a.window(0), a.window(0) + 10, alone.window(0)));
}

TEST_F(GenerateTest, PlainWindowsAreFreeOfControlTokens) {
  GenerateOptions options{.seed = 5};
  for (int32_t id = 0; id < 250; ++id) options.control_ids.push_back(id);
  const Windows w = Write({{.token_ids = {3}}, {.token_ids = {3}, .allow_control = true}}, options);
  EXPECT_TRUE(std::all_of(w.window(0) + 1, w.window(0) + 40, [](int32_t id) { return id >= 250; }));
  EXPECT_TRUE(std::any_of(w.window(1) + 1, w.window(1) + 40, [](int32_t id) { return id < 250; }));
}

TEST_F(GenerateTest, DrawsFollowTheModelsDistribution) {
  // 400 draws of the second token after the same first one: the share of the most likely token
  // within 4 standard errors.
  const std::vector<int32_t> bos_and_first = {1, 3};
  const std::vector<double> logits = NaiveLogits(source_, bos_and_first);
  const double* row = logits.data() + 300;
  const double max = *std::max_element(row, row + 300);
  double sum = 0;
  for (int i = 0; i < 300; ++i) sum += std::exp(row[i] - max);
  const int32_t best = static_cast<int32_t>(std::max_element(row, row + 300) - row);
  const double p = 1 / sum;
  FloatForward forward(model_, *gemm_, pool_);
  const std::vector<Opening> openings(400, Opening{.token_ids = {3}});
  const Windows w = GenerateWindows(forward, source_.config, prefix_, openings,
                                    {.tokens = 2, .seed = 6}, pool_, [](double) {});
  int hits = 0;
  for (int32_t i = 0; i < 400; ++i) hits += w.window(i)[1] == best;
  EXPECT_NEAR(hits / 400.0, p, 4 * std::sqrt(p * (1 - p) / 400));
}

}  // namespace
}  // namespace fixpoint
