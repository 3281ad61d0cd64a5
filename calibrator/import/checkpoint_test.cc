#include "calibrator/import/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/file.h"
#include "calibrator/import/test_files.h"

namespace fixpoint {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::GgufBuilder;
using ::testing::HasSubstr;
using testing::NamedTensor;
using testing::TempDirectory;
using testing::TinyModel;

void ExpectSameWeights(const FloatModel& got, const FloatModel& expected) {
  const std::vector<NamedTensor> a = testing::HuggingFaceTensors(got);
  const std::vector<NamedTensor> b = testing::HuggingFaceTensors(expected);
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].name, b[i].name);
    EXPECT_EQ(a[i].shape, b[i].shape) << a[i].name;
    EXPECT_EQ(a[i].values, b[i].values) << a[i].name;
  }
  EXPECT_EQ(testing::HuggingFaceConfig(got), testing::HuggingFaceConfig(expected));
}

class CheckpointTest : public ::testing::Test {
 protected:
  absl::StatusOr<Checkpoint> ImportGguf(GgufBuilder builder) {
    return ImportCheckpoint(directory_.Write("m.gguf", builder.Build()), nullptr);
  }
  void ExpectGgufRefused(const GgufBuilder& builder, const std::vector<std::string>& texts) {
    const absl::Status status = ImportGguf(builder).status();
    ASSERT_FALSE(status.ok()) << texts.front();
    EXPECT_THAT(std::string(status.message()), HasSubstr("m.gguf"));
    for (const std::string& text : texts)
      EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  }
  absl::StatusOr<Checkpoint> ImportDirectory() {
    return ImportCheckpoint(directory_.path(), nullptr);
  }
  void ExpectDirectoryRefused(const std::vector<std::string>& texts) {
    const absl::Status status = ImportDirectory().status();
    ASSERT_FALSE(status.ok()) << texts.front();
    EXPECT_THAT(std::string(status.message()), HasSubstr(directory_.path()));
    for (const std::string& text : texts)
      EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  }

  TempDirectory directory_;
};

TEST_F(CheckpointTest, BothFormatsGiveTheSameModel) {
  for (const bool tied : {false, true}) {
    for (const bool biases : {false, true}) {
      const FloatModel model = TinyModel(tied, biases);
      const absl::StatusOr<Checkpoint> gguf = ImportGguf(testing::TinyGguf(model));
      ASSERT_TRUE(gguf.ok()) << gguf.status();
      ExpectSameWeights(gguf->model, model);
      EXPECT_EQ(gguf->source_format, "gguf");
      EXPECT_EQ(gguf->source_types, "F32");
      EXPECT_EQ(gguf->chat_template, "{{ messages[0]['content'] }}");
      EXPECT_THAT(gguf->model.rope_inverse_frequency, ElementsAre(1.0, ::testing::DoubleEq(0.01)));

      testing::WriteHuggingFace(directory_, model);
      const absl::StatusOr<Checkpoint> hf = ImportDirectory();
      ASSERT_TRUE(hf.ok()) << hf.status();
      ExpectSameWeights(hf->model, model);
      EXPECT_EQ(hf->source_format, "safetensors");
      EXPECT_EQ(hf->model.rope_inverse_frequency, gguf->model.rope_inverse_frequency);
      EXPECT_EQ(hf->tokenizer.tokens, gguf->tokenizer.tokens);
      EXPECT_EQ(hf->tokenizer.types, gguf->tokenizer.types);
      EXPECT_EQ(hf->tokenizer.eos_ids, gguf->tokenizer.eos_ids);
      EXPECT_EQ(SerializeTokenizerSpec(hf->tokenizer), SerializeTokenizerSpec(gguf->tokenizer));
      EXPECT_TRUE(hf->chat_template.empty());
    }
  }
}

TEST_F(CheckpointTest, MultiHeadAttentionAndWideHeads) {
  FloatModel model = TinyModel(true, false);
  model.config.num_key_value_heads = 2;  // as many as heads
  for (FloatLayer& layer : model.layers) {
    layer.k_proj = layer.q_proj;
    layer.v_proj = layer.q_proj;
  }
  absl::StatusOr<Checkpoint> got = ImportGguf(testing::TinyGguf(model));
  ASSERT_TRUE(got.ok()) << got.status();
  ExpectSameWeights(got->model, model);

  model = TinyModel(true, false);  // 1 head of 8 = 2 heads of 4 in rows, but head_dim is not hidden
                                   // / heads with 4 heads of 2
  model.config.num_attention_heads = 1;
  model.config.head_dim = 4;
  for (FloatLayer& layer : model.layers) {
    layer.q_proj = layer.k_proj;
    layer.o_proj = Matrix{8, 4, std::vector<float>(32, 0.5f)};
  }
  GgufBuilder builder = testing::TinyGguf(model);
  ExpectGgufRefused(builder, {"blk.0.attn_q.weight", "[4, 8]", "[8, 8]"});
  builder.SetUint32("llama.attention.key_length", 4);
  builder.SetUint32("llama.attention.value_length", 4);
  got = ImportGguf(builder);
  ASSERT_TRUE(got.ok()) << got.status();
  ExpectSameWeights(got->model, model);
}

TEST_F(CheckpointTest, ShardsGiveTheSameModel) {
  const FloatModel model = TinyModel(false, true);
  testing::WriteHuggingFace(directory_, model);
  std::filesystem::remove(directory_.path() + "/model.safetensors");
  const std::vector<NamedTensor> all = testing::HuggingFaceTensors(model);
  const size_t half = all.size() / 2;
  directory_.Write("a.safetensors", testing::SafetensorsFile({all.begin(), all.begin() + half}));
  directory_.Write("b.safetensors", testing::SafetensorsFile({all.begin() + half, all.end()}));
  std::string map;
  for (size_t i = 0; i < all.size(); ++i) {
    absl::StrAppend(&map, i == 0 ? "" : ",", "\"", all[i].name, "\":\"", i < half ? "a" : "b",
                    ".safetensors\"");
  }
  directory_.Write("model.safetensors.index.json", absl::StrCat(R"({"weight_map":{)", map, "}}"));
  const absl::StatusOr<Checkpoint> got = ImportDirectory();
  ASSERT_TRUE(got.ok()) << got.status();
  ExpectSameWeights(got->model, model);
}

TEST_F(CheckpointTest, MissingExtraAndMisshapenTensorsAreNamed) {
  const FloatModel model = TinyModel(true, false);
  GgufBuilder builder = testing::TinyGguf(model);
  builder.Find("blk.1.ffn_up.weight")->name = "blk.1.ffn_sideways.weight";
  ExpectGgufRefused(builder, {"tensor blk.1.ffn_up.weight [6, 8] is missing"});
  builder = testing::TinyGguf(model);
  builder.AddFloatTensor("blk.0.attn_q_norm.weight", {4}, {1, 2, 3, 4});
  ExpectGgufRefused(builder, {"tensor blk.0.attn_q_norm.weight", "no place"});
  builder = testing::TinyGguf(model);
  builder.Find("blk.1.ffn_down.weight")->dims = {8, 6};
  ExpectGgufRefused(builder, {"blk.1.ffn_down.weight has shape [6, 8]", "asks for [8, 6]"});
  builder = testing::TinyGguf(model);
  builder.SetUint32("llama.block_count", 3);
  ExpectGgufRefused(builder, {"tensor blk.2.attn_norm.weight [8] is missing"});
  builder.SetUint32("llama.block_count", 1);
  ExpectGgufRefused(builder, {"tensor blk.1.attn_k.weight", "9 such tensors"});

  std::vector<NamedTensor> tensors = testing::HuggingFaceTensors(model);
  testing::WriteHuggingFace(directory_, model);
  tensors.push_back({"model.layers.0.self_attn.o_proj.bias", {8}, std::vector<float>(8)});
  directory_.Write("model.safetensors", testing::SafetensorsFile(tensors));
  ExpectDirectoryRefused({"model.safetensors", "model.layers.0.self_attn.o_proj.bias", "no place"});
  tensors.pop_back();
  tensors[0].shape = {16, 4};
  directory_.Write("model.safetensors", testing::SafetensorsFile(tensors));
  ExpectDirectoryRefused({"model.embed_tokens.weight has shape [16, 4]", "asks for [8, 8]"});
  tensors[0].shape = {0, 8};
  tensors[0].values.clear();
  directory_.Write("model.safetensors", testing::SafetensorsFile(tensors));
  ExpectDirectoryRefused({"model.embed_tokens.weight has shape [0, 8]"});
}

TEST_F(CheckpointTest, RotaryBuffersArePassedOver) {
  const FloatModel model = TinyModel(true, false);
  testing::WriteHuggingFace(directory_, model);
  std::vector<NamedTensor> tensors = testing::HuggingFaceTensors(model);
  tensors.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", {2}, {1, 2}});
  directory_.Write("model.safetensors", testing::SafetensorsFile(tensors));
  const absl::StatusOr<Checkpoint> got = ImportDirectory();
  ASSERT_TRUE(got.ok()) << got.status();
  ExpectSameWeights(got->model, model);
}

TEST_F(CheckpointTest, ACopyOfATiedHeadMustEqualTheEmbedding) {
  const FloatModel model = TinyModel(true, false);
  testing::WriteHuggingFace(directory_, model);
  std::vector<NamedTensor> tensors = testing::HuggingFaceTensors(model);
  tensors.push_back({"lm_head.weight", {8, 8}, model.embedding.data});
  directory_.Write("model.safetensors", testing::SafetensorsFile(tensors));
  const absl::StatusOr<Checkpoint> got = ImportDirectory();
  ASSERT_TRUE(got.ok()) << got.status();
  ExpectSameWeights(got->model, model);
  tensors.back().values[5] += 1;
  directory_.Write("model.safetensors", testing::SafetensorsFile(tensors));
  ExpectDirectoryRefused({"lm_head.weight differs"});
}

TEST_F(CheckpointTest, GgufRopeFactorsDivideTheFrequencies) {
  GgufBuilder builder = testing::TinyGguf(TinyModel(true, false));
  builder.AddFloatTensor("rope_freqs.weight", {2}, {1, 8});
  const absl::StatusOr<Checkpoint> got = ImportGguf(builder);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_THAT(got->model.rope_inverse_frequency, ElementsAre(1.0, ::testing::DoubleEq(0.01 / 8)));
  builder.Find("rope_freqs.weight")->data = testing::FloatBytes({1, 0});
  ExpectGgufRefused(builder, {"rope_freqs.weight", "factor 1 is 0"});
  builder.tensors.pop_back();
  builder.AddFloatTensor("rope_freqs.weight", {3}, {1, 1, 1});
  ExpectGgufRefused(builder, {"rope_freqs.weight has shape [3]", "asks for [2]"});
}

TEST_F(CheckpointTest, GgufLinearScaling) {
  GgufBuilder builder = testing::TinyGguf(TinyModel(true, false));
  builder.SetString("llama.rope.scaling.type", "linear");
  builder.SetFloat32("llama.rope.scaling.factor", 4);
  const absl::StatusOr<Checkpoint> got = ImportGguf(builder);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_THAT(got->model.rope_inverse_frequency, ElementsAre(0.25, ::testing::DoubleEq(0.0025)));
  builder.SetString("llama.rope.scaling.type", "yarn");
  ExpectGgufRefused(builder, {"llama.rope.scaling.type", "\"yarn\""});
}

TEST_F(CheckpointTest, GgufVariantsAreRefusedByName) {
  const GgufBuilder good = testing::TinyGguf(TinyModel(true, false));
  const auto with = [&good](auto change) {
    GgufBuilder builder = good;
    change(builder);
    return builder;
  };
  ExpectGgufRefused(with([](GgufBuilder& b) { b.SetString("general.architecture", "gemma3"); }),
                    {"general.architecture", "\"gemma3\""});
  ExpectGgufRefused(with([](GgufBuilder& b) { b.Remove("general.architecture"); }),
                    {"general.architecture", "missing"});
  ExpectGgufRefused(with([](GgufBuilder& b) { b.SetString("general.type", "adapter"); }),
                    {"general.type", "\"adapter\""});
  ExpectGgufRefused(with([](GgufBuilder& b) { b.SetUint32("split.count", 2); }), {"split.count"});
  ExpectGgufRefused(with([](GgufBuilder& b) { b.SetFloat32("llama.attention.scale", 2); }),
                    {"llama.attention.scale", "not understood"});
  ExpectGgufRefused(with([](GgufBuilder& b) { b.SetUint32("llama.expert_count", 8); }),
                    {"llama.expert_count", "8"});
  ExpectGgufRefused(with([](GgufBuilder& b) { b.SetUint32("llama.rope.dimension_count", 2); }),
                    {"llama.rope.dimension_count", "2"});
  ExpectGgufRefused(with([](GgufBuilder& b) { b.SetUint32("llama.attention.sliding_window", 16); }),
                    {"llama.attention.sliding_window", "16"});
  ExpectGgufRefused(with([](GgufBuilder& b) { b.Remove("llama.embedding_length"); }),
                    {"llama.embedding_length", "missing"});
  ExpectGgufRefused(with([](GgufBuilder& b) {
                      b.SetInt32s("llama.attention.head_count", {2, 2});
                    }),
                    {"llama.attention.head_count", "not an integer"});
  ExpectGgufRefused(with([](GgufBuilder& b) { b.SetUint32("llama.attention.head_count", 0); }),
                    {"llama.attention.head_count", "0"});
  ExpectGgufRefused(with([](GgufBuilder& b) { b.SetUint32("llama.attention.head_count_kv", 4); }),
                    {"2 attention heads are no multiple of 4"});
  ExpectGgufRefused(with([](GgufBuilder& b) { b.SetUint32("llama.block_count", 0xffffffff); }),
                    {"llama.block_count", "4294967295"});
  ExpectGgufRefused(with([](GgufBuilder& b) {
                      b.Find("blk.0.ffn_up.weight")->data[3] = '\x7f';
                      b.Find("blk.0.ffn_up.weight")->data[2] = '\x80';
                    }),
                    {"tensor data blk.0.ffn_up.weight", "element 0 is inf"});
  EXPECT_TRUE(ImportGguf(with([](GgufBuilder& b) {
                b.SetUint32("llama.attention.sliding_window", 64);
                b.SetUint32("llama.rope.dimension_count", 4);
                b.SetUint32("llama.vocab_size", 8);
              })).ok());
}

TEST_F(CheckpointTest, TheVocabularyMayBePaddedButNotTooLong) {
  FloatModel model = TinyModel(true, false);
  model.config.vocab_size = 10;
  model.embedding = Matrix{10, 8, std::vector<float>(80, 0.25f)};
  std::vector<std::string> stages;
  const std::string path = directory_.Write("m.gguf", testing::TinyGguf(model).Build());
  const absl::StatusOr<Checkpoint> got =
      ImportCheckpoint(path, [&stages](std::string_view stage, double fraction) {
        EXPECT_GE(fraction, 0);
        EXPECT_LE(fraction, 1);
        if (stages.empty() || stages.back() != stage) stages.emplace_back(stage);
      });
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(got->model.config.vocab_size, 10);
  EXPECT_EQ(got->tokenizer.tokens.size(), 8u);
  EXPECT_THAT(stages, ElementsAre("read metadata", "vocabulary: 8 tokens, 2 padding rows", "hash",
                                  "read weights"));

  model.config.vocab_size = 7;
  model.embedding = Matrix{7, 8, std::vector<float>(56, 0.25f)};
  ExpectGgufRefused(testing::TinyGguf(model), {"8 tokens, the embedding only 7 rows"});
}

TEST_F(CheckpointTest, GenerationConfigOverridesTheEndOfSequence) {
  testing::WriteHuggingFace(directory_, TinyModel(true, false));
  EXPECT_THAT(ImportDirectory()->tokenizer.eos_ids,
              ElementsAre(0, 1));  // config.json, then <|im_end|>
  directory_.Write("generation_config.json", R"({"eos_token_id": [7, 1]})");
  EXPECT_THAT(ImportDirectory()->tokenizer.eos_ids, ElementsAre(7, 1, 0));
  directory_.Write("generation_config.json", R"({"temperature": 0.5})");
  EXPECT_THAT(ImportDirectory()->tokenizer.eos_ids, ElementsAre(0, 1));
  directory_.Write("generation_config.json", R"({"eos_token_id": 8})");
  ExpectDirectoryRefused({"generation_config.json: eos_token_id 8 is no token"});
}

TEST_F(CheckpointTest, ChatTemplateFileGoesBeforeTheConfig) {
  testing::WriteHuggingFace(directory_, TinyModel(true, false));
  directory_.Write("tokenizer_config.json", R"({"chat_template": "from config"})");
  EXPECT_EQ(ImportDirectory()->chat_template, "from config");
  directory_.Write("chat_template.jinja", "from file");
  EXPECT_EQ(ImportDirectory()->chat_template, "from file");
}

TEST_F(CheckpointTest, DigestsAreThoseOfSha256sum) {
  const std::string path =
      directory_.Write("m.gguf", testing::TinyGguf(TinyModel(true, false)).Build());
  EXPECT_EQ(ImportCheckpoint(path, nullptr)->source_sha256,
            *RandomAccessFile::Open(path)->Sha256Hex());
  EXPECT_EQ(Sha256Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");

  testing::WriteHuggingFace(directory_, TinyModel(true, false));
  std::string lines;
  for (const char* name : {"config.json", "model.safetensors", "tokenizer.json"}) {
    absl::StrAppend(&lines, *RandomAccessFile::Open(directory_.path() + "/" + name)->Sha256Hex(),
                    "  ", name, "\n");
  }
  EXPECT_EQ(ImportDirectory()->source_sha256, Sha256Hex(lines));
}

TEST_F(CheckpointTest, MissingFilesAreNamed) {
  ExpectDirectoryRefused({"/config.json"});
  testing::WriteHuggingFace(directory_, TinyModel(true, false));
  std::filesystem::remove(directory_.path() + "/tokenizer.json");
  ExpectDirectoryRefused({"/tokenizer.json", "does not exist"});
  std::filesystem::remove(directory_.path() + "/model.safetensors");
  ExpectDirectoryRefused({"model.safetensors"});
  EXPECT_EQ(ImportCheckpoint("/nonexistent/m.gguf", nullptr).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(CheckpointTest, AFileOfAnotherKindIsRefused) {
  const std::string path = directory_.Write("x.safetensors", testing::SafetensorsFile({}));
  EXPECT_THAT(std::string(ImportCheckpoint(path, nullptr).status().message()),
              HasSubstr("give the directory"));
  EXPECT_FALSE(ImportCheckpoint(directory_.Write("x.gguf", ""), nullptr).ok());
}

TEST_F(CheckpointTest, TheTokenizerAloneNeedsNoWeights) {
  GgufBuilder vocabulary;
  vocabulary.SetString("general.architecture", "whatever");
  testing::SetTinyTokenizer(&vocabulary);
  const absl::StatusOr<TokenizerAndTemplate> gguf =
      ImportTokenizer(directory_.Write("v.gguf", vocabulary.Build()));
  ASSERT_TRUE(gguf.ok()) << gguf.status();
  EXPECT_EQ(gguf->chat_template, "{{ messages[0]['content'] }}");

  const std::string json = directory_.Write("tokenizer.json", testing::TinyTokenizerJson());
  directory_.Write("generation_config.json", R"({"eos_token_id": 0})");
  for (const std::string& path : {json, directory_.path()}) {
    const absl::StatusOr<TokenizerAndTemplate> hf = ImportTokenizer(path);
    ASSERT_TRUE(hf.ok()) << hf.status();
    EXPECT_EQ(SerializeTokenizerSpec(hf->tokenizer), SerializeTokenizerSpec(gguf->tokenizer));
  }
  EXPECT_THAT(std::string(ImportTokenizer(directory_.Write("x.bin", "abc")).status().message()),
              HasSubstr("neither"));
}

// The real model: numbers of its config.json, and figures that hold for any sound import of its
// weights.
TEST(RealModelTest, SmolLm2) {
  const char* path = std::getenv("FIXPOINT_MODEL");
  if (path == nullptr) GTEST_SKIP() << "FIXPOINT_MODEL is not set";
  const absl::StatusOr<Checkpoint> got = ImportCheckpoint(path, nullptr);
  ASSERT_TRUE(got.ok()) << got.status();
  const FloatConfig& config = got->model.config;
  EXPECT_EQ(config.architecture, "llama");
  EXPECT_EQ(config.num_hidden_layers, 30);
  EXPECT_EQ(config.hidden_size, 576);
  EXPECT_EQ(config.num_attention_heads, 9);
  EXPECT_EQ(config.num_key_value_heads, 3);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.intermediate_size, 1536);
  EXPECT_EQ(config.vocab_size, 49152);
  EXPECT_EQ(config.max_position_embeddings, 8192);
  EXPECT_EQ(config.rope_theta, 100000);
  EXPECT_FLOAT_EQ(static_cast<float>(config.rms_norm_eps), 1e-5f);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_EQ(got->source_types, "Q4_1, Q8_0, F32");
  EXPECT_EQ(got->model.rope_inverse_frequency.size(), 32u);
  EXPECT_EQ(got->tokenizer.tokens.size(), 49152u);
  EXPECT_EQ(got->tokenizer.merges.size(), 48900u);
  EXPECT_EQ(got->tokenizer.pre_tokenizer, PreTokenizer::kSmolLm);
  EXPECT_THAT(got->tokenizer.eos_ids, ElementsAre(2, 0));  // <|im_end|>, <|endoftext|>
  EXPECT_EQ(got->tokenizer.bos_id, 1);
  EXPECT_THAT(got->chat_template, HasSubstr("<|im_start|>"));
}

}  // namespace
}  // namespace fixpoint
