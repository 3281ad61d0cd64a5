#include "calibrator/import/safetensors_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "calibrator/import/test_files.h"

namespace fixpoint {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::LittleEndian;
using testing::NamedTensor;
using testing::SafetensorsBytes;
using testing::SafetensorsFile;
using testing::TempDirectory;

class SafetensorsTest : public ::testing::Test {
 protected:
  absl::StatusOr<Safetensors> Open(const std::string& bytes) {
    return Safetensors::OpenFile(directory_.Write("model.safetensors", bytes));
  }
  void ExpectRefused(const std::string& header, const std::string& data, const std::string& text) {
    const absl::Status status = Open(SafetensorsBytes(header, data)).status();
    ASSERT_FALSE(status.ok()) << header;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(directory_.path() + "/model.safetensors"), HasSubstr(text)))
        << header;
  }
  static std::string Entry(const std::string& dtype, const std::string& shape, uint64_t begin,
                           uint64_t end) {
    return absl::StrCat(R"({"dtype":")", dtype, R"(","shape":)", shape, R"(,"data_offsets":[)",
                        begin, ",", end, "]}");
  }

  TempDirectory directory_;
};

TEST_F(SafetensorsTest, ReadsAllWeightTypes) {
  const std::string header =
      absl::StrCat(R"({"__metadata__":{"k":"v"},"b":)", Entry("BF16", "[2]", 8, 12), R"(,"a":)",
                   Entry("F32", "[1,2]", 0, 8), R"(,"c":)", Entry("F16", "[2]", 12, 16), "}   ");
  const absl::StatusOr<Safetensors> file =
      Open(SafetensorsBytes(header, testing::FloatBytes({1.5f, -2}) +
                                        std::string("\x80\x3f\x00\xc0\x00\x3c\x00\xc4", 8)));
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(file->tensors().size(), 3u);
  const std::vector<std::vector<float>> expected = {{1.5f, -2}, {1, -2}, {1, -4}};
  for (size_t i = 0; i < 3; ++i) {
    std::vector<float> values(2);
    ASSERT_TRUE(file->Read(i, absl::MakeSpan(values)).ok());
    EXPECT_EQ(values, expected[i]) << file->tensors()[i].name;
  }
  EXPECT_THAT(file->tensors()[0].shape, ElementsAre(1, 2));
}

TEST_F(SafetensorsTest, OtherDtypesParseButAreNoWeights) {
  const absl::StatusOr<Safetensors> file =
      Open(SafetensorsBytes(absl::StrCat(R"({"q":)", Entry("I8", "[4]", 0, 4), "}"), "abcd"));
  ASSERT_TRUE(file.ok()) << file.status();
  std::vector<float> values(4);
  EXPECT_THAT(std::string(file->Read(0, absl::MakeSpan(values)).message()),
              AllOf(HasSubstr("tensor q"), HasSubstr("I8")));
  ExpectRefused(absl::StrCat(R"({"q":)", Entry("F4", "[4]", 0, 2), "}"), "ab", "\"F4\"");
}

TEST_F(SafetensorsTest, HeaderIsBounded) {
  EXPECT_FALSE(Open("").ok());
  EXPECT_FALSE(Open("1234567").ok());
  EXPECT_THAT(std::string(Open(LittleEndian<uint64_t>((16 << 20) + 1) + "{}").status().message()),
              HasSubstr("16777217"));
  EXPECT_THAT(std::string(Open(LittleEndian<uint64_t>(3) + "{}").status().message()),
              HasSubstr("header: has 3 bytes"));
  EXPECT_FALSE(Open(LittleEndian(~uint64_t{0}) + "{}").ok());
  ExpectRefused("", "", "'{'");
  ExpectRefused(" {}", "", "'{'");
}

TEST_F(SafetensorsTest, HeaderJsonIsChecked) {
  ExpectRefused("{\"a\":", "", "not valid JSON");
  ExpectRefused("{\"a\xff\":1}", "", "not valid JSON");
  ExpectRefused(std::string(20'000, '{'), "", "not valid JSON");
  std::string nested = "{\"a\":" + std::string(5'000, '[') + std::string(5'000, ']') + "}";
  ExpectRefused(nested, "", "not valid JSON");
  ExpectRefused(R"({"a":1})", "", "a: is not an object");
  ExpectRefused(R"({"__metadata__":{"k":1}})", "", "__metadata__: k");
  const std::string a = Entry("F32", "[1]", 0, 4);
  ExpectRefused(absl::StrCat(R"({"a":)", a, R"(,"a":)", a, "}"), "1234", "\"a\" appears twice");
  ExpectRefused(R"({"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}})", "1234",
                "\"shape\" appears twice");
  ExpectRefused(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"strides":[1]}})", "1234",
                "strides");
  ExpectRefused(absl::StrCat("{\"", std::string(513, 'n'), "\":", a, "}"), "1234", "513 bytes");
}

TEST_F(SafetensorsTest, ShapesAndOffsetsMustAgree) {
  ExpectRefused(absl::StrCat(R"({"a":)", Entry("F32", "[3]", 0, 8), "}"), "12345678",
                "span 8 bytes, F32 [3] takes 12");
  ExpectRefused(absl::StrCat(R"({"a":)", Entry("F32", "[-1]", 0, 4), "}"), "1234", "shape");
  ExpectRefused(absl::StrCat(R"({"a":)", Entry("F32", "[1.0]", 0, 4), "}"), "1234", "shape");
  ExpectRefused(absl::StrCat(R"({"a":)", Entry("F32", "[1,1,1,1,1,1,1,1,1]", 0, 4), "}"), "1234",
                "the limit is 8");
  // 2^62 * 4 bytes wraps to 0, as does 2^32 * 2^32 elements.
  ExpectRefused(absl::StrCat(R"({"a":)", Entry("F32", "[4611686018427387904]", 0, 0), "}"), "",
                "2^63");
  ExpectRefused(absl::StrCat(R"({"a":)", Entry("F32", "[4294967296,4294967296]", 0, 0), "}"), "",
                "2^63");
  ExpectRefused(absl::StrCat(R"({"a":)", Entry("F32", "[18446744073709551615,1]", 0, 0), "}"), "",
                "2^63");
  ExpectRefused(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", "1234",
                "[begin, end)");
  ExpectRefused(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", "1234", "[begin, end)");
  ExpectRefused(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551616]}})",
                "1234", "not valid JSON");
}

TEST_F(SafetensorsTest, TensorsMustTileTheData) {
  const auto two = [](uint64_t begin, uint64_t end) {
    return absl::StrCat(R"({"a":)", Entry("F32", "[1]", 0, 4), R"(,"b":)",
                        Entry("F32", "[1]", begin, end), "}");
  };
  EXPECT_TRUE(Open(SafetensorsBytes(two(4, 8), "12345678")).ok());
  ExpectRefused(two(2, 6), "123456", "tensor b: overlaps");
  ExpectRefused(two(5, 9), "123456789", "tensor b: leaves a hole");
  ExpectRefused(two(4, 8), "1234567", "tensor b: ends at byte 8 of the data, which has 7");
  ExpectRefused(two(4, 8), "123456789", "the tensors take 8 bytes of data, the file has 9");
  ExpectRefused("{}", "polyglot", "the tensors take 0 bytes");
}

TEST_F(SafetensorsTest, EmptyTensorsAreLegalInTheFormat) {
  const absl::StatusOr<Safetensors> file =
      Open(SafetensorsBytes(absl::StrCat(R"({"a":)", Entry("F32", "[0,5]", 0, 0), R"(,"s":)",
                                         Entry("F32", "[]", 0, 4), "}"),
                            "1234"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->tensors()[0].num_elements, 0);
  EXPECT_EQ(file->tensors()[1].num_elements, 1);
}

class ShardsTest : public SafetensorsTest {
 protected:
  ShardsTest() {
    directory_.Write("s1.safetensors", SafetensorsFile({{"a", {2}, {1, 2}}}));
    directory_.Write("s2.safetensors", SafetensorsFile({{"b", {1}, {3}}, {"c", {1}, {4}}}));
  }
  absl::Status OpenIndex(const std::string& weight_map) {
    directory_.Write(
        "model.safetensors.index.json",
        absl::StrCat(R"({"metadata":{"total_size":16},"weight_map":)", weight_map, "}"));
    return Safetensors::OpenDirectory(directory_.path()).status();
  }
  void ExpectIndexRefused(const std::string& weight_map, const std::string& text) {
    const absl::Status status = OpenIndex(weight_map);
    ASSERT_FALSE(status.ok()) << weight_map;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(directory_.path()), HasSubstr(text)));
  }
};

TEST_F(ShardsTest, ReadsAcrossFiles) {
  ASSERT_TRUE(
      OpenIndex(R"({"a":"s1.safetensors","b":"s2.safetensors","c":"s2.safetensors"})").ok());
  const absl::StatusOr<Safetensors> all = Safetensors::OpenDirectory(directory_.path());
  ASSERT_TRUE(all.ok());
  ASSERT_EQ(all->tensors().size(), 3u);
  std::vector<float> value(1);
  ASSERT_TRUE(all->Read(2, absl::MakeSpan(value)).ok());
  EXPECT_EQ(value[0], 4);
  EXPECT_EQ(all->PathOf(2), directory_.path() + "/s2.safetensors");
  EXPECT_EQ(all->FilePaths().size(), 3u);
}

TEST_F(ShardsTest, IndexMustListEveryTensorWhereItIs) {
  ExpectIndexRefused(R"({"a":"s1.safetensors","b":"s2.safetensors"})", "tensor c");
  ExpectIndexRefused(R"({"a":"s1.safetensors","b":"s1.safetensors","c":"s2.safetensors"})",
                     "tensor b");
  ExpectIndexRefused(
      R"({"a":"s1.safetensors","b":"s2.safetensors","c":"s2.safetensors","d":"s1.safetensors"})",
      "tensor d is not in s1.safetensors");
  ExpectIndexRefused(R"({"a":"s1.safetensors","a":"s1.safetensors"})", "appears twice");
  ExpectIndexRefused(R"({"a":"s3.safetensors"})", "s3.safetensors");
  ExpectIndexRefused("[]", "weight_map");
}

TEST_F(ShardsTest, ShardNamesStayInTheDirectory) {
  for (const char* name : {"../s1.safetensors", "/etc/s1.safetensors", "x/s1.safetensors",
                           "x\\\\s1.safetensors", "s1.bin", "s1\\u0000.safetensors"}) {
    ExpectIndexRefused(absl::StrCat(R"({"a":")", name, "\"}"), "is not the name of a .safetensors");
  }
}

TEST_F(SafetensorsTest, ADirectoryWithoutWeightsSaysWhatIsMissing) {
  const absl::Status status = Safetensors::OpenDirectory(directory_.path()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("model.safetensors.index.json"));
}

TEST_F(SafetensorsTest, EveryTruncationIsAnError) {
  const std::string bytes = SafetensorsFile({{"a", {2, 2}, {1, 2, 3, 4}}, {"b", {1}, {5}}});
  for (size_t size = 0; size < bytes.size(); ++size) {
    const absl::Status status = Open(bytes.substr(0, size)).status();
    ASSERT_FALSE(status.ok()) << size;
    EXPECT_THAT(std::string(status.message()), HasSubstr("model.safetensors")) << size;
  }
}

}  // namespace
}  // namespace fixpoint
