// Runs on an NVIDIA GPU and skips aloud where there is none: scripts/gpu_check.sh.
#include "calibrator/gemm_cuda.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_format.h"
#include "calibrator/gemm_device.h"
#include "calibrator/gemm_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

using testing::HasSubstr;

// FIXPOINT_REQUIRE_GPU turns skips into failures, so that a run on a GPU machine cannot pass by not
// running.
class GemmCudaTest : public testing::Test {
 protected:
  void SetUp() override {
    auto gemm = CreateCudaGemm(0, CreateCpuGemm(pool_));
    if (gemm.ok()) {
      cuda_ = *std::move(gemm);
      return;
    }
    ASSERT_EQ(std::getenv("FIXPOINT_REQUIRE_GPU"), nullptr) << gemm.status();
    // Only what a machine without a usable GPU says; a GPU that fails is a failure.
    ASSERT_EQ(gemm.status().code(), absl::StatusCode::kFailedPrecondition) << gemm.status();
    GTEST_SKIP() << gemm.status().message();
  }

  ThreadPool pool_{2};
  const std::unique_ptr<FloatGemm> cpu_ = CreateCpuGemm(pool_);
  std::unique_ptr<FloatGemm> cuda_;
};

// Integers up to 127 over at most 1024 of depth: every sum is exact, so device and CPU agree bit
// for bit in whatever order they add.
TEST_F(GemmCudaTest, ProductsOfIntegersAreThoseOfTheCpu) {
  const std::tuple<int64_t, int64_t, int64_t> shapes[] = {
      {1, 1, 1},     {3, 65, 17},     {257, 100, 64},    {600, 1100, 33},
      {24, 576, 96}, {1, 49152, 576}, {1024, 1536, 576}, {100, 576, 1000}};
  uint64_t seed = 1;
  for (const auto& [rows, outputs, depth] : shapes) {
    for (const bool by_depth : {false, true}) {
      for (const bool bf16 : {false, true}) {
        const int64_t w_row = by_depth ? outputs : depth;
        const std::vector<float> x = Integers(rows * (depth + 3), 127, seed++);
        const std::vector<float> w =
            Integers((by_depth ? depth : outputs) * (w_row + 1), 127, seed++);
        const std::vector<uint16_t> x16 = Bf16(x), w16 = Bf16(w);
        std::vector<float> expected(rows * (outputs + 5), 3), y = expected;
        GemmArgs args{.rows = rows,
                      .outputs = outputs,
                      .depth = depth,
                      .x = x.data(),
                      .x_stride = depth + 3,
                      .w = w.data(),
                      .w_stride = w_row + 1,
                      .w_by_depth = by_depth,
                      .y = expected.data(),
                      .y_stride = outputs + 5};
        cpu_->Multiply(args);
        args.accumulate = true;
        cpu_->Multiply(args);
        args.accumulate = false;
        args.y = y.data();
        if (bf16) {
          args.type = GemmType::kBf16;
          args.x = x16.data();
          args.w = w16.data();
        }
        args.keep_w = true;
        cuda_->Multiply(args);
        args.accumulate = true;
        cuda_->Multiply(args);
        EXPECT_EQ(y, expected) << rows << " x " << outputs << " x " << depth
                               << (by_depth ? " by depth" : "") << (bf16 ? " bf16" : " float32");
      }
    }
  }
}

// Float32 must not be taken for TF32, whose products are off by 2^-11 each. Sums of 576 products of
// values in [-1, 1) differ between orders of addition by far less than 576 * 2^-24 * 24.
TEST_F(GemmCudaTest, Float32ProductsHaveThePrecisionOfFloat32) {
  const int64_t rows = 64, outputs = 96, depth = 576;
  Random random(50);
  std::vector<float> x(rows * depth), w(outputs * depth), y(rows * outputs);
  for (float& v : x) v = static_cast<float>(2 * random.Uniform() - 1);
  for (float& v : w) v = static_cast<float>(2 * random.Uniform() - 1);
  cuda_->Multiply({.rows = rows,
                   .outputs = outputs,
                   .depth = depth,
                   .x = x.data(),
                   .x_stride = depth,
                   .w = w.data(),
                   .w_stride = depth,
                   .y = y.data(),
                   .y_stride = outputs});
  double worst = 0;
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < outputs; ++n) {
      double sum = 0;
      for (int64_t k = 0; k < depth; ++k)
        sum += static_cast<double>(x[m * depth + k]) * w[n * depth + k];
      worst = std::max(worst, std::abs(sum - y[m * outputs + n]));
    }
  }
  EXPECT_LT(worst, 1e-4);
}

TEST_F(GemmCudaTest, TheSameArgumentsGiveTheSameBits) {
  const int64_t rows = 300, outputs = 576, depth = 1536;
  Random random(51);
  std::vector<float> x(rows * depth), w(outputs * depth), first(rows * outputs), again = first;
  for (float& v : x) v = static_cast<float>(random.Normal());
  for (float& v : w) v = static_cast<float>(random.Normal());
  GemmArgs args{.rows = rows,
                .outputs = outputs,
                .depth = depth,
                .x = x.data(),
                .x_stride = depth,
                .w = w.data(),
                .w_stride = depth,
                .y = first.data(),
                .y_stride = outputs};
  cuda_->Multiply(args);
  args.y = again.data();
  for (int i = 0; i < 5; ++i) {
    cuda_->Multiply(args);
    ASSERT_EQ(again, first);
  }
}

// Prints the speed with and without the copies' share; gates nothing.
TEST_F(GemmCudaTest, SpeedIsPrinted) {
  const int64_t rows = 4096, outputs = 14336, depth = 4096;
  std::vector<uint16_t> x(rows * depth, 0x3f80), w(outputs * depth, 0x3f80);
  std::vector<float> y(rows * outputs);
  const GemmArgs args{.type = GemmType::kBf16,
                      .rows = rows,
                      .outputs = outputs,
                      .depth = depth,
                      .x = x.data(),
                      .x_stride = depth,
                      .w = w.data(),
                      .w_stride = depth,
                      .y = y.data(),
                      .y_stride = outputs,
                      .keep_w = true};
  cuda_->Multiply(args);
  EXPECT_EQ(y.front(), 4096);
  EXPECT_EQ(y.back(), 4096);
  const auto start = std::chrono::steady_clock::now();
  constexpr int kRepeats = 5;
  for (int i = 0; i < kRepeats; ++i) cuda_->Multiply(args);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / kRepeats;
  std::cout << absl::StrFormat(
      "bf16 [%d][%d] by [%d][%d]: %.1f ms, copies of x and y included: %.1f TFLOP/s, %.1f GB/s\n",
      rows, depth, outputs, depth, 1e3 * seconds, 2e-12 * rows * outputs * depth / seconds,
      1e-9 * (rows * depth * 2 + rows * outputs * 4) / seconds);
}

TEST_F(GemmCudaTest, MissingDevicesAreNamed) {
  const absl::Status status = CreateCudaGemm(1000, CreateCpuGemm(pool_)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("cuda:1000: this machine has "));
}

TEST(GemmDeviceTest, DevicesAreChosenByName) {
  ThreadPool pool(1);
  EXPECT_TRUE(CreateGemm("cpu", pool).ok());
  for (const char* bad : {"", "gpu", "CPU", "cuda", "cuda:", "cuda:-1", "cuda:+1", "cuda: 1",
                          "cuda:1x", "cuda:99999999999", "cpu:0"}) {
    const absl::Status status = CreateGemm(bad, pool).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(status.message(), HasSubstr(absl::StrFormat("\"%s\"", bad)));
  }
}

// Any build on any machine: a device, or one of the reasons why there is none.
TEST(GemmDeviceTest, WhyThereIsNoCudaIsSaid) {
  ThreadPool pool(1);
  const auto gemm = CreateGemm("cuda:0", pool);
  if (gemm.ok()) GTEST_SKIP() << "this machine has a CUDA device";
  EXPECT_EQ(gemm.status().code(), absl::StatusCode::kFailedPrecondition) << gemm.status();
#ifdef FIXPOINT_WITH_CUDA
  EXPECT_THAT(gemm.status().message(), testing::AnyOf(HasSubstr("cuda:0: no CUDA runtime"),
                                                      HasSubstr("cuda:0: no CUDA driver"),
                                                      HasSubstr("cuda:0: no CUDA device")));
#else
  EXPECT_EQ(gemm.status().message(), "cuda:0: built without CUDA");
#endif
}

}  // namespace
}  // namespace fixpoint
