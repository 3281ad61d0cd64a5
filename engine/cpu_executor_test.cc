#include "engine/cpu_executor.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bundle/test_model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/reference/reference_ops.h"

namespace fixpoint {
namespace {

using Logits = std::vector<int32_t>;  // [tokens][vocab_size]

struct ModelCase {
  std::string name;
  TestModelOptions options;
};

std::vector<ModelCase> ModelCases() {
  return {
      {"Plain", {.seed = 11}},
      {"BiasAndOnePrefixToken", {.seed = 12, .prefix_tokens = 1, .qkv_bias = true}},
      {"AllSitesWideThreePrefixTokens",
       {.seed = 13, .prefix_tokens = 3, .wide_sites = kWideAll, .qkv_bias = true}},
      {"WideInOddLayersHadamard",
       {.seed = 14,
        .layers = 3,
        .prefix_tokens = 1,
        .odd_layer_wide_sites = kWideDownIn | kWideAttnOut,
        .qk_hadamard = true,
        .down_hadamard_block = 32}},
      {"OddShapes",
       {.seed = 15,
        .hidden = 80,
        .heads = 3,
        .kv_heads = 1,
        .head_dim = 32,
        .intermediate = 176,
        .vocab = 307,
        .wide_sites = kWideMlpNorm}},
      {"Tiles",  // steps of many tokens work in tiles, the last block of channels a short one
       {.seed = 16,
        .hidden = 96,
        .heads = 6,
        .kv_heads = 2,
        .head_dim = 32,
        .intermediate = 320,
        .prefix_tokens = 1,
        .odd_layer_wide_sites = kWideAll & ~kWideFinalNorm,
        .qkv_bias = true,
        .qk_hadamard = true,
        .down_hadamard_block = 64}},
  };
}

std::vector<int32_t> RandomTokens(int32_t count, int32_t vocab_size, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint32_t>(vocab_size));
  return ids;
}

std::vector<int32_t> Identity(int32_t count) {
  std::vector<int32_t> result(static_cast<size_t>(count));
  std::iota(result.begin(), result.end(), 0);
  return result;
}

std::unique_ptr<CpuExecutor> MakeExecutor(const TestModelOptions& model, int32_t threads,
                                          const Ops* ops = nullptr) {
  auto executor = CpuExecutor::Create(
      MakeTestModel(model),
      {.threads = threads, .max_step_tokens = 256, .max_step_logits = 256, .ops = ops});
  EXPECT_TRUE(executor.ok()) << executor.status();
  return std::move(executor).value();
}

// Logits of all positions, prefilled in chunks of `chunk` tokens.
Logits AllLogits(CpuExecutor& executor, const std::vector<int32_t>& tokens, int32_t chunk,
                 const std::vector<int32_t>& blocks) {
  const size_t vocab = static_cast<size_t>(executor.limits().vocab_size);
  const int32_t count = static_cast<int32_t>(tokens.size());
  const std::vector<int32_t> indices = Identity(chunk);
  Logits logits(tokens.size() * vocab);
  for (int32_t position = 0; position < count; position += chunk) {
    const size_t length = static_cast<size_t>(std::min(chunk, count - position));
    const SequenceChunk piece = {
        .token_ids = absl::MakeConstSpan(tokens).subspan(static_cast<size_t>(position), length),
        .position = position,
        .block_table = blocks,
        .logit_indices = absl::MakeConstSpan(indices).subspan(0, length)};
    const absl::Status status =
        executor.Forward({piece}, logits.data() + static_cast<size_t>(position) * vocab);
    EXPECT_TRUE(status.ok()) << status;
  }
  return logits;
}

class CpuExecutorTest : public testing::TestWithParam<ModelCase> {
 protected:
  const TestModelOptions& model() const { return GetParam().options; }
  // The yardstick: reference kernels, one thread, whole prompt, blocks in order.
  Logits Expected(const std::vector<int32_t>& tokens) const {
    auto executor = MakeExecutor(model(), 1, &ReferenceOps());
    return AllLogits(*executor, tokens, static_cast<int32_t>(tokens.size()), Identity(8));
  }
  // Sequences of random lengths advance in random chunks beside each other; each gets what it gets
  // alone.
  void BesideOtherSequences(int32_t threads) const {
    constexpr int32_t kSequences = 5;
    auto executor = MakeExecutor(model(), threads);
    const size_t vocab = static_cast<size_t>(model().vocab);
    std::mt19937 random(21);
    std::vector<std::vector<int32_t>> tokens, blocks;
    std::vector<Logits> expected;
    std::vector<size_t> done(kSequences, 0);
    for (uint32_t s = 0; s < kSequences; ++s) {
      tokens.push_back(
          RandomTokens(20 + static_cast<int32_t>(random() % 150), model().vocab, 100 + s));
      blocks.push_back(
          {static_cast<int32_t>(s), static_cast<int32_t>(s + 10), static_cast<int32_t>(s + 5)});
      expected.push_back(Expected(tokens.back()));
    }
    for (int step = 0;; ++step) {
      std::vector<SequenceChunk> chunks;
      std::vector<std::vector<int32_t>> indices(kSequences);
      std::vector<std::pair<size_t, size_t>> rows;  // sequence, position
      for (size_t s = 0; s < kSequences; ++s) {
        const size_t left = tokens[s].size() - done[s];
        const size_t count = std::min<size_t>(left, random() % 2 == 0 ? 1 : random() % 48);
        if (count == 0) continue;
        for (size_t i = 0; i < count; ++i) {
          if (random() % 3 == 0) continue;  // not every row is wanted
          indices[s].push_back(static_cast<int32_t>(i));
          rows.push_back({s, done[s] + i});
        }
        chunks.push_back({.token_ids = absl::MakeConstSpan(tokens[s]).subspan(done[s], count),
                          .position = static_cast<int32_t>(done[s]),
                          .block_table = blocks[s],
                          .logit_indices = indices[s]});
        done[s] += count;
      }
      if (chunks.empty()) {
        if (std::accumulate(done.begin(), done.end(), size_t{0}) ==
            std::accumulate(tokens.begin(), tokens.end(), size_t{0},
                            [](size_t sum, const auto& t) { return sum + t.size(); })) {
          break;
        }
        continue;
      }
      Logits logits(rows.size() * vocab);
      ASSERT_TRUE(executor->Forward(chunks, logits.data()).ok());
      for (size_t r = 0; r < rows.size(); ++r) {
        const auto [s, position] = rows[r];
        ASSERT_TRUE(std::equal(logits.begin() + static_cast<std::ptrdiff_t>(r * vocab),
                               logits.begin() + static_cast<std::ptrdiff_t>((r + 1) * vocab),
                               expected[s].begin() + static_cast<std::ptrdiff_t>(position * vocab)))
            << "step " << step << ", sequence " << s << ", position " << position;
      }
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Models, CpuExecutorTest, testing::ValuesIn(ModelCases()),
                         [](const auto& info) { return info.param.name; });

TEST_P(CpuExecutorTest, LogitsDependOnTheTokens) {  // else every equality below would be empty
  const auto tokens = RandomTokens(40, model().vocab, 3);
  const Logits logits = Expected(tokens);
  auto changed = tokens;
  changed[5] = (changed[5] + 1) % model().vocab;
  const Logits other = Expected(changed);
  const size_t vocab = static_cast<size_t>(model().vocab);
  EXPECT_TRUE(std::equal(logits.begin(), logits.begin() + 5 * static_cast<std::ptrdiff_t>(vocab),
                         other.begin()));
  int differ = 0;
  for (size_t t = 5; t < tokens.size(); ++t) {
    differ += !std::equal(logits.begin() + static_cast<std::ptrdiff_t>(t * vocab),
                          logits.begin() + static_cast<std::ptrdiff_t>((t + 1) * vocab),
                          other.begin() + static_cast<std::ptrdiff_t>(t * vocab));
  }
  EXPECT_GE(differ, 30);
  const auto [low, high] = std::minmax_element(logits.begin(), logits.end());
  EXPECT_LT(*low, *high);
}

TEST_P(CpuExecutorTest, SameLogitsForEveryLevelThreadCountAndChunkSize) {
  const auto tokens = RandomTokens(200, model().vocab, 1);
  const Logits expected = Expected(tokens);
  for (const absl::string_view level : SupportedOps()) {
    for (const int32_t threads : {1, 2, 3}) {
      auto executor = MakeExecutor(model(), threads, FindOps(level));
      for (const int32_t chunk : {200, 64, 7, 1}) {
        if (level == "reference" && chunk == 1 && threads > 1) continue;  // slow, and covered
        EXPECT_EQ(AllLogits(*executor, tokens, chunk, Identity(8)), expected)
            << level << ", " << threads << " threads, chunks of " << chunk;
      }
    }
  }
}

TEST_P(CpuExecutorTest, SameLogitsForScrambledBlockTables) {
  const auto tokens = RandomTokens(200, model().vocab, 2);
  const Logits expected = Expected(tokens);
  auto executor = MakeExecutor(model(), 2);
  std::mt19937 random(9);
  for (int round = 0; round < 5; ++round) {
    auto blocks = Identity(executor->limits().num_blocks);
    std::shuffle(blocks.begin(), blocks.end(), random);
    EXPECT_EQ(AllLogits(*executor, tokens, 33, blocks), expected) << "round " << round;
  }
}

TEST_P(CpuExecutorTest, SameLogitsBesideOtherSequences) {
  for (const int32_t threads : {1, 2}) BesideOtherSequences(threads);
}

// With few sequences and many keys, several workers share the keys of one of them.
TEST(CpuExecutorLongContextTest, SingleTokensHaveTheSameLogitsOnSeveralThreads) {
  const TestModelOptions model = {
      .seed = 17, .heads = 6, .kv_heads = 2, .context = 1280, .prefix_tokens = 1};
  const auto long_tokens = RandomTokens(1200, model.vocab, 1);
  const auto short_tokens = RandomTokens(30, model.vocab, 2);
  const std::vector<int32_t> last = {0};
  const auto blocks = Identity(20), short_blocks = std::vector<int32_t>{20};
  const auto chunk = [&](const std::vector<int32_t>& tokens, const std::vector<int32_t>& table) {
    return SequenceChunk{.token_ids = absl::MakeConstSpan(tokens).last(1),
                         .position = static_cast<int32_t>(tokens.size()) - 1,
                         .block_table = table,
                         .logit_indices = last};
  };
  Logits expected;
  for (const absl::string_view level : SupportedOps()) {
    for (const int32_t threads : {1, 2, 3, 5}) {
      if (level == "reference" && threads > 1) continue;
      SCOPED_TRACE(absl::StrCat(level, ", ", threads, " threads"));
      auto executor = MakeExecutor(model, threads, FindOps(level));
      AllLogits(*executor, long_tokens, 256, blocks);
      AllLogits(*executor, short_tokens, 30, short_blocks);
      Logits alone(static_cast<size_t>(model.vocab)), beside(2 * alone.size());
      ASSERT_TRUE(executor->Forward({chunk(long_tokens, blocks)}, alone.data()).ok());
      ASSERT_TRUE(executor
                      ->Forward({chunk(short_tokens, short_blocks), chunk(long_tokens, blocks)},
                                beside.data())
                      .ok());
      EXPECT_TRUE(std::equal(alone.begin(), alone.end(),
                             beside.begin() + static_cast<std::ptrdiff_t>(alone.size())));
      if (expected.empty()) expected = beside;
      EXPECT_EQ(beside, expected);
    }
  }
}

TEST(CpuExecutorLimitsTest, RefusesWhatBreaksTheRules) {
  auto executor = MakeExecutor({.context = 128, .prefix_tokens = 1}, 1);
  ASSERT_EQ(executor->limits().max_sequence_tokens, 127);
  const std::vector<int32_t> tokens = RandomTokens(64, 300, 1), blocks = {0, 1}, last = {63};
  Logits logits(300);
  const SequenceChunk good = {tokens, 0, blocks, last};
  EXPECT_TRUE(executor->Forward({good}, logits.data()).ok());
  const auto refused = [&](SequenceChunk chunk, const std::string& what) {
    const absl::Status status = executor->Forward({chunk}, logits.data());
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << what;
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(what));
  };
  SequenceChunk bad = good;
  bad.token_ids = {};
  refused(bad, "tokens of a chunk is 0");
  bad = good, bad.position = 64;
  refused(bad, "position is 64, must be in [0, 63]");
  bad = good, bad.position = -1;
  refused(bad, "position is -1");
  bad = good, bad.position = 1, bad.block_table = absl::MakeConstSpan(blocks).subspan(0, 1);
  refused(bad, "length of a block table is 1");
  const std::vector<int32_t> wrong_blocks = {executor->limits().num_blocks, 0};
  bad = good, bad.block_table = wrong_blocks;
  refused(bad, "KV block is");
  const std::vector<int32_t> wrong_ids = {5, 300};
  bad = {wrong_ids, 0, blocks, {}};
  refused(bad, "token id is 300");
  const std::vector<int32_t> falling = {5, 5};
  bad = good, bad.logit_indices = falling;
  refused(bad, "logit index is 5");
  const std::vector<int32_t> beyond = {64};
  bad = good, bad.logit_indices = beyond;
  refused(bad, "logit index is 64");
}

TEST(CpuExecutorLimitsTest, RefusesOptionsOutOfRange) {
  const auto message = [](const CpuExecutorOptions& options) {
    const auto executor = CpuExecutor::Create(MakeTestModel(), options);
    EXPECT_EQ(executor.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(executor.status().message());
  };
  EXPECT_THAT(message({.threads = -1}), testing::HasSubstr("threads is -1"));
  EXPECT_THAT(message({.threads = kMaxThreads + 1}), testing::HasSubstr("threads is 1025"));
  EXPECT_THAT(message({.kv_cache_bytes = 100}), testing::HasSubstr("one KV block needs 8192"));
  EXPECT_THAT(message({.max_step_tokens = 0}), testing::HasSubstr("max_step_tokens is 0"));
  EXPECT_THAT(message({.max_step_tokens = 4, .max_step_logits = 5}),
              testing::HasSubstr("max_step_logits is 5"));
}

TEST(CpuExecutorLimitsTest, KvCacheIsSizedFromBytes) {
  auto executor =
      CpuExecutor::Create(MakeTestModel(), {.threads = 1, .kv_cache_bytes = 3 * 8192 + 8191});
  ASSERT_TRUE(executor.ok()) << executor.status();
  EXPECT_EQ((*executor)->limits().num_blocks, 3);  // 2 layers * 2 kv heads * (K, V) * 64 * 16
  EXPECT_EQ((*executor)->limits().block_bytes, 8192);
  auto roomy = CpuExecutor::Create(MakeTestModel(), {.threads = 1});
  ASSERT_TRUE(roomy.ok());
  EXPECT_EQ((*roomy)->limits().num_blocks, 8 * 512 / 64);
}

}  // namespace
}  // namespace fixpoint
