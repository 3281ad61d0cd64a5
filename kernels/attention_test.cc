// Attention and the KV cache of every level against the reference.
#include <algorithm>
#include <numeric>

#include "kernels/ops_test_util.h"

namespace fixpoint {
namespace {

struct Shape {
  int32_t tokens, position, kv_heads, group, head_dim, prefix;
  bool wide;
};

std::string Describe(const Shape& s) {
  return std::to_string(s.tokens) + " tokens at " + std::to_string(s.position) + ", " +
         std::to_string(s.kv_heads) + " kv heads x " + std::to_string(s.group) + ", head_dim " +
         std::to_string(s.head_dim) + ", prefix " + std::to_string(s.prefix) +
         (s.wide ? " int16" : " int8");
}

// A cache in scrambled blocks, filled by the level itself, among blocks and slots full of other
// data.
struct AttentionCase {
  AttentionCase(const Shape& shape, uint64_t seed)
      : shape(shape),
        random(seed),
        keys(shape.position + shape.tokens),
        channels(shape.kv_heads * shape.group * shape.head_dim),
        blocks((keys + kKvBlockTokens - 1) / kKvBlockTokens + 2),
        block_stride(static_cast<size_t>(shape.kv_heads) * 2 * kKvBlockTokens * shape.head_dim +
                     64),
        block_table(blocks),
        k(static_cast<size_t>(keys) * kv_stride()),
        v(static_cast<size_t>(keys) * kv_stride()),
        q(static_cast<size_t>(shape.tokens) * channels),
        prefix_k(static_cast<size_t>(shape.kv_heads) * shape.prefix * shape.head_dim),
        prefix_v(prefix_k.size()),
        multipliers(channels),
        scores(shape.kv_heads * shape.group) {
    std::iota(block_table.begin(), block_table.end(), 0);
    for (size_t i = block_table.size() - 1; i > 0; --i) {
      std::swap(block_table[i], block_table[random.In(0, static_cast<int64_t>(i))]);
    }
    random.Fill(k, -127, 127);
    random.Fill(v, -127, 127);
    random.Fill(q, -127, 127);
    random.Fill(prefix_k, -32767, 32767);
    random.Fill(prefix_v, -32767, 32767);
    random.Fill(multipliers, 1, 32767);
    requantize_k = static_cast<int32_t>(random.In(12, 24));
    for (ScoreParams& s : scores) s = RandomScore();
  }

  size_t kv_stride() const { return RoundUp(shape.kv_heads * shape.head_dim, 64); }

  // Anything that the contract allows; a third of them as a calibrated model has them, down to
  // numerators of 0 at d_max, a third near that.
  ScoreParams RandomScore() {
    ScoreParams s;
    s.a = static_cast<int32_t>(random.In(0, 15));
    s.c = static_cast<int32_t>(random.Extreme(1, 65535));
    s.n = static_cast<int32_t>(random.In(1, 30));
    const int64_t most = ((int64_t{INT32_MAX} - (int64_t{1} << (s.n - 1))) / s.c - 1) << s.a;
    s.d_max = static_cast<int32_t>(std::clamp<int64_t>(most, 1, (1 << 30) - 1));
    const int64_t kind = random.In(0, 2);
    if (kind == 0) s = {.d_max = 1 << 20, .a = 6, .c = 40000, .n = 15};
    if (kind == 1) {
      s.a = static_cast<int32_t>(random.In(0, 6));
      s.n = static_cast<int32_t>(random.In(1, 11));
      s.c = static_cast<int32_t>(random.In(1 << 15, 65535));
      s.d_max = ((17 << (15 + s.n)) / s.c + 1) << s.a;
    }
    return s;
  }

  Aligned<int8_t> Cache(const Ops& ops) {
    Aligned<int8_t> cache(static_cast<size_t>(blocks) * block_stride);
    std::memset(cache.data(), 0x5a, cache.size());
    // In two steps, so that a write starts inside a block.
    const int32_t first = keys / 3;
    for (const auto& [begin, end] : {std::pair(0, first), std::pair(first, keys)}) {
      ops.kv_write({k.data() + begin * kv_stride(),
                    v.data() + begin * kv_stride(),
                    kv_stride(),
                    end - begin,
                    shape.kv_heads,
                    shape.head_dim,
                    begin,
                    block_table.data(),
                    {cache.data(), block_stride}});
    }
    return cache;
  }

  AttentionArgs Args(Aligned<int8_t>& cache, int32_t begin, int32_t end, Site& out, void* scratch) {
    return {q.data(),
            static_cast<size_t>(channels),
            shape.tokens,
            shape.position,
            shape.kv_heads * shape.group,
            shape.kv_heads,
            shape.head_dim,
            begin,
            end,
            {cache.data(), block_stride},
            block_table.data(),
            prefix_k.data(),
            prefix_v.data(),
            shape.prefix,
            scores.data(),
            {multipliers.data(), 0, requantize_k},
            out.planes(),
            scratch};
  }

  Site Run(const Ops& ops) {
    Aligned<int8_t> cache = Cache(ops);
    Site out(shape.tokens, channels, shape.wide);
    Aligned<uint8_t> scratch(ops.attention_scratch_bytes(shape.tokens, keys + shape.prefix,
                                                         shape.kv_heads * shape.group,
                                                         shape.kv_heads, shape.head_dim));
    std::memset(scratch.data(), 0xa5, scratch.size());
    const int32_t split = shape.kv_heads / 2;  // two calls, as two threads would
    for (const auto& [begin, end] : {std::pair(0, split), std::pair(split, shape.kv_heads)}) {
      ops.attention(Args(cache, begin, end, out, scratch.data()));
    }
    return out;
  }

  // One token's, stage by stage, the parts of a stage last to first.
  Site RunByParts(const Ops& ops, int32_t parts) {
    Aligned<int8_t> cache = Cache(ops);
    Site out(1, channels, shape.wide);
    for (int32_t head = 0; head < shape.kv_heads; ++head) {
      Aligned<uint8_t> scratch(
          ops.attention_parts->bytes(keys, parts, shape.group, shape.head_dim));
      std::memset(scratch.data(), 0xa5, scratch.size());
      const AttentionArgs args = Args(cache, head, head + 1, out, scratch.data());
      for (int32_t i = parts - 1; i >= 0; --i) ops.attention_parts->score(args, i, parts);
      for (int32_t i = parts - 1; i >= 0; --i) ops.attention_parts->weigh(args, i, parts);
      ops.attention_parts->finish(args, parts);
    }
    return out;
  }

  Shape shape;
  Random random;
  int32_t keys, channels, blocks;
  size_t block_stride;
  std::vector<int32_t> block_table;
  Aligned<int8_t> k, v, q;
  Aligned<int16_t> prefix_k, prefix_v, multipliers;
  std::vector<ScoreParams> scores;
  int32_t requantize_k;
};

class AttentionTest : public LevelTest {
 protected:
  void Compare(const Shape& shape, uint64_t seed) {
    AttentionCase c(shape, seed);
    const Site expected = c.Run(reference());
    ASSERT_TRUE(Same(expected, c.Run(level()))) << Describe(shape);
    CompareParts(c, expected);
  }
  // Also more parts than blocks of keys.
  void CompareParts(AttentionCase& c, const Site& expected) {
    if (c.shape.tokens != 1 || level().attention_parts == nullptr) return;
    for (const int32_t parts : {1, 2, 3, 8}) {
      ASSERT_TRUE(Same(expected, c.RunByParts(level(), parts)))
          << Describe(c.shape) << ", " << parts << " parts";
    }
  }
};

// One token and 16 keys: key 0 has the largest score, key i one that is `distance` + i - 1 below
// it, and channel i of the output is i's numerator over their sum, nearly in units of a numerator.
class NumeratorCase {
 public:
  static constexpr int32_t kKeys = 16, kHeads = 8, kHeadDim = 64;
  NumeratorCase(const Ops& ops, const ScoreParams (&scores)[kHeads])
      : ops_(ops),
        scores_(scores),
        k_(kKeys * kHeadDim),
        v_(kKeys * kHeadDim),
        q_(kHeads * kHeadDim),
        cache_(2 * kKvBlockTokens * kHeadDim),
        multipliers_(kHeads * kHeadDim),
        scratch_(ops.attention_scratch_bytes(1, kKeys, kHeads, 1, kHeadDim)) {
    for (int32_t i = 0; i < kHeads * kHeadDim; ++i) {
      q_.data()[i] = i % kHeadDim == 0 ? 1 : i % kHeadDim <= kDigits ? 127 : 0;
      multipliers_.data()[i] = 16384;
    }
    for (int32_t i = 1; i < kKeys; ++i) v_.data()[i * kHeadDim + i] = 127;
  }

  Site Run(int32_t distance) {
    for (int32_t i = 0; i < kKeys; ++i) SetScore(i, kMost - (i == 0 ? 0 : distance + i - 1));
    const int32_t block = 0;
    ops_.kv_write({k_.data(), v_.data(), kHeadDim, kKeys, 1, kHeadDim, 0, &block, Layer()});
    Site out(1, kHeads * kHeadDim, /*wide=*/true);
    ops_.attention({q_.data(),
                    kHeads * kHeadDim,
                    1,
                    kKeys - 1,
                    kHeads,
                    1,
                    kHeadDim,
                    0,
                    1,
                    Layer(),
                    &block,
                    nullptr,
                    nullptr,
                    0,
                    scores_,
                    {multipliers_.data(), 0, 14},
                    out.planes(),
                    scratch_.data()});
    return out;
  }

 private:
  static constexpr int32_t kDigits = 5;  // of 127 * 127 each
  static constexpr int32_t kMost = kDigits * 127 * 127;
  KvLayer Layer() { return {cache_.data(), cache_.size()}; }
  // The key whose product with the query is `score`.
  void SetScore(int32_t key, int32_t score) {
    int8_t* k = k_.data() + key * kHeadDim;
    for (int32_t i = 1; i <= kDigits; ++i) {
      k[i] = static_cast<int8_t>(std::clamp(score / 127, -127, 127));
      score -= 127 * k[i];
    }
    k[0] = static_cast<int8_t>(score);
    ASSERT_LE(std::abs(score), 127);
  }

  const Ops& ops_;
  const ScoreParams (&scores_)[kHeads];
  Aligned<int8_t> k_, v_, q_, cache_;
  Aligned<int16_t> multipliers_;
  Aligned<uint8_t> scratch_;
};

// A numerator of 1 for 0 at one distance is seen by a whole model, but not by random cases.
TEST_P(AttentionTest, EveryDistanceHasItsNumerator) {
  // The first five are a calibrated model's; of the others, numerators are above 0 at d_max, n is
  // large, the product is beyond 16 bits.
  const ScoreParams scores[NumeratorCase::kHeads] = {
      {30860, 0, 34795, 11}, {33247, 1, 64593, 11}, {14363, 0, 37381, 10}, {44999, 1, 47724, 11},
      {17647, 0, 60846, 11}, {20000, 0, 32768, 11}, {60000, 2, 40000, 13}, {1 << 20, 0, 2047, 8}};
  NumeratorCase expected(reference(), scores), actual(level(), scores);
  for (int32_t distance = 0; distance < 70000; distance += NumeratorCase::kKeys - 1) {
    ASSERT_TRUE(Same(expected.Run(distance), actual.Run(distance))) << "at " << distance;
  }
}

TEST_P(AttentionTest, CacheLayoutAgrees) {
  for (const int32_t head_dim : {16, 64, 80, 128}) {
    for (const int32_t tokens : {1, 2, 3, 4, 5, 63, 64, 65, 130}) {
      AttentionCase c({tokens, 7, 3, 1, head_dim, 0, false}, tokens);
      ASSERT_TRUE(Same(c.Cache(reference()), c.Cache(level()))) << head_dim << " " << tokens;
    }
  }
}

TEST_P(AttentionTest, GroupsHeadDimsAndPrefixesAgree) {
  uint64_t seed = 0;
  for (const int32_t group : {1, 3, 4, 8}) {
    for (const int32_t head_dim : {16, 64, 80, 128}) {
      for (const int32_t prefix : {0, 1, 4, 16}) {
        for (const int32_t tokens : {1, 2, 5, 17}) {
          const auto position = static_cast<int32_t>(seed * 37 % 150);
          ++seed;
          ASSERT_NO_FATAL_FAILURE(
              Compare({tokens, position, 2, group, head_dim, prefix, seed % 2 == 0}, seed));
        }
      }
    }
  }
}

TEST_P(AttentionTest, BlockBordersAgree) {
  for (const int32_t position : {0, 1, 15, 16, 59, 60, 61, 62, 63, 64, 65, 127, 128, 129, 200}) {
    for (const int32_t tokens : {1, 3, 4, 70}) {
      ASSERT_NO_FATAL_FAILURE(Compare({tokens, position, 1, 3, 64, 1, false}, position));
    }
  }
}

TEST_P(AttentionTest, ManyKeysAgree) {
  ASSERT_NO_FATAL_FAILURE(Compare({3, 1100, 1, 3, 64, 4, true}, 1));
  ASSERT_NO_FATAL_FAILURE(Compare({1, 5000, 2, 2, 64, 1, false}, 2));
  ASSERT_NO_FATAL_FAILURE(Compare({9, 2040, 1, 1, 80, 0, true}, 3));
}

// Equal keys give the largest numerators everywhere, extreme values the largest sums.
TEST_P(AttentionTest, LargestSumsAgree) {
  for (const int sign : {1, -1}) {
    AttentionCase c({1, 20000, 1, 2, 16, 4, true}, 5);
    std::memset(c.k.data(), 127, c.k.size());
    std::memset(c.v.data(), sign * 127, c.v.size());
    std::memset(c.q.data(), 127, c.q.size());
    for (size_t i = 0; i < c.prefix_k.size(); ++i) {
      c.prefix_k[i] = 127;
      c.prefix_v[i] = static_cast<int16_t>(sign * 32767);
    }
    const Site expected = c.Run(reference());
    ASSERT_TRUE(Same(expected, c.Run(level()))) << sign;
    ASSERT_NO_FATAL_FAILURE(CompareParts(c, expected)) << sign;
  }
}

// A prefix key far above all others takes the whole weight; far below, none.
TEST_P(AttentionTest, PrefixExtremesAgree) {
  for (const int sign : {1, -1}) {
    AttentionCase c({7, 90, 2, 4, 128, 1, false}, 6);
    std::memset(c.q.data(), 127, c.q.size());
    for (size_t i = 0; i < c.prefix_k.size(); ++i) {
      c.prefix_k[i] = static_cast<int16_t>(sign * 32767);
    }
    ASSERT_TRUE(Same(c.Run(reference()), c.Run(level()))) << sign;
  }
}

TEST_P(AttentionTest, ZeroQueriesAverageTheValues) {
  AttentionCase c({1, 63, 1, 1, 16, 0, false}, 7);
  std::memset(c.q.data(), 0, c.q.size());
  std::memset(c.v.data(), 100, c.v.size());
  for (size_t i = 0; i < c.multipliers.size(); ++i) c.multipliers[i] = 1 << 8;
  c.requantize_k = 15;  // 128 * 100 * 2^8 / 2^15 = 100
  const Site out = c.Run(level());
  for (int32_t d = 0; d < 16; ++d) EXPECT_EQ(out.hi[d], 100);
}

FIXPOINT_INSTANTIATE_LEVELS(AttentionTest);

}  // namespace
}  // namespace fixpoint
