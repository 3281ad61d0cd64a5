#include "bundle/bundle.h"

#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "base/digest.h"
#include "bundle/manifest.h"
#include "bundle/sections.h"
#include "bundle/test_file.h"
#include "bundle/test_model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

using ::testing::HasSubstr;

class BundleTest : public BundleFolderTest {};

// Tensors one by one; everything else through the manifest, which holds it all.
void ExpectEqual(const Bundle& a, const Bundle& b) {
  std::vector<std::string> tensors_a, tensors_b;
  const auto collect = [](std::vector<std::string>* out) {
    return [out](const std::string& name, const auto& values, int64_t, int64_t, bool) {
      out->push_back(name + " " +
                     Sha256Hex(absl::string_view(reinterpret_cast<const char*>(values.data()),
                                                 values.size() * sizeof(values[0]))));
    };
  };
  VisitTensors(a.model, collect(&tensors_a));
  VisitTensors(b.model, collect(&tensors_b));
  EXPECT_EQ(tensors_a, tensors_b);
  const auto manifest = [](const Bundle& bundle) {
    return SerializeManifest(bundle, PlanSections(bundle.model, 1,
                                                  [&](absl::string_view) {
                                                    return !bundle.model.layers[0].qkv.bias.empty();
                                                  }))
        .value();
  };
  EXPECT_EQ(manifest(a), manifest(b));
  EXPECT_EQ(SerializeTokenizerSpec(a.tokenizer), SerializeTokenizerSpec(b.tokenizer));
  EXPECT_EQ(a.model.layers[0].qkv.outputs, b.model.layers[0].qkv.outputs);
  EXPECT_EQ(a.model.head.depth, b.model.head.depth);
}

std::vector<TestModelOptions> Variants() {
  std::vector<TestModelOptions> variants(5);
  variants[1].prefix_tokens = 4;
  variants[1].wide_sites = kWideAll;
  variants[2].qkv_bias = true;
  variants[2].qk_hadamard = true;
  variants[2].down_hadamard_block = 128;
  variants[3].vocab = 5000;  // several chunks
  variants[3].hidden = 320;
  variants[3].context = 3;
  variants[4].seed = 2;
  variants[4].layers = 1;
  variants[4].heads = variants[4].kv_heads = 1;
  variants[4].odd_layer_wide_sites = kWideDownIn;
  return variants;
}

TEST_F(BundleTest, WhatIsWrittenIsRead) {
  for (const TestModelOptions& options : Variants()) {
    Bundle bundle = MakeTestBundle(options);
    bundle.golden_digest = Sha256Hex("golden");
    const std::string digest = WriteBundle(bundle, path_).value();
    for (const int threads : {1, 2, 7}) {
      const auto read = ReadBundle(path_, threads);
      ASSERT_TRUE(read.ok()) << read.status();
      ExpectEqual(bundle, *read);
      EXPECT_EQ(read->digest, digest);
      EXPECT_EQ(read->file_bytes, std::filesystem::file_size(path_));
      EXPECT_EQ(read->chat_template, bundle.chat_template);
      EXPECT_EQ(read->provenance_json, bundle.provenance_json);
      EXPECT_EQ(read->golden_digest, bundle.golden_digest);
      EXPECT_EQ(read->sites.size(), bundle.sites.size());
    }
    EXPECT_EQ(FilesInFolder(), 1);
  }
}

TEST_F(BundleTest, WritingAgainGivesTheSameBytes) {
  for (const TestModelOptions& options : Variants()) {
    ASSERT_TRUE(WriteBundle(MakeTestBundle(options), path_).ok());
    const std::string first = FileBytes();
    const Bundle read = ReadBundle(path_).value();
    ASSERT_TRUE(WriteBundle(read, path_).ok());
    EXPECT_TRUE(FileBytes() == first);
  }
}

TEST_F(BundleTest, DigestIsTheSha256OfTheFileBeforeTheTrailer) {
  const std::string digest = WriteBundle(MakeTestBundle(), path_).value();
  const std::string file = FileBytes();
  EXPECT_EQ(digest, Sha256Hex(absl::string_view(file).substr(0, file.size() - kTrailerBytes)));
  EXPECT_EQ(digest, HexEncode(file.data() + file.size() - kTrailerBytes, kTrailerBytes));
  // Anything that changes a token or the bundle's description changes the identity.
  Bundle other = MakeTestBundle();
  other.model.layers[1].product_shift += 1;
  EXPECT_NE(WriteBundle(other, path_).value(), digest);
  other = MakeTestBundle();
  other.chat_template += " ";
  EXPECT_NE(WriteBundle(other, path_).value(), digest);
}

TEST_F(BundleTest, OddTextsSurvive) {
  Bundle bundle = MakeTestBundle();
  bundle.chat_template = std::string("\"\\\n\t\x01\0 \xC3\xA9\xF0\x9F\x98\x80", 12 + 2);
  bundle.provenance_json =
      "{ \"float\" : 0.10, \"text\": \"}\\\"{\", \"deep\": [[[{\"a\": [1e400]}]]] }";
  // 1e400 is beyond double, so simdjson refuses it: the figure must be a number that JSON readers
  // can hold.
  EXPECT_FALSE(WriteBundle(bundle, path_).ok());
  bundle.provenance_json =
      "{ \"float\" : 0.10, \"text\": \"}\\\"{\", \"deep\": [[[{\"a\": []}]]] }";
  const auto digest = WriteBundle(bundle, path_);
  ASSERT_TRUE(digest.ok()) << digest.status();
  const Bundle read = ReadBundle(path_).value();
  EXPECT_EQ(read.chat_template, bundle.chat_template);
  EXPECT_EQ(read.provenance_json, bundle.provenance_json);
}

TEST_F(BundleTest, TheWriterRefusesWhatTheReaderWould) {
  const auto refusal = [&](auto change) {
    Bundle bundle = MakeTestBundle();
    change(&bundle);
    const auto written = WriteBundle(bundle, path_);
    EXPECT_FALSE(written.ok());
    EXPECT_THAT(std::string(written.status().message()), HasSubstr(path_));
    EXPECT_EQ(FilesInFolder(), 0);
    return std::string(written.status().message());
  };
  EXPECT_THAT(refusal([](Bundle* b) { b->provenance_json = ""; }), HasSubstr("JSON"));
  EXPECT_THAT(refusal([](Bundle* b) { b->provenance_json = "[]"; }), HasSubstr("provenance"));
  EXPECT_THAT(refusal([](Bundle* b) { b->provenance_json = "{},\"spy\":{}"; }), HasSubstr("spy"));
  EXPECT_THAT(refusal([](Bundle* b) { b->provenance_json = "{} "; }), HasSubstr("provenance"));
  EXPECT_THAT(refusal([](Bundle* b) { b->chat_template = "\xff"; }), HasSubstr("UTF-8"));
  EXPECT_THAT(refusal([](Bundle* b) { b->golden_digest = "abc"; }), HasSubstr("golden_digest"));
  EXPECT_THAT(refusal([](Bundle* b) { b->sites[1].bits = 4; }), HasSubstr("sites.1.bits"));
  EXPECT_THAT(refusal([](Bundle* b) { b->sites[0].granularity = "row"; }), HasSubstr("'row'"));
  EXPECT_THAT(refusal([](Bundle* b) { b->sites[0].scale = "nan"; }), HasSubstr("'nan'"));
  EXPECT_THAT(refusal([](Bundle* b) { b->sites[0].name = ""; }), HasSubstr("sites.0.name"));
  EXPECT_THAT(refusal([](Bundle* b) { b->tokenizer.bos_id = 300; }), HasSubstr("bos id 300"));
  EXPECT_THAT(refusal([](Bundle* b) { b->tokenizer = MakeTestTokenizer(301); }),
              HasSubstr("301 tokens"));
  EXPECT_THAT(refusal([](Bundle* b) { b->model.layers[1].v.k = 31; }), HasSubstr("layers.1.v.k"));
}

TEST_F(BundleTest, MissingAndForeignFiles) {
  EXPECT_EQ(ReadBundle(path_).status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(LooksLikeBundle(path_));
  EXPECT_FALSE(LooksLikeBundle(folder_));
  EXPECT_FALSE(ReadBundle(folder_).ok());
  SetFileBytes("GGUF");
  EXPECT_FALSE(LooksLikeBundle(path_));
  SetFileBytes(std::string(10'000, 'G'));
  EXPECT_FALSE(LooksLikeBundle(path_));
  const auto foreign = ReadBundle(path_);
  EXPECT_EQ(foreign.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(foreign.status().message()), HasSubstr("magic"));
  ASSERT_TRUE(WriteBundle(MakeTestBundle(), path_).ok());
  EXPECT_TRUE(LooksLikeBundle(path_));
}

// As large as SmolLM2-135M. The time is printed, not judged: test machines differ.
TEST_F(BundleTest, ALargeBundleOpens) {
  TestModelOptions options;
  options.layers = 30;
  options.hidden = 576;
  options.heads = 9;
  options.kv_heads = 3;
  options.head_dim = 64;
  options.intermediate = 1536;
  options.vocab = 49152;
  options.context = 8192;
  options.prefix_tokens = 4;
  const Bundle bundle = MakeTestBundle(options);
  const auto seconds = [](auto start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  auto start = std::chrono::steady_clock::now();
  const auto written = WriteBundle(bundle, path_);
  ASSERT_TRUE(written.ok()) << written.status();
  std::printf("written in %.3f s\n", seconds(start));
  for (const int threads : {1, 2, 4}) {
    start = std::chrono::steady_clock::now();
    const auto read = ReadBundle(path_, threads);
    const double elapsed = seconds(start);
    ASSERT_TRUE(read.ok()) << read.status();
    std::printf("%.1f MB opened by %d threads in %.3f s\n", read->file_bytes * 1e-6, threads,
                elapsed);
    EXPECT_EQ(read->digest, *written);
    EXPECT_TRUE(read->model.embedding == bundle.model.embedding);
    EXPECT_TRUE(read->model.layers[29].prefix_v == bundle.model.layers[29].prefix_v);
  }
}

}  // namespace
}  // namespace fixpoint
