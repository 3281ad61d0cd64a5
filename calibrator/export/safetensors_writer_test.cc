#include "calibrator/export/safetensors_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <limits>

#include "calibrator/import/safetensors_reader.h"
#include "calibrator/import/test_files.h"

namespace fixpoint {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TempDirectory;

size_t FilesIn(const std::string& directory) {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(directory)) ++count;
  return count;
}

TEST(SafetensorsWriterTest, OurReaderGetsEveryValueBack) {
  const TempDirectory directory;
  const std::string path = directory.path() + "/x.safetensors";
  absl::StatusOr<SafetensorsWriter> writer =
      SafetensorsWriter::Create(path,
                                {{"scale \"s\"", SafetensorsDtype::kFloat32, {2, 1}},
                                 {"none", SafetensorsDtype::kFloat32, {0, 4}},
                                 {"half", SafetensorsDtype::kBf16, {3}},
                                 {"q", SafetensorsDtype::kInt8, {1, 5}}},
                                {{"format", "pt"}, {"note", "line\nline"}});
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE(writer->Float32("scale \"s\"", {0.1f, 3e-39f}).ok());
  ASSERT_TRUE(writer->Float32("none", {}).ok());
  // 1 + 2^-8 lies between 1 and 1 + 2^-7: ties go to the even one, 1; 1 + 3 * 2^-8 to 1 + 2^-6.
  ASSERT_TRUE(writer->Bf16("half", {1.00390625f, 1.01171875f, -2}).ok());
  ASSERT_TRUE(writer->Int8("q", {-128, -1, 0, 1, 127}).ok());
  ASSERT_TRUE(writer->Finish().ok());

  const absl::StatusOr<Safetensors> file = Safetensors::OpenFile(path);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(file->tensors().size(), 4u);
  std::vector<float> scale(2), half(3);
  std::vector<int8_t> q(5);
  EXPECT_EQ(file->tensors()[0].name, "scale \"s\"");
  EXPECT_THAT(file->tensors()[0].shape, ElementsAre(2, 1));
  ASSERT_TRUE(file->Read(0, absl::MakeSpan(scale)).ok());
  EXPECT_THAT(scale, ElementsAre(0.1f, 3e-39f));
  ASSERT_TRUE(file->Read(2, absl::MakeSpan(half)).ok());
  EXPECT_THAT(half, ElementsAre(1, 1.015625f, -2));
  ASSERT_TRUE(file->ReadInt8(3, 0, absl::MakeSpan(q)).ok());
  EXPECT_THAT(q, ElementsAre(-128, -1, 0, 1, 127));
  ASSERT_TRUE(file->ReadInt8(3, 3, absl::MakeSpan(q).subspan(0, 2)).ok());
  EXPECT_THAT(q, ElementsAre(1, 127, 0, 1, 127));

  const absl::StatusOr<std::string> bytes = ReadWholeFile(path, 1 << 20);
  ASSERT_TRUE(bytes.ok());
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes->data(), sizeof(header_bytes));
  EXPECT_EQ(header_bytes % 8, 0u);
  EXPECT_EQ(bytes->size(), 8 + header_bytes + 2 * 4 + 3 * 2 + 5);
}

TEST(SafetensorsWriterTest, ValuesThatAreNotFiniteAreNamed) {
  const TempDirectory directory;
  const std::string path = directory.path() + "/x.safetensors";
  {
    absl::StatusOr<SafetensorsWriter> writer = SafetensorsWriter::Create(
        path, {{"a", SafetensorsDtype::kFloat32, {2}}, {"b", SafetensorsDtype::kBf16, {1}}}, {});
    ASSERT_TRUE(writer.ok());
    EXPECT_THAT(std::string(writer->Float32("a", {1, NAN}).message()),
                AllOf(HasSubstr(path), HasSubstr("tensor a: value 1 is nan")));
    // The largest float32 rounds to infinity in bf16.
    EXPECT_THAT(std::string(writer->Bf16("b", {std::numeric_limits<float>::max()}).message()),
                HasSubstr("tensor b: value 0 is inf"));
  }
  EXPECT_EQ(FilesIn(directory.path()), 0u) << "an unfinished file stays behind";
}

TEST(SafetensorsWriterTest, WhatReadersRefuseIsNotWritten) {
  const TempDirectory directory;
  const std::string path = directory.path() + "/x.safetensors";
  const auto refused = [&](std::vector<SafetensorsEntry> entries, const char* text) {
    const absl::Status status = SafetensorsWriter::Create(path, std::move(entries), {}).status();
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  };
  refused({{"a", SafetensorsDtype::kInt8, {1}}, {"a", SafetensorsDtype::kInt8, {1}}}, "repeated");
  refused({{"__metadata__", SafetensorsDtype::kInt8, {1}}}, "unusable");
  refused({{std::string(513, 'n'), SafetensorsDtype::kInt8, {1}}}, "unusable");
  refused({{"a", SafetensorsDtype::kInt8, {-1}}}, "[-1]");
  refused({{"a", SafetensorsDtype::kFloat32, {int64_t{1} << 40, 1 << 22}}}, "shape");
  refused({{"a", SafetensorsDtype::kInt8, std::vector<int64_t>(9, 1)}}, "rank 9");
  EXPECT_EQ(FilesIn(directory.path()), 0u);
}

// A limit on the size of files stands for a full disk: write fails in the same place.
TEST(SafetensorsWriterTest, ADiskThatIsFullLeavesNothing) {
  const TempDirectory directory;
  const std::string path = directory.path() + "/x.safetensors";
  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit small = old;
  small.rlim_cur = 4096;
  absl::Status status;
  {
    absl::StatusOr<SafetensorsWriter> writer =
        SafetensorsWriter::Create(path, {{"a", SafetensorsDtype::kInt8, {1 << 20}}}, {});
    ASSERT_TRUE(writer.ok());
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
    status = writer->Int8("a", std::vector<int8_t>(1 << 20));
    if (status.ok()) status = writer->Finish();
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old), 0);
  }
  std::signal(SIGXFSZ, old_handler);
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr("x.safetensors"));
  EXPECT_EQ(FilesIn(directory.path()), 0u);
}

}  // namespace
}  // namespace fixpoint
