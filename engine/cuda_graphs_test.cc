// Steps replayed as CUDA graphs: every bit as CpuExecutor's. The emulated device records launches
// with their arguments, so whatever of a step is an argument, and not in the device's memory, is
// stale at the next step.
#include "engine/cuda_graphs.h"

#include <algorithm>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/cuda_test_models.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

// Ten KV blocks: buckets of lengths up to 4, 8 and 10.
constexpr int32_t kLongContext = 640;

TestModelOptions Long(TestModelOptions model) {
  model.context = kLongContext + model.prefix_tokens;
  return model;
}

// Of a model of two layers: embedding; products, rotation, attention, residual, SwiGLU; head and
// tokens.
constexpr int kLaunches = 1 + 2 * 9 + 4;

// Chunks of a step with the memory that they point to.
class Steps {
 public:
  Steps(Executor& cpu, CudaExecutor& cuda) : cpu_(cpu), cuda_(cuda) {}

  struct Sequence {
    int32_t length = 0;          // positions in the cache
    std::vector<int32_t> table;  // its KV blocks
  };

  // Appends `tokens` tokens to the sequence, and wants the logits of the last `rows`.
  void Add(Sequence& sequence, int32_t tokens, int32_t rows) {
    Part& part = parts_.emplace_back();
    for (int32_t i = 0; i < tokens; ++i) part.ids.push_back(static_cast<int32_t>(random_() % 290));
    for (int32_t i = tokens - rows; i < tokens; ++i) part.rows.push_back(i);
    part.position = sequence.length;
    part.table = sequence.table;
    sequence.length += tokens;
    rows_ += rows;
  }

  // Runs the step on both; the same bits.
  void Run() {
    std::vector<SequenceChunk> chunks;
    for (const Part& part : parts_)
      chunks.push_back({part.ids, part.position, part.table, part.rows});
    std::vector<int32_t> expected(static_cast<size_t>(rows_ * cuda_.limits().vocab_size));
    std::vector<int32_t> actual(expected.size(), -1);
    const absl::Status on_cpu = cpu_.Forward(chunks, expected.data());
    ASSERT_TRUE(on_cpu.ok()) << on_cpu;
    const absl::Status on_cuda = cuda_.Forward(chunks, actual.data());
    ASSERT_TRUE(on_cuda.ok()) << on_cuda;
    ASSERT_EQ(actual, expected);
    parts_.clear();
    rows_ = 0;
  }

 private:
  struct Part {
    std::vector<int32_t> ids, rows, table;
    int32_t position = 0;
  };
  Executor& cpu_;
  CudaExecutor& cuda_;
  std::mt19937 random_{1};
  std::vector<Part> parts_;
  int32_t rows_ = 0;
};

// Blocks of sequence i of n: all over the cache, in no order. The first one's begin with block 0.
std::vector<int32_t> Table(int32_t i, int32_t n) {
  std::vector<int32_t> table;
  for (int32_t b = 0; b < 10; ++b) table.push_back(b * 7 % 10 * n + (i + b) % n);
  return table;
}

struct Variant {
  std::string name;
  TestModelOptions model;
  bool use_graphs = true;
};

void PrintTo(const Variant& v, std::ostream* out) { *out << v.name; }

class CudaGraphsTest : public testing::TestWithParam<Variant> {};

// Sequences come and go, one is long from the start, some check proposed tokens, and in some steps
// a prompt is read beside them.
TEST_P(CudaGraphsTest, DecodingGivesTheRowsOfTheCpu) {
  const TestModelOptions model = Long(GetParam().model);
  EmulatedDeviceState state;
  CudaExecutorOptions options = kOptions;
  options.use_graphs = GetParam().use_graphs;
  const auto cuda = MakeCuda(model, &state, options);
  const auto cpu = MakeCpu(model);
  constexpr int32_t kSequences = 12;
  ASSERT_GE(cuda->limits().num_blocks, 10 * kSequences);
  std::vector<Steps::Sequence> sequences(kSequences);
  for (int32_t i = 0; i < kSequences; ++i) {
    sequences[static_cast<size_t>(i)].table = Table(i, kSequences);
  }
  Steps steps(*cpu, *cuda);
  for (int i = 0; i < 3; ++i) {  // 240, then through the border at 256
    steps.Add(sequences[0], 80, 0);
    ASSERT_NO_FATAL_FAILURE(steps.Run());
  }
  const int before = state.launches;
  std::mt19937 random(2);
  for (int step = 0; step < 40; ++step) {
    const int32_t running = std::min(kSequences, 1 + step / 3);
    for (int32_t i = step % 7 == 6 ? 1 : 0; i < running; ++i) {
      const bool proposed = step % 5 == 4 && i % 2 == 0;
      const auto tokens = static_cast<int32_t>(proposed ? 2 + random() % 3 : 1);
      steps.Add(sequences[static_cast<size_t>(i)], tokens, proposed ? tokens - 1 : 1);
    }
    if (step % 9 == 8) steps.Add(sequences[kSequences - 1], 20, 0);
    ASSERT_NO_FATAL_FAILURE(steps.Run()) << "step " << step;
  }
  if (GetParam().use_graphs) {
    EXPECT_GT(state.captures, 5);
    EXPECT_GE(state.graph_launches, 20);
  } else {
    EXPECT_EQ(state.captures + state.graph_launches, 0);
    EXPECT_GE(state.launches - before, 40 * kLaunches);
  }
}

const TestModelOptions kMultiHead = {
    .seed = 6, .layers = 1, .heads = 4, .kv_heads = 4, .context = kContext};
// Groups larger than a tile.
const TestModelOptions kWideGroup = {
    .seed = 8, .layers = 1, .heads = 12, .kv_heads = 1, .context = kContext};

INSTANTIATE_TEST_SUITE_P(Variants, CudaGraphsTest,
                         testing::Values(Variant{"Plain", kPlain}, Variant{"Odd", kOdd},
                                         Variant{"OddWithoutGraphs", kOdd, false},
                                         Variant{"MultiHead", kMultiHead},
                                         Variant{"WideGroup", kWideGroup}),
                         [](const auto& info) { return info.param.name; });

// The second step of a bucket is captured; it and all further ones are one launch.
TEST(CudaGraphsTest, OneLaunchAStep) {
  EmulatedDeviceState state;
  const auto cuda = MakeCuda(kPlain, &state);
  const auto cpu = MakeCpu(kPlain);
  Steps steps(*cpu, *cuda);
  Steps::Sequence sequence = {0, {5, 2}};
  const auto launches = [&] {
    const int before = state.launches;
    steps.Add(sequence, 1, 1);
    steps.Run();
    return state.launches - before;
  };
  EXPECT_EQ(launches(), kLaunches);
  EXPECT_EQ(launches(), kLaunches + 1);  // recording them counts
  for (int i = 0; i < 80; ++i) ASSERT_EQ(launches(), 1) << i;
  EXPECT_EQ(state.captures, 1);
  EXPECT_EQ(state.graph_launches, 81);
}

// 40 rows of two planes are products of cuBLASLt.
TEST(CudaGraphsTest, LargeProductsAreReplayed) {
  EmulatedDeviceState state;
  const auto cuda = MakeCuda(kOdd, &state);
  const auto cpu = MakeCpu(kOdd);
  Steps steps(*cpu, *cuda);
  std::vector<Steps::Sequence> sequences(5);
  for (int32_t i = 0; i < 5; ++i) sequences[static_cast<size_t>(i)].table = {i};
  for (int step = 0; step < 4; ++step) {
    for (Steps::Sequence& sequence : sequences) steps.Add(sequence, 7, 7);
    ASSERT_NO_FATAL_FAILURE(steps.Run());
  }
  EXPECT_EQ(state.graph_launches, 3);
  EXPECT_GT(state.matmuls, 0);
}

// Whatever the limits of a step and the slices: the emulated device refuses other products.
TEST(CudaGraphsTest, EveryBucketOfLargeProductsIsPrepared) {
  const auto cpu = MakeCpu(kOdd);
  for (const int32_t max_tokens : {37, 60, 100}) {
    for (const int64_t l2_bytes : {1 << 30, 1}) {
      EmulatedDeviceState state{.l2_bytes = l2_bytes};
      CudaExecutorOptions options = kOptions;
      options.max_step_tokens = max_tokens;
      options.max_step_logits = std::min(max_tokens, 41);
      options.least_slice_tokens = 32;
      const auto cuda = MakeCuda(kOdd, &state, options);
      Steps steps(*cpu, *cuda);
      for (int32_t tokens = 33; tokens <= std::min(max_tokens, kMaxBucketTokens); tokens += 8) {
        for (int step = 0; step < 2; ++step) {
          std::vector<Steps::Sequence> sequences(8);
          for (int32_t i = 0; i < 8; ++i) {
            Steps::Sequence& sequence = sequences[static_cast<size_t>(i)];
            sequence.table = {i};
            const int32_t count = tokens / 8 + (i < tokens % 8 ? 1 : 0);
            steps.Add(sequence, count, std::min(count, 5));
          }
          ASSERT_NO_FATAL_FAILURE(steps.Run()) << tokens << " of " << max_tokens;
        }
      }
      EXPECT_GT(state.graph_launches, 0);
      EXPECT_EQ(state.matmuls > 0, l2_bytes > 1) << "slices of 32 tokens are our kernel's";
    }
  }
}

TEST(CudaGraphsTest, AFailureLosesTheDeviceAndSaysWhere) {
  const std::vector<int32_t> id = {1}, table = {0}, first = {0};
  std::vector<int32_t> logits(300);
  for (int step = 1; step <= 2; ++step) {  // capture, replay
    for (int fail = 0; fail < (step == 1 ? kLaunches + 1 : 1); ++fail) {
      EmulatedDeviceState state;
      const auto cuda = MakeCuda(kPlain, &state);
      for (int32_t i = 0; i < step; ++i) {
        ASSERT_TRUE(cuda->Forward({SequenceChunk{id, i, table, first}}, logits.data()).ok());
      }
      state.fail_launch_after = fail;
      const absl::Status status =
          cuda->Forward({SequenceChunk{id, step, table, first}}, logits.data());
      EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
      const bool while_capturing = step == 1 && fail < kLaunches;
      EXPECT_THAT(std::string(status.message()),
                  StartsWith(while_capturing ? "capturing a CUDA graph of 1 tokens: emulated device"
                                             : "emulated device: graph"));
      const int launches = state.launches;
      EXPECT_EQ(cuda->Forward({SequenceChunk{id, 0, table, first}}, logits.data()), status);
      EXPECT_EQ(state.launches, launches);
    }
  }
}

// What a device refuses while it captures is found out here.
TEST(CudaGraphsTest, OnlyLaunchesAreCaptured) {
  EmulatedDeviceState state;
  EmulatedDevice device(&state);
  int8_t* const memory = *device.Allocate(64);
  ASSERT_TRUE(device.BeginCapture().ok());
  int8_t host = 0;
  for (const absl::Status& status :
       {device.Upload(memory, &host, 1), device.Download(&host, memory, 1), device.Synchronize(),
        device.BeginCapture(), device.LaunchGraph(0), device.Allocate(64).status()}) {
    EXPECT_THAT(status.message(), HasSubstr("not while a graph is captured"));
  }
  EXPECT_TRUE(device.EndCapture().ok());
  EXPECT_TRUE(device.Synchronize().ok());
}

}  // namespace
}  // namespace fixpoint
