#include "calibrator/rotate.h"

#include <cmath>

#include "calibrator/float_forward.h"
#include "calibrator/test_float_model.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

TEST(RotateTest, RandomOrthogonalIsOrthogonalAndRepeatable) {
  ThreadPool pool(2);
  const int64_t n = 96;
  const std::vector<float> q = RandomOrthogonal(n, 7, pool);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double dot = 0;
      for (int64_t k = 0; k < n; ++k) dot += static_cast<double>(q[i * n + k]) * q[j * n + k];
      EXPECT_NEAR(dot, i == j, 1e-6);  // 96 products of entries rounded to float32, each below 6e-8
    }
  }
  ThreadPool one(1);
  EXPECT_EQ(q, RandomOrthogonal(n, 7, one));
  EXPECT_NE(q, RandomOrthogonal(n, 8, pool));
}

TEST(RotateTest, HadamardBlockIsTheLargestPowerOfTwo) {
  EXPECT_EQ(HadamardBlock(1536, 512), 512);
  EXPECT_EQ(HadamardBlock(1408, 512), 128);
  EXPECT_EQ(HadamardBlock(5632, 64), 64);
  EXPECT_EQ(HadamardBlock(77, 512), 1);
}

struct Case {
  const char* name;
  TestFloatOptions model;
  RotationOptions rotation;
};

class FoldAndRotateTest : public testing::TestWithParam<Case> {};

TEST_P(FoldAndRotateTest, TheFloatFunctionStaysTheSame) {
  FloatModel model = MakeTestFloatModel(GetParam().model);
  const std::vector<int32_t> ids = {5, 17, 299, 0, 42, 42, 8, 100, 7};
  const std::vector<double> expected = NaiveLogits(model, ids);
  ThreadPool pool(2);
  const std::unique_ptr<FloatGemm> gemm = CreateCpuGemm(pool);
  const OnlineTransforms online = FoldAndRotate(model, GetParam().rotation, *gemm, pool);
  for (const FloatLayer& layer : model.layers) {
    for (const float gain : layer.attn_norm) ASSERT_EQ(gain, 1);
  }
  ASSERT_EQ(model.head.rows, model.config.vocab_size);
  const ForwardModel forward_model =
      MakeForwardModel(model, online, WeightKind::kFloat32, *gemm, pool);
  FloatForward forward(forward_model, *gemm, pool);
  forward.Run({.token_ids = ids.data(), .sequences = 1, .tokens = static_cast<int32_t>(ids.size())},
              {});
  std::vector<float> logits(expected.size());
  forward.Logits(0, static_cast<int64_t>(ids.size()), logits.data());
  // About 15 float32 operations deep, each 6e-8 relative with sums of 64 to 128 terms: below 1e-5
  // of logits of size 5.
  for (size_t i = 0; i < expected.size(); ++i) ASSERT_NEAR(logits[i], expected[i], 1e-4) << i;
}

INSTANTIATE_TEST_SUITE_P(
    Models, FoldAndRotateTest,
    testing::Values(
        Case{"TiedAll", {}, {.seed = 3}},
        Case{"UntiedWithBiases", {.seed = 2, .qkv_bias = true, .tied = false}, {.seed = 4}},
        Case{"HeadDim24HasNoQkHadamard",
             {.seed = 3, .hidden = 96, .head_dim = 24, .intermediate = 88},
             {.seed = 5}},
        Case{"FoldOnly",
             {.seed = 4, .qkv_bias = true},
             {.residual = false, .max_down_block = 1, .v_hadamard = false, .qk_hadamard = false}},
        Case{"MultiHead",
             {.seed = 5, .heads = 2, .kv_heads = 2, .head_dim = 32},
             {.seed = 6, .max_down_block = 64}}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace fixpoint
