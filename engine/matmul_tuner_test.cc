// The choice among algorithms, on a fake device: no bit and no second is real.
#include "engine/matmul_tuner.h"

#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

MatmulAlgorithm Algorithm(uint64_t number) { return {number}; }

class FakeTrials final : public MatmulTrials {
 public:
  struct Behaviour {
    absl::Status check;
    absl::StatusOr<double> seconds = 1.0;
  };

  absl::Status Begin(const CudaMatmul&) override {
    ++begun;
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<MatmulAlgorithm>> Candidates(int most) override {
    EXPECT_GE(most, 8);
    if (candidates.empty()) return absl::UnimplementedError("nothing for this shape");
    std::vector<MatmulAlgorithm> result;
    for (const auto& [number, behaviour] : candidates) result.push_back(Algorithm(number));
    return result;
  }
  absl::Status Check(const MatmulAlgorithm& algorithm) override {
    checked.push_back(algorithm[0]);
    return candidates.at(algorithm[0]).check;
  }
  absl::StatusOr<double> Seconds(const MatmulAlgorithm& algorithm) override {
    timed.push_back(algorithm[0]);
    return candidates.at(algorithm[0]).seconds;
  }
  std::string Name(const MatmulAlgorithm& algorithm) const override {
    return absl::StrCat("number ", algorithm[0]);
  }

  std::map<uint64_t, Behaviour> candidates;
  std::vector<uint64_t> checked, timed;
  int begun = 0;
};

class MatmulTunerTest : public testing::Test {
 protected:
  absl::StatusOr<std::optional<MatmulAlgorithm>> Choose() {
    return MatmulTuner(trials_, cache_, log_).Choose(matmul_);
  }

  FakeTrials trials_;
  AlgorithmCache cache_{"a device"};
  std::vector<std::string> lines_;
  MatmulLog log_ = [this](const std::string& line) { lines_.push_back(line); };
  CudaMatmul matmul_ = {.outputs = 32, .tokens = 96, .depth = 64};
};

const absl::Status kWrong = absl::DataLossError("token 1, output 2 is 3 instead of 4");
const absl::Status kRefused = absl::UnimplementedError("CUBLAS_STATUS_NOT_SUPPORTED");
const absl::Status kLost = absl::InternalError("cudaErrorIllegalAddress");

TEST_F(MatmulTunerTest, TheFastestOfTheRightOnesIsKept) {
  trials_.candidates = {{1, {.seconds = 3.0}},      {2, {.check = kWrong, .seconds = 0.1}},
                        {3, {.seconds = 2.0}},      {4, {.check = kRefused, .seconds = 0.1}},
                        {5, {.seconds = kRefused}}, {6, {.seconds = 2.5}}};
  const auto chosen = Choose();
  ASSERT_TRUE(chosen.ok()) << chosen.status();
  EXPECT_EQ(*chosen, Algorithm(3));
  EXPECT_THAT(trials_.timed, ElementsAre(1, 3, 5, 6)) << "what is wrong need not be timed";
  EXPECT_THAT(lines_,
              ElementsAre(AllOf(HasSubstr("WRONG BITS of cuBLASLt's algorithm number 2"),
                                HasSubstr("[96][64] by [32][64]"), HasSubstr("is 3 instead of 4")),
                          AllOf(HasSubstr("number 4"), HasSubstr("NOT_SUPPORTED"))));
  ASSERT_NE(cache_.Find(ShapeOf(matmul_)), nullptr);
  EXPECT_EQ(*cache_.Find(ShapeOf(matmul_)), Algorithm(3));
}

TEST_F(MatmulTunerTest, WithoutARightOneTheShapeIsOurKernels) {
  trials_.candidates = {{1, {.check = kWrong}}, {2, {.check = kRefused}}};
  const auto chosen = Choose();
  ASSERT_TRUE(chosen.ok()) << chosen.status();
  EXPECT_EQ(*chosen, std::nullopt);
  ASSERT_EQ(lines_.size(), 3u);
  EXPECT_THAT(lines_.back(), HasSubstr("our own kernel"));
  EXPECT_EQ(cache_.size(), 0u);
  trials_.candidates.clear();
  EXPECT_EQ(*Choose(), std::nullopt);
}

TEST_F(MatmulTunerTest, ARememberedAlgorithmIsCheckedAndNotTimed) {
  trials_.candidates = {{1, {}}, {7, {}}};
  cache_.Put(ShapeOf(matmul_), Algorithm(7));
  EXPECT_EQ(*Choose(), Algorithm(7));
  EXPECT_EQ(trials_.begun, 1) << "the check needs data";
  EXPECT_THAT(trials_.checked, ElementsAre(7));
  EXPECT_THAT(trials_.timed, IsEmpty());
  EXPECT_THAT(lines_, IsEmpty());
}

TEST_F(MatmulTunerTest, ARememberedAlgorithmWithWrongBitsIsReplaced) {
  trials_.candidates = {{1, {}}, {7, {.check = kWrong}}};
  cache_.Put(ShapeOf(matmul_), Algorithm(7));
  EXPECT_EQ(*Choose(), Algorithm(1));
  EXPECT_EQ(*cache_.Find(ShapeOf(matmul_)), Algorithm(1));
  ASSERT_FALSE(lines_.empty());
  EXPECT_THAT(lines_[0], HasSubstr("WRONG BITS of cuBLASLt's algorithm number 7"));
  trials_.candidates = {{7, {.check = kWrong}}};
  cache_.Put(ShapeOf(matmul_), Algorithm(7));
  EXPECT_EQ(*Choose(), std::nullopt);
  EXPECT_EQ(cache_.Find(ShapeOf(matmul_)), nullptr) << "would be tried at each start";
}

// The start fails, with the name of what was running.
TEST_F(MatmulTunerTest, ALostDeviceIsNoMatterOfTheAlgorithm) {
  const absl::Status named = absl::InternalError(
      "cuBLASLt's algorithm number 1 for the int8 product [96][64] by [32][64]: "
      "cudaErrorIllegalAddress");
  trials_.candidates = {{1, {.check = kLost}}, {2, {}}};
  EXPECT_EQ(Choose().status(), named);
  trials_.candidates = {{1, {.seconds = kLost}}, {2, {}}};
  EXPECT_EQ(Choose().status(), named);
  EXPECT_EQ(cache_.size(), 0u);
}

}  // namespace
}  // namespace fixpoint
