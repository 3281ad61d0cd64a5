#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "calibrator/import/gguf_checkpoint.h"
#include "calibrator/import/test_files.h"

namespace fixpoint {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::GgufBuilder;
using ::testing::HasSubstr;
using testing::TempDirectory;

class GgufTokenizerTest : public ::testing::Test {
 protected:
  GgufTokenizerTest() { testing::SetTinyTokenizer(&builder_); }

  void UseSentencePiece() {
    builder_ = GgufBuilder();
    builder_.SetString("tokenizer.ggml.model", "llama");
    builder_.SetStrings("tokenizer.ggml.tokens",
                        {"<unk>", "<s>", "</s>", "<0x0A>", "\u2581", "a", "\u2581a", "<user>"});
    builder_.SetFloat32s("tokenizer.ggml.scores", {0, 0, 0, 0, -2, -3, -1, -1000});
    builder_.SetInt32s("tokenizer.ggml.token_type", {2, 3, 3, 6, 1, 1, 1, 4});
    builder_.SetUint32("tokenizer.ggml.bos_token_id", 1);
    builder_.SetUint32("tokenizer.ggml.eos_token_id", 2);
    builder_.SetUint32("tokenizer.ggml.unknown_token_id", 0);
  }

  absl::StatusOr<TokenizerSpec> Parse() {
    const absl::StatusOr<GgufFile> gguf =
        GgufFile::Open(directory_.Write("v.gguf", builder_.Build()));
    if (!gguf.ok()) return gguf.status();
    return ParseGgufTokenizer(*gguf);
  }
  TokenizerSpec MustParse() {
    absl::StatusOr<TokenizerSpec> spec = Parse();
    EXPECT_TRUE(spec.ok()) << spec.status();
    return spec.value_or(TokenizerSpec());
  }
  void ExpectRefused(const std::string& key, const std::string& text) {
    const absl::Status status = Parse().status();
    ASSERT_FALSE(status.ok()) << key << " " << text;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("v.gguf"), HasSubstr("tokenizer.ggml." + key), HasSubstr(text)));
  }

  TempDirectory directory_;
  GgufBuilder builder_;
};

TEST_F(GgufTokenizerTest, ByteLevelVocabularyAndMerges) {
  const TokenizerSpec spec = MustParse();
  EXPECT_EQ(spec.kind, TokenizerKind::kByteLevelBpe);
  EXPECT_EQ(spec.pre_tokenizer, PreTokenizer::kGpt2);
  EXPECT_THAT(spec.tokens,
              ElementsAre("<|endoftext|>", "<|im_end|>", "a", "b", "ab", " ", " a", "<tool>"));
  EXPECT_EQ(spec.types[0], TokenType::kControl);
  EXPECT_EQ(spec.types[7], TokenType::kUserDefined);
  ASSERT_EQ(spec.merges.size(), 2u);
  EXPECT_EQ(spec.merges[0].left, 2);
  EXPECT_EQ(spec.merges[0].right, 3);
  EXPECT_EQ(spec.merges[0].joined, 4);
  EXPECT_EQ(spec.merges[1].joined, 6);
  ASSERT_EQ(spec.added.size(), 3u);
  EXPECT_TRUE(spec.added[0].special);
  EXPECT_EQ(spec.added[1].content, "<|im_end|>");
  EXPECT_FALSE(spec.added[2].special);
  EXPECT_EQ(spec.added[2].id, 7);
  EXPECT_THAT(spec.eos_ids, ElementsAre(0, 1));  // eos_token_id, then <|im_end|> by its name
  EXPECT_EQ(spec.bos_id, -1);
  EXPECT_FALSE(spec.add_bos);
  EXPECT_FALSE(spec.ignore_merges);
  EXPECT_TRUE(spec.ranks.empty());
}

TEST_F(GgufTokenizerTest, PreTokenizersAreKnownByName) {
  const std::pair<const char*, PreTokenizer> known[] = {
      {"default", PreTokenizer::kGpt2},  {"gpt-2", PreTokenizer::kGpt2},
      {"smollm", PreTokenizer::kSmolLm}, {"llama-bpe", PreTokenizer::kLlama3},
      {"llama3", PreTokenizer::kLlama3}, {"llama-v3", PreTokenizer::kLlama3},
      {"qwen2", PreTokenizer::kQwen2}};
  for (const auto& [name, pre] : known) {
    builder_.SetString("tokenizer.ggml.pre", name);
    const TokenizerSpec spec = MustParse();
    EXPECT_EQ(spec.pre_tokenizer, pre) << name;
    EXPECT_EQ(spec.ignore_merges, pre == PreTokenizer::kLlama3) << name;
    EXPECT_EQ(spec.normalize_nfc, pre == PreTokenizer::kQwen2) << name;
  }
  builder_.SetString("tokenizer.ggml.pre", "tekken");
  ExpectRefused("pre", "\"tekken\"");
  builder_.Remove("tokenizer.ggml.pre");
  ExpectRefused("pre", "missing");
}

TEST_F(GgufTokenizerTest, Llama3AddsItsBosUnlessToldOtherwise) {
  builder_.SetString("tokenizer.ggml.pre", "llama-bpe");
  builder_.SetUint32("tokenizer.ggml.bos_token_id", 0);
  EXPECT_TRUE(MustParse().add_bos);
  builder_.SetBool("tokenizer.ggml.add_bos_token", false);
  EXPECT_FALSE(MustParse().add_bos);
}

TEST_F(GgufTokenizerTest, EotEndsATurnToo) {
  builder_.SetUint32("tokenizer.ggml.eot_token_id", 1);
  EXPECT_THAT(MustParse().eos_ids, ElementsAre(0, 1));
  builder_.SetUint32("tokenizer.ggml.eot_token_id", 7);
  EXPECT_THAT(MustParse().eos_ids, ElementsAre(0, 7, 1));
  builder_.SetUint32("tokenizer.ggml.eot_token_id", 8);
  ExpectRefused("eot_token_id", "8 is no token, there are 8");
}

TEST_F(GgufTokenizerTest, MergesMustBeInTheVocabulary) {
  builder_.SetStrings("tokenizer.ggml.merges", {"a b", "b a"});
  ExpectRefused("merges", "rank 1 \"b a\": \"ba\" is not in the vocabulary");
  builder_.SetStrings("tokenizer.ggml.merges", {"a x"});
  ExpectRefused("merges", "rank 0 \"a x\": \"x\"");
  for (const char* bad : {"ab", "a b c", " b", "a ", ""}) {
    builder_.SetStrings("tokenizer.ggml.merges", {bad});
    ExpectRefused("merges", "two tokens");
  }
  builder_.Remove("tokenizer.ggml.merges");
  ExpectRefused("merges", "missing");
}

TEST_F(GgufTokenizerTest, MergesNeverBuildControlTokens) {
  builder_.SetInt32s("tokenizer.ggml.token_type",
                     {3, 3, 1, 1, 3, 1, 1, 4});  // "ab" is a control token
  const TokenizerSpec spec = MustParse();
  ASSERT_EQ(spec.merges.size(), 1u);
  EXPECT_EQ(spec.merges[0].joined, 6);
}

TEST_F(GgufTokenizerTest, VocabularyIsChecked) {
  builder_.SetInt32s("tokenizer.ggml.token_type", {3, 3, 1});
  ExpectRefused("token_type", "3 types for 8 tokens");
  builder_.SetInt32s("tokenizer.ggml.token_type", {3, 3, 1, 1, 9, 1, 1, 4});
  ExpectRefused("token_type", "token 4 has unknown type 9");
  builder_.SetInt32s("tokenizer.ggml.token_type", {3, 3, 1, 1, 6, 1, 1, 4});
  ExpectRefused("token_type", "token 4 \"ab\" is a byte token");
  builder_.SetInt32s("tokenizer.ggml.token_type", {3, 3, 1, 1, 1, 1, 1, 4});
  builder_.SetStrings("tokenizer.ggml.tokens",
                      {"<|endoftext|>", "<|im_end|>", "a", "b", "ab", " ", "c", "d"});
  ExpectRefused("tokens", "token 5 \" \"");  // a raw space is not in the byte alphabet
  builder_.SetStrings("tokenizer.ggml.tokens", {"e", "f", "a", "b", "ab", "a", "c", "d"});
  ExpectRefused("tokens", "tokens 2 and 5 are both \"a\"");
  builder_.SetUint32("tokenizer.ggml.tokens", 5);
  ExpectRefused("tokens", "array of strings");
}

TEST_F(GgufTokenizerTest, OtherModelsAndOptionsAreRefused) {
  builder_.SetBool("tokenizer.ggml.add_eos_token", true);
  ExpectRefused("add_eos_token", "true is not supported");
  builder_.SetString("tokenizer.ggml.model", "t5");
  ExpectRefused("model", "\"t5\"");
  builder_.Remove("tokenizer.ggml.model");
  ExpectRefused("model", "no tokenizer");
}

TEST_F(GgufTokenizerTest, SentencePieceScoresBecomeRanks) {
  UseSentencePiece();
  const TokenizerSpec spec = MustParse();
  EXPECT_EQ(spec.kind, TokenizerKind::kSentencePieceBpe);
  EXPECT_EQ(spec.pre_tokenizer, PreTokenizer::kNone);
  EXPECT_THAT(spec.ranks, ElementsAre(0, 1, 2, 3, 5, 6, 4, 7));
  EXPECT_EQ(spec.types[3], TokenType::kByte);
  EXPECT_EQ(spec.tokens[6], "\u2581a");
  EXPECT_TRUE(spec.merges.empty());
  EXPECT_TRUE(spec.add_bos);
  EXPECT_TRUE(spec.add_space_prefix);
  EXPECT_EQ(spec.bos_id, 1);
  EXPECT_EQ(spec.unknown_id, 0);
  EXPECT_THAT(spec.eos_ids, ElementsAre(2));
  ASSERT_EQ(spec.added.size(), 4u);  // <unk>, <s>, </s> special, <user> not
  EXPECT_TRUE(spec.added[0].special);
  EXPECT_FALSE(spec.added[3].special);
}

TEST_F(GgufTokenizerTest, SentencePieceIsChecked) {
  UseSentencePiece();
  builder_.SetFloat32s("tokenizer.ggml.scores",
                       {0, 0, 0, 0, std::numeric_limits<float>::quiet_NaN(), 0, 0, 0});
  ExpectRefused("scores", "token 4 has score nan");
  builder_.SetFloat32s("tokenizer.ggml.scores", {0, 0});
  ExpectRefused("scores", "2 scores for 8 tokens");
  UseSentencePiece();
  builder_.SetStrings("tokenizer.ggml.tokens",
                      {"<unk>", "<s>", "</s>", "<0xG1>", "x", "a", "y", "z"});
  ExpectRefused("tokens", "byte token 3");
  UseSentencePiece();
  builder_.SetString("tokenizer.ggml.pre", "gemma4");
  ExpectRefused("pre", "\"gemma4\"");
  UseSentencePiece();
  builder_.SetBool("tokenizer.ggml.remove_extra_whitespaces", true);
  ExpectRefused("remove_extra_whitespaces", "not supported");
}

}  // namespace
}  // namespace fixpoint
