#include "calibrator/prefix_search.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <string>

#include "bundle/test_model.h"
#include "calibrator/prefix.h"
#include "calibrator/test_float_model.h"
#include "calibrator/test_quantized_model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

constexpr int32_t kBos = 298, kLoud = 42;
constexpr char kTemplate[] =
    "{{ bos_token }}Q {% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% "
    "endfor %}";

// A model in whose first layer the token kLoud gives one channel of down_in a value far above all
// others.
FloatModel LoudModel() {
  FloatModel model = MakeTestFloatModel({.seed = 31, .tied = false});
  FloatLayer& layer = model.layers[0];
  std::fill(layer.mlp_norm.begin(), layer.mlp_norm.end(), 1.0f);
  // The token's direction: 3 times the others' length, so that attention hardly turns it.
  for (int64_t i = 0; i < model.config.hidden_size; ++i) {
    const float sign = i % 2 ? 1.0f : -1.0f;
    model.embedding.row(kLoud)[i] = 3 * sign;
    layer.gate_proj.row(5)[i] = layer.up_proj.row(5)[i] = 0.25f * sign;
  }
  return model;
}

class PrefixSearchTest : public testing::Test {
 protected:
  PrefixSearchTest() {
    TokenizerSpec spec = MakeTestTokenizer(300);
    spec.bos_id = kBos;
    tokenizer_ = *Tokenizer::Create(std::move(spec));
    start_ = float_forward_.ComputePrefix({kBos});
    // Each window says the loud token once.
    for (int32_t i = 0; i < train_.count(); ++i) train_.token_ids[i * train_.tokens + 20] = kLoud;
  }

  PrefixSearchResult Search(const FloatPrefix& behind, const std::string& chat_template) {
    FloatForward teacher_forward(floats_, *gemm_, pool_);
    ForwardLogits teacher(teacher_forward, {.prefix = &behind});
    const PrefixSearchInput input{.tokenizer = tokenizer_.get(),
                                  .chat_template = chat_template,
                                  .start = &start_,
                                  .train = &train_,
                                  .held_out = &held_out_,
                                  .teacher = &teacher};
    const auto result = SearchPrefix(input, float_forward_, student_, pool_,
                                     [&](double share) { shares_.push_back(share); });
    EXPECT_TRUE(result.ok()) << result.status();
    return *result;
  }

  static const PrefixCandidate* Find(const PrefixSearchResult& result, const std::string& why) {
    for (const PrefixCandidate& c : result.candidates) {
      if (c.why == why) return &c;
    }
    return nullptr;
  }

  ThreadPool pool_{2};
  std::unique_ptr<FloatGemm> gemm_ = CreateCpuGemm(pool_);
  FloatModel source_ = LoudModel();
  ForwardModel floats_ = MakeForwardModel(source_, {}, WeightKind::kFloat32, *gemm_, pool_);
  ForwardModel integers_ = MakeForwardModel(source_, {}, WeightKind::kInt8, *gemm_, pool_);
  FloatForward float_forward_{floats_, *gemm_, pool_}, student_{integers_, *gemm_, pool_};
  std::unique_ptr<Tokenizer> tokenizer_;
  FloatPrefix start_;
  Windows train_ = RandomTestWindows(5, 64, 290, 1);
  Windows held_out_ = RandomTestWindows(6, 64, 290, 2);
  std::vector<double> shares_;
};

TEST_F(PrefixSearchTest, CandidatesAreTheStartTheTemplateAndOutlierTokens) {
  const PrefixSearchResult result = Search(start_, kTemplate);
  ASSERT_GE(result.candidates.size(), 3u);
  EXPECT_EQ(result.candidates[0].why, "start");
  EXPECT_THAT(result.candidates[0].token_ids, testing::ElementsAre(kBos));
  const PrefixCandidate* opening = Find(result, "chat template");
  ASSERT_NE(opening, nullptr);
  std::vector<int32_t> expected = ConstantOpening(*tokenizer_, kTemplate);
  ASSERT_GT(expected.size(), 1u);
  expected.resize(std::min<size_t>(expected.size(), 4));
  EXPECT_EQ(opening->token_ids, expected);
  const PrefixCandidate* outlier = Find(result, "outlier token");
  ASSERT_NE(outlier, nullptr);
  EXPECT_THAT(outlier->token_ids, testing::ElementsAre(kBos, kLoud));  // the most frequent first
  for (const PrefixCandidate& c : result.candidates) {
    EXPECT_GT(c.kl, 0);
    EXPECT_TRUE(std::isfinite(c.kl));
    EXPECT_EQ(c.token_ids[0], kBos);
  }
  // Another prefix changes what this model says more than rounding does: the start wins.
  EXPECT_EQ(result.best, 0u);
  EXPECT_EQ(shares_.size(), result.candidates.size());
}

TEST_F(PrefixSearchTest, TakesTheCandidateThatComesClosest) {
  // A teacher that has seen the loud token: only that candidate gives the same context.
  const FloatPrefix behind = float_forward_.ComputePrefix({kBos, kLoud});
  const PrefixSearchResult result = Search(behind, kTemplate);
  const PrefixCandidate& best = result.candidates[result.best];
  EXPECT_THAT(best.token_ids, testing::ElementsAre(kBos, kLoud));
  EXPECT_LT(best.kl, 0.98 * result.candidates[0].kl);
  for (const PrefixCandidate& c : result.candidates) EXPECT_LE(best.kl, c.kl);
}

TEST_F(PrefixSearchTest, ATemplateThatBeginsOtherwiseIsNoCandidate) {
  EXPECT_EQ(Find(Search(start_, "{% for m in messages %}{{ m['content'] }}{% endfor %}"),
                 "chat template"),
            nullptr);
  EXPECT_EQ(Find(Search(start_, ""), "chat template"), nullptr);
}

TEST_F(PrefixSearchTest, WorksWithoutAStart) {
  start_ = float_forward_.ComputePrefix({});
  const PrefixSearchResult result = Search(start_, kTemplate);
  EXPECT_THAT(result.candidates[0].token_ids, testing::IsEmpty());
  const PrefixCandidate* outlier = Find(result, "outlier token");
  ASSERT_NE(outlier, nullptr);
  EXPECT_THAT(outlier->token_ids, testing::ElementsAre(kLoud));
}

}  // namespace
}  // namespace fixpoint
