#include "server/client/bench/workload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

namespace fixpoint::client {
namespace {

using testing::HasSubstr;

LengthDistribution Parse(const char* text) {
  const auto parsed = LengthDistribution::Parse("--flag", text);
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return *parsed;
}

Vocabulary Small() {
  return {.size = 100, .not_used = {0, 7}, .max_prompt_tokens = 1000, .max_context_tokens = 1024};
}

Workload Make(const WorkloadOptions& options, Vocabulary vocabulary = Small()) {
  auto workload = Workload::Create(options, std::move(vocabulary));
  EXPECT_TRUE(workload.ok()) << workload.status();
  return *std::move(workload);
}

std::vector<int64_t> Draws(const LengthDistribution& distribution, int count) {
  KeyedRandom random(5, 0);
  std::vector<int64_t> draws;
  for (int i = 0; i < count; ++i) draws.push_back(distribution.Draw(&random));
  std::sort(draws.begin(), draws.end());
  return draws;
}

// If these change, earlier runs can no longer be repeated.
TEST(KeyedRandomTest, KnownNumbers) {
  KeyedRandom random(1, 2);
  const uint64_t first = random.Bits();
  EXPECT_EQ(first, KeyedRandom(1, 2).Bits());
  EXPECT_NE(first, random.Bits());
  EXPECT_NE(first, KeyedRandom(2, 1).Bits());
}

TEST(KeyedRandomTest, Moments) {
  KeyedRandom random(3, 4);
  constexpr int kCount = 200000;
  double uniform = 0, exponential = 0, normal = 0, normal_square = 0;
  for (int i = 0; i < kCount; ++i) {
    uniform += random.Uniform();
    exponential += random.Exponential();
    const double n = random.Normal();
    normal += n;
    normal_square += n * n;
  }
  // Five standard errors: deviations are 0.29, 1, 1 and 1.4 over the square root of kCount.
  EXPECT_NEAR(uniform / kCount, 0.5, 5 * 0.29 / std::sqrt(kCount));
  EXPECT_NEAR(exponential / kCount, 1, 5 / std::sqrt(kCount));
  EXPECT_NEAR(normal / kCount, 0, 5 / std::sqrt(kCount));
  EXPECT_NEAR(normal_square / kCount, 1, 5 * 1.42 / std::sqrt(kCount));
}

TEST(LengthDistributionTest, FixedIsFixed) {
  for (const char* text : {"12", "fixed:12"}) {
    EXPECT_EQ(Draws(Parse(text), 10), std::vector<int64_t>(10, 12));
  }
}

TEST(LengthDistributionTest, UniformReachesBothEndsEvenly) {
  const auto draws = Draws(Parse("uniform:3:6"), 40000);
  for (int64_t value = 3; value <= 6; ++value) {
    const auto count = std::count(draws.begin(), draws.end(), value);
    EXPECT_NEAR(static_cast<double>(count), 10000, 5 * std::sqrt(10000 * 0.75));
  }
  EXPECT_EQ(draws.front(), 3);
  EXPECT_EQ(draws.back(), 6);
}

TEST(LengthDistributionTest, LogNormalHasItsMedianAndSpread) {
  const auto draws = Draws(Parse("lognormal:200:0.5"), 40001);
  EXPECT_NEAR(static_cast<double>(draws[20000]), 200, 4);
  // One deviation above the median: 84.13 %.
  EXPECT_NEAR(static_cast<double>(draws[33655]), 200 * std::exp(0.5), 10);
  const auto bounded = Draws(Parse("lognormal:200:2:150:300"), 1000);
  EXPECT_EQ(bounded.front(), 150);
  EXPECT_EQ(bounded.back(), 300);
}

TEST(LengthDistributionTest, BadTextNamesTheFlag) {
  for (const char* text : {"", "0", "-3", "x", "fixed:", "uniform:5", "uniform:6:5", "uniform:0:5",
                           "lognormal:5", "lognormal:5:0", "lognormal:5:-1", "lognormal:5:1:9",
                           "lognormal:5:1:9:8", "lognormal:nan:1", "gauss:3:4", "4294967296"}) {
    const auto parsed = LengthDistribution::Parse("--prompt-tokens", text);
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(parsed.status().message()), HasSubstr("--prompt-tokens"));
  }
}

TEST(LengthDistributionTest, TextReadsBack) {
  for (const char* text : {"fixed:9", "uniform:3:77", "lognormal:100:0.25:5:600"}) {
    EXPECT_EQ(Parse(text).ToString(), text);
  }
}

TEST(WorkloadTest, RequestsAreAFunctionOfSeedAndNumber) {
  const WorkloadOptions options = {.seed = 9,
                                   .prompt_tokens = Parse("uniform:1:50"),
                                   .output_tokens = Parse("lognormal:20:1"),
                                   .shared_share = 0.5,
                                   .shared_tokens = 10,
                                   .cancel_share = 0.3};
  const Workload a = Make(options);
  const Workload b = Make(options);
  WorkloadOptions other_seed = options;
  other_seed.seed = 10;
  const Workload c = Make(other_seed);
  int differ = 0;
  for (int i = 99; i >= 0; --i) {  // in any order
    const RequestSpec x = a.Get(static_cast<uint64_t>(i));
    const RequestSpec y = b.Get(static_cast<uint64_t>(i));
    EXPECT_EQ(x.prompt, y.prompt);
    EXPECT_EQ(x.max_tokens, y.max_tokens);
    EXPECT_EQ(x.cancel_after, y.cancel_after);
    if (x.prompt != c.Get(static_cast<uint64_t>(i)).prompt) ++differ;
  }
  EXPECT_GT(differ, 95);
}

TEST(WorkloadTest, PromptsHaveTheirLengthAndNoControlTokens) {
  const Workload workload =
      Make({.prompt_tokens = Parse("uniform:1:40"), .output_tokens = Parse("uniform:2:9")});
  std::set<uint32_t> seen;
  for (uint64_t i = 0; i < 500; ++i) {
    const RequestSpec spec = workload.Get(i);
    EXPECT_GE(spec.prompt.size(), 1u);
    EXPECT_LE(spec.prompt.size(), 40u);
    EXPECT_GE(spec.max_tokens, 2u);
    EXPECT_LE(spec.max_tokens, 9u);
    EXPECT_EQ(spec.cancel_after, -1);
    seen.insert(spec.prompt.begin(), spec.prompt.end());
  }
  EXPECT_EQ(seen.size(), 98u);
  EXPECT_EQ(seen.count(0) + seen.count(7), 0u);
  EXPECT_LT(*seen.rbegin(), 100u);
}

TEST(WorkloadTest, SharedPrefixesAreShared) {
  const Workload workload = Make({.prompt_tokens = Parse("30"),
                                  .output_tokens = Parse("4"),
                                  .shared_share = 0.4,
                                  .shared_tokens = 20,
                                  .shared_prefixes = 3});
  std::set<std::vector<uint32_t>> prefixes, tails;
  int shared = 0;
  for (uint64_t i = 0; i < 2000; ++i) {
    const RequestSpec spec = workload.Get(i);
    EXPECT_EQ(spec.prompt.size(), 30u);
    tails.insert({spec.prompt.begin() + 20, spec.prompt.end()});
    if (!spec.shared) continue;
    ++shared;
    prefixes.insert({spec.prompt.begin(), spec.prompt.begin() + 20});
  }
  EXPECT_NEAR(shared, 800, 5 * std::sqrt(2000 * 0.24));
  EXPECT_EQ(prefixes.size(), 3u);
  EXPECT_GT(tails.size(), 1990u);
}

TEST(WorkloadTest, ShortPromptsKeepATokenOfTheirOwn) {
  const Workload workload = Make({.prompt_tokens = Parse("5"),
                                  .output_tokens = Parse("4"),
                                  .shared_share = 1,
                                  .shared_tokens = 20});
  std::set<uint32_t> last;
  for (uint64_t i = 0; i < 50; ++i) last.insert(workload.Get(i).prompt.at(4));
  EXPECT_GT(last.size(), 10u);
}

TEST(WorkloadTest, CancelsComeAtAnyToken) {
  const Workload workload =
      Make({.prompt_tokens = Parse("3"), .output_tokens = Parse("4"), .cancel_share = 0.5});
  std::map<int64_t, int> after;
  for (uint64_t i = 0; i < 4000; ++i) ++after[workload.Get(i).cancel_after];
  EXPECT_EQ(after.size(), 5u);  // -1, 0, 1, 2, 3
  EXPECT_NEAR(after[-1], 2000, 160);
  for (int64_t k = 0; k < 4; ++k) EXPECT_NEAR(after[k], 500, 110);
}

TEST(WorkloadTest, PromptsOfATextArePiecesOfIt) {
  Vocabulary vocabulary = Small();
  for (uint32_t i = 0; i < 60; ++i) vocabulary.text.push_back(i);
  const Workload workload =
      Make({.prompt_tokens = Parse("10"), .output_tokens = Parse("4")}, vocabulary);
  for (uint64_t i = 0; i < 100; ++i) {
    const auto prompt = workload.Get(i).prompt;
    for (size_t k = 1; k < prompt.size(); ++k) EXPECT_EQ(prompt[k], (prompt[k - 1] + 1) % 60);
  }
}

TEST(WorkloadTest, WhatTheModelCannotTakeIsRefused) {
  for (const auto& [prompt, output] :
       std::vector<std::pair<const char*, const char*>>{{"1001", "1"},
                                                        {"uniform:1:1001", "1"},
                                                        {"1000", "25"},
                                                        {"lognormal:9:1:1002:2000", "1"},
                                                        {"1000", "lognormal:9:1:25:30"}}) {
    const auto workload =
        Workload::Create({.prompt_tokens = Parse(prompt), .output_tokens = Parse(output)}, Small());
    EXPECT_EQ(workload.status().code(), absl::StatusCode::kInvalidArgument) << prompt << output;
  }
  const Workload limited =
      Make({.prompt_tokens = Parse("lognormal:900:3"), .output_tokens = Parse("lognormal:50:3")});
  for (uint64_t i = 0; i < 300; ++i) {
    const RequestSpec spec = limited.Get(i);
    EXPECT_LE(spec.prompt.size(), 1000u);
    EXPECT_LE(spec.prompt.size() + spec.max_tokens, 1024u);
  }
}

TEST(PoissonArrivalsTest, RateAndGapsAreThoseOfAPoissonProcess) {
  PoissonArrivals arrivals(1, 50, 0);
  double last = 0, sum_squares = 0;
  constexpr int kCount = 20000;
  for (int i = 0; i < kCount; ++i) {
    const double at = arrivals.Next();
    EXPECT_GT(at, last);
    sum_squares += (at - last) * (at - last);
    last = at;
  }
  EXPECT_NEAR(last, kCount / 50.0, 5 * std::sqrt(kCount) / 50);
  EXPECT_NEAR(sum_squares / kCount, 2 / 2500.0, 0.1 / 2500.0);  // E[gap^2] = 2 / rate^2
}

TEST(PoissonArrivalsTest, RampHalvesTheFirstPart) {
  int in_ramp = 0, in_first_half = 0, behind = 0;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    PoissonArrivals arrivals(seed, 20, 10);
    for (double at = arrivals.Next(); at < 20; at = arrivals.Next()) {
      if (at < 5) ++in_first_half;
      ++(at < 10 ? in_ramp : behind);
    }
  }
  // 20 x 10 / 2 and 20 x 10 for each of 50 seeds; a quarter of the ramp's in its first half.
  EXPECT_NEAR(in_ramp, 5000, 5 * std::sqrt(5000));
  EXPECT_NEAR(in_first_half, 1250, 5 * std::sqrt(1250));
  EXPECT_NEAR(behind, 10000, 500);
}

}  // namespace
}  // namespace fixpoint::client
