// The cuBLASLt backend against a fake CUDA (kernels/cuda/fake_cuda.h): everything but the GPU's own
// arithmetic. gemm_cuda_test.cc runs it on a real device.
#include "calibrator/cuda/cublaslt_gemm.h"

#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "calibrator/gemm_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/fake_cuda.h"

namespace fixpoint {
namespace {

using testing::HasSubstr;

constexpr CublasLtOptions kSmall = {.tile_bytes = 4096, .workspace_bytes = 1024};

// A product of integers with its operands in both types and y, all with strides of their own.
struct Product {
  Product(int64_t rows, int64_t outputs, int64_t depth, bool by_depth, uint64_t seed)
      : x(Integers(rows * (depth + 3), 127, seed)),
        w(Integers((by_depth ? depth : outputs) * ((by_depth ? outputs : depth) + 1), 127,
                   seed + 1)),
        y(rows * (outputs + 5), 7),
        x16(Bf16(x)),
        w16(Bf16(w)),
        args{.rows = rows,
             .outputs = outputs,
             .depth = depth,
             .x = x.data(),
             .x_stride = depth + 3,
             .w = w.data(),
             .w_stride = (by_depth ? outputs : depth) + 1,
             .w_by_depth = by_depth,
             .y = y.data(),
             .y_stride = outputs + 5} {}
  Product(const Product&) = delete;

  GemmArgs Bf16Args() const {
    GemmArgs result = args;
    result.type = GemmType::kBf16;
    result.x = x16.data();
    result.w = w16.data();
    return result;
  }

  // What y should be, the columns beyond `outputs` untouched.
  std::vector<float> Expected(bool accumulate) const {
    std::vector<float> expected(y.size(), 7);
    for (int64_t m = 0; m < args.rows; ++m) {
      for (int64_t n = 0; n < args.outputs; ++n) {
        float sum = accumulate ? 7 : 0;
        for (int64_t k = 0; k < args.depth; ++k) {
          sum += x[m * args.x_stride + k] *
                 (args.w_by_depth ? w[k * args.w_stride + n] : w[n * args.w_stride + k]);
        }
        expected[m * args.y_stride + n] = sum;
      }
    }
    return expected;
  }

  std::vector<float> x, w, y;
  std::vector<uint16_t> x16, w16;
  GemmArgs args;
};

// Counts what reaches the CPU.
class CpuWithoutBf16 : public FloatGemm {
 public:
  explicit CpuWithoutBf16(ThreadPool& pool) : cpu_(CreateCpuGemm(pool)) {}
  bool fast_bf16() const override { return false; }
  void Multiply(const GemmArgs&) override { FAIL() << "belongs on the device"; }
  void MultiplyHere(const GemmArgs& args) override {
    EXPECT_EQ(args.type, GemmType::kFloat32);
    cpu_->MultiplyHere(args);
  }

 private:
  std::unique_ptr<FloatGemm> cpu_;
};

class CublasLtGemmTest : public testing::Test {
 protected:
  CublasLtGemmTest() { FakeCuda() = FakeCudaState(); }
  ~CublasLtGemmTest() override {
    EXPECT_EQ(FakeCuda().broken_rule, "");
    EXPECT_EQ(FakeCuda().live_objects, 0) << "leaked";
    EXPECT_EQ(FakeCuda().allocated_bytes, 0) << "leaked";
  }
  absl::StatusOr<std::unique_ptr<FloatGemm>> Try(const CublasLtOptions& options = kSmall,
                                                 int device = 0) {
    return CreateCublasLtGemm(FakeCudaApi(), device, CreateCpuGemm(pool_), options);
  }
  std::unique_ptr<FloatGemm> Create(const CublasLtOptions& options = kSmall) {
    auto gemm = Try(options);
    EXPECT_TRUE(gemm.ok()) << gemm.status();
    return gemm.ok() ? *std::move(gemm) : nullptr;
  }

  ThreadPool pool_{1};
};

TEST_F(CublasLtGemmTest, ProductsInOneAndInManyPiecesAreExact) {
  const auto gemm = Create();
  ASSERT_NE(gemm, nullptr);
  EXPECT_TRUE(gemm->fast_bf16());
  uint64_t seed = 1;
  for (const bool by_depth : {false, true}) {
    for (const bool accumulate : {false, true}) {
      for (const auto& [rows, outputs, depth] :
           {std::tuple{1, 1, 1}, {3, 5, 7}, {8, 16, 32}, {70, 100, 40}, {200, 70, 60}}) {
        for (const bool bf16 : {false, true}) {
          Product p(rows, outputs, depth, by_depth, seed++);
          GemmArgs args = bf16 ? p.Bf16Args() : p.args;
          args.accumulate = accumulate;
          gemm->Multiply(args);
          EXPECT_EQ(p.y, p.Expected(accumulate))
              << rows << " x " << outputs << " x " << depth << (by_depth ? " by depth" : "")
              << (bf16 ? " bf16" : "") << (accumulate ? " accumulated" : "");
        }
      }
    }
  }
  Product none(1, 1, 1, false, 1);
  none.args.rows = 0;
  gemm->Multiply(none.args);
  EXPECT_EQ(none.y, std::vector<float>(none.y.size(), 7));
}

TEST_F(CublasLtGemmTest, KeptWeightsAreCopiedOnceUntilForgotten) {
  const auto gemm = Create();
  ASSERT_NE(gemm, nullptr);
  Product p(4, 6, 8, false, 20);
  p.args.keep_w = true;
  const auto uploads_of = [&] {
    const int64_t before = FakeCuda().uploads;
    gemm->Multiply(p.args);
    EXPECT_EQ(p.y, p.Expected(false));
    return FakeCuda().uploads - before;
  };
  EXPECT_EQ(uploads_of(), 2);  // x and w
  EXPECT_EQ(uploads_of(), 1);
  for (float& w : p.w) w += 1;
  gemm->ForgetWeights();
  EXPECT_EQ(uploads_of(), 2);
  for (float& w : p.w) w += 1;
  p.args.keep_w = false;
  EXPECT_EQ(uploads_of(), 2);  // the copy of before is not used
}

// By depth the same block of memory can be a whole product's w and a piece of a larger one.
TEST_F(CublasLtGemmTest, KeptPiecesAreNotMixedUpWithOtherLayoutsOfTheSameMemory) {
  const auto gemm = Create();
  ASSERT_NE(gemm, nullptr);
  Product p(4, 100, 20, true, 30);  // 4096 bytes hold 16 outputs of 20: pieces, the last of 4
  p.args.keep_w = true;
  gemm->Multiply(p.args);
  const std::vector<float> expected = p.Expected(false);
  EXPECT_EQ(p.y, expected);
  for (int64_t outputs = 1; outputs <= 12; ++outputs) {
    std::fill(p.y.begin(), p.y.end(), 7.0f);
    GemmArgs last = p.args;
    last.w = p.w.data() + 100 - outputs;
    last.outputs = outputs;
    last.y = p.y.data() + 100 - outputs;
    gemm->Multiply(last);
    for (int64_t n = 100 - outputs; n < 100; ++n) EXPECT_EQ(p.y[n], expected[n]) << outputs;
  }
}

TEST_F(CublasLtGemmTest, CopiesStayWithinTheirShareAndMakeRoomWhenMemoryIsTaken) {
  // 64 KiB: 3 pieces of 4 and a workspace of 1 leave 51, of which half is for copies.
  FakeCuda().memory_bytes = 64 << 10;
  CublasLtOptions options = kSmall;
  options.kept_share = 0.5;
  const auto gemm = Create(options);
  ASSERT_NE(gemm, nullptr);
  std::vector<std::unique_ptr<Product>> products;
  for (uint64_t i = 0; i < 20; ++i) {
    products.push_back(std::make_unique<Product>(2, 16, 60, false, 40 + i));
    products.back()->args.keep_w = true;
    gemm->Multiply(products.back()->args);
    EXPECT_EQ(products.back()->y, products.back()->Expected(false));
    EXPECT_LE(FakeCuda().allocated_bytes, (13 << 10) + (51 << 10) / 2);
  }
  const int64_t full = FakeCuda().allocated_bytes;
  EXPECT_GT(full, 20 << 10);
  FakeCuda().memory_bytes = full;  // somebody else took the rest
  Product large(16, 16, 60, false, 70);
  gemm->Multiply(large.args);  // needs more for x and y
  EXPECT_EQ(large.y, large.Expected(false));
}

TEST_F(CublasLtGemmTest, ShapesArePreparedOnce) {
  const auto gemm = Create();
  ASSERT_NE(gemm, nullptr);
  const int64_t before = FakeCuda().heuristics;
  Product p(4, 6, 8, false, 80);
  for (int i = 0; i < 3; ++i) gemm->Multiply(p.args);
  gemm->Multiply(p.Bf16Args());
  EXPECT_EQ(FakeCuda().heuristics - before, 2);
}

TEST_F(CublasLtGemmTest, SmallProductsRunOnTheCpu) {
  auto gemm = CreateCublasLtGemm(FakeCudaApi(), 0, std::make_unique<CpuWithoutBf16>(pool_), kSmall);
  ASSERT_TRUE(gemm.ok()) << gemm.status();
  const int64_t products = FakeCuda().products;
  for (const bool by_depth : {false, true}) {
    for (const bool bf16 : {false, true}) {
      Product p(5, 9, 33, by_depth, 90);
      GemmArgs args = bf16 ? p.Bf16Args() : p.args;
      args.accumulate = true;
      (*gemm)->MultiplyHere(args);
      EXPECT_EQ(p.y, p.Expected(true));
    }
  }
  EXPECT_EQ(FakeCuda().products, products);
}

TEST_F(CublasLtGemmTest, WhatIsMissingIsNamed) {
  const auto message = [&](int device = 0, const CublasLtOptions& options = kSmall) {
    const absl::Status status = Try(options, device).status();
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(status.message(), HasSubstr(absl::StrFormat("cuda:%d: ", device)));
    return std::string(status.message());
  };
  EXPECT_THAT(message(3), HasSubstr("this machine has 1 device"));
  FakeCuda().devices = 2;
  EXPECT_THAT(message(3), HasSubstr("this machine has 2 devices"));
  FakeCuda().driver_error = cudaErrorInsufficientDriver;
  EXPECT_THAT(message(), HasSubstr("no CUDA driver: "));
  EXPECT_THAT(message(), HasSubstr("cudaErrorInsufficientDriver"));
  FakeCuda().driver_error = cudaErrorNoDevice;
  EXPECT_THAT(message(), HasSubstr("no CUDA device: "));
  FakeCuda() = FakeCudaState();
  FakeCuda().capability_major = 7;
  EXPECT_THAT(message(), HasSubstr("compute capability 7.5"));
  FakeCuda() = FakeCudaState();
  EXPECT_THAT(message(0, {}), HasSubstr("1024 MiB of device memory are free, 1568 MiB"));
  FakeCuda().memory_bytes = 1 << 10;
  FakeCuda().free_bytes_shown = 1 << 20;  // gone in between
  EXPECT_THAT(message(), HasSubstr("cudaErrorMemoryAllocation"));
  FakeCuda() = FakeCudaState();
  FakeCuda().wrong_products = true;
  EXPECT_THAT(message(), HasSubstr("a trial product of float32 matrices is wrong"));
  FakeCuda() = FakeCudaState();
  FakeCuda().fail_matmul_after = 1;
  EXPECT_THAT(message(), HasSubstr("cublasLtMatmul: CUBLAS_STATUS_EXECUTION_FAILED"));
}

using CublasLtGemmDeathTest = CublasLtGemmTest;

TEST_F(CublasLtGemmDeathTest, ErrorsOfTheDeviceEndTheProcessWithTheirName) {
  const auto gemm = Create();
  ASSERT_NE(gemm, nullptr);
  Product p(4, 6, 8, false, 100);
  EXPECT_DEATH(
      {
        FakeCuda().fail_matmul_after = 0;
        gemm->Multiply(p.args);
      },
      "cuda:0: cublasLtMatmul: CUBLAS_STATUS_EXECUTION_FAILED");
  p.args.y = nullptr;
  EXPECT_DEATH(gemm->Multiply(p.args), "y is null");
}

}  // namespace
}  // namespace fixpoint
