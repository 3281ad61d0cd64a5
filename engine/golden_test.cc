#include "engine/golden.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/digest.h"
#include "bundle/test_model.h"
#include "engine/cpu_executor.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/dispatch.h"

namespace fixpoint {
namespace {

std::unique_ptr<CpuExecutor> MakeExecutor(const Ops* ops, int32_t threads, uint64_t seed = 1) {
  auto executor = CpuExecutor::Create(MakeTestModel({.seed = seed, .prefix_tokens = 1}),
                                      {.threads = threads, .max_step_logits = 100, .ops = ops});
  EXPECT_TRUE(executor.ok()) << executor.status();
  return std::move(executor).value();
}

std::vector<std::vector<int32_t>> Prompts() {
  auto tokenizer = Tokenizer::Create(MakeTestTokenizer());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return GoldenPrompts(**tokenizer);
}

TEST(GoldenTest, PromptsAreFourGrowingTexts) {
  const auto prompts = Prompts();
  ASSERT_EQ(prompts.size(), 4u);
  for (size_t i = 0; i < 4; ++i) EXPECT_FALSE(prompts[i].empty());
  for (size_t i = 1; i < 4; ++i) EXPECT_GT(prompts[i].size(), prompts[i - 1].size());
}

TEST(GoldenTest, DigestIsTheSameForLevelsThreadsAndChunks) {
  const auto prompts = Prompts();
  const auto expected = GoldenDigest(*MakeExecutor(FindOps("reference"), 1), prompts);
  ASSERT_TRUE(expected.ok()) << expected.status();
  EXPECT_TRUE(IsSha256Hex(*expected));
  for (const absl::string_view level : SupportedOps()) {
    for (const int32_t threads : {1, 2}) {
      auto executor = MakeExecutor(FindOps(level), threads);
      for (const int32_t chunk : {0, 1, 19, 64}) {
        const auto digest = GoldenDigest(*executor, prompts, chunk);
        ASSERT_TRUE(digest.ok()) << digest.status();
        EXPECT_EQ(*digest, *expected) << level << ", " << threads << " threads, chunk " << chunk;
      }
    }
  }
}

// One value for all architectures too: aarch64 builds run this under an emulator
// (scripts/test_aarch64.sh).
TEST(GoldenTest, DigestsOfTinyModelsAreTheRecordedOnes) {
  const auto prompts = Prompts();
  const std::pair<TestModelOptions, std::string> models[] = {
      {{.seed = 1, .prefix_tokens = 1},
       "c114106825fcd94dc263534b293e2451323a3d904a7c561c4ed014ea383ee1e0"},
      {{.seed = 2,
        .layers = 3,
        .prefix_tokens = 3,
        .wide_sites = kWideAll,
        .qkv_bias = true,
        .qk_hadamard = true,
        .down_hadamard_block = 32},
       "4711ccb31a0220ae5c65bc403ff6f55683bf1530d88a5563d5a46f434f4ac4fa"},
  };
  for (const auto& [options, recorded] : models) {
    for (const absl::string_view level : SupportedOps()) {
      auto executor = CpuExecutor::Create(MakeTestModel(options),
                                          {.max_step_logits = 100, .ops = FindOps(level)});
      ASSERT_TRUE(executor.ok()) << executor.status();
      const auto digest = GoldenDigest(**executor, prompts);
      ASSERT_TRUE(digest.ok()) << digest.status();
      EXPECT_EQ(*digest, recorded) << level << ", seed " << options.seed;
    }
  }
}

TEST(GoldenTest, DigestNoticesModelPromptAndOrder) {
  auto prompts = Prompts();
  const auto digest = [&](uint64_t seed) {
    return GoldenDigest(*MakeExecutor(nullptr, 1, seed), prompts).value();
  };
  const std::string first = digest(1);
  EXPECT_NE(digest(2), first);
  std::swap(prompts[0], prompts[1]);
  EXPECT_NE(digest(1), first);
  std::swap(prompts[0], prompts[1]);
  EXPECT_EQ(digest(1), first);
  prompts[3].back() ^= 1;
  EXPECT_NE(digest(1), first);
}

TEST(GoldenTest, RefusesBadArguments) {
  auto executor = MakeExecutor(nullptr, 1);
  EXPECT_EQ(GoldenDigest(*executor, {{1, 2}}, -1).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(GoldenDigest(*executor, {std::vector<int32_t>{}}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(GoldenDigest(*executor, {{100000}}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace fixpoint
