#include "engine/logit_rules.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "engine/sampler.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/ops.h"

namespace fixpoint {
namespace {

using Big = __int128;

size_t At(int32_t id) { return static_cast<size_t>(id); }

std::vector<int32_t> Adjusted(const std::vector<int32_t>& logits, int32_t fraction_bits,
                              const LogitAdjustment& adjust, const TokenCounts& counts) {
  std::vector<int32_t> copy(logits.size(), 12345);
  const int32_t* row = AdjustLogits(logits.data(), static_cast<int32_t>(logits.size()),
                                    fraction_bits, adjust, counts, copy.data());
  return {row, row + logits.size()};
}

// The formulas of logit_rules.h once more: quotients rounded down by long division on 128 bits.
class BigIntegerModel {
 public:
  BigIntegerModel(const LogitAdjustment& adjust, int32_t fraction_bits)
      : adjust_(adjust), fraction_bits_(fraction_bits) {}

  int32_t Adjust(int32_t id, int32_t logit, bool seen, int in_answer) const {
    Big x = logit;
    for (const auto& [biased, bias] : adjust_.bias_q16) {
      if (biased == id) x = Clamp(x + Scale(bias));
    }
    const Big r = adjust_.repetition_q16;
    if (seen && r != 65536) {
      x = Clamp(x > 0 ? Floor(x * 131072 + r, 2 * r) : Floor(x * r + 32768, 65536));
    }
    if (in_answer > 0) {
      x = Clamp(x - Scale(Big{adjust_.presence_q16} + Big{adjust_.frequency_q16} * in_answer));
    }
    return static_cast<int32_t>(x);
  }

  // The same in real numbers, in natural-log units.
  long double Real(int32_t id, int32_t logit, bool seen, int in_answer) const {
    const long double limit = std::ldexp(static_cast<long double>(kLogitLimit), -fraction_bits_);
    const auto clamp = [&](long double x) { return std::min(std::max(x, -limit), limit); };
    long double x = std::ldexp(static_cast<long double>(logit), -fraction_bits_);
    for (const auto& [biased, bias] : adjust_.bias_q16) {
      if (biased == id) x = clamp(x + bias / 65536.0L);
    }
    const long double r = adjust_.repetition_q16 / 65536.0L;
    if (seen) x = clamp(x > 0 ? x / r : x * r);
    if (in_answer > 0) {
      x -= (adjust_.presence_q16 + static_cast<long double>(adjust_.frequency_q16) * in_answer) /
           65536.0L;
    }
    return clamp(x);
  }

 private:
  static Big Floor(Big a, Big b) { return a / b - (a % b < 0 ? 1 : 0); }  // b > 0
  static Big Clamp(Big x) { return std::min<Big>(std::max<Big>(x, -kLogitLimit), kLogitLimit); }
  // Half up at 16 - F bits, nothing to round from F = 16 on.
  Big Scale(Big q16) const {
    return fraction_bits_ >= 16 ? q16 * (Big{1} << (fraction_bits_ - 16))
                                : Floor(2 * q16 + (Big{1} << (16 - fraction_bits_)),
                                        Big{1} << (17 - fraction_bits_));
  }

  const LogitAdjustment& adjust_;
  const int32_t fraction_bits_;
};

struct RandomCase {
  std::vector<int32_t> logits;
  LogitAdjustment adjust;
  TokenCounts counts;
  std::map<int32_t, int> in_answer;
  std::set<int32_t> seen;
};

int32_t Between(std::mt19937_64& random, int32_t low, int32_t high) {
  return std::uniform_int_distribution<int32_t>(low, high)(random);
}

RandomCase MakeCase(std::mt19937_64& random) {
  RandomCase c;
  const int32_t vocab = Between(random, 1, 400);
  const int32_t spread = kLogitLimit >> Between(random, 0, 29);
  for (int32_t id = 0; id < vocab; ++id) c.logits.push_back(Between(random, -spread, spread));
  for (int32_t id = 0; id < vocab; ++id) {
    if (random() % 8 == 0) {
      c.adjust.bias_q16.emplace_back(id, Between(random, -6553600, 6553600) >> (random() % 24));
    }
  }
  if (random() % 2) c.adjust.repetition_q16 = static_cast<uint32_t>(Between(random, 655, 6553600));
  if (random() % 4 == 0) c.adjust.repetition_q16 = random() % 2 ? 655 : 6553600;
  if (random() % 2) c.adjust.presence_q16 = Between(random, -131072, 131072);
  if (random() % 2) c.adjust.frequency_q16 = Between(random, -131072, 131072);
  std::vector<int32_t> prompt;
  for (int i = Between(random, 0, 100); i > 0; --i) {
    prompt.push_back(Between(random, 0, vocab - 1));
  }
  c.counts.AddPrompt(prompt);
  c.seen.insert(prompt.begin(), prompt.end());
  for (int i = Between(random, 0, 300); i > 0; --i) {
    const int32_t id = Between(random, 0, vocab - 1) / (1 + static_cast<int32_t>(random() % 3));
    c.counts.AddAnswer(id);
    c.seen.insert(id);
    ++c.in_answer[id];
  }
  return c;
}

TEST(LogitRulesTest, EqualsTheBigIntegerModel) {
  std::mt19937_64 random(21);
  int changed = 0;
  for (int round = 0; round < 3000; ++round) {
    RandomCase c = MakeCase(random);
    const int32_t fraction_bits = random() % 2 ? 16 : Between(random, 0, 30);
    const BigIntegerModel model(c.adjust, fraction_bits);
    const std::vector<int32_t> row = Adjusted(c.logits, fraction_bits, c.adjust, c.counts);
    for (int32_t id = 0; id < static_cast<int32_t>(row.size()); ++id) {
      ASSERT_EQ(row[At(id)],
                model.Adjust(id, c.logits[At(id)], c.seen.count(id) > 0, c.in_answer[id]))
          << "round " << round << ", id " << id << ", logit " << c.logits[At(id)] << ", F "
          << fraction_bits;
      changed += row[At(id)] != c.logits[At(id)];
    }
  }
  EXPECT_GT(changed, 100000);
}

// Half a unit for the bias, made r or 1/r times as large, half a unit for each of the two later
// steps; saturation brings values only closer together. Small logits are where rounding shows.
TEST(LogitRulesTest, IsWithinTheRoundingsOfTheRealFormula) {
  std::mt19937_64 random(22);
  for (int round = 0; round < 2000; ++round) {
    RandomCase c = MakeCase(random);
    const int32_t fraction_bits = Between(random, 0, 30);
    const BigIntegerModel model(c.adjust, fraction_bits);
    const std::vector<int32_t> row = Adjusted(c.logits, fraction_bits, c.adjust, c.counts);
    const long double r = c.adjust.repetition_q16 / 65536.0L;
    const long double tolerance =
        (0.5L * std::max({1.0L, r, 1.0L / r}) + 1.0L) * std::exp2l(-fraction_bits) * 1.000001L;
    for (int32_t id = 0; id < static_cast<int32_t>(row.size()); ++id) {
      ASSERT_NEAR(std::ldexp(static_cast<long double>(row[At(id)]), -fraction_bits),
                  model.Real(id, c.logits[At(id)], c.seen.count(id) > 0, c.in_answer[id]),
                  tolerance)
          << "round " << round << ", id " << id << ", F " << fraction_bits;
    }
  }
}

TEST(LogitRulesTest, NothingSetGivesTheRowItself) {
  const std::vector<int32_t> logits = {5, -7, 1 << 20, -(1 << 29)};
  std::vector<int32_t> copy(4);
  TokenCounts counts;
  counts.AddPrompt({0, 1});
  counts.AddAnswer(2);
  const auto row = [&](const LogitAdjustment& adjust, const TokenCounts& seen) {
    return AdjustLogits(logits.data(), 4, 16, adjust, seen, copy.data());
  };
  EXPECT_EQ(row({}, counts), logits.data());
  EXPECT_EQ(row({.repetition_q16 = 65536, .presence_q16 = 0}, counts), logits.data());
  EXPECT_EQ(row({.repetition_q16 = 80000}, TokenCounts()), logits.data());
  EXPECT_NE(row({.repetition_q16 = 80000}, counts), logits.data());
}

TEST(LogitRulesTest, EachRuleByHand) {
  constexpr int32_t kOne = 65536;  // 1.0 at F = 16
  TokenCounts counts;
  counts.AddPrompt({0, 1});
  for (const int32_t id : {2, 3, 3}) counts.AddAnswer(id);
  const std::vector<int32_t> logits = {4 * kOne, -4 * kOne, 4 * kOne, -4 * kOne, kOne};
  EXPECT_THAT(Adjusted(logits, 16, {.repetition_q16 = 2 * 65536}, counts),
              testing::ElementsAre(2 * kOne, -8 * kOne, 2 * kOne, -8 * kOne, kOne));
  EXPECT_THAT(
      Adjusted(logits, 16, {.presence_q16 = kOne / 2}, counts),
      testing::ElementsAre(4 * kOne, -4 * kOne, 3 * kOne + kOne / 2, -4 * kOne - kOne / 2, kOne));
  EXPECT_THAT(Adjusted(logits, 16, {.frequency_q16 = kOne}, counts),
              testing::ElementsAre(4 * kOne, -4 * kOne, 3 * kOne, -6 * kOne, kOne));
  EXPECT_THAT(Adjusted(logits, 16, {.bias_q16 = {{1, kOne}, {4, -2 * kOne}}}, counts),
              testing::ElementsAre(4 * kOne, -3 * kOne, 4 * kOne, -4 * kOne, -kOne));
}

// Each pair of rules gives something else in the other order.
TEST(LogitRulesTest, BiasComesBeforeRepetitionAndThatBeforePresence) {
  TokenCounts counts;
  counts.AddAnswer(0);
  // 6 + 2 halved is 4, not 6 / 2 + 2 = 5; -1 + 3 is halved, not doubled before.
  EXPECT_THAT(Adjusted({6}, 0, {.bias_q16 = {{0, 2 * 65536}}, .repetition_q16 = 131072}, counts),
              testing::ElementsAre(4));
  EXPECT_THAT(Adjusted({-1}, 0, {.bias_q16 = {{0, 3 * 65536}}, .repetition_q16 = 131072}, counts),
              testing::ElementsAre(1));
  // 8 / 2 - 2 = 2, not (8 - 2) / 2 = 3.
  EXPECT_THAT(Adjusted({8}, 0, {.repetition_q16 = 131072, .presence_q16 = 131072}, counts),
              testing::ElementsAre(2));
}

TEST(LogitRulesTest, HalvesRoundUp) {
  TokenCounts counts;
  counts.AddAnswer(0);
  for (const auto& [logit, expected] : std::map<int32_t, int32_t>{{1, 1}, {3, 2}, {2, 1}, {0, 0}}) {
    EXPECT_THAT(Adjusted({logit}, 4, {.repetition_q16 = 131072}, counts),
                testing::ElementsAre(expected));
  }
  for (const auto& [logit, expected] : std::map<int32_t, int32_t>{{-1, 0}, {-3, -1}, {-4, -2}}) {
    EXPECT_THAT(Adjusted({logit}, 4, {.repetition_q16 = 32768}, counts),
                testing::ElementsAre(expected));
  }
  // At F = 0 a bias of half a unit is one upwards and none downwards.
  EXPECT_THAT(Adjusted({0, 0}, 0, {.bias_q16 = {{0, 32768}, {1, -32768}}}, counts),
              testing::ElementsAre(1, 0));
}

TEST(LogitRulesTest, ExtremesSaturate) {
  TokenCounts counts;
  for (int i = 0; i < 100000; ++i) counts.AddAnswer(0);
  counts.AddAnswer(1);
  for (const int32_t fraction_bits : {0, 1, 15, 16, 17, 29, 30}) {
    const LogitAdjustment up = {.bias_q16 = {{0, 6553600}, {1, 6553600}},
                                .repetition_q16 = 655,
                                .presence_q16 = -131072,
                                .frequency_q16 = -131072};
    EXPECT_THAT(Adjusted({kLogitLimit, kLogitLimit}, fraction_bits, up, counts),
                testing::ElementsAre(kLogitLimit, kLogitLimit));
    const LogitAdjustment down = {.bias_q16 = {{0, -6553600}, {1, -6553600}},
                                  .repetition_q16 = 6553600,
                                  .presence_q16 = 131072,
                                  .frequency_q16 = 131072};
    EXPECT_THAT(Adjusted({-kLogitLimit, -kLogitLimit}, fraction_bits, down, counts),
                testing::ElementsAre(-kLogitLimit, -kLogitLimit));
  }
}

TEST(LogitRulesTest, PenaltiesBeyondAnyLogitOfOrdinaryScaleCountInFull) {
  TokenCounts counts;
  for (int i = 0; i < 100000; ++i) counts.AddAnswer(0);
  EXPECT_THAT(Adjusted({kLogitLimit}, 0, {.presence_q16 = 131072, .frequency_q16 = 131072}, counts),
              testing::ElementsAre(kLogitLimit - 200002));
}

int32_t Sample(const std::vector<int32_t>& logits, const SamplingParams& params, uint64_t position,
               int32_t fraction_bits, const uint32_t* allowed = nullptr) {
  std::vector<uint32_t> weights(logits.size(), 1u << 30);  // what an earlier row left there
  std::vector<SampleCandidate> candidates(logits.size());
  return SampleToken(logits.data(), static_cast<int32_t>(logits.size()), fraction_bits, params,
                     position, {weights.data(), candidates.data()}, allowed);
}

TEST(LogitRulesTest, ALargeBiasForcesOrForbids) {
  std::mt19937_64 random(5);
  std::vector<int32_t> logits(50);
  for (int32_t& logit : logits) logit = Between(random, -30 * 65536, 30 * 65536);
  const int32_t best = Argmax(logits.data(), 50);
  const int32_t other = (best + 7) % 50;
  std::set<int32_t> forced, left;
  for (uint64_t position = 0; position < 300; ++position) {
    for (const uint32_t beta : {0u, 65536u}) {
      const SamplingParams params = {.inverse_temperature_q16 = beta, .seed = 9};
      forced.insert(
          Sample(Adjusted(logits, 16, {.bias_q16 = {{other, 6553600}}}, {}), params, position, 16));
      left.insert(
          Sample(Adjusted(logits, 16, {.bias_q16 = {{best, -6553600}}}, {}), params, position, 16));
    }
  }
  EXPECT_THAT(forced, testing::ElementsAre(other));
  EXPECT_EQ(left.count(best), 0u);
}

TEST(TokenCountsTest, EqualsAMap) {
  std::mt19937_64 random(11);
  for (int round = 0; round < 200; ++round) {
    TokenCounts counts;
    std::set<int32_t> prompt;
    std::map<int32_t, int32_t> answer;
    const int32_t vocab = round % 2 ? 1 << 20 : 40;
    for (int step = 0; step < 300; ++step) {
      const int32_t id = Between(random, 0, vocab - 1);
      if (step % 50 == 0) {
        counts.AddPrompt({id, id});
        prompt.insert(id);
      } else {
        counts.AddAnswer(id);
        ++answer[id];
      }
    }
    std::set<int32_t> ids;
    for (const TokenCounts::Entry& entry : counts.entries()) {
      ASSERT_TRUE(ids.insert(entry.id).second) << "twice: " << entry.id;
      ASSERT_EQ(entry.in_answer, answer.count(entry.id) ? answer[entry.id] : 0);
      ASSERT_EQ(entry.in_prompt, prompt.count(entry.id) > 0);
      ASSERT_EQ(counts.Find(entry.id), &entry);
    }
    for (const auto& [id, count] : answer) ASSERT_EQ(ids.count(id), 1u);
    for (const int32_t id : prompt) ASSERT_EQ(ids.count(id), 1u);
  }
  EXPECT_EQ(TokenCounts().Find(3), nullptr);
}

// A masked vocabulary is a smaller vocabulary: the row without its forbidden tokens, sampled
// without a mask, gives the same token.
TEST(MaskTest, EqualsSamplingFromTheAllowedTokensAlone) {
  std::mt19937_64 random(13);
  int greedy = 0;
  for (int round = 0; round < 3000; ++round) {
    const int32_t vocab = Between(random, 1, random() % 4 == 0 ? 3000 : 200);
    const int32_t fraction_bits = random() % 2 ? 16 : Between(random, 0, 30);
    std::vector<int32_t> logits(At(vocab));
    const int32_t spread = kLogitLimit >> Between(random, 0, 29);
    for (int32_t& logit : logits) logit = Between(random, -spread, spread);
    SamplingParams params;
    if (random() % 4) {
      params.inverse_temperature_q16 = static_cast<uint32_t>(random() >> (32 + random() % 31)) | 1;
    }
    if (random() % 2) params.top_k = Between(random, 1, vocab);
    if (random() % 2) params.top_p_q16 = static_cast<uint32_t>(Between(random, 1, 65536));
    if (random() % 2) params.min_p_q16 = static_cast<uint32_t>(Between(random, 0, 65536));
    params.seed = random();
    std::vector<uint32_t> mask(At(MaskWords(vocab)));
    const uint64_t one_in = uint64_t{1} << (random() % 6);
    std::vector<int32_t> ids, rest;
    for (int32_t id = 0; id < vocab; ++id) {
      if (random() % one_in != 0) continue;
      mask[At(id / 32)] |= 1u << (id % 32);
      ids.push_back(id);
      rest.push_back(logits[At(id)]);
    }
    // What is behind the vocabulary is not read.
    if (vocab % 32 != 0) mask.back() |= ~0u << (vocab % 32);
    for (uint64_t position = 0; position < 4; ++position) {
      const int32_t token = Sample(logits, params, position, fraction_bits, mask.data());
      if (ids.empty()) {
        ASSERT_EQ(token, -1);
        continue;
      }
      const int32_t place = Sample(rest, params, position, fraction_bits);
      ASSERT_EQ(token, ids[At(place)]) << "round " << round << ", position " << position;
    }
    greedy += params.inverse_temperature_q16 == 0;
  }
  EXPECT_GT(greedy, 100);
}

// A very negative logit would not do: with 30 fraction bits the whole range is two natural-log
// units, and a temperature of 100 flattens any other.
TEST(MaskTest, AForbiddenTokenIsNeverChosen) {
  for (const int32_t fraction_bits : {0, 16, 30}) {
    for (const uint32_t beta : {0u, 1u, 655u, 65536u}) {
      std::vector<uint32_t> mask(2);
      AllowAll(40, mask.data());
      ASSERT_TRUE(Forbid({0, 39}, 40, mask.data()));
      std::vector<int32_t> logits(40, 100);
      logits[0] = kLogitLimit;
      logits[39] = -kLogitLimit;
      for (uint64_t position = 0; position < 500; ++position) {
        const int32_t token =
            Sample(logits, {.inverse_temperature_q16 = beta}, position, fraction_bits, mask.data());
        ASSERT_NE(token, 0);
        ASSERT_NE(token, 39);
      }
    }
  }
}

TEST(MaskTest, AllowAllSetsTheVocabularyAndNoMore) {
  for (const int32_t vocab : {1, 31, 32, 33, 64, 100}) {
    std::vector<uint32_t> mask(At(MaskWords(vocab)) + 1, 0xdeadbeef);
    AllowAll(vocab, mask.data());
    for (int32_t id = 0; id < 32 * MaskWords(vocab); ++id) {
      ASSERT_EQ(mask[At(id / 32)] >> (id % 32) & 1, id < vocab ? 1u : 0u) << vocab << " " << id;
    }
    ASSERT_EQ(mask.back(), 0xdeadbeef);
  }
}

TEST(MaskTest, ForbidLeavesTheLastTokensAlone) {
  std::vector<uint32_t> mask(2);
  AllowAll(40, mask.data());
  EXPECT_TRUE(Forbid({-1, 3, 35, 40, 1 << 30}, 40, mask.data()));
  EXPECT_EQ(mask[0], ~(1u << 3));
  EXPECT_EQ(mask[1], 0xf7u);
  mask = {0, 1u << 2 | 1u << 5};  // 34 and 37: a grammar's
  EXPECT_FALSE(Forbid({34, 2, 37}, 40, mask.data()));
  EXPECT_THAT(mask, testing::ElementsAre(0, 1u << 2 | 1u << 5));
  EXPECT_TRUE(Forbid({34, 2}, 40, mask.data()));
  EXPECT_THAT(mask, testing::ElementsAre(0, 1u << 5));
}

}  // namespace
}  // namespace fixpoint
