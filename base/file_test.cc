#include "base/file.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "base/digest.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

using ::testing::HasSubstr;

class FileTest : public ::testing::Test {
 protected:
  FileTest() {
    std::string pattern = (std::filesystem::temp_directory_path() / "file_test.XXXXXX").string();
    folder_ = ::mkdtemp(pattern.data());
  }
  ~FileTest() override { std::filesystem::remove_all(folder_); }
  std::string Path(const std::string& name) const { return folder_ + "/" + name; }
  int FilesInFolder() const {
    return static_cast<int>(std::distance(std::filesystem::directory_iterator(folder_), {}));
  }

  std::string folder_;
};

TEST_F(FileTest, ReadWholeFileHonoursTheLimit) {
  const std::string contents(3'000'000, 'q');
  ASSERT_TRUE(WriteFileAtomically(Path("a"), contents).ok());
  EXPECT_EQ(ReadWholeFile(Path("a"), 3'000'000).value(), contents);
  const auto refused = ReadWholeFile(Path("a"), 2'999'999);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("2999999"));
  ASSERT_TRUE(WriteFileAtomically(Path("empty"), "").ok());
  EXPECT_EQ(ReadWholeFile(Path("empty"), 0).value(), "");
  EXPECT_EQ(ReadWholeFile("/dev/zero", 1000).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(ReadWholeFile(Path("none"), 10).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReadWholeFile(folder_, 10).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(FileTest, RandomAccessReadsOnlyWhatIsThere) {
  ASSERT_TRUE(WriteFileAtomically(Path("a"), "0123456789").ok());
  RandomAccessFile file = RandomAccessFile::Open(Path("a")).value();
  EXPECT_EQ(file.size(), 10u);
  char out[10] = {};
  ASSERT_TRUE(file.ReadAt(7, 3, out).ok());
  EXPECT_EQ(std::string(out, 3), "789");
  EXPECT_TRUE(file.ReadAt(10, 0, out).ok());
  for (const auto& [offset, bytes] : std::initializer_list<std::pair<uint64_t, uint64_t>>{
           {7, 4}, {11, 0}, {~uint64_t{0}, 2}, {2, ~uint64_t{0}}}) {
    const absl::Status status = file.ReadAt(offset, bytes, out);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << offset << " " << bytes;
    EXPECT_THAT(std::string(status.message()), HasSubstr(Path("a")));
  }
  EXPECT_EQ(file.ReadAll(10).value(), "0123456789");
  EXPECT_EQ(file.ReadAll(9).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(file.Sha256Hex().value(), Sha256Hex("0123456789"));

  ASSERT_EQ(::truncate(Path("a").c_str(), 5), 0);
  EXPECT_EQ(file.ReadAt(3, 4, out).code(), absl::StatusCode::kDataLoss);
}

TEST_F(FileTest, OnlyRegularFilesOpen) {
  EXPECT_EQ(RandomAccessFile::Open(Path("none")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(RandomAccessFile::Open(folder_).status().code(), absl::StatusCode::kInvalidArgument);
  ASSERT_EQ(::mkfifo(Path("pipe").c_str(), 0600), 0);
  EXPECT_EQ(RandomAccessFile::Open(Path("pipe")).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(FileTest, NothingAppearsBeforeCommit) {
  ASSERT_TRUE(WriteFileAtomically(Path("a"), "old").ok());
  std::optional<AtomicFileWriter> writer = AtomicFileWriter::Create(Path("a")).value();
  ASSERT_TRUE(writer->Append("____new").ok());
  ASSERT_TRUE(writer->WriteAt(0, "very", 4).ok());
  EXPECT_EQ(writer->appended_bytes(), 7u);
  EXPECT_EQ(ReadWholeFile(Path("a"), 100).value(), "old");
  AtomicFileWriter moved = std::move(*writer);
  writer.reset();
  EXPECT_EQ(FilesInFolder(), 2);
  ASSERT_TRUE(moved.Commit().ok());
  EXPECT_EQ(ReadWholeFile(Path("a"), 100).value(), "verynew");
  EXPECT_EQ(FilesInFolder(), 1);
  EXPECT_EQ(moved.Append("x").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(moved.Commit().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(FileTest, AnUncommittedWriterLeavesNoTrace) {
  ASSERT_TRUE(WriteFileAtomically(Path("a"), "old").ok());
  {
    AtomicFileWriter writer = AtomicFileWriter::Create(Path("a")).value();
    ASSERT_TRUE(writer.Append("new").ok());
  }
  EXPECT_EQ(ReadWholeFile(Path("a"), 100).value(), "old");
  EXPECT_EQ(FilesInFolder(), 1);
}

TEST_F(FileTest, ErrorsNameFileAndCause) {
  const absl::Status missing = WriteFileAtomically(Path("none/a"), "x");
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), HasSubstr(Path("none/a")));
  EXPECT_THAT(std::string(missing.message()), HasSubstr("No such file"));
  std::filesystem::create_directory(Path("folder"));
  const absl::Status folder = WriteFileAtomically(Path("folder"), "x");
  EXPECT_FALSE(folder.ok());
  EXPECT_EQ(FilesInFolder(), 1) << "the temporary file stayed: " << folder;
}

TEST_F(FileTest, AFullDiskLeavesTheOldFile) {
  ASSERT_TRUE(WriteFileAtomically(Path("a"), "old").ok());
  // The limit holds for the whole process, so a child takes it. EFBIG goes the same way as ENOSPC.
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{100'000, 100'000};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) ::_exit(2);
    const absl::Status status = WriteFileAtomically(Path("a"), std::string(200'000, 'x'));
    ::_exit(!status.ok() && absl::StrContains(status.message(), "File too large") &&
                    absl::StrContains(status.message(), folder_)
                ? 0
                : 1);
  }
  int result = -1;
  ASSERT_EQ(::waitpid(child, &result, 0), child);
  EXPECT_EQ(result, 0);
  EXPECT_EQ(ReadWholeFile(Path("a"), 100).value(), "old");
  EXPECT_EQ(FilesInFolder(), 1);
}

}  // namespace
}  // namespace fixpoint
