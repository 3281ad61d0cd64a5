// Damaged checkpoints: cut at every border and with flipped bits. An import must end in an error
// that names the file, or, where the damage made another valid file, in a model of the right form.
// Run it under ASan and UBSan too.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "calibrator/import/checkpoint.h"
#include "calibrator/import/test_files.h"

namespace fixpoint {
namespace {

using ::testing::HasSubstr;
using testing::TempDirectory;
using testing::TinyModel;

constexpr int kFlips = 1000;

void ExpectSound(const absl::StatusOr<Checkpoint>& got, const std::string& where) {
  if (!got.ok()) {
    EXPECT_THAT(std::string(got.status().message()), HasSubstr(where));
    return;
  }
  const FloatModel& model = got->model;
  const size_t hidden = static_cast<size_t>(model.config.hidden_size);
  EXPECT_EQ(model.layers.size(), static_cast<size_t>(model.config.num_hidden_layers));
  EXPECT_EQ(model.embedding.data.size(), hidden * static_cast<size_t>(model.config.vocab_size));
  EXPECT_EQ(model.final_norm.size(), hidden);
  EXPECT_LE(got->tokenizer.tokens.size(), static_cast<size_t>(model.config.vocab_size));
  EXPECT_TRUE(ValidateTokenizerSpec(got->tokenizer).ok());
}

// Borders and their neighbours that lie inside the file.
std::set<size_t> CutsAround(const std::vector<size_t>& borders, size_t size) {
  std::set<size_t> cuts = {0, 1};
  for (const size_t border : borders) {
    for (const size_t cut : {border - 1, border, border + 1}) {
      if (cut < size) cuts.insert(cut);
    }
  }
  return cuts;
}

void FlipBit(std::string& bytes, size_t bit) {
  bytes[bit / 8] = static_cast<char>(static_cast<uint8_t>(bytes[bit / 8]) ^ (1u << (bit % 8)));
}

TEST(GgufDamageTest, EveryCutIsAnErrorThatNamesTheFile) {
  testing::GgufBuilder builder = testing::TinyGguf(TinyModel(false, true));
  const std::string bytes = builder.Build();
  const TempDirectory directory;
  for (const size_t cut : CutsAround(builder.borders(), bytes.size())) {
    const std::string path = directory.Write("m.gguf", bytes.substr(0, cut));
    const absl::StatusOr<Checkpoint> got = ImportCheckpoint(path, nullptr);
    ASSERT_FALSE(got.ok()) << cut;
    EXPECT_THAT(std::string(got.status().message()), HasSubstr(path)) << cut;
  }
}

TEST(GgufDamageTest, FlippedBitsNeverCrash) {
  testing::GgufBuilder builder = testing::TinyGguf(TinyModel(true, false));
  const std::string bytes = builder.Build();
  const TempDirectory directory;
  std::mt19937_64 random(1);
  std::uniform_int_distribution<size_t> pick(0, builder.header_bytes() * 8 - 1);
  int refused = 0;
  for (int i = 0; i < kFlips; ++i) {
    std::string damaged = bytes;
    FlipBit(damaged, pick(random));
    const std::string path = directory.Write("m.gguf", damaged);
    const absl::StatusOr<Checkpoint> got = ImportCheckpoint(path, nullptr);
    ExpectSound(got, path);
    refused += !got.ok();
  }
  EXPECT_GT(refused, kFlips / 2);  // most of the header is structure, names and sizes
}

// Damage to the metadata's tokenizer part must also be safe where the weights are not looked at.
TEST(GgufDamageTest, FlippedBitsNeverCrashTheTokenizer) {
  testing::GgufBuilder builder;
  testing::SetTinyTokenizer(&builder);
  const std::string bytes = builder.Build();
  const TempDirectory directory;
  std::mt19937_64 random(2);
  std::uniform_int_distribution<size_t> pick(0, bytes.size() * 8 - 1);
  for (int i = 0; i < kFlips; ++i) {
    std::string damaged = bytes;
    FlipBit(damaged, pick(random));
    const std::string path = directory.Write("v.gguf", damaged);
    const absl::StatusOr<TokenizerAndTemplate> got = ImportTokenizer(path);
    if (got.ok()) {
      EXPECT_TRUE(ValidateTokenizerSpec(got->tokenizer).ok());
    } else {
      EXPECT_THAT(std::string(got.status().message()), HasSubstr(path));
    }
  }
}

class DirectoryDamageTest : public ::testing::Test {
 protected:
  DirectoryDamageTest() { testing::WriteHuggingFace(directory_, TinyModel(true, false)); }

  void FlipIn(const std::string& name, const std::string& bytes, size_t first_bytes) {
    std::mt19937_64 random(3);
    std::uniform_int_distribution<size_t> pick(0, first_bytes * 8 - 1);
    for (int i = 0; i < kFlips; ++i) {
      std::string damaged = bytes;
      FlipBit(damaged, pick(random));
      directory_.Write(name, damaged);
      ExpectSound(ImportCheckpoint(directory_.path(), nullptr), directory_.path());
    }
    directory_.Write(name, bytes);
    EXPECT_TRUE(ImportCheckpoint(directory_.path(), nullptr).ok());
  }

  TempDirectory directory_;
};

TEST_F(DirectoryDamageTest, CutSafetensorsAreErrors) {
  const std::string bytes =
      testing::SafetensorsFile(testing::HuggingFaceTensors(TinyModel(true, false)));
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  std::vector<size_t> borders = {8, 8 + header_bytes, bytes.size()};
  for (size_t end = 8 + header_bytes; end < bytes.size(); end += 32) borders.push_back(end);
  for (const size_t cut : CutsAround(borders, bytes.size())) {
    directory_.Write("model.safetensors", bytes.substr(0, cut));
    const absl::StatusOr<Checkpoint> got = ImportCheckpoint(directory_.path(), nullptr);
    ASSERT_FALSE(got.ok()) << cut;
    EXPECT_THAT(std::string(got.status().message()), HasSubstr("model.safetensors")) << cut;
  }
}

TEST_F(DirectoryDamageTest, FlippedSafetensorsHeadersNeverCrash) {
  const std::string bytes =
      testing::SafetensorsFile(testing::HuggingFaceTensors(TinyModel(true, false)));
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  FlipIn("model.safetensors", bytes, 8 + header_bytes);
}

TEST_F(DirectoryDamageTest, FlippedConfigsNeverCrash) {
  const std::string config = testing::HuggingFaceConfig(TinyModel(true, false));
  FlipIn("config.json", config, config.size());
}

TEST_F(DirectoryDamageTest, FlippedTokenizersNeverCrash) {
  const std::string json = testing::TinyTokenizerJson();
  FlipIn("tokenizer.json", json, json.size());
}

TEST_F(DirectoryDamageTest, FlippedIndexesNeverCrash) {
  std::filesystem::rename(directory_.path() + "/model.safetensors",
                          directory_.path() + "/s.safetensors");
  std::string map;
  for (const testing::NamedTensor& tensor : testing::HuggingFaceTensors(TinyModel(true, false))) {
    map += (map.empty() ? "\"" : ",\"") + tensor.name + "\":\"s.safetensors\"";
  }
  const std::string index = "{\"weight_map\":{" + map + "}}";
  FlipIn("model.safetensors.index.json", index, index.size());
}

}  // namespace
}  // namespace fixpoint
