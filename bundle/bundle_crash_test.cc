// A write that does not finish leaves the old bundle or the new one, never a mixture.
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <string>

#include "absl/strings/match.h"
#include "bundle/bundle.h"
#include "bundle/test_file.h"
#include "bundle/test_model.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

class BundleCrashTest : public BundleFolderTest {
 protected:
  BundleCrashTest() {
    TestModelOptions options;
    options.hidden = 256;
    options.intermediate = 1024;
    old_ = MakeTestBundle(options);
    options.seed = 2;
    new_ = MakeTestBundle(options);
  }
  Bundle old_, new_;
};

TEST_F(BundleCrashTest, AFullDiskLeavesTheOldBundle) {
  const std::string old_digest = WriteBundle(old_, path_).value();
  const uint64_t file_bytes = std::filesystem::file_size(path_);
  // In the header, in the manifest, in a section, in the trailer.
  for (const uint64_t limit :
       {uint64_t{10}, uint64_t{5000}, file_bytes / 2, file_bytes - kTrailerBytes, file_bytes - 1}) {
    // The limit holds for a process, so a child takes it; EFBIG goes the same way as ENOSPC.
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      ::signal(SIGXFSZ, SIG_IGN);
      const rlimit file_size{limit, limit};
      if (::setrlimit(RLIMIT_FSIZE, &file_size) != 0) ::_exit(3);
      const absl::Status status = WriteBundle(new_, path_).status();
      ::_exit(status.ok() ? 1
              : absl::StrContains(status.message(), path_) &&
                      absl::StrContains(status.message(), "File too large")
                  ? 0
                  : 2);
    }
    int result = -1;
    ASSERT_EQ(::waitpid(child, &result, 0), child);
    EXPECT_EQ(result, 0) << "limit " << limit;
    EXPECT_EQ(ReadBundle(path_).value().digest, old_digest);
    EXPECT_EQ(FilesInFolder(), 1);
  }
}

TEST_F(BundleCrashTest, AKilledWriterLeavesOldOrNew) {
  const std::string new_digest = WriteBundle(new_, path_).value();
  const auto start = std::chrono::steady_clock::now();
  const std::string old_digest = WriteBundle(old_, path_).value();
  const auto write_us = std::chrono::duration_cast<std::chrono::microseconds>(
                            std::chrono::steady_clock::now() - start)
                            .count();
  constexpr int kRounds = 40;
  int killed = 0;
  for (int round = 0; round < kRounds; ++round) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      // Over and over, so that the kill always hits a writer at work.
      for (bool use_new = true;; use_new = !use_new) {
        if (!WriteBundle(use_new ? new_ : old_, path_).ok()) ::_exit(1);
      }
    }
    ::usleep(static_cast<useconds_t>(2 * write_us * round / kRounds));
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    int result = 0;
    ASSERT_EQ(::waitpid(child, &result, 0), child);
    killed += WIFSIGNALED(result);
    const auto read = ReadBundle(path_);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_TRUE(read->digest == old_digest || read->digest == new_digest);
  }
  EXPECT_EQ(killed, kRounds) << "a writer failed by itself";
  // Leftovers of killed writers never hinder the next.
  EXPECT_EQ(WriteBundle(new_, path_).value(), new_digest);
}

}  // namespace
}  // namespace fixpoint
