#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "engine/philox.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

// Published known-answer vectors of Random123 (kat_vectors): counter, key, result.
TEST(PhiloxTest, EqualsThePublishedVectors) {
  const auto words = [](PhiloxWords counter, uint32_t key0, uint32_t key1) {
    const PhiloxWords out = Philox4x32(counter, key0, key1);
    return std::vector<uint32_t>(out.word, out.word + 4);
  };
  EXPECT_THAT(words({{0, 0, 0, 0}}, 0, 0),
              testing::ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  EXPECT_THAT(words({{~0u, ~0u, ~0u, ~0u}}, ~0u, ~0u),
              testing::ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_THAT(words({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0),
              testing::ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(PhiloxTest, TokenBitsTakeSeedAsKeyAndPositionAsCounter) {
  const PhiloxWords out = Philox4x32({{7, 1, 0, 0}}, 0x89abcdef, 0x01234567);
  EXPECT_EQ(TokenRandomBits(0x0123456789abcdef, 0x100000007),
            out.word[0] | static_cast<uint64_t>(out.word[1]) << 32);
}

// Runs SampleToken with scratch of its own.
int32_t Sample(const std::vector<int32_t>& logits, const SamplingParams& params, uint64_t position,
               int32_t fraction_bits = 16) {
  std::vector<uint32_t> weights(logits.size());
  std::vector<SampleCandidate> candidates(logits.size());
  return SampleToken(logits.data(), static_cast<int32_t>(logits.size()), fraction_bits, params,
                     position, {weights.data(), candidates.data()});
}

// The rules of sampler.h once more, on exact big integers: products and sums in 128 bits,
// sets by full sorting. Nothing is shared with the code under test but T and Philox.
class BigIntegerModel {
 public:
  using Big = unsigned __int128;
  BigIntegerModel(const std::vector<int32_t>& logits, const SamplingParams& params,
                  int32_t fraction_bits)
      : logits_(logits), params_(params) {
    const Big product = Big{params.inverse_temperature_q16} * 1549082005u;
    int drop = 0;  // bits to drop until 32 are left, but at least one is for the rounding of y
    while ((product >> drop) >= (Big{1} << 32) && drop < fraction_bits + 21) ++drop;
    const Big rounded = drop == 0 ? product : (product + (Big{1} << (drop - 1))) >> drop;
    c_ = std::min<Big>(rounded, 0xffffffffu);
    n_ = fraction_bits + 22 - drop;
    max_ = *std::max_element(logits.begin(), logits.end());
    for (size_t id = 0; id < logits.size(); ++id) order_.push_back(static_cast<int32_t>(id));
    std::stable_sort(order_.begin(), order_.end(),
                     [&](int32_t a, int32_t b) { return Logit(a) > Logit(b); });
  }

  uint64_t Weight(int32_t id) const {
    const Big distance = static_cast<Big>(int64_t{max_} - Logit(id));
    const Big y = (distance * c_ + (Big{1} << (n_ - 1))) / (Big{1} << n_);
    const uint64_t whole = static_cast<uint64_t>(y / (1 << 24));
    const uint64_t i = static_cast<uint64_t>(y / 65536 % 256), f = static_cast<uint64_t>(y % 65536);
    const uint64_t fall = ((Table(i) - Table(i + 1)) * f + 32768) / 65536;
    if (whole > 32) return 0;
    const Big shifted = Table(i) - fall;
    return static_cast<uint64_t>(whole == 0 ? shifted
                                            : (shifted + (Big{1} << (whole - 1))) >> whole);
  }

  // The kept tokens in falling order.
  std::vector<int32_t> Kept() const {
    std::vector<int32_t> kept = order_;
    if (params_.top_k > 0) {
      kept.resize(std::min(kept.size(), static_cast<size_t>(params_.top_k)));
    }
    if (params_.top_p_q16 < 65536) {
      Big sum = 0, prefix = 0;
      for (const int32_t id : kept) sum += Weight(id);
      size_t count = 0;
      while (prefix * 65536 < sum * params_.top_p_q16) prefix += Weight(kept[count++]);
      kept.resize(count);
    }
    std::vector<int32_t> result;
    for (const int32_t id : kept) {
      if (Weight(id) >= (uint64_t{params_.min_p_q16} << 15)) result.push_back(id);
    }
    return result;
  }

  int32_t Draw(uint64_t position) const {
    if (params_.inverse_temperature_q16 == 0) return order_.front();
    std::vector<int32_t> kept = Kept();
    std::sort(kept.begin(), kept.end());
    Big total = 0, sum = 0;
    for (const int32_t id : kept) total += Weight(id);
    const Big draw = Big{TokenRandomBits(params_.seed, position)} * total >> 64;
    for (const int32_t id : kept) {
      sum += Weight(id);
      if (sum > draw) return id;
    }
    return -1;
  }

 private:
  int32_t Logit(int32_t id) const { return logits_[static_cast<size_t>(id)]; }
  static uint64_t Table(uint64_t i) {
    return static_cast<uint64_t>(
        std::floor(2147483648.0L * std::exp2l(-static_cast<long double>(i) / 256.0L) + 0.5L));
  }

  const std::vector<int32_t> logits_;
  const SamplingParams params_;
  Big c_ = 0;
  int n_ = 0;
  int32_t max_ = 0;
  std::vector<int32_t> order_;
};

TEST(SamplerTest, GreedyTakesTheLowestIdOnTies) {
  EXPECT_EQ(Sample({3, 9, -1, 9, 9}, {}, 5), 1);
  EXPECT_EQ(Sample({-5}, {}, 5), 0);
  EXPECT_EQ(Sample({-(1 << 30) + 1, -(1 << 30) + 1, (1 << 30) - 1}, {}, 5), 2);
}

TEST(SamplerTest, WeightIsWithinTwoMillionthsOfTheExponential) {
  // Interpolation in 256 steps errs by (ln 2 / 256)^2 / 8 = 9.2e-7 at most, y by 2^-25 (rounding)
  // and 2^-26 (C and log2 e) of a doubling at weights of 2^-32 and above, the last rounding by half
  // a unit.
  std::mt19937_64 random(4);
  for (int i = 0; i < 200000; ++i) {
    const int32_t fraction_bits = static_cast<int32_t>(random() % 31);
    const uint32_t beta = static_cast<uint32_t>(random() >> (32 + random() % 31)) | 1;
    const uint32_t distance = static_cast<uint32_t>(random() >> (33 + random() % 31));
    const long double exact = 2147483648.0L * std::exp(-static_cast<long double>(distance) /
                                                       std::exp2l(fraction_bits) * beta / 65536.0L);
    const long double weight = SamplingWeight(distance, MakeExpScale(beta, fraction_bits));
    ASSERT_NEAR(weight, exact, 0.5L + 1.1e-6L * exact)
        << "distance " << distance << ", beta " << beta << ", F " << fraction_bits;
  }
}

TEST(SamplerTest, WeightNeverRisesWithDistance) {
  for (const uint32_t beta : {655u, 65536u, 6553600u, 4294967295u}) {
    const ExpScale scale = MakeExpScale(beta, 16);
    uint32_t previous = SamplingWeight(0, scale);
    EXPECT_EQ(previous, 1u << 31);
    for (uint32_t d = 1; d < 3000000; d += 1 + d / 4096) {
      const uint32_t weight = SamplingWeight(d, scale);
      ASSERT_LE(weight, previous) << d;
      previous = weight;
    }
    EXPECT_EQ(SamplingWeight(0x7ffffffe, scale), 0u);
  }
}

std::vector<int32_t> RandomLogits(std::mt19937_64& random, size_t count, int spread_bits) {
  std::vector<int32_t> logits(count);
  const int64_t spread = int64_t{1} << spread_bits;
  for (int32_t& logit : logits) {
    logit = static_cast<int32_t>(
        static_cast<int64_t>(random() % static_cast<uint64_t>(2 * spread)) - spread);
    if (random() % 4 == 0) logit &= ~0xffff;  // ties
  }
  return logits;
}

TEST(SamplerTest, EqualsTheBigIntegerModel) {
  std::mt19937_64 random(7);
  std::set<int32_t> distinct;
  for (int round = 0; round < 3000; ++round) {
    const size_t count = random() % 5 == 0 ? 1000 + random() % 2000 : 1 + random() % 300;
    const int32_t fraction_bits = random() % 8 == 0 ? static_cast<int32_t>(random() % 31) : 16;
    const auto logits = RandomLogits(random, count, 1 + static_cast<int>(random() % 29));
    SamplingParams params;
    params.inverse_temperature_q16 = random() % 6 == 0 ? static_cast<uint32_t>(random())
                                                       : static_cast<uint32_t>(random() % 200000);
    if (random() % 2) params.top_k = 1 + static_cast<int32_t>(random() % count);
    if (random() % 2) params.top_p_q16 = 1 + static_cast<uint32_t>(random() % 65536);
    if (random() % 2) params.min_p_q16 = static_cast<uint32_t>(random() % 65537) >> (random() % 16);
    params.seed = random();
    const BigIntegerModel model(logits, params, fraction_bits);
    for (uint64_t position = 0; position < 4; ++position) {
      const int32_t token = Sample(logits, params, position, fraction_bits);
      ASSERT_EQ(token, model.Draw(position)) << "round " << round << ", position " << position;
      distinct.insert(token);
    }
  }
  EXPECT_GT(distinct.size(), 300u);
}

// Equal draws would not show a weight that is off by one: the weights themselves.
TEST(SamplerTest, WeightsEqualTheBigIntegerModel) {
  std::mt19937_64 random(8);
  for (int round = 0; round < 400; ++round) {
    const int32_t fraction_bits = static_cast<int32_t>(random() % 31);
    SamplingParams params;
    params.inverse_temperature_q16 = static_cast<uint32_t>(random() >> (32 + random() % 31)) | 1;
    const auto logits = RandomLogits(random, 200, 1 + static_cast<int>(random() % 29));
    const BigIntegerModel model(logits, params, fraction_bits);
    const ExpScale scale = MakeExpScale(params.inverse_temperature_q16, fraction_bits);
    const int32_t max_logit = *std::max_element(logits.begin(), logits.end());
    for (int32_t id = 0; id < 200; ++id) {
      const uint32_t distance = static_cast<uint32_t>(max_logit - logits[static_cast<size_t>(id)]);
      ASSERT_EQ(SamplingWeight(distance, scale), model.Weight(id)) << "distance " << distance;
    }
  }
}

TEST(SamplerTest, TheLastWeightIsOneAtExactlyThirtyTwoDoublings) {
  // With 25 fraction bits a distance of 1 is 0.72 units of y, so some distance gives y = 2^29.
  const ExpScale scale = MakeExpScale(65536, 25);
  const auto y = [&](uint64_t d) {
    return (d * scale.c + (uint64_t{1} << (scale.n - 1))) >> scale.n;
  };
  uint32_t distance = 744260000;
  while (y(distance) < uint64_t{32} << 24) ++distance;
  ASSERT_EQ(y(distance), uint64_t{32} << 24);
  EXPECT_EQ(SamplingWeight(distance - 4, scale), 1u);
  EXPECT_EQ(SamplingWeight(distance, scale), 1u);
  EXPECT_EQ(SamplingWeight(distance + 4, scale), 0u);
}

TEST(SamplerTest, TopPStopsAtTheExactShare) {
  const auto drawn = [](const std::vector<int32_t>& logits, uint32_t top_p, int32_t fraction_bits) {
    std::set<int32_t> seen;
    for (uint64_t position = 0; position < 200; ++position) {
      seen.insert(Sample(logits, {.inverse_temperature_q16 = 65536, .top_p_q16 = top_p}, position,
                         fraction_bits));
    }
    return seen.size();
  };
  EXPECT_EQ(drawn({7, 7}, 32768, 16), 1u);  // one of two equals is half of all
  EXPECT_EQ(drawn({7, 7}, 32769, 16), 2u);
  // A share between 2^31 and 2^31 + 1 units: 40000 * (2^31 + a + b) = 65536 * 2^31 + a remainder.
  constexpr int32_t kBits = 24;
  constexpr uint64_t kTopP = 40000;
  const uint64_t total = (uint64_t{1} << 47) / kTopP + 1;
  const ExpScale scale = MakeExpScale(65536, kBits);
  const uint64_t rest = total - (uint64_t{1} << 31);
  uint32_t a = 0;
  while (SamplingWeight(a, scale) > rest - 1) a += 1;
  uint32_t b = a;
  const uint64_t last = rest - SamplingWeight(a, scale);
  while (SamplingWeight(b, scale) > last) b += 64;
  ASSERT_EQ(SamplingWeight(b, scale), last);
  const std::vector<int32_t> logits = {0, -static_cast<int32_t>(a), -static_cast<int32_t>(b)};
  EXPECT_EQ(drawn(logits, kTopP, kBits), 2u);  // the first alone is less than a unit short
  EXPECT_EQ(drawn(logits, kTopP - 1, kBits), 1u);
}

TEST(SamplerTest, MinPKeepsWhatEqualsTheBound) {
  for (uint64_t position = 0; position < 50; ++position) {
    const SamplingParams params = {.inverse_temperature_q16 = 65536, .min_p_q16 = 65536};
    EXPECT_EQ(Sample({0, 65536, 0}, params, position), 1);
  }
}

TEST(SamplerTest, ADrawBelongsToTheFirstTokenBeyondIt) {
  const uint32_t weights[] = {0, 3, 0, 2, 0, 1};
  const int32_t expected[] = {1, 1, 1, 3, 3, 5};
  for (uint64_t draw = 0; draw < 6; ++draw) {
    EXPECT_EQ(TokenAtDraw(weights, draw), expected[draw]) << draw;
  }
}

TEST(SamplerTest, TopKOneAndTinyTopPAreGreedy) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 200; ++round) {
    const auto logits = RandomLogits(random, 500, 18);
    const int32_t best = Argmax(logits.data(), 500);
    EXPECT_EQ(Sample(logits, {.inverse_temperature_q16 = 65536, .top_k = 1, .seed = random()}, 1),
              best);
    EXPECT_EQ(
        Sample(logits, {.inverse_temperature_q16 = 65536, .top_p_q16 = 1, .seed = random()}, 1),
        best);
  }
}

// Tokens that can be drawn at all, found by drawing.
std::set<int32_t> Support(const std::vector<int32_t>& logits, SamplingParams params, int draws) {
  std::set<int32_t> seen;
  for (int i = 0; i < draws; ++i) seen.insert(Sample(logits, params, static_cast<uint64_t>(i)));
  return seen;
}

TEST(SamplerTest, FiltersKeepTheTokensThatTheRulesName) {
  // Probabilities 4/8, 2/8, 1/8, 1/8 in the order of ids 2, 0, 1, 3: ln 2 = 45426 / 65536.
  const std::vector<int32_t> logits = {-45426, -90852, 0, -90852};
  const SamplingParams plain = {.inverse_temperature_q16 = 65536, .seed = 5};
  EXPECT_THAT(Support(logits, plain, 500), testing::ElementsAre(0, 1, 2, 3));
  SamplingParams p = plain;
  p.top_k = 3;  // ids 1 and 3 tie: the lower one stays
  EXPECT_THAT(Support(logits, p, 500), testing::ElementsAre(0, 1, 2));
  p = plain, p.top_p_q16 = 65536 * 3 / 4 + 60;  // a little over 3/4: one more of the tied
  EXPECT_THAT(Support(logits, p, 500), testing::ElementsAre(0, 1, 2));
  p = plain, p.top_p_q16 = 65536 * 3 / 4 - 60;
  EXPECT_THAT(Support(logits, p, 500), testing::ElementsAre(0, 2));
  p = plain, p.min_p_q16 = 65536 / 4 - 60;
  EXPECT_THAT(Support(logits, p, 500), testing::ElementsAre(0, 1, 2, 3));
  p = plain, p.min_p_q16 = 65536 / 4 + 60;
  EXPECT_THAT(Support(logits, p, 500), testing::ElementsAre(0, 2));
  // top_p counts shares of what top_k left: 4/6 and 2/6.
  p = plain, p.top_k = 2, p.top_p_q16 = 65536 * 2 / 3 - 60;
  EXPECT_THAT(Support(logits, p, 500), testing::ElementsAre(2));
}

// Chi-square of draws over positions against the exact weights. 15 degrees of freedom: 44.3 is the
// 0.9999 quantile, and the draws are fixed by the seed, so the test either always passes or never
// does.
TEST(SamplerTest, DrawsFollowTheWeights) {
  std::vector<int32_t> logits;
  for (int i = 0; i < 16; ++i) logits.push_back((i * 7 % 16) * 13000);
  for (const uint32_t beta : {32768u, 65536u, 131072u}) {
    for (const uint64_t seed : {1u, 2u, 3u}) {
      constexpr int kDraws = 40000;
      std::vector<int> counts(16);
      for (int i = 0; i < kDraws; ++i) {
        ++counts[static_cast<size_t>(Sample(logits, {.inverse_temperature_q16 = beta, .seed = seed},
                                            static_cast<uint64_t>(i)))];
      }
      double total = 0, chi_square = 0;
      std::vector<double> shares;
      for (const int32_t logit : logits) {
        shares.push_back(std::exp((logit - 15 * 13000) / 65536.0 * beta / 65536.0));
        total += shares.back();
      }
      for (size_t i = 0; i < 16; ++i) {
        const double expected = kDraws * shares[i] / total;
        ASSERT_GE(expected, 5);
        chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
      }
      EXPECT_LT(chi_square, 44.3) << "beta " << beta << ", seed " << seed;
      EXPECT_GT(chi_square, 2.0) << "too even to be random";  // the 0.0001 quantile
    }
  }
}

TEST(SamplerTest, DifferentSeedsAndPositionsDrawDifferently) {
  std::vector<int32_t> logits(1000, 0);
  std::set<int32_t> by_position, by_seed;
  for (uint64_t i = 0; i < 200; ++i) {
    by_position.insert(Sample(logits, {.inverse_temperature_q16 = 65536, .seed = 1}, i));
    by_seed.insert(Sample(logits, {.inverse_temperature_q16 = 65536, .seed = i}, 1));
  }
  EXPECT_GT(by_position.size(), 150u);  // 181 expected of 200 draws from 1000
  EXPECT_GT(by_seed.size(), 150u);
}

long double ExactLogprob(const std::vector<int32_t>& logits, int32_t id, int32_t fraction_bits) {
  const long double unit = std::exp2l(-fraction_bits);
  const int32_t max = *std::max_element(logits.begin(), logits.end());
  long double sum = 0;
  for (const int32_t logit : logits)
    sum += std::exp(static_cast<long double>(int64_t{logit} - max) * unit);
  return static_cast<long double>(int64_t{logits[static_cast<size_t>(id)]} - max) * unit -
         std::log(sum);
}

TEST(LogprobTest, IsWithinTwoToTheMinusFifteen) {
  std::mt19937_64 random(12);
  for (int round = 0; round < 400; ++round) {
    const size_t count = round % 50 == 0 ? 200000 : 1 + random() % 3000;
    const int32_t fraction_bits = 10 + static_cast<int32_t>(random() % 21);
    const auto logits =
        RandomLogits(random, count, std::min(29, 1 + static_cast<int>(random() % 29)));
    const LogNormalizer normalizer =
        ComputeLogNormalizer(logits.data(), static_cast<int32_t>(count), fraction_bits);
    for (int i = 0; i < 5; ++i) {
      const int32_t id = static_cast<int32_t>(random() % count);
      const long double exact = ExactLogprob(logits, id, fraction_bits);
      const int32_t logprob = LogprobQ16(normalizer, logits[static_cast<size_t>(id)]);
      ASSERT_LE(logprob, 0);
      if (exact < -32767) continue;  // clamped
      ASSERT_NEAR(logprob / 65536.0L, exact, 1.0L / 32768) << "round " << round;
    }
  }
}

TEST(LogprobTest, KnownValues) {
  const auto logprob = [](const std::vector<int32_t>& logits, size_t id) {
    return LogprobQ16(ComputeLogNormalizer(logits.data(), static_cast<int32_t>(logits.size()), 16),
                      logits[id]);
  };
  EXPECT_EQ(logprob({123}, 0), 0);
  EXPECT_EQ(logprob({5, 5}, 1), -45426);                               // ln 2
  EXPECT_EQ(logprob(std::vector<int32_t>(1 << 20, -77), 4), -908522);  // 20 ln 2
  EXPECT_EQ(logprob({(1 << 30) - 1, -(1 << 30) + 1}, 1), -2147483646);
  EXPECT_EQ(LogprobQ16(ComputeLogNormalizer(std::vector<int32_t>{(1 << 30) - 1, 0}.data(), 2, 10),
                       -(1 << 30) + 1),
            -2147483647);  // clamped
}

TEST(TopTokensTest, EqualsAFullSort) {
  std::mt19937_64 random(5);
  for (int round = 0; round < 300; ++round) {
    const size_t count = 1 + random() % 200;
    const auto logits = RandomLogits(random, count, static_cast<int>(1 + random() % 5));
    std::vector<int32_t> order(count);
    for (size_t i = 0; i < count; ++i) order[i] = static_cast<int32_t>(i);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
    });
    const int32_t wanted = static_cast<int32_t>(random() % 21);
    SampleCandidate top[20];
    const int32_t found = TopTokens(logits.data(), static_cast<int32_t>(count), wanted, top);
    ASSERT_EQ(found, std::min(wanted, static_cast<int32_t>(count)));
    for (int32_t i = 0; i < found; ++i) {
      ASSERT_EQ(top[i].id, order[static_cast<size_t>(i)]);
      ASSERT_EQ(top[i].logit, logits[static_cast<size_t>(top[i].id)]);
    }
  }
}

}  // namespace
}  // namespace fixpoint
