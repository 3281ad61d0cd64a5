#include "calibrator/export/tokenizer_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "calibrator/import/tokenizer_json.h"
#include "text/test_tokenizers.h"

namespace fixpoint {
namespace {

using ::testing::HasSubstr;

// Written, read by our importer: the same tokenizer.
TokenizerSpec RoundTrip(const TokenizerSpec& spec) {
  const absl::StatusOr<std::string> json = WriteTokenizerJson(spec);
  EXPECT_TRUE(json.ok()) << json.status();
  const absl::StatusOr<TokenizerSpec> back =
      ParseTokenizerJson(*json, WriteTokenizerConfig(spec, "{{ 1 }}", 512));
  EXPECT_TRUE(back.ok()) << back.status();
  return *back;
}

TEST(TokenizerFilesTest, ByteLevelComesBackAsItWas) {
  for (const PreTokenizer pre :
       {PreTokenizer::kGpt2, PreTokenizer::kSmolLm, PreTokenizer::kLlama3, PreTokenizer::kQwen2}) {
    TokenizerSpec spec = ByteLevelSpec({"the", " the", "\xc3\xa9t"},
                                       {{0, "<|end|>", true}, {0, "caf\xc3\xa9", false}});
    spec.pre_tokenizer = pre;
    spec.ignore_merges = pre == PreTokenizer::kLlama3;
    spec.normalize_nfc = pre == PreTokenizer::kQwen2;
    spec.bos_id = spec.added[0].id;
    spec.eos_ids = {spec.added[0].id};
    spec.add_bos = pre == PreTokenizer::kLlama3;
    EXPECT_EQ(SerializeTokenizerSpec(RoundTrip(spec)), SerializeTokenizerSpec(spec));
  }
}

TEST(TokenizerFilesTest, SentencePieceEncodesTheSame) {
  const TokenizerSpec spec =
      SentencePieceSpec({"\xE2\x96\x81", "a", "b", "c", "ab", "abc", "bc",
                         std::string("\xE2\x96\x81") + "ab", "\xC3\xA9", "a\xC3\xA9"});
  const TokenizerSpec back = RoundTrip(spec);
  EXPECT_EQ(back.tokens, spec.tokens);
  EXPECT_TRUE(back.ranks.empty());
  EXPECT_EQ(back.merges.size(), 6u);  // abc is ab + c and a + bc, four others are one pair each
  EXPECT_TRUE(back.add_space_prefix);
  EXPECT_EQ(back.unknown_id, 0);
  const auto one = MakeTokenizer(spec), other = MakeTokenizer(back);
  for (const char* text :
       {"abc", "ab abc a", "bcbc abab", "a\xC3\xA9 b\xC3\xBC", "", "  a  ", "</s>ab"}) {
    for (const bool control : {false, true})
      EXPECT_EQ(one->Encode(text, control), other->Encode(text, control)) << text;
  }
}

TEST(TokenizerFilesTest, TwoTokensOfOneSpellingAreRefused) {
  TokenizerSpec spec = ByteLevelSpec({}, {{0, "a", false}});
  EXPECT_THAT(std::string(WriteTokenizerJson(spec).status().message()),
              HasSubstr("tokens 97 and 256 are both spelled \"a\""));
}

TEST(TokenizerFilesTest, ConfigNamesTheSpecialTokens) {
  TokenizerSpec spec = ByteLevelSpec({}, {{0, "<s>", true}, {0, "</s>", true}});
  spec.bos_id = 256;
  spec.eos_ids = {257};
  EXPECT_EQ(WriteTokenizerConfig(spec, "{{ \"x\" }}", 128),
            R"({"tokenizer_class":"PreTrainedTokenizerFast","bos_token":"<s>","eos_token":"</s>",)"
            R"("add_bos_token":false,"add_eos_token":false,"clean_up_tokenization_spaces":false,)"
            R"("model_max_length":128,"chat_template":"{{ \"x\" }}"})");
}

}  // namespace
}  // namespace fixpoint
