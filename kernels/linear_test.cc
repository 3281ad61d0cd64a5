// Linear layers of every level against the reference.
#include <algorithm>

#include "kernels/ops_test_util.h"

namespace fixpoint {
namespace {

struct Shape {
  int32_t tokens, outputs, depth;
  bool wide, bias;
};

struct LinearCase {
  explicit LinearCase(const Shape& shape)
      : shape(shape),
        weights(static_cast<size_t>(shape.outputs) * shape.depth),
        bias(shape.outputs),
        x(shape.tokens, shape.depth, shape.wide) {}

  void Randomize(Random& random) {
    random.Fill(weights, -127, 127);
    random.Fill(bias, -1000000, 1000000);
    for (int32_t t = 0; t < shape.tokens; ++t) {
      for (int32_t k = 0; k < shape.depth; ++k) {
        x.hi[t * x.stride + k] = static_cast<int8_t>(random.Extreme(shape.wide ? -128 : -127, 127));
        if (shape.wide) x.lo[t * x.stride + k] = static_cast<int8_t>(random.Extreme(-128, 127));
      }
    }
  }

  // Accumulators of the columns that exist, packed and computed in ranges of `range` outputs.
  Aligned<int32_t> Run(const Ops& ops, int32_t range) {
    Aligned<uint8_t> packed(ops.packed_weight_bytes(shape.outputs, shape.depth));
    for (int32_t begin = 0; begin < shape.outputs; begin += range) {
      const int32_t end = std::min(begin + range, shape.outputs);
      ops.pack_weights(weights.data(), shape.outputs, shape.depth, begin, end, packed.data());
    }
    Aligned<int32_t> columns(static_cast<size_t>(shape.tokens) * shape.outputs);
    for (int32_t begin = 0; begin < shape.outputs; begin += range) {
      const int32_t end = std::min(begin + range, shape.outputs);
      const size_t acc_stride = RoundUp(end - begin, kLinearAlign);
      Aligned<int32_t> acc(shape.tokens * acc_stride);
      ops.linear({packed.data(), shape.outputs, shape.depth, shape.bias ? bias.data() : nullptr,
                  x.planes(), shape.tokens, begin, end, acc.data(), acc_stride});
      for (int32_t t = 0; t < shape.tokens; ++t) {
        std::memcpy(columns.data() + static_cast<size_t>(t) * shape.outputs + begin,
                    acc.data() + t * acc_stride, (end - begin) * sizeof(int32_t));
      }
    }
    return columns;
  }

  Shape shape;
  Aligned<int8_t> weights;
  Aligned<int32_t> bias;
  Site x;
};

std::string Describe(const Shape& s) {
  return std::to_string(s.tokens) + " tokens x " + std::to_string(s.outputs) + " outputs x " +
         std::to_string(s.depth) + (s.wide ? " int16" : " int8") + (s.bias ? " bias" : "");
}

TEST(ReferenceLinearTest, HandComputed) {
  LinearCase c({.tokens = 1, .outputs = 2, .depth = 3, .wide = false, .bias = true});
  const int8_t weights[] = {1, -2, 3, 127, 127, -127};
  std::copy(weights, weights + 6, c.weights.data());
  c.bias[0] = 10;
  c.bias[1] = -5;
  c.x.hi[0] = 4;
  c.x.hi[1] = 5;
  c.x.hi[2] = -6;
  const Aligned<int32_t> acc = c.Run(ReferenceOps(), kLinearAlign);
  EXPECT_EQ(acc[0], 10 + 4 - 10 - 18);
  EXPECT_EQ(acc[1], -5 + 127 * (4 + 5 + 6));
}

TEST(ReferenceLinearTest, LowPlaneIsRoundedOnceAfterTheSum) {
  LinearCase c({.tokens = 1, .outputs = 1, .depth = 2, .wide = true, .bias = false});
  c.weights[0] = c.weights[1] = 1;
  c.x.hi[0] = 3;
  c.x.lo[0] = c.x.lo[1] = 64;  // 128 / 256 is a tie and goes up; each alone would vanish
  EXPECT_EQ(c.Run(ReferenceOps(), kLinearAlign)[0], 4);
  c.x.lo[0] = c.x.lo[1] = -64;  // -0.5 goes up to 0
  EXPECT_EQ(c.Run(ReferenceOps(), kLinearAlign)[0], 3);
}

class LinearTest : public LevelTest {
 protected:
  void Compare(const Shape& shape, uint64_t seed) {
    Random random(seed);
    LinearCase c(shape);
    c.Randomize(random);
    const Aligned<int32_t> expected = c.Run(reference(), shape.outputs);
    ASSERT_TRUE(Same(expected, c.Run(level(), static_cast<int32_t>(RoundUp(shape.outputs, 32)))))
        << Describe(shape);
    ASSERT_TRUE(Same(expected, c.Run(level(), 64))) << Describe(shape) << ", in ranges";
  }
};

TEST_P(LinearTest, SmallShapesAgree) {
  uint64_t seed = 0;
  for (const int32_t depth : {1, 2, 3, 63, 64, 65}) {
    for (const int32_t outputs : {1, 15, 16, 17, 33, 192}) {
      for (const int32_t tokens : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 31, 33, 64, 100}) {
        const bool wide = ++seed % 2 == 0;
        ASSERT_NO_FATAL_FAILURE(Compare({tokens, outputs, depth, wide, seed % 3 == 0}, seed));
      }
    }
  }
}

TEST_P(LinearTest, EveryTokenCountAgrees) {  // tails of row blocks and tiles
  for (int32_t tokens = 1; tokens <= 66; ++tokens) {
    ASSERT_NO_FATAL_FAILURE(Compare({tokens, 80, 70, false, false}, tokens));
    ASSERT_NO_FATAL_FAILURE(Compare({tokens, 80, 70, true, true}, tokens));
  }
  for (const int32_t tokens : {127, 128, 129, 191, 192, 193, 200, 300}) {
    ASSERT_NO_FATAL_FAILURE(Compare({tokens, 33, 70, tokens % 2 == 0, true}, tokens));
  }
}

TEST_P(LinearTest, EveryPanelCountAgrees) {
  for (int32_t outputs = 1; outputs <= 200; outputs += 13) {
    for (const int32_t tokens : {1, 2, 3, 4, 5, 20}) {
      ASSERT_NO_FATAL_FAILURE(Compare({tokens, outputs, 100, false, true}, outputs));
      ASSERT_NO_FATAL_FAILURE(Compare({tokens, outputs, 100, true, true}, outputs));
    }
  }
}

TEST_P(LinearTest, ModelShapesAgree) {
  for (const bool wide : {false, true}) {
    for (const int32_t tokens : {1, 3, 8, 17, 33}) {
      ASSERT_NO_FATAL_FAILURE(Compare({tokens, 576, 576, wide, true}, 1));
      ASSERT_NO_FATAL_FAILURE(Compare({tokens, 192, 1536, wide, false}, 2));
      ASSERT_NO_FATAL_FAILURE(Compare({tokens, 48, 4099, wide, true}, 3));
    }
  }
}

// The largest sums that the contract allows: partial sums of faster levels pass beyond int32 and
// must come back.
TEST_P(LinearTest, DeepestExtremesAgree) {
  for (const int sign : {1, -1}) {
    for (const bool wide : {false, true}) {
      const Shape shape{
          .tokens = wide ? 9 : 18, .outputs = 17, .depth = kMaxDepth, .wide = wide, .bias = true};
      LinearCase c(shape);
      for (size_t i = 0; i < c.weights.size(); ++i) c.weights[i] = 127;
      for (size_t i = 0; i < c.bias.size(); ++i) c.bias[i] = sign * 8000000;
      const auto extreme = static_cast<int8_t>(sign > 0 ? 127 : -127);
      for (size_t i = 0; i < c.x.hi.size(); ++i) c.x.hi[i] = extreme;
      for (size_t i = 0; i < c.x.lo.size(); ++i) c.x.lo[i] = extreme;
      ASSERT_TRUE(Same(c.Run(reference(), 32), c.Run(level(), 32))) << Describe(shape) << sign;
    }
  }
}

TEST_P(LinearTest, ZeroWeightsGiveTheBias) {
  LinearCase c({.tokens = 5, .outputs = 40, .depth = 65, .wide = true, .bias = true});
  Random random(7);
  c.Randomize(random);
  std::memset(c.weights.data(), 0, c.weights.size());
  const Aligned<int32_t> acc = c.Run(level(), 64);
  for (int32_t t = 0; t < 5; ++t) {
    for (int32_t i = 0; i < 40; ++i) ASSERT_EQ(acc[t * 40 + i], c.bias[i]);
  }
}

TEST_P(LinearTest, LeavesOtherColumnsAlone) {
  LinearCase c({.tokens = 20, .outputs = 128, .depth = 64, .wide = false, .bias = false});
  Random random(8);
  c.Randomize(random);
  Aligned<uint8_t> packed(level().packed_weight_bytes(128, 64));
  level().pack_weights(c.weights.data(), 128, 64, 0, 128, packed.data());
  Aligned<int32_t> acc(20 * 128);
  for (size_t i = 0; i < acc.size(); ++i) acc[i] = 12345;
  level().linear({packed.data(), 128, 64, nullptr, c.x.planes(), 20, 32, 64, acc.data() + 32, 128});
  for (int32_t t = 0; t < 20; ++t) {
    for (int32_t i = 0; i < 128; ++i) {
      if (i >= 32 && i < 64) continue;
      ASSERT_EQ(acc[t * 128 + i], 12345) << t << " " << i;
    }
  }
}

FIXPOINT_INSTANTIATE_LEVELS(LinearTest);

}  // namespace
}  // namespace fixpoint
