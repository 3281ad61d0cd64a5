// Damaged and forged files. Damage is always found by a checksum; a forged file has fitting
// checksums and must be refused for what it says.
#include <fcntl.h>
#include <unistd.h>

#include <functional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "bundle/bundle.h"
#include "bundle/format.h"
#include "bundle/manifest.h"
#include "bundle/sections.h"
#include "bundle/test_file.h"
#include "bundle/test_model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

// About 4.5 MB: several chunks, sections larger and smaller than one.
TestModelOptions ManyChunks() {
  TestModelOptions options;
  options.hidden = 256;
  options.intermediate = 1536;
  options.prefix_tokens = 2;
  options.qkv_bias = true;
  return options;
}

class BundleDamageTest : public BundleFolderTest {
 protected:
  void Write(const TestModelOptions& options) {
    ASSERT_TRUE(WriteBundle(MakeTestBundle(options), path_).ok());
    good_ = FileBytes();
    header_ = HeaderOf(good_);
    Bundle parsed;
    ASSERT_TRUE(ParseManifest(ManifestOf(good_), &parsed, &sections_).ok());
  }

  // Overwrites one byte in place; true when the file is then refused as damaged, with its name.
  ::testing::AssertionResult FlipIsRefused(uint64_t offset, uint8_t mask, std::string* message) {
    const int fd = ::open(path_.c_str(), O_WRONLY);
    const auto put = [&](char value) {
      return ::pwrite(fd, &value, 1, static_cast<off_t>(offset)) == 1;
    };
    bool written = put(static_cast<char>(good_[offset] ^ static_cast<char>(mask)));
    const absl::Status status = ReadBundle(path_, 1).status();
    written = put(good_[offset]) && written;
    ::close(fd);
    *message = std::string(status.message());
    if (!written) return ::testing::AssertionFailure() << "cannot write";
    if (status.code() != absl::StatusCode::kDataLoss || !absl::StrContains(*message, path_)) {
      return ::testing::AssertionFailure()
             << "byte " << offset << " ^ " << int{mask} << ": " << status;
    }
    return ::testing::AssertionSuccess();
  }

  absl::Status StatusOf(const std::string& file) {
    SetFileBytes(file);
    return ReadBundle(path_, 2).status();
  }

  std::string good_;
  FileHeader header_;
  std::vector<Section> sections_;
};

TEST_F(BundleDamageTest, EveryHeaderByteCounts) {
  Write({});
  std::string message;
  for (uint64_t offset = 0; offset < kSectionAlign; ++offset) {
    ASSERT_TRUE(FlipIsRefused(offset, 0x01, &message));
    if (offset >= sizeof(FileHeader)) continue;
    EXPECT_THAT(message, HasSubstr("header"));
    for (const uint8_t mask : {0x80, 0xff}) ASSERT_TRUE(FlipIsRefused(offset, mask, &message));
  }
  EXPECT_TRUE(ReadBundle(path_).ok());
}

TEST_F(BundleDamageTest, RandomBitFlipsAreRefused) {
  Write(ManyChunks());
  std::mt19937_64 random(7);
  std::string message;
  for (int i = 0; i < 1000; ++i) {
    const uint64_t offset = random() % good_.size();
    ASSERT_TRUE(FlipIsRefused(offset, static_cast<uint8_t>(1 << random() % 8), &message));
  }
  EXPECT_TRUE(ReadBundle(path_).ok());
}

TEST_F(BundleDamageTest, DamageIsNamedByItsSection) {
  Write(ManyChunks());
  std::string message;
  const uint64_t first_chunk_end = kChunkBytes;
  for (const Section& section : sections_) {
    if (section.bytes == 0) continue;
    const uint64_t offset = header_.data_offset + section.offset + section.bytes / 2;
    ASSERT_TRUE(FlipIsRefused(offset, 0x10, &message));
    if (offset < first_chunk_end) {
      EXPECT_THAT(message, HasSubstr("first sections"));
    } else if (section.bytes > 2 * kChunkBytes / 3) {
      EXPECT_THAT(message, HasSubstr(section.name));
    } else {
      EXPECT_THAT(message, HasSubstr("section"));
    }
  }
  ASSERT_TRUE(FlipIsRefused(good_.size() - 1, 1, &message));
  EXPECT_THAT(message, HasSubstr("trailer"));
  ASSERT_TRUE(FlipIsRefused(header_.manifest_offset + 5, 1, &message));
  EXPECT_THAT(message, HasSubstr("manifest"));
}

TEST_F(BundleDamageTest, TruncationIsRefusedAndNamed) {
  Write(ManyChunks());
  std::vector<std::pair<uint64_t, std::string>> borders = {
      {sizeof(FileHeader), "header"},
      {header_.manifest_offset, "manifest"},
      {header_.manifest_offset + header_.manifest_bytes, "manifest"},
      {header_.chunk_table_offset, "chunk table"},
      {good_.size() - kTrailerBytes, "trailer"}};
  for (const Section& section : sections_) {
    borders.emplace_back(header_.data_offset + section.offset, section.name);
    borders.emplace_back(header_.data_offset + section.offset + section.bytes, "section");
  }
  for (const auto& [border, name] : borders) {
    for (const int64_t delta : {-1, 0, 1}) {
      const uint64_t size = border + static_cast<uint64_t>(delta);
      SetFileBytes(good_);
      ASSERT_EQ(::truncate(path_.c_str(), static_cast<off_t>(size)), 0);
      const absl::Status status = ReadBundle(path_, 1).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << size << " " << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
      EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("ends after ", size)));
      EXPECT_THAT(std::string(status.message()),
                  AnyOf(HasSubstr("header"), HasSubstr("manifest"), HasSubstr("section '"),
                        HasSubstr("chunk table"), HasSubstr("trailer")));
      // One byte into something, that is what is missing. An empty section has no first byte.
      if (delta == 1 && name != "section" && !absl::StrContains(name, "prefix")) {
        if (size != sizeof(FileHeader) + 1) {
          EXPECT_THAT(std::string(status.message()), HasSubstr(name)) << size;
        }
      }
    }
  }
  for (const uint64_t size : {uint64_t{0}, uint64_t{1}, uint64_t{8}}) {
    EXPECT_EQ(StatusOf(good_.substr(0, size)).code(), absl::StatusCode::kDataLoss);
  }
}

TEST_F(BundleDamageTest, BytesBehindTheEndAreRefused) {
  Write({});
  EXPECT_EQ(StatusOf(good_ + std::string(1, '\0')).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(StatusOf(good_ + good_).code(), absl::StatusCode::kDataLoss);
}

TEST_F(BundleDamageTest, OtherVersionsAreNamed) {
  Write({});
  FileHeader header = header_;
  header.version = 77;
  absl::Status status = StatusOf(Seal(BodyOf(good_), header));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("format version is 77"));
  EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("version ", kBundleVersion)));
  header = header_;
  header.numerics_version = 78;
  status = StatusOf(Seal(BodyOf(good_), header));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("numerics version is 78"));
  EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("version ", kNumericsVersion)));
  // A header and a manifest that disagree.
  status = StatusOf(WithManifest(
      good_, Replaced(ManifestOf(good_), absl::StrCat("\"numerics_version\":", kNumericsVersion),
                      "\"numerics_version\":79")));
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("79"));
}

TEST_F(BundleDamageTest, ForgedHeadersCannotOverflow) {
  Write({});
  const uint64_t huge = ~uint64_t{0};  // 2^61 more chunks give the same file size modulo 2^64
  const std::vector<std::pair<const char*, uint64_t FileHeader::*>> fields = {
      {"manifest_offset", &FileHeader::manifest_offset},
      {"manifest_bytes", &FileHeader::manifest_bytes},
      {"data_offset", &FileHeader::data_offset},
      {"chunk_table_offset", &FileHeader::chunk_table_offset},
      {"chunk_count", &FileHeader::chunk_count}};
  for (const auto& [name, field] : fields) {
    for (const uint64_t value :
         {uint64_t{0}, uint64_t{1}, huge, huge - 4095, huge / 2 + 1, header_.*field + 1,
          header_.*field - 1, header_.*field + 4096, header_.*field + (uint64_t{1} << 40),
          header_.*field + (uint64_t{1} << 61)}) {
      if (value == header_.*field) continue;
      FileHeader header = header_;
      header.*field = value;
      // A manifest one byte longer ends in padding: only that field is wrong, but the JSON then
      // holds a NUL.
      const absl::Status status = StatusOf(Seal(BodyOf(good_), header));
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss)
          << name << " " << value << " " << status;
    }
  }
}

TEST_F(BundleDamageTest, PaddingMustBeZero) {
  Write({});
  std::vector<uint64_t> paddings = {sizeof(FileHeader), kSectionAlign - 1,
                                    header_.manifest_offset + header_.manifest_bytes};
  for (const Section& section : sections_) {
    const uint64_t end = header_.data_offset + section.offset + section.bytes;
    if (end % kSectionAlign != 0) paddings.push_back(end);
    if (end % kSectionAlign != 0) paddings.push_back(AlignSection(end) - 1);
  }
  for (const uint64_t offset : paddings) {
    std::string body = BodyOf(good_);
    ASSERT_EQ(body[offset], '\0');
    body[offset] = 1;
    const absl::Status status = StatusOf(Seal(body, header_));
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << offset;
    EXPECT_THAT(std::string(status.message()), HasSubstr("padding")) << offset;
  }
  EXPECT_TRUE(StatusOf(Seal(BodyOf(good_), header_)).ok());
}

TEST_F(BundleDamageTest, ForgedContentsAreRefused) {
  Write({});
  const auto with_byte = [&](const std::string& name, uint64_t index, uint8_t value) {
    for (const Section& section : sections_) {
      if (section.name != name) continue;
      std::string body = BodyOf(good_);
      body[header_.data_offset + section.offset + index] = static_cast<char>(value);
      return std::string(StatusOf(Seal(body, header_)).message());
    }
    return std::string("no such section");
  };
  EXPECT_THAT(with_byte("layers.1.down_proj.weight", 17, 0x80),
              HasSubstr("'layers.1.down_proj.weight': element 17 is -128"));
  EXPECT_THAT(with_byte("rope.cos", 1, 0x41), HasSubstr("'rope.cos': element 0"));
  EXPECT_THAT(with_byte("head.multiplier", 3, 0x80), HasSubstr("'head.multiplier': element 0"));
  EXPECT_THAT(with_byte("layers.0.v.multiplier", 5, 0xff), HasSubstr("'layers.0.v.multiplier'"));
  EXPECT_THAT(with_byte("tokenizer", 0, 'x'), HasSubstr("section 'tokenizer'"));
  EXPECT_THAT(with_byte("tokenizer", 4, 9), HasSubstr("version 9"));
}

TEST_F(BundleDamageTest, ForgedManifestsAreRefusedByName) {
  Write({});
  const std::string manifest = ManifestOf(good_);
  const std::vector<std::vector<std::string>> edits = {
      // what, by what, what the message names
      {"\"hidden_size\":64", "\"hidden_size\":65", "section"},
      {"\"hidden_size\":64", "\"hidden_size\":64.0", "config.hidden_size"},
      {"\"hidden_size\":64", "\"hidden_size\":99999999999", "config.hidden_size"},
      {"\"hidden_size\":64", "\"hidden_size\":-64", "config.hidden_size"},
      {"\"hidden_size\":64", "\"hidden_size\":64,\"hidden_size\":64", "stands twice"},
      {"\"hidden_size\":64", "\"hidden_sizes\":64", "'config.hidden_size' is missing"},
      {"\"hidden_size\":64", "\"hidden_size\":64,\"color\":1", "unknown key 'config.color'"},
      {"\"vocab_size\":300", "\"vocab_size\":1048576", "section"},
      {"\"num_hidden_layers\":2", "\"num_hidden_layers\":1024", "num_hidden_layers"},
      {"\"qk_hadamard\":false", "\"qk_hadamard\":0", "true or false"},
      {"\"prefix_token_ids\":[]", "\"prefix_token_ids\":[1]", "section"},
      {"\"prefix_token_ids\":[]", "\"prefix_token_ids\":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]",
       "more than 16"},
      {"\"q_before.p\"", "\"q_before.x\"", "layers.0.q_before.p"},
      {"\"product_shift\":", "\"product_shift\":9", "layers.0.product_shift"},
      {"\"d_max\":", "\"d_max\":-", "layers.0.scores.0.d_max"},
      {"\"scores\":[{", "\"scores\":[{\"e\":1,", "layers.0.scores.0.e"},
      {"\"sites\":[{", "\"sites\":[{\"e\":1,", "sites.0.e"},
      {"\"provenance\":{", "\"provenances\":{", "provenance"},
      {"\"format_version\":1", "\"format_version\":1,\"extra\":{}", "unknown key 'extra'"},
      {"\"name\":\"rope.sin\"", "\"name\":\"rope.tan\"", "rope.tan"},
      {"\"name\":\"rope.sin\",\"dtype\":\"int16\"", "\"name\":\"rope.sin\",\"dtype\":\"int8\"",
       "rope.sin"},
      {"\"name\":\"rope.cos\",\"dtype\":\"int16\",\"rows\":512",
       "\"name\":\"rope.cos\",\"dtype\":\"int16\",\"rows\":511", "rope.cos"},
      {"\"offset\":0,", "\"offset\":4096,", "rope.cos"},
      {"\"offset\":0,", "\"offset\":18446744073709551615,", "rope.cos"},
      {"\"sections\":[", "\"sections\":[[", "JSON"}};
  for (const auto& edit : edits) {
    const absl::Status status = StatusOf(WithManifest(good_, Replaced(manifest, edit[0], edit[1])));
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << edit[1] << " " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(edit[2])) << edit[1];
    EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
  }
  // The unchanged manifest passes the same way, so the refusals above come from the edits.
  EXPECT_TRUE(StatusOf(WithManifest(good_, manifest)).ok());
}

TEST_F(BundleDamageTest, SectionTablesMayNotGrowOrShrink) {
  Write({});
  const std::string manifest = ManifestOf(good_);
  const size_t last = manifest.rfind(",{\"name\":\"tokenizer\"");
  ASSERT_NE(last, std::string::npos);
  const std::string tokenizer = manifest.substr(last, manifest.rfind(']') - last);
  std::string shorter = manifest, longer = manifest;
  shorter.erase(last, tokenizer.size());
  longer.insert(last, tokenizer);
  EXPECT_THAT(std::string(StatusOf(WithManifest(good_, shorter)).message()),
              HasSubstr("tokenizer"));
  EXPECT_THAT(std::string(StatusOf(WithManifest(good_, longer)).message()), HasSubstr("tokenizer"));
  // A tokenizer of another length no longer fits the file.
  const size_t bytes = manifest.rfind("\"bytes\":");
  const std::string huge = manifest.substr(0, bytes) + "\"bytes\":1000000000000}]}";
  EXPECT_EQ(StatusOf(WithManifest(good_, huge)).code(), absl::StatusCode::kDataLoss);
}

TEST_F(BundleDamageTest, DeepManifestsAreRefused) {
  Write({});
  const std::string deep = Replaced(
      ManifestOf(good_), "\"provenance\":{",
      absl::StrCat("\"provenance\":{\"d\":", std::string(40, '['), std::string(40, ']'), ","));
  const absl::Status status = StatusOf(WithManifest(good_, deep));
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("JSON"));
}

}  // namespace
}  // namespace fixpoint
