// The operations between matrix products and attention, every level against the reference.
#include "kernels/ops_test_util.h"

namespace fixpoint {
namespace {

// Odd tails, one channel, more than one piece of every level's inner loop.
constexpr int32_t kChannelCounts[] = {1, 15, 16, 17, 31, 32, 33, 64, 100, 192, 576, 1536};
constexpr int32_t kRounds = 12;  // parameter sets a shape

struct NarrowCase {
  NarrowCase(Random& random, int32_t channels, int32_t round) : multipliers(channels) {
    random.Fill(multipliers, 1, 32767);
    // Both ends of the shifts, and in between.
    p = round == 0 ? 0 : round == 1 ? 30 : static_cast<int32_t>(random.In(0, 16));
    k = round == 2 ? 1 : round == 3 ? 30 : static_cast<int32_t>(random.In(8, 24));
  }
  NarrowParams params() const { return {multipliers.data(), p, k}; }
  Aligned<int16_t> multipliers;
  int32_t p, k;
};

struct WideCase {
  WideCase(Random& random, int32_t channels, int32_t round) : multipliers(channels) {
    random.Fill(multipliers, 1, INT32_MAX);
    n = round == 0 ? 1 : round == 1 ? 62 : static_cast<int32_t>(random.In(20, 50));
  }
  WideParams params() const { return {multipliers.data(), n}; }
  Aligned<int32_t> multipliers;
  int32_t n;
};

void FillAccumulators(Random& random, Aligned<int32_t>& acc) {
  for (size_t i = 0; i < acc.size(); ++i) acc[i] = random.AnyInt32();
}

class OpsTest : public LevelTest {};

TEST_P(OpsTest, EmbedAgrees) {
  Random random(1);
  for (const int32_t hidden : kChannelCounts) {
    constexpr int32_t kVocab = 50;
    Aligned<int8_t> table(static_cast<size_t>(kVocab) * hidden);
    random.Fill(table, -127, 127);
    WideCase wide(random, kVocab, 2);
    const int32_t ids[] = {0, 49, 7, 7};
    for (const int32_t n : {1, 10, 20, 38}) {
      wide.n = n;
      Aligned<int32_t> expected(4 * hidden), actual(4 * hidden);
      for (size_t i = 0; i < wide.multipliers.size(); ++i) wide.multipliers[i] |= 1;
      EmbedArgs args{table.data(), wide.params(), ids, 4, hidden, expected.data()};
      reference().embed(args);
      args.h = actual.data();
      level().embed(args);
      ASSERT_TRUE(Same(expected, actual)) << hidden;
    }
  }
}

TEST_P(OpsTest, RmsNormAgrees) {
  Random random(2);
  for (const int32_t hidden : kChannelCounts) {
    for (int32_t round = 0; round < kRounds; ++round) {
      for (const bool wide : {false, true}) {
        constexpr int32_t kTokens = 3;
        Aligned<int32_t> h(kTokens * hidden);
        for (size_t i = 0; i < h.size(); ++i) {
          h[i] = round == 0 ? 0
                 : round == 1
                     ? (i % 2 == 0 ? kResidualLimit : -kResidualLimit)
                     : static_cast<int32_t>(random.Extreme(-kResidualLimit, kResidualLimit)) >>
                           random.In(0, round);
        }
        Aligned<int16_t> multipliers(hidden);
        random.Fill(multipliers, 1, 32767);
        Site expected(kTokens, hidden, wide), actual(kTokens, hidden, wide);
        RmsNormArgs args{h.data(),
                         kTokens,
                         hidden,
                         static_cast<uint64_t>(random.In(0, round % 3 == 0 ? 0 : 1 << 20)),
                         round == 2 ? 30 : static_cast<int32_t>(random.In(8, 16)),
                         multipliers.data(),
                         round == 3 ? 1 : static_cast<int32_t>(random.In(8, 30)),
                         expected.planes()};
        if (round == 4) args.epsilon = (uint64_t{1} << 60) - 1;
        reference().rms_norm(args);
        args.out = actual.planes();
        level().rms_norm(args);
        ASSERT_TRUE(Same(expected, actual)) << hidden << " round " << round << " wide " << wide;
      }
    }
  }
}

// One clamped value decides the norm of 1,535 others, whose results show it in their last bit: a
// limit off by one moves one in some hundred of them.
TEST_P(OpsTest, RmsNormClampsItsInput) {
  Random random(9);
  constexpr int32_t kHidden = 1536, kTokens = 8;
  Aligned<int32_t> h(kTokens * kHidden);
  random.Fill(h, -(1 << 19), 1 << 19);
  for (int32_t t = 0; t < kTokens; ++t) h[t * kHidden] = kResidualLimit;
  Aligned<int16_t> twos(kHidden);
  for (int32_t j = 0; j < kHidden; ++j) twos[j] = 2;  // and k = 1: the result is t itself
  Site expected(kTokens, kHidden, true), actual(kTokens, kHidden, true);
  RmsNormArgs args{h.data(), kTokens, kHidden, 0, 22, twos.data(), 1, expected.planes()};
  reference().rms_norm(args);
  args.out = actual.planes();
  level().rms_norm(args);
  ASSERT_TRUE(Same(expected, actual));
}

TEST_P(OpsTest, RotateHeadsAgrees) {
  Random random(3);
  for (const int32_t head_dim : {16, 32, 64, 80, 128, 256}) {
    for (int32_t round = 0; round < kRounds; ++round) {
      constexpr int32_t kTokens = 4, kHeads = 3;
      const int32_t channels = kHeads * head_dim;
      const size_t acc_stride = RoundUp(channels, 32) + 16;
      Aligned<int32_t> acc(kTokens * acc_stride);
      FillAccumulators(random, acc);
      const NarrowCase before(random, channels, round),
          after(random, channels, (round + 2) % kRounds);
      const size_t rope_stride = head_dim / 2 + 3;
      Aligned<int16_t> cos(kTokens * rope_stride), sin(kTokens * rope_stride);
      random.Fill(cos, -16384, 16384);
      random.Fill(sin, -16384, 16384);
      const size_t out_stride = RoundUp(channels, 64);
      Aligned<int8_t> expected(kTokens * out_stride), actual(kTokens * out_stride);
      const bool power_of_two = (head_dim & (head_dim - 1)) == 0;
      RotateHeadsArgs args{
          acc.data(),      acc_stride,      kTokens,    kHeads,      head_dim,
          before.params(), cos.data(),      sin.data(), rope_stride, power_of_two && round % 2 == 0,
          after.params(),  expected.data(), out_stride};
      reference().rotate_heads(args);
      args.out = actual.data();
      level().rotate_heads(args);
      ASSERT_TRUE(Same(expected, actual)) << head_dim << " round " << round;
    }
  }
}

TEST_P(OpsTest, NarrowAgrees) {
  Random random(4);
  for (const int32_t channels : kChannelCounts) {
    for (int32_t round = 0; round < kRounds; ++round) {
      constexpr int32_t kTokens = 3;
      const size_t acc_stride = RoundUp(channels, 32), out_stride = RoundUp(channels, 64);
      Aligned<int32_t> acc(kTokens * acc_stride);
      FillAccumulators(random, acc);
      const NarrowCase narrow(random, channels, round);
      Aligned<int8_t> expected(kTokens * out_stride), actual(kTokens * out_stride);
      NarrowArgs args{acc.data(),      acc_stride,      kTokens,   channels,
                      narrow.params(), expected.data(), out_stride};
      reference().narrow(args);
      args.out = actual.data();
      level().narrow(args);
      ASSERT_TRUE(Same(expected, actual)) << channels << " round " << round;
    }
  }
}

// Every tie of both roundings, and one off it on either side.
TEST_P(OpsTest, NarrowTiesAgree) {
  constexpr int32_t kChannels = 96;
  for (int32_t p = 0; p <= 4; ++p) {
    for (int32_t k = 1; k <= 4; ++k) {
      Aligned<int32_t> acc(kChannels);
      Aligned<int16_t> multipliers(kChannels);
      for (int32_t c = 0; c < kChannels; ++c) {
        acc[c] = c - kChannels / 2;
        multipliers[c] = static_cast<int16_t>(1 + c % 3);
      }
      Aligned<int8_t> expected(128), actual(128);
      NarrowArgs args{acc.data(),      kChannels, 1, kChannels, {multipliers.data(), p, k},
                      expected.data(), 128};
      reference().narrow(args);
      args.out = actual.data();
      level().narrow(args);
      ASSERT_TRUE(Same(expected, actual)) << "p " << p << " k " << k;
    }
  }
}

TEST_P(OpsTest, ResidualAddAgrees) {
  Random random(5);
  for (const int32_t hidden : kChannelCounts) {
    for (int32_t round = 0; round < kRounds; ++round) {
      constexpr int32_t kTokens = 3;
      const size_t acc_stride = RoundUp(hidden, 32);
      Aligned<int32_t> acc(kTokens * acc_stride);
      FillAccumulators(random, acc);
      const WideCase wide(random, hidden, round);
      Aligned<int32_t> expected(kTokens * hidden), actual(kTokens * hidden);
      random.Fill(expected, -kResidualLimit, kResidualLimit);
      std::memcpy(actual.data(), expected.data(), expected.size() * sizeof(int32_t));
      ResidualAddArgs args{acc.data(), acc_stride, kTokens, hidden, wide.params(), expected.data()};
      reference().residual_add(args);
      args.h = actual.data();
      level().residual_add(args);
      ASSERT_TRUE(Same(expected, actual)) << hidden << " round " << round;
    }
  }
}

TEST_P(OpsTest, SwiGluAgrees) {
  Random random(6);
  for (const int32_t channels : {1, 2, 8, 15, 16, 24, 32, 48, 64, 96, 192, 512, 1536, 2560}) {
    for (int32_t block = 1; block <= 512 && channels % block == 0; block *= 2) {
      for (int32_t round = 0; round < 6; ++round) {
        constexpr int32_t kTokens = 2;
        const bool wide = (round + block) % 2 == 1;
        const size_t acc_stride = RoundUp(channels, 32);
        Aligned<int32_t> gate(kTokens * acc_stride), up(kTokens * acc_stride);
        FillAccumulators(random, gate);
        FillAccumulators(random, up);
        const NarrowCase g(random, channels, round), u(random, channels, round),
            out(random, channels, (round + 3) % 6);
        Site expected(kTokens, channels, wide), actual(kTokens, channels, wide);
        Aligned<int32_t> scratch(channels);
        SwiGluArgs args{gate.data(),
                        up.data(),
                        acc_stride,
                        kTokens,
                        channels,
                        g.params(),
                        u.params(),
                        static_cast<int32_t>(random.Extreme(1, 32767)),
                        round == 0 ? 1 : static_cast<int32_t>(random.In(10, 30)),
                        round == 1 ? 1 : static_cast<int32_t>(random.In(10, 30)),
                        block,
                        out.params(),
                        expected.planes(),
                        scratch.data()};
        reference().swiglu(args);
        args.out = actual.planes();
        level().swiglu(args);
        ASSERT_TRUE(Same(expected, actual))
            << channels << " block " << block << " round " << round << " wide " << wide;
      }
    }
  }
}

// Every int16 gate through the table, with an int16 result that hides nothing.
TEST_P(OpsTest, EveryGateAgrees) {
  constexpr int32_t kChannels = 65536;
  Aligned<int32_t> gate(kChannels), up(kChannels), scratch(kChannels);
  Aligned<int16_t> twos(kChannels), ones(kChannels);
  for (int32_t c = 0; c < kChannels; ++c) {
    gate[c] = c - 32768;
    up[c] = 2;  // undone by product_shift = 1
    ones[c] = 1;
    twos[c] = 2;
  }
  const NarrowParams same{twos.data(), 0, 1};
  // Results beyond the site's limit saturate: also look at them halved.
  for (const NarrowParams& out : {same, NarrowParams{ones.data(), 0, 1}}) {
    for (const int32_t shift : {4, 10, 14}) {
      Site expected(1, kChannels, true), actual(1, kChannels, true);
      SwiGluArgs args{
          gate.data(), up.data(), kChannels, 1,   kChannels,         same,          same, 1237,
          shift,       1,         1,         out, expected.planes(), scratch.data()};
      reference().swiglu(args);
      args.out = actual.planes();
      level().swiglu(args);
      ASSERT_TRUE(Same(expected, actual)) << shift;
    }
  }
}

TEST_P(OpsTest, LogitsAgree) {
  Random random(7);
  constexpr int32_t kVocab = 1000, kTokens = 2;
  for (int32_t round = 0; round < kRounds; ++round) {
    const size_t stride = RoundUp(kVocab, 32);
    Aligned<int32_t> acc(kTokens * stride), expected(kTokens * stride), actual(kTokens * stride);
    FillAccumulators(random, acc);
    const WideCase wide(random, kVocab, round);
    const auto begin = static_cast<int32_t>(random.In(0, 500)),
               end = static_cast<int32_t>(random.In(500, kVocab));
    LogitsArgs args{acc.data(), stride,        kTokens,         begin,
                    end,        wide.params(), expected.data(), stride};
    reference().logits(args);
    args.logits = actual.data();
    level().logits(args);
    ASSERT_TRUE(Same(expected, actual)) << round;
  }
}

FIXPOINT_INSTANTIATE_LEVELS(OpsTest);

TEST(ReferenceOpsTest, ResidualAddSaturates) {
  const int32_t acc[] = {1 << 30, -(1 << 30), 3};
  const int32_t multipliers[] = {1 << 30, 1 << 30, 1 << 30};
  int32_t h[] = {1, -1, 10};
  ReferenceOps().residual_add({acc, 3, 1, 3, {multipliers, 31}, h});
  EXPECT_EQ(h[0], kResidualLimit);
  EXPECT_EQ(h[1], -kResidualLimit);
  EXPECT_EQ(h[2], 12);  // 1.5 rounds to 2
}

TEST(ReferenceOpsTest, RmsNormOfEqualValuesIsOneOverRootN) {
  // x = 1000 in all of 4 channels: x / sqrt(sum x^2) = 1/2; 14 fraction bits: 8192; * 16 / 2^10 =
  // 128, saturated to 127.
  const int32_t h[] = {1000, 1000, 1000, -1000};
  const int16_t multipliers[] = {16, 8, 4, 8};
  Site out(1, 4, false);
  ReferenceOps().rms_norm({h, 1, 4, 0, 14, multipliers, 10, out.planes()});
  EXPECT_EQ(out.hi[0], 127);
  EXPECT_EQ(out.hi[1], 64);
  EXPECT_EQ(out.hi[2], 32);
  EXPECT_EQ(out.hi[3], -64);
}

TEST(ReferenceOpsTest, RotationByARightAngle) {
  // Head (a, b) -> (-b, a). Multiplier 2 and k = 1 leave values as they are.
  const int32_t acc[] = {10, 20};
  const int16_t two[] = {2, 2}, cos[] = {0}, sin[] = {16384};
  int8_t out[2] = {};
  ReferenceOps().rotate_heads(
      {acc, 2, 1, 1, 2, {two, 0, 1}, cos, sin, 1, false, {two, 0, 1}, out, 2});
  EXPECT_EQ(out[0], -20);
  EXPECT_EQ(out[1], 10);
}

}  // namespace
}  // namespace fixpoint
