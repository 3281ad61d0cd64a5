#include "engine/algorithm_cache.h"

#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/digest.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

using testing::HasSubstr;

constexpr char kDevice[] = "Some GPU, 132 multiprocessors, driver 13000, cuBLASLt 130100";
const MatmulShape kSmall = {128, 64, 256, 256, 256, 128, 1024};
const MatmulShape kLarge = {4096, 512, 14336, 14336, 14336, 4096, 33554432};
const MatmulAlgorithm kFirst = {1, 2, 3, 4, 5, 6, 7, 8};
const MatmulAlgorithm kSecond = {~uint64_t{0}, 0, 0, 0, 0, 0, 0, 9};

AlgorithmCache Filled() {
  AlgorithmCache cache(kDevice);
  cache.Put(kLarge, kFirst);
  cache.Put(kSmall, kSecond);
  return cache;
}

TEST(AlgorithmCacheTest, WhatIsWrittenIsReadBack) {
  const std::string text = Filled().Text();
  AlgorithmCache read(kDevice);
  ASSERT_TRUE(read.Parse(text).ok());
  EXPECT_FALSE(read.changed());
  ASSERT_EQ(read.size(), 2u);
  EXPECT_EQ(*read.Find(kLarge), kFirst);
  EXPECT_EQ(*read.Find(kSmall), kSecond);
  MatmulShape other = kSmall;
  other.workspace_bytes = 0;
  EXPECT_EQ(read.Find(other), nullptr);
  EXPECT_EQ(read.Text(), text);
}

TEST(AlgorithmCacheTest, AnotherDevicesFileIsRefusedByName) {
  AlgorithmCache other("Another GPU");
  const absl::Status status = other.Parse(Filled().Text());
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("made on 'Some GPU, 132"));
  EXPECT_THAT(status.message(), HasSubstr("this is 'Another GPU'"));
  EXPECT_EQ(other.size(), 0u);
  EXPECT_TRUE(other.changed()) << "would not be rewritten";
}

TEST(AlgorithmCacheTest, EveryCutAndEveryChangedByteIsDamage) {
  const std::string text = Filled().Text();
  for (size_t i = 0; i < text.size(); ++i) {
    AlgorithmCache cache(kDevice);
    EXPECT_TRUE(absl::IsDataLoss(cache.Parse(text.substr(0, i)))) << "cut to " << i;
    std::string changed = text;
    changed[i] = changed[i] == '1' ? '2' : '1';
    EXPECT_TRUE(absl::IsDataLoss(cache.Parse(changed))) << "byte " << i;
    EXPECT_EQ(cache.size(), 0u);
    EXPECT_TRUE(cache.changed());
  }
}

// As a file that somebody else wrote, or another version: the checksum is right.
std::string Signed(const std::vector<std::string>& entries) {
  std::string text = absl::StrCat("fixpoint cuBLASLt algorithms 1\ndevice ", kDevice, "\n",
                                  absl::StrJoin(entries, "\n"), entries.empty() ? "" : "\n");
  const std::string sum =
      absl::StrCat(absl::Hex(Xxh3_64(text.data(), text.size()), absl::kZeroPad16));
  return absl::StrCat(text, "checksum ", sum, "\n");
}

std::string Entry(absl::string_view shape) {
  return absl::StrCat(shape, " ", std::string(128, '0'));
}

TEST(AlgorithmCacheTest, WhatIsNotWrittenThisWayIsDamageInItsLine) {
  const std::string first = Entry("32 64 128 128 128 32 0"),
                    second = Entry("48 64 128 128 128 48 0");
  AlgorithmCache cache(kDevice);
  ASSERT_TRUE(cache.Parse(Signed({})).ok());
  ASSERT_TRUE(cache.Parse(Signed({first, second})).ok());
  EXPECT_EQ(cache.size(), 2u);
  std::string upper = first;
  upper.back() = 'A';
  for (const std::string& entry :
       {second, std::string(), first + " ", first + "0", first.substr(0, first.size() - 1), upper,
        Entry("64 64 128 128 128 48"), Entry("64 64 128 128 128 48 0 0"),
        Entry("+64 64 128 128 128 64 0"), Entry("\t64 64 128 128 128 64 0"),
        Entry("064 64 128 128 128 64 0"), Entry("99999999999999999999 64 128 128 128 64 0"),
        Entry("40 64 128 128 128 40 0"), Entry("x 64 128 128 128 64 0")}) {
    const absl::Status status = cache.Parse(Signed({first, second, entry}));
    EXPECT_TRUE(absl::IsDataLoss(status)) << entry;
    EXPECT_THAT(status.message(), HasSubstr("line 5: ")) << entry;
    EXPECT_EQ(cache.size(), 0u);
  }
}

TEST(AlgorithmCacheTest, AFileOfTooManyIsDamage) {
  std::vector<std::string> entries;
  for (size_t i = 0; i < kMaxCachedAlgorithms; ++i) {
    entries.push_back(Entry(absl::StrCat(i + 100, " 64 128 128 128 32 0")));
  }
  AlgorithmCache cache(kDevice);
  ASSERT_TRUE(cache.Parse(Signed(entries)).ok());
  entries.push_back(Entry("90000 64 128 128 128 32 0"));
  const absl::Status status = cache.Parse(Signed(entries));
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_THAT(status.message(), HasSubstr("line 16387: more than 16384"));
}

TEST(AlgorithmCacheTest, TheFileIsReplacedWhole) {
  const std::string path = testing::TempDir() + "/algorithms";
  std::filesystem::remove(path);
  AlgorithmCache cache = Filled();
  EXPECT_TRUE(absl::IsNotFound(AlgorithmCache(kDevice).Read(path)));
  ASSERT_TRUE(cache.changed());
  ASSERT_TRUE(cache.Write(path).ok());
  EXPECT_FALSE(cache.changed());
  AlgorithmCache read(kDevice);
  ASSERT_TRUE(read.Read(path).ok());
  EXPECT_EQ(read.size(), 2u);
  ASSERT_TRUE(WriteFileAtomically(path, "garbage").ok());
  const absl::Status damaged = read.Read(path);
  EXPECT_TRUE(absl::IsDataLoss(damaged));
  EXPECT_THAT(damaged.message(), HasSubstr(path));
  EXPECT_FALSE(cache.Write("/nowhere/at/all").ok());
}

TEST(AlgorithmCacheTest, ItDoesNotGrowWithoutEnd) {
  AlgorithmCache cache(kDevice);
  MatmulShape shape = kSmall;
  for (size_t i = 0; i <= kMaxCachedAlgorithms; ++i) {
    shape.tokens = static_cast<int64_t>(i);
    cache.Put(shape, kFirst);
  }
  EXPECT_LE(cache.size(), kMaxCachedAlgorithms);
  EXPECT_NE(cache.Find(shape), nullptr);
  while (cache.size() < kMaxCachedAlgorithms) {
    ++shape.tokens;
    cache.Put(shape, kFirst);
  }
  cache.Put(shape, kSecond);
  EXPECT_EQ(cache.size(), kMaxCachedAlgorithms) << "a new choice for an old shape takes no room";
}

}  // namespace
}  // namespace fixpoint
