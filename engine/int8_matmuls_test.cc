// Int8Matmuls against a fake cuBLASLt (kernels/cuda/fake_cuda.h) and our own kernel on the
// emulator: everything but the GPU.
#include "engine/int8_matmuls.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "engine/emulated_device.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/fake_cuda.h"

namespace fixpoint {
namespace {

using testing::AllOf;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr int64_t kTokens = 40, kOutputs = 32, kDepth = 128;

class Int8MatmulsTest : public testing::Test {
 protected:
  void SetUp() override {
    FakeCuda() = {};
    FakeCuda().foreign_memory = true;
    FakeCuda().algorithms = 3;
    ASSERT_EQ(FakeCudaApi().cublasLtCreate(&handle_), CUBLAS_STATUS_SUCCESS);
    const auto take = [&](int64_t bytes) { return *device_.Allocate(bytes); };
    int8_t* const weights = take(kOutputs * kDepth);
    for (int64_t i = 0; i < kOutputs * kDepth; ++i)
      weights[i] = static_cast<int8_t>(i * 7 % 255 - 127);
    x_ = take(kTokens * kDepth);
    expected_ = reinterpret_cast<int32_t*>(take(4 * kTokens * kAccStride));
    matmul_ = {.weights = weights,
               .x = x_,
               .acc = reinterpret_cast<int32_t*>(take(4 * kTokens * kAccStride)),
               .outputs = kOutputs,
               .tokens = kTokens,
               .depth = kDepth,
               .weight_stride = kDepth,
               .x_stride = kDepth,
               .acc_stride = kAccStride,
               .workspace = take(1024),
               .workspace_bytes = 1024};
  }
  void TearDown() override {
    matmuls_.reset();
    FakeCudaApi().cublasLtDestroy(handle_);
    EXPECT_EQ(FakeCuda().broken_rule, "");
    EXPECT_EQ(FakeCuda().live_objects, 0);
  }

  // A start of the program.
  absl::Status Prepare(const std::string& cache_path = "") {
    lines_.clear();
    FakeCuda().heuristics = 0;
    matmuls_ =
        std::make_unique<Int8Matmuls>(device_, FakeCudaApi(), handle_,
                                      [this](const std::string& line) { lines_.push_back(line); });
    return matmuls_->Prepare({matmul_}, expected_, "a device", cache_path);
  }

  // Whether a product of other data than the choice's is right.
  bool RunsRight() {
    for (int64_t i = 0; i < kTokens * kDepth; ++i) x_[i] = static_cast<int8_t>(i * 11 % 256 - 128);
    if (!matmuls_->Run(matmul_).ok()) return false;
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t c = 0; c < kOutputs; ++c) {
        int32_t sum = 0;
        for (int64_t k = 0; k < kDepth; ++k) {
          sum += matmul_.x[t * kDepth + k] * matmul_.weights[c * kDepth + k];
        }
        if (matmul_.acc[t * kAccStride + c] != sum) return false;
      }
    }
    return true;
  }

  static constexpr int64_t kAccStride = kOutputs + 16;
  EmulatedDeviceState state_;
  EmulatedDevice device_{&state_};
  cublasLtHandle_t handle_ = nullptr;
  CudaMatmul matmul_;
  int8_t* x_ = nullptr;
  int32_t* expected_ = nullptr;
  std::vector<std::string> lines_;
  std::unique_ptr<Int8Matmuls> matmuls_;
};

TEST_F(Int8MatmulsTest, APreparedProductIsRight) {
  const absl::Status status = Prepare();
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_THAT(std::vector<int8_t>(x_, x_ + kTokens * kDepth), Each(0));
  EXPECT_THAT(lines_, IsEmpty());
  EXPECT_THAT(matmuls_->NameOf(ShapeOf(matmul_)), HasSubstr("(tile "));
  const int64_t products = FakeCuda().products;
  EXPECT_GE(products, 3) << "not every candidate was tried";
  EXPECT_TRUE(RunsRight());
  EXPECT_EQ(FakeCuda().products, products + 1);
  EXPECT_EQ(FakeCuda().heuristics, 1);
}

TEST_F(Int8MatmulsTest, WrongAndRefusedAlgorithmsAreLeftOut) {
  FakeCuda().wrong_algorithm = 0;
  FakeCuda().refused_algorithm = 2;
  ASSERT_TRUE(Prepare().ok());
  EXPECT_THAT(
      lines_,
      ElementsAre(AllOf(HasSubstr("WRONG BITS of cuBLASLt's algorithm 0 "),
                        HasSubstr("[40][128] by [32][128]"), HasSubstr("token 0, output 0")),
                  AllOf(HasSubstr("algorithm 2 "), HasSubstr("cublasLtMatmulAlgoCheck"))));
  EXPECT_THAT(matmuls_->NameOf(ShapeOf(matmul_)), HasSubstr("1 (tile "));
  EXPECT_TRUE(RunsRight());
}

TEST_F(Int8MatmulsTest, TheResultOfTheCandidateBeforeIsNoExcuse) {
  FakeCuda().lazy_algorithm = 1;
  ASSERT_TRUE(Prepare().ok());
  EXPECT_THAT(lines_, ElementsAre(HasSubstr("WRONG BITS of cuBLASLt's algorithm 1 ")));
  EXPECT_TRUE(RunsRight());
}

TEST_F(Int8MatmulsTest, OurKernelStandsInForAShapeWithoutARightAlgorithm) {
  FakeCuda().wrong_products = true;
  ASSERT_TRUE(Prepare().ok());
  EXPECT_EQ(matmuls_->NameOf(ShapeOf(matmul_)), "own kernel");
  const int64_t products = FakeCuda().products;
  EXPECT_TRUE(RunsRight());
  EXPECT_EQ(FakeCuda().products, products);
}

TEST_F(Int8MatmulsTest, AFailedLaunchOfACandidateIsItsOwnFault) {
  FakeCuda().fail_matmul_after = 0;
  ASSERT_TRUE(Prepare().ok());
  ASSERT_EQ(lines_.size(), 1u);
  EXPECT_THAT(lines_[0], HasSubstr("CUBLAS_STATUS_EXECUTION_FAILED"));
  EXPECT_TRUE(RunsRight());
}

TEST_F(Int8MatmulsTest, TheFileSparesTheSearchAndIsNotTrusted) {
  const std::string path = testing::TempDir() + "/int8_algorithms";
  std::filesystem::remove(path);
  ASSERT_TRUE(Prepare(path).ok());
  EXPECT_EQ(FakeCuda().heuristics, 1);
  ASSERT_TRUE(Prepare(path).ok());
  EXPECT_EQ(FakeCuda().heuristics, 0) << "the file was not used";
  EXPECT_TRUE(RunsRight());

  // The file's algorithm has become a wrong one: found out, replaced, written.
  AlgorithmCache file("a device, cuBLASLt 130100");
  ASSERT_TRUE(file.Read(path).ok());
  const auto number = [&] { return static_cast<int>((*file.Find(ShapeOf(matmul_)))[0] - 42); };
  const int before = number();
  FakeCuda().wrong_algorithm = before;
  ASSERT_TRUE(Prepare(path).ok());
  EXPECT_EQ(FakeCuda().heuristics, 1);
  ASSERT_FALSE(lines_.empty());
  EXPECT_THAT(lines_[0], HasSubstr("WRONG BITS"));
  EXPECT_TRUE(RunsRight());
  ASSERT_TRUE(file.Read(path).ok());
  EXPECT_NE(number(), before);

  // Damage: a line in the log, a new search, a sound file.
  ASSERT_TRUE(WriteFileAtomically(path, "nonsense").ok());
  FakeCuda().wrong_algorithm = -1;
  ASSERT_TRUE(Prepare(path).ok());
  ASSERT_EQ(lines_.size(), 1u);
  EXPECT_THAT(lines_[0], AllOf(HasSubstr("ignored"), HasSubstr(path)));
  EXPECT_TRUE(file.Read(path).ok());
}

TEST_F(Int8MatmulsTest, AFileThatCannotBeWrittenIsNoError) {
  ASSERT_TRUE(Prepare("/nowhere/at/all").ok());
  ASSERT_EQ(lines_.size(), 1u);
  EXPECT_THAT(lines_[0], HasSubstr("not written"));
  EXPECT_TRUE(RunsRight());
}

TEST_F(Int8MatmulsTest, OnlyPreparedProductsRun) {
  ASSERT_TRUE(Prepare().ok());
  matmul_.tokens = 8;
  const absl::Status status = matmuls_->Run(matmul_);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("[8][128] by [32][128] was not prepared"));
  matmul_.outputs = 20;  // cuBLASLt's, not our kernel's
  EXPECT_EQ(matmuls_->Prepare({matmul_}, expected_, "a device", "").code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace fixpoint
