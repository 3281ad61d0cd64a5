// CudaExecutor on several emulated devices: every bit as CpuExecutor's, at any degree, and all of
// them lost with one.
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "engine/cuda_test_models.h"
#include "engine/nvidia_group.h"
#include "engine/tensor_parallel.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

using testing::HasSubstr;

struct Group {
  explicit Group(int degree, bool has_matmul = true)
      : devices(static_cast<size_t>(degree), EmulatedDeviceState{.has_matmul = has_matmul}) {}

  absl::StatusOr<std::unique_ptr<CudaExecutor>> Create(
      IntegerModel model, const CudaExecutorOptions& options = kOptions) {
    CudaDeviceGroup group;
    for (EmulatedDeviceState& state : devices) {
      group.devices.push_back(std::make_unique<EmulatedDevice>(&state));
    }
    group.collective = std::make_unique<EmulatedCollective>(&collective);
    return CudaExecutor::Create(std::move(model), std::move(group), options);
  }

  std::vector<EmulatedDeviceState> devices;
  EmulatedCollectiveState collective;
};

// One kv head a device at 4; Hadamard blocks, an odd vocabulary, int16 sites in every other layer.
const TestModelOptions kGrouped = {.seed = 5,
                                   .heads = 8,
                                   .kv_heads = 4,
                                   .intermediate = 192,
                                   .vocab = 301,
                                   .context = kContext,
                                   .prefix_tokens = 2,
                                   .wide_sites = kWideAttnOut,
                                   .odd_layer_wide_sites = kWideAll,
                                   .qkv_bias = true,
                                   .qk_hadamard = true,
                                   .down_hadamard_block = 16};
// A kv head of each query head.
const TestModelOptions kMultiHead = {
    .seed = 6, .hidden = 72, .heads = 8, .kv_heads = 8, .intermediate = 104, .context = kContext};
// Depths beyond what one block of the product's grid does: they are split on one device.
const TestModelOptions kDeep = {.seed = 7,
                                .layers = 1,
                                .heads = 16,
                                .kv_heads = 2,
                                .head_dim = 64,
                                .intermediate = 2048,
                                .context = kContext,
                                .wide_sites = kWideDownIn,
                                .down_hadamard_block = 256};

IntegerModel Tied(IntegerModel model) {
  model.head.weights = model.embedding;
  return model;
}

// Bundles have no such biases today; the executors add them once.
IntegerModel WithBiases(IntegerModel model) {
  for (ModelLayer& layer : model.layers) {
    for (LinearWeights* linear : {&layer.o_proj, &layer.gate_up, &layer.down_proj}) {
      linear->bias.resize(static_cast<size_t>(linear->outputs));
      for (size_t i = 0; i < linear->bias.size(); ++i) {
        linear->bias[i] = static_cast<int32_t>(i * 7919 % 40001) - 20000;
      }
    }
  }
  return model;
}

struct Variant {
  std::string name;
  int degree;
  IntegerModel model;
  bool has_matmul = true;
  int32_t chunk = 0;
};

void PrintTo(const Variant& v, std::ostream* out) { *out << v.name; }

class CudaParallelGoldenTest : public testing::TestWithParam<Variant> {};

TEST_P(CudaParallelGoldenTest, DigestIsThatOfTheCpu) {
  const Variant& v = GetParam();
  const auto prompts = Prompts();
  const auto expected = GoldenDigest(*MakeCpu(v.model), prompts);
  ASSERT_TRUE(expected.ok()) << expected.status();
  Group group(v.degree, v.has_matmul);
  const auto executor = group.Create(v.model);
  ASSERT_TRUE(executor.ok()) << executor.status();
  const auto digest = GoldenDigest(**executor, prompts, v.chunk);
  ASSERT_TRUE(digest.ok()) << digest.status();
  EXPECT_EQ(*digest, *expected);
  EXPECT_EQ(group.collective.reduces > 0, v.degree > 1);
  for (const EmulatedDeviceState& device : group.devices) {
    EXPECT_GT(device.launches, 0);
    EXPECT_TRUE(v.degree == 1 || device.captures == 0);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Variants, CudaParallelGoldenTest,
    testing::Values(Variant{"PlainOn1", 1, MakeTestModel(kPlain)},
                    Variant{"PlainOn2", 2, MakeTestModel(kPlain)},
                    Variant{"GroupedOn1", 1, MakeTestModel(kGrouped)},
                    Variant{"GroupedOn2", 2, MakeTestModel(kGrouped)},
                    Variant{"GroupedOn4", 4, MakeTestModel(kGrouped)},
                    Variant{"GroupedOn4OwnKernelChunks", 4, MakeTestModel(kGrouped), false, 37},
                    Variant{"GroupedOn2DecodeChunks", 2, MakeTestModel(kGrouped), true, 5},
                    Variant{"MultiHeadOn2OwnKernel", 2, MakeTestModel(kMultiHead), false},
                    Variant{"MultiHeadOn4", 4, MakeTestModel(kMultiHead)},
                    Variant{"MultiHeadOn8Chunks", 8, MakeTestModel(kMultiHead), true, 20},
                    Variant{"TiedOn4", 4, Tied(MakeTestModel(kGrouped))},
                    Variant{"BiasesOn4", 4, WithBiases(MakeTestModel(kGrouped))}),
    [](const auto& info) { return info.param.name; });

// A few tokens at once, so that the products of one device are split over the depth, those whose
// sums cross devices are not, and all of a plane crosses once.
TEST(CudaParallelTest, DeepProductsCrossOnce) {
  const auto cpu = MakeCpu(kDeep);
  const std::vector<int32_t> ids = {5, 17, 250}, table = {1}, rows = {0, 1, 2};
  const SequenceChunk chunk = {ids, 0, table, rows};
  std::vector<int32_t> expected(900), actual(900);
  ASSERT_TRUE(cpu->Forward({chunk}, expected.data()).ok());
  for (const int degree : {1, 2}) {
    Group group(degree);
    const auto executor = group.Create(MakeTestModel(kDeep));
    ASSERT_TRUE(executor.ok()) << executor.status();
    const absl::Status status = (*executor)->Forward({chunk}, actual.data());
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(actual, expected);
    // o_proj, and both planes of down_proj.
    EXPECT_EQ(group.collective.reduces, degree == 1 ? 0 : 2);
    EXPECT_EQ(group.collective.elements, degree == 1 ? 0 : 3 * 64 + 2 * 3 * 64);
  }
}

// Steps of more rows than they have tokens, and in slices but for the sums that cross: the bits of
// the CPU, and no row of padding crosses.
TEST(CudaParallelTest, PaddedStepsInSlicesAddUpToTheSameBits) {
  constexpr int32_t kTokens = 100, kHidden = 64;
  ASSERT_GT(PaddedTokens(kTokens), kTokens);
  std::vector<int32_t> ids(kTokens), table = {3, 1, 0, 2}, rows = {0, 31, 32, 63, 64, 98, 99};
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i * 53 % 290);
  const SequenceChunk chunk = {ids, 0, table, rows};
  std::vector<int32_t> expected(rows.size() * 301), actual(expected.size());
  const auto cpu = MakeCpu(kGrouped);
  ASSERT_TRUE(cpu->Forward({chunk}, expected.data()).ok());
  const auto prompts = Prompts();
  const auto golden = GoldenDigest(*cpu, prompts);
  ASSERT_TRUE(golden.ok()) << golden.status();
  int whole_launches = 0;
  for (const int64_t l2_bytes : {1 << 30, 60000, 1}) {
    Group group(2);
    for (EmulatedDeviceState& device : group.devices) device.l2_bytes = l2_bytes;
    CudaExecutorOptions options = kOptions;
    options.least_slice_tokens = 32;
    const auto executor = group.Create(MakeTestModel(kGrouped), options);
    ASSERT_TRUE(executor.ok()) << executor.status();
    const absl::Status status = (*executor)->Forward({chunk}, actual.data());
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(actual, expected) << l2_bytes;
    EXPECT_GT(group.devices[0].matmuls, 0);
    // Planes of o_proj and down_proj: 2 and 1 in the first layer, 2 and 2 in the second.
    EXPECT_EQ(group.collective.reduces, 4);
    EXPECT_EQ(group.collective.elements, (2 + 1 + 2 + 2) * kTokens * kHidden);
    for (const EmulatedDeviceState& device : group.devices) {
      if (l2_bytes == 1 << 30) whole_launches = device.launches;
      if (l2_bytes < 1 << 30) {
        EXPECT_GT(device.launches, whole_launches) << l2_bytes;
      }
    }
    const auto digest = GoldenDigest(**executor, prompts);
    ASSERT_TRUE(digest.ok()) << digest.status();
    EXPECT_EQ(*digest, *golden) << l2_bytes;
  }
}

TEST(CudaParallelTest, AFailureOfOneLosesAll) {
  const std::vector<int32_t> id = {1}, table = {0}, first = {0};
  const SequenceChunk chunk = {id, 0, table, first};
  std::vector<int32_t> logits(300);
  Group whole(2);
  ASSERT_TRUE((*whole.Create(MakeTestModel(kPlain)))->Forward({chunk}, logits.data()).ok());
  const auto is_lost = [&](Group& group, CudaExecutor& executor) {
    const absl::Status status = executor.Forward({chunk}, logits.data());
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(status.message(), HasSubstr("failed"));
    const int launches = group.devices[0].launches + group.devices[1].launches;
    EXPECT_EQ(executor.Forward({chunk}, logits.data()), status);
    EXPECT_EQ(group.devices[0].launches + group.devices[1].launches, launches);
  };
  for (size_t device = 0; device < 2; ++device) {
    for (int fail = 0; fail < whole.devices[device].launches; ++fail) {
      Group group(2);
      const auto executor = group.Create(MakeTestModel(kPlain));
      group.devices[device].fail_launch_after = fail;
      is_lost(group, **executor);
    }
  }
  for (int fail = 0; fail < whole.collective.reduces; ++fail) {
    Group group(2);
    const auto executor = group.Create(MakeTestModel(kPlain));
    group.collective.fail_after = fail;
    is_lost(group, **executor);
  }
}

TEST(CudaParallelTest, WhatCannotBeCutIsRefused) {
  const auto refused = [](const TestModelOptions& model, int degree) {
    const absl::Status status = Group(degree).Create(MakeTestModel(model)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_EQ(refused(kPlain, 4),
            "tensor parallelism of 4: num_key_value_heads is 2, no multiple of 4");
  EXPECT_EQ(refused(kOdd, 2),
            "tensor parallelism of 2: intermediate_size 104 in Hadamard blocks of 8 is 13, no "
            "multiple of 2");
  EXPECT_EQ(refused(kPlain, 3), "tensor parallelism of 3: must be 1, 2, 4 or 8");
  EXPECT_EQ(refused(kMultiHead, 16), "tensor parallelism of 16: must be 1, 2, 4 or 8");
}

// The fullest device decides, and the option is about all of them.
TEST(CudaParallelTest, EveryDeviceHasTheSameBlocks) {
  Group group(2);
  group.devices[1].memory_bytes = int64_t{100} << 20;
  CudaExecutorOptions options = kOptions;
  options.kv_cache_bytes = 0;
  const auto executor = group.Create(MakeTestModel(kPlain), options);
  ASSERT_TRUE(executor.ok()) << executor.status();
  EXPECT_LT(group.devices[1].allocated_bytes, int64_t{100} << 20);
  EXPECT_GT(group.devices[1].allocated_bytes, int64_t{80} << 20);
  const int64_t rank_block_bytes = (*executor)->limits().block_bytes / 2;
  EXPECT_LT((*executor)->limits().num_blocks, (int64_t{100} << 20) / rank_block_bytes);

  options.kv_cache_bytes = 7 * (*executor)->limits().block_bytes;
  const auto seven = Group(2).Create(MakeTestModel(kPlain), options);
  EXPECT_EQ((*seven)->limits().num_blocks, 7);
}

TEST(NvidiaGroupTest, DevicesThatAreNotThereAreNamed) {
  const auto group = CreateNvidiaGroup(1000, 2);
  EXPECT_EQ(group.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(group.status().message(), HasSubstr("cuda:1000: "));
}

// The parts cover the model once.
TEST(TensorParallelTest, PartsAreWholeTogether) {
  const IntegerModel model = MakeTestModel(kGrouped);
  const ModelLayer& whole = model.layers[1];
  int32_t vocab = 0;
  std::vector<int8_t> down(whole.down_proj.weights.size());
  std::vector<int16_t> prefix_k;
  for (int32_t rank = 0; rank < 4; ++rank) {
    const IntegerModel part = ShardModel(model, rank, 4);
    const ModelLayer& layer = part.layers[1];
    EXPECT_EQ(part.config.num_attention_heads, 2);
    EXPECT_EQ(part.config.num_key_value_heads, 1);
    EXPECT_EQ(part.config.intermediate_size, 48);
    EXPECT_EQ(layer.qkv.outputs, 4 * 16);
    EXPECT_EQ(layer.qkv.bias[0], whole.qkv.bias[static_cast<size_t>(32 * rank)]);
    EXPECT_EQ(layer.qkv.bias[48], whole.qkv.bias[static_cast<size_t>(128 + 64 + 16 * rank)]);
    EXPECT_EQ(part.embedding, model.embedding);
    EXPECT_EQ(part.config.vocab_size, part.head.outputs);
    vocab += part.config.vocab_size;
    prefix_k.insert(prefix_k.end(), layer.prefix_k.begin(), layer.prefix_k.end());
    for (size_t row = 0; row < 64; ++row) {
      for (size_t c = 0; c < 48; ++c) {
        down[row * 192 + static_cast<size_t>(rank) * 48 + c] =
            layer.down_proj.weights[row * 48 + c];
      }
    }
  }
  EXPECT_EQ(vocab, 301);
  EXPECT_EQ(prefix_k, whole.prefix_k);
  EXPECT_EQ(down, whole.down_proj.weights);
}

}  // namespace
}  // namespace fixpoint
