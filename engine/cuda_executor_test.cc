// CudaExecutor on the emulator: every bit as CpuExecutor's, however a step is cut up, and what it
// does when the device fails.
#include "engine/cuda_executor.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/cuda_test_models.h"
#include "engine/golden.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

using testing::HasSubstr;

struct Variant {
  std::string name;
  TestModelOptions model;
  bool has_matmul;
  int64_t decode_bytes;
  int32_t chunk;
};

class CudaGoldenTest : public testing::TestWithParam<Variant> {};

TEST_P(CudaGoldenTest, DigestIsThatOfTheCpu) {
  const Variant& v = GetParam();
  const auto prompts = Prompts();
  const auto expected = GoldenDigest(*MakeCpu(v.model), prompts);
  ASSERT_TRUE(expected.ok()) << expected.status();
  EmulatedDeviceState state{.has_matmul = v.has_matmul};
  CudaExecutorOptions options = kOptions;
  options.decode_bytes = v.decode_bytes;
  const auto executor = MakeCuda(v.model, &state, options);
  const int at_start = state.allocations;
  const auto digest = GoldenDigest(*executor, prompts, v.chunk);
  ASSERT_TRUE(digest.ok()) << digest.status();
  EXPECT_EQ(*digest, *expected);
  EXPECT_EQ(state.allocations, at_start) << "a step has allocated";
  EXPECT_EQ(state.matmuls > 0, v.has_matmul && v.chunk != 5);
}

INSTANTIATE_TEST_SUITE_P(Variants, CudaGoldenTest,
                         testing::Values(Variant{"PlainMatmul", kPlain, true, 1 << 20, 0},
                                         Variant{"PlainOwnKernel", kPlain, false, 1 << 20, 0},
                                         Variant{"OddMatmul", kOdd, true, 1 << 20, 0},
                                         Variant{"OddOwnKernelChunks", kOdd, false, 1 << 20, 37},
                                         Variant{"OddDecodeChunks", kOdd, true, 1 << 20, 5},
                                         Variant{"OddNoDecodeMemory", kOdd, true, 0, 5}),
                         [](const auto& info) { return info.param.name; });

// Sequences of unlike lengths in one step: a prompt, some that decode, one that checks proposed
// tokens; blocks in an order of their own.
TEST(CudaExecutorTest, AMixedStepGivesTheRowsOfTheCpu) {
  EmulatedDeviceState state;
  const auto cuda = MakeCuda(kOdd, &state);
  const auto cpu = MakeCpu(kOdd);
  const int32_t vocab = cuda->limits().vocab_size;
  std::vector<int32_t> tokens(150);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 37 % 290);
  const auto ids = absl::MakeConstSpan(tokens);
  const std::vector<int32_t> tables[] = {{7, 2, 9}, {4, 1}, {0}, {5, 3, 8}};
  const auto both = [&](absl::Span<const SequenceChunk> chunks, size_t rows) {
    std::vector<int32_t> expected(rows * static_cast<size_t>(vocab)), actual = expected;
    ASSERT_TRUE(cpu->Forward(chunks, expected.data()).ok());
    const absl::Status status = cuda->Forward(chunks, actual.data());
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_EQ(actual, expected);
  };
  const std::vector<int32_t> none, first = {0}, last = {39}, all = {0, 1, 2};
  // Prompts without a wanted row, more than kSkinnyTokens of them.
  ASSERT_NO_FATAL_FAILURE(both({{ids.subspan(0, 70), 0, tables[0], none}}, 0));
  ASSERT_NO_FATAL_FAILURE(both({{ids.subspan(70, 60), 70, tables[0], none},
                                {ids.subspan(3, 20), 0, tables[1], none},
                                {ids.subspan(9, 2), 0, tables[3], none}},
                               0));
  ASSERT_NO_FATAL_FAILURE(both({{ids.subspan(130, 1), 130, tables[0], first},
                                {ids.subspan(23, 40), 20, tables[1], last},
                                {ids.subspan(50, 1), 0, tables[2], first},
                                {ids.subspan(11, 3), 2, tables[3], all}},
                               6));
}

// Products take more rows than the step has: there has to be room for the last ones.
TEST(CudaExecutorTest, TheLargestStepHasRoom) {
  EmulatedDeviceState state;
  CudaExecutorOptions options = kOptions;
  options.max_step_logits = 1;  // else the head's accumulators are the largest
  const auto cuda = MakeCuda(kOdd, &state, options);
  std::vector<int32_t> ids(100);
  ASSERT_GT(PaddedTokens(100), kOptions.max_step_tokens);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i * 53 % 290);
  const std::vector<int32_t> table = {3, 1, 2, 0}, last = {99};
  std::vector<int32_t> expected(static_cast<size_t>(cuda->limits().vocab_size));
  std::vector<int32_t> actual = expected;
  const SequenceChunk chunk = {ids, 0, table, last};
  ASSERT_TRUE(MakeCpu(kOdd)->Forward({chunk}, expected.data()).ok());
  const absl::Status status = cuda->Forward({chunk}, actual.data());
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(actual, expected);
}

// Accumulators that would not stay in the cache: each linear layer and what follows it in slices,
// the last of them ragged.
TEST(CudaExecutorTest, SlicesOfAStepChangeNoBit) {
  std::vector<int32_t> ids(100);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i * 53 % 290);
  const std::vector<int32_t> table = {3, 1, 2, 0}, rows = {0, 31, 32, 63, 64, 98, 99};
  const SequenceChunk chunk = {ids, 0, table, rows};
  const auto cpu = MakeCpu(kOdd);
  std::vector<int32_t> expected(rows.size() * static_cast<size_t>(cpu->limits().vocab_size));
  ASSERT_TRUE(cpu->Forward({chunk}, expected.data()).ok());
  int whole_launches = 0;
  for (const int64_t l2_bytes : {1 << 30, 60000, 1}) {
    EmulatedDeviceState state{.l2_bytes = l2_bytes};
    CudaExecutorOptions options = kOptions;
    options.least_slice_tokens = 32;
    const auto cuda = MakeCuda(kOdd, &state, options);
    std::vector<int32_t> actual(expected.size());
    const int before = state.launches;
    const absl::Status status = cuda->Forward({chunk}, actual.data());
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(actual, expected) << l2_bytes;
    if (l2_bytes == 1 << 30) whole_launches = state.launches - before;
    if (l2_bytes < 1 << 30) {
      EXPECT_GT(state.launches - before, whole_launches) << l2_bytes;
    }
  }
}

TEST(CudaExecutorTest, AFailedLaunchEndsIt) {
  EmulatedDeviceState state;
  const auto executor = MakeCuda(kPlain, &state);
  const std::vector<int32_t> id = {1}, table = {0}, first = {0};
  const SequenceChunk chunk = {id, 0, table, first};
  std::vector<int32_t> logits(300);
  ASSERT_TRUE(executor->Forward({chunk}, logits.data()).ok());
  const int launches = state.launches;
  for (int fail = 0; fail < launches; ++fail) {  // each of a step's launches
    EmulatedDeviceState other;
    const auto lost = MakeCuda(kPlain, &other);
    other.fail_launch_after = fail;
    const absl::Status status = lost->Forward({chunk}, logits.data());
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << fail;
    EXPECT_THAT(status.message(), HasSubstr(" failed"));
    EXPECT_EQ(other.launches, fail + 1);
    EXPECT_EQ(lost->Forward({chunk}, logits.data()), status);
    EXPECT_EQ(other.launches, fail + 1) << "a lost device was used";
  }
}

TEST(CudaExecutorTest, WrongStepsAreRefusedAndHarmless) {
  EmulatedDeviceState state;
  const auto executor = MakeCuda(kPlain, &state);
  const std::vector<int32_t> id = {1}, bad_id = {300}, table = {0}, bad_table = {1000}, first = {0};
  std::vector<int32_t> logits(300);
  const int uploads = state.uploads;
  for (const SequenceChunk& chunk :
       {SequenceChunk{bad_id, 0, table, first}, SequenceChunk{id, 0, bad_table, first},
        SequenceChunk{id, 200, table, first}, SequenceChunk{id, 0, table, id}}) {
    EXPECT_EQ(executor->Forward({chunk}, logits.data()).code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(state.uploads, uploads);
  EXPECT_TRUE(executor->Forward({}, logits.data()).ok());
  EXPECT_TRUE(executor->Forward({SequenceChunk{id, 0, table, first}}, logits.data()).ok());
}

TEST(CudaExecutorTest, OptionsAndMemoryAreChecked) {
  EmulatedDeviceState state;
  const auto create = [&](const CudaExecutorOptions& options) {
    return CudaExecutor::Create(MakeTestModel(kPlain), std::make_unique<EmulatedDevice>(&state),
                                options)
        .status();
  };
  CudaExecutorOptions options = kOptions;
  options.max_step_tokens = 0;
  EXPECT_THAT(create(options).message(), HasSubstr("max_step_tokens is 0"));
  options = kOptions;
  options.max_step_logits = 101;
  EXPECT_THAT(create(options).message(), HasSubstr("max_step_logits is 101"));
  options = kOptions;
  options.kv_cache_bytes = 100;
  EXPECT_THAT(create(options).message(), HasSubstr("one KV block needs"));
  options.kv_cache_bytes = int64_t{1} << 40;
  EXPECT_EQ(create(options).code(), absl::StatusCode::kResourceExhausted);
  state.memory_bytes = 1 << 20;
  options.kv_cache_bytes = 0;
  EXPECT_EQ(create(options).code(), absl::StatusCode::kResourceExhausted);
}

TEST(CudaExecutorTest, KvCacheTakesWhatIsFree) {
  EmulatedDeviceState state{.memory_bytes = int64_t{100} << 20};
  CudaExecutorOptions options = kOptions;
  options.kv_cache_bytes = 0;
  const auto executor = MakeCuda(kPlain, &state, options);
  EXPECT_GT(state.allocated_bytes, int64_t{80} << 20);
  EXPECT_LT(state.allocated_bytes, int64_t{100} << 20);
  EXPECT_GT(executor->limits().num_blocks, 1000);
}

}  // namespace
}  // namespace fixpoint
