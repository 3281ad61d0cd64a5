#include "calibrator/import/gguf_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "calibrator/import/test_files.h"

namespace fixpoint {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::GgufBuilder;
using ::testing::HasSubstr;
using testing::LittleEndian;
using testing::TempDirectory;

class GgufReaderTest : public ::testing::Test {
 protected:
  GgufReaderTest() {
    builder_.SetString("general.architecture", "llama");
    builder_.SetUint32("a.count", 7);
    builder_.AddFloatTensor("first", {2, 3}, {1, 2, 3, 4, 5, 6});
    builder_.AddFloatTensor("second", {4}, {7, 8, 9, 10});
  }

  absl::StatusOr<GgufFile> OpenBytes(const std::string& bytes) {
    return GgufFile::Open(directory_.Write("model.gguf", bytes));
  }
  absl::StatusOr<GgufFile> Open() { return OpenBytes(builder_.Build()); }

  // Expects an error that names the file and all the texts.
  void ExpectRefused(const std::vector<std::string>& texts) {
    ExpectRefusedBytes(builder_.Build(), texts);
  }
  void ExpectRefusedBytes(const std::string& bytes, const std::vector<std::string>& texts) {
    const absl::Status status = OpenBytes(bytes).status();
    ASSERT_FALSE(status.ok());
    EXPECT_THAT(std::string(status.message()), HasSubstr(directory_.path() + "/model.gguf"));
    for (const std::string& text : texts) {
      EXPECT_THAT(std::string(status.message()), HasSubstr(text));
    }
  }

  TempDirectory directory_;
  GgufBuilder builder_;
};

TEST_F(GgufReaderTest, ReadsMetadataAndTensors) {
  builder_.SetFloat32("a.float", 0.5f);
  builder_.SetBool("a.bool", true);
  builder_.SetStrings("a.strings", {"x", "", "yz"});
  builder_.SetInt32s("a.ints", {-1, 2});
  builder_.SetFloat32s("a.floats", {0.25f, -2});
  builder_.SetRaw("a.wide", 11, LittleEndian<int64_t>(-5));
  builder_.SetRaw("a.double", 12, LittleEndian(1e300));
  for (const uint32_t version : {2u, 3u}) {
    builder_.version = version;
    const absl::StatusOr<GgufFile> gguf = Open();
    ASSERT_TRUE(gguf.ok()) << gguf.status();
    EXPECT_EQ(gguf->version(), version);
    EXPECT_EQ(**gguf->FindString("general.architecture"), "llama");
    EXPECT_EQ(**gguf->FindInt("a.count"), 7);
    EXPECT_EQ(**gguf->FindDouble("a.float"), 0.5);
    EXPECT_EQ(**gguf->FindDouble("a.double"), 1e300);
    EXPECT_EQ(**gguf->FindBool("a.bool"), true);
    EXPECT_EQ(**gguf->FindInt("a.wide"), -5);
    EXPECT_THAT(**gguf->FindStrings("a.strings"), ElementsAre("x", "", "yz"));
    EXPECT_THAT(**gguf->FindInts("a.ints"), ElementsAre(-1, 2));
    EXPECT_THAT(**gguf->FindDoubles("a.floats"), ElementsAre(0.25, -2));
    EXPECT_FALSE(gguf->FindInt("absent")->has_value());
    EXPECT_EQ(*gguf->FindString("absent"), nullptr);

    ASSERT_EQ(gguf->tensors().size(), 2u);
    EXPECT_EQ(gguf->tensors()[0].name, "first");
    EXPECT_THAT(gguf->tensors()[0].shape, ElementsAre(2, 3));
    std::vector<float> values(6);
    ASSERT_TRUE(gguf->Read(0, absl::MakeSpan(values)).ok());
    EXPECT_THAT(values, ElementsAre(1, 2, 3, 4, 5, 6));
    values.resize(4);
    ASSERT_TRUE(gguf->Read(1, absl::MakeSpan(values)).ok());
    EXPECT_THAT(values, ElementsAre(7, 8, 9, 10));
  }
}

TEST_F(GgufReaderTest, TensorsLongerThanOneReadAreWhole) {
  std::vector<float> values(700'000);  // 2.8 MB, reads take 1 MiB
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  builder_.AddFloatTensor("long", {700, 1000}, values);
  const absl::StatusOr<GgufFile> gguf = Open();
  ASSERT_TRUE(gguf.ok()) << gguf.status();
  std::vector<float> got(values.size());
  ASSERT_TRUE(gguf->Read(2, absl::MakeSpan(got)).ok());
  EXPECT_EQ(got, values);
}

TEST_F(GgufReaderTest, AnotherTypeThanAskedForIsNamed) {
  const absl::StatusOr<GgufFile> gguf = Open();
  ASSERT_TRUE(gguf.ok()) << gguf.status();
  EXPECT_THAT(std::string(gguf->FindString("a.count").status().message()),
              AllOf(HasSubstr("model.gguf"), HasSubstr("a.count"), HasSubstr("not a string")));
  EXPECT_FALSE(gguf->FindInt("general.architecture").ok());
}

TEST_F(GgufReaderTest, MetadataOnlyLeavesTensorsAlone) {
  builder_.tensors[0].type = 10;  // Q2_K
  ExpectRefused({"tensor info first", "Q2_K", "not supported"});
  const absl::StatusOr<GgufFile> gguf = GgufFile::Open(
      directory_.Write("model.gguf", builder_.Build()), GgufFile::Contents::kMetadataOnly);
  ASSERT_TRUE(gguf.ok()) << gguf.status();
  EXPECT_EQ(**gguf->FindInt("a.count"), 7);
  EXPECT_TRUE(gguf->tensors().empty());
}

TEST_F(GgufReaderTest, RefusesOtherMagicAndVersion) {
  std::string bytes = builder_.Build();
  bytes[0] = 'X';
  ExpectRefusedBytes(bytes, {"header", "\"XGUF\""});
  builder_.version = 1;
  ExpectRefused({"header", "version 1"});
  builder_.version = 3u << 24;  // what a big-endian file looks like
  ExpectRefused({"header", "version 50331648"});
  EXPECT_EQ(GgufFile::Open(directory_.path() + "/absent").status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_FALSE(GgufFile::Open(directory_.path()).ok());
}

TEST_F(GgufReaderTest, CountsAreBoundedByLimitAndFileSize) {
  std::string bytes = builder_.Build();
  bytes.replace(8, 8, LittleEndian<uint64_t>(100'001));
  ExpectRefusedBytes(bytes, {"header", "tensors is 100001", "100000"});
  bytes.replace(8, 8, LittleEndian<uint64_t>(99'999));
  ExpectRefusedBytes(bytes, {"header", "tensors is 99999", "bytes follow"});
  bytes = builder_.Build();
  bytes.replace(16, 8, LittleEndian<uint64_t>(~uint64_t{0}));
  ExpectRefusedBytes(bytes, {"header", "metadata keys is 18446744073709551615"});
}

TEST_F(GgufReaderTest, StringsAndArraysAreBounded) {
  builder_.SetRaw("a.long", 8, LittleEndian<uint64_t>(GgufLimits::kStringBytes + 1));
  ExpectRefused({"metadata key a.long", "16777217"});
  builder_.SetRaw("a.long", 8, LittleEndian<uint64_t>(GgufLimits::kStringBytes));
  ExpectRefused({"metadata key a.long", "truncated"});
  builder_.SetRaw("a.long", 9, LittleEndian<uint32_t>(0) + LittleEndian<uint64_t>(1ull << 60));
  ExpectRefused({"metadata key a.long", "array elements is 1152921504606846976"});
  builder_.SetRaw("a.long", 9, LittleEndian<uint32_t>(8) + LittleEndian<uint64_t>(1 << 20));
  ExpectRefused({"metadata key a.long", "bytes follow"});
}

TEST_F(GgufReaderTest, ValueAndElementTypesAreChecked) {
  builder_.SetRaw("a.odd", 13, "x");
  ExpectRefused({"metadata key a.odd", "value type 13"});
  builder_.SetRaw("a.odd", 9, LittleEndian<uint32_t>(99) + LittleEndian<uint64_t>(1) + "x");
  ExpectRefused({"metadata key a.odd", "value type 99"});
  builder_.SetRaw("a.odd", 9, LittleEndian<uint32_t>(9) + LittleEndian<uint64_t>(1) + "x");
  ExpectRefused({"metadata key a.odd", "arrays of arrays"});
  builder_.SetRaw("a.odd", 7, std::string(1, '\2'));
  ExpectRefused({"metadata key a.odd", "boolean of value 2"});
  builder_.SetRaw("a.odd", 10, LittleEndian<uint64_t>(1ull << 63));
  ExpectRefused({"metadata key a.odd", "9223372036854775808"});
}

TEST_F(GgufReaderTest, DuplicateNamesAreRefused) {
  builder_.tensors[1].name = "first";
  ExpectRefused({"tensor info first", "twice"});
  builder_.AppendDuplicateKeys();
  ExpectRefused({"metadata key a.count", "twice"});
}

TEST_F(GgufReaderTest, AlignmentMustBeASmallPowerOfTwo) {
  for (const uint32_t bad : {0u, 1u, 4u, 33u, 131'072u}) {
    builder_.SetUint32("general.alignment", bad);
    ExpectRefused({"general.alignment", std::to_string(bad) + " is not a power of two"});
  }
  for (const uint32_t good : {8u, 64u, 65'536u}) {
    builder_.SetUint32("general.alignment", good);
    builder_.alignment = good;
    EXPECT_TRUE(Open().ok()) << good;
  }
}

TEST_F(GgufReaderTest, DimensionsAreChecked) {
  builder_.tensors[1].dims = {0};
  ExpectRefused({"tensor info second", "dimension 0 is 0"});
  builder_.tensors[1].dims = {~uint64_t{0}};
  ExpectRefused({"tensor info second", "dimension 0 is 18446744073709551615"});
  builder_.tensors[1].dims = {1ull << 32, 1ull << 32};  // 2^64 elements wrap to 0
  ExpectRefused({"tensor info second", "2^63"});
  builder_.tensors[1].dims = {1ull << 61, 2};  // 2^62 elements of 4 bytes wrap to 0 bytes
  ExpectRefused({"tensor info second", "bytes exceeds 2^63"});
  builder_.tensors[1].dims = {1ull << 60};
  ExpectRefused({"tensor data second", "do not fit"});
  builder_.tensors[1].dims = {1, 1, 1, 1, 4};
  ExpectRefused({"tensor info second", "rank 5"});
  builder_.tensors[1].dims = {};
  ExpectRefused({"tensor info second", "rank 0"});
}

TEST_F(GgufReaderTest, RowsMustHoldWholeBlocks) {
  builder_.tensors[1].type = 8;  // Q8_0
  builder_.tensors[1].dims = {33};
  ExpectRefused({"tensor info second", "33", "Q8_0", "32"});
}

TEST_F(GgufReaderTest, UnknownTypesAreNamed) {
  builder_.tensors[1].type = 23;
  ExpectRefused({"tensor info second", "IQ4_XS"});
  builder_.tensors[1].type = 77;
  ExpectRefused({"tensor info second", "type 77"});
}

TEST_F(GgufReaderTest, TensorsMustTileTheData) {
  builder_.tensors[1].offset_shift = -32;
  ExpectRefused({"tensor data second", "overlaps"});
  builder_.tensors[1].offset_shift = 32;
  ExpectRefused({"tensor data second", "hole"});
  builder_.tensors[1].offset_shift = 4;
  ExpectRefused({"tensor info second", "alignment"});
  builder_.tensors[1].offset_shift = -64;  // 2^64 - 32
  ExpectRefused({"tensor data second", "offset is 18446744073709551584"});
}

TEST_F(GgufReaderTest, TensorsMayBeStoredInAnotherOrderThanListed) {
  builder_.tensors[0].offset_shift = 32;
  builder_.tensors[1].offset_shift = -32;
  std::swap(builder_.tensors[0].data, builder_.tensors[1].data);
  const absl::StatusOr<GgufFile> gguf = Open();
  ASSERT_TRUE(gguf.ok()) << gguf.status();
  std::vector<float> values(4);
  ASSERT_TRUE(gguf->Read(1, absl::MakeSpan(values)).ok());
  EXPECT_THAT(values, ElementsAre(7, 8, 9, 10));
}

TEST_F(GgufReaderTest, NothingMayFollowTheLastTensor) {
  const std::string bytes = builder_.Build();
  EXPECT_TRUE(OpenBytes(bytes + std::string(16, '\0')).ok());  // 16 bytes of data, padded to 32
  ExpectRefusedBytes(bytes + std::string(17, '\0'),
                     {"tensor data", std::to_string(bytes.size() + 17)});
  ExpectRefusedBytes(bytes + "PK\3\4 a zip file behind the model", {"tensor data"});
}

TEST_F(GgufReaderTest, AFileWithoutTensorsIsAllowed) {
  builder_.tensors.clear();
  const absl::StatusOr<GgufFile> gguf = Open();
  ASSERT_TRUE(gguf.ok()) << gguf.status();
  EXPECT_TRUE(gguf->tensors().empty());
}

TEST_F(GgufReaderTest, WeightsMustBeFinite) {
  builder_.tensors[0].data =
      testing::FloatBytes({1, 2, std::numeric_limits<float>::quiet_NaN(), 4, 5, 6});
  const absl::StatusOr<GgufFile> gguf = Open();
  ASSERT_TRUE(gguf.ok()) << gguf.status();
  std::vector<float> values(6);
  EXPECT_THAT(
      std::string(gguf->Read(0, absl::MakeSpan(values)).message()),
      AllOf(HasSubstr("model.gguf"), HasSubstr("tensor data first"), HasSubstr("element 2")));
}

TEST_F(GgufReaderTest, EveryTruncationIsAnError) {
  const std::string bytes = builder_.Build();
  for (size_t size = 0; size < bytes.size(); ++size) {
    const absl::Status status = OpenBytes(bytes.substr(0, size)).status();
    ASSERT_FALSE(status.ok()) << size;
    EXPECT_THAT(std::string(status.message()), HasSubstr("model.gguf")) << size;
  }
}

}  // namespace
}  // namespace fixpoint
