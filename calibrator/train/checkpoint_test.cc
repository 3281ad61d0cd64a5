#include "calibrator/train/checkpoint.h"

#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

constexpr int64_t kParameters = 5;
// Magic, fingerprint, then counters of 8 bytes: step, best step, Adam's steps, parameters, points.
constexpr size_t kCounters = 8 + 64;
enum Counter { kStep, kBestStep, kAdamSteps, kParameterCount, kPointCount, kLooks = 7 };

TrainState State() {
  TrainState state;
  state.step = 17;
  state.parameters = {1, -2, 3.5f, 0, 1e-20f};
  state.average = {1, 2, 3, 4, 5};
  state.adam.first = {-1, -2, -3, -4, -5};
  state.adam.second = {6, 7, 8, 9, 10};
  state.adam.steps = 18;
  state.best_parameters = {11, 12, 13, 14, 15};
  state.best_step = 16;
  state.best_held_out = 0.125;
  state.first_held_out = 0.5;
  state.looks_since_best = 3;
  state.points = {{.step = 1, .tokens = 64, .loss = 0.75, .gradient_norm = 2, .rate = 0.5},
                  {.step = 2, .tokens = 128, .loss = 0.5, .held_out = 0.25}};
  return state;
}

class TrainCheckpointTest : public testing::Test {
 protected:
  TrainCheckpointTest()
      : path_(absl::StrCat(testing::TempDir(), "/train_checkpoint_test.", getpid())) {}
  ~TrainCheckpointTest() override { std::filesystem::remove_all(path_); }

  std::string Written() {
    EXPECT_TRUE(WriteCheckpoint(path_, fingerprint_, State()).ok());
    absl::StatusOr<std::string> text = ReadWholeFile(path_, 1 << 20);
    EXPECT_TRUE(text.ok());
    return *std::move(text);
  }
  absl::Status Read(const std::string& text) {
    std::ofstream(path_, std::ios::binary) << text;  // without fsync: done a thousand times
    return ReadCheckpoint(path_, fingerprint_, kParameters).status();
  }
  // Another value of a counter, under a digest that is right.
  absl::Status ReadWith(Counter counter, int64_t value) {
    std::string text = Written();
    std::memcpy(text.data() + kCounters + 8 * counter, &value, 8);
    text.resize(text.size() - 64);
    Sha256 digest;
    digest.Update(text.data(), text.size());
    return Read(text + digest.FinishHex());
  }

  const std::string fingerprint_ = std::string(63, 'a') + "1";
  const std::string path_;
};

TEST_F(TrainCheckpointTest, ComesBackAsItWas) {
  Written();
  const absl::StatusOr<TrainState> read = ReadCheckpoint(path_, fingerprint_, kParameters);
  ASSERT_TRUE(read.ok()) << read.status();
  const TrainState expected = State();
  EXPECT_EQ(read->step, 17);
  EXPECT_EQ(read->parameters, expected.parameters);
  EXPECT_EQ(read->average, expected.average);
  EXPECT_EQ(read->adam.first, expected.adam.first);
  EXPECT_EQ(read->adam.second, expected.adam.second);
  EXPECT_EQ(read->adam.steps, 18);
  EXPECT_EQ(read->best_parameters, expected.best_parameters);
  EXPECT_EQ(read->best_step, 16);
  EXPECT_EQ(read->best_held_out, 0.125);
  EXPECT_EQ(read->first_held_out, 0.5);
  EXPECT_EQ(read->looks_since_best, 3);
  ASSERT_EQ(read->points.size(), 2u);
  EXPECT_EQ(std::memcmp(read->points.data(), expected.points.data(), 2 * sizeof(TrainPoint)), 0);
}

TEST_F(TrainCheckpointTest, ReplacesAnOlderOne) {
  Written();
  TrainState later = State();
  later.step = 99;
  ASSERT_TRUE(WriteCheckpoint(path_, fingerprint_, later).ok());
  EXPECT_EQ(ReadCheckpoint(path_, fingerprint_, kParameters)->step, 99);
}

TEST_F(TrainCheckpointTest, OfAnotherRunIsRefused) {
  Written();
  const absl::Status status = ReadCheckpoint(path_, std::string(64, 'b'), kParameters).status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
  EXPECT_THAT(std::string(status.message()), HasSubstr("another run"));
}

TEST_F(TrainCheckpointTest, MissingIsNotFound) {
  EXPECT_EQ(ReadCheckpoint(path_, fingerprint_, kParameters).status().code(),
            StatusCode::kNotFound);
}

TEST_F(TrainCheckpointTest, AFlippedBitAnywhereIsDamage) {
  const std::string good = Written();
  ASSERT_TRUE(Read(good).ok());
  for (size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] ^= 0x10;
    const absl::Status status = Read(bad);
    ASSERT_EQ(status.code(), StatusCode::kDataLoss) << "byte " << i << ": " << status;
    ASSERT_THAT(std::string(status.message()), HasSubstr(path_));
  }
}

TEST_F(TrainCheckpointTest, CutOrLongerIsDamage) {
  const std::string good = Written();
  for (const size_t size : {size_t{0}, size_t{7}, size_t{8}, size_t{72}, size_t{136}, size_t{199},
                            size_t{200}, good.size() / 2, good.size() - 64, good.size() - 1}) {
    ASSERT_LT(size, good.size());
    EXPECT_EQ(Read(good.substr(0, size)).code(), StatusCode::kDataLoss) << size;
  }
  EXPECT_EQ(Read(good + "x").code(), StatusCode::kDataLoss);
}

TEST_F(TrainCheckpointTest, AbsurdCountersUnderARightDigestAreDamage) {
  constexpr int64_t kHuge = int64_t{1} << 62;
  for (const int64_t value : {int64_t{-1}, int64_t{4}, int64_t{6}, kHuge}) {
    EXPECT_EQ(ReadWith(kParameterCount, value).code(), StatusCode::kDataLoss) << value;
    EXPECT_EQ(ReadWith(kPointCount, value).code(), StatusCode::kDataLoss) << value;
  }
  // Steps index the windows, so a negative one must not get through.
  for (const Counter counter : {kStep, kBestStep, kAdamSteps, kLooks}) {
    EXPECT_EQ(ReadWith(counter, -1).code(), StatusCode::kDataLoss) << counter;
    EXPECT_EQ(ReadWith(counter, kHuge).code(), StatusCode::kDataLoss) << counter;
  }
  EXPECT_TRUE(ReadWith(kStep, 17).ok());
}

TEST_F(TrainCheckpointTest, AnotherNumberOfParametersIsRefused) {
  Written();
  EXPECT_EQ(ReadCheckpoint(path_, fingerprint_, kParameters + 1).status().code(),
            StatusCode::kDataLoss);
}

TEST_F(TrainCheckpointTest, AFolderThatCannotBeWrittenIsAnErrorWithItsName) {
  const std::string inside = path_ + "/no_such_folder/checkpoint";
  const absl::Status status = WriteCheckpoint(inside, fingerprint_, State());
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr("no_such_folder"));
}

}  // namespace
}  // namespace fixpoint
