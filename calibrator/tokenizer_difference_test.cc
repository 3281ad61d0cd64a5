#include "calibrator/tokenizer_difference.h"

#include "bundle/test_model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

using testing::HasSubstr;

TEST(TokenizerDifferenceTest, NamesWhatDiffers) {
  const TokenizerSpec spec = MakeTestTokenizer(300);
  EXPECT_EQ(TokenizerDifference(spec, spec), "");
  const auto with = [&](auto change) {
    TokenizerSpec other = spec;
    change(other);
    return TokenizerDifference(spec, other);
  };
  EXPECT_THAT(TokenizerDifference(spec, MakeTestTokenizer(301)), HasSubstr("300 and 301 tokens"));
  EXPECT_THAT(with([](TokenizerSpec& s) { s.tokens[65] = std::string(1, 'x'); }),
              HasSubstr("token 65 is \"A\" and \"x\""));
  EXPECT_THAT(with([](TokenizerSpec& s) { s.types[65] = TokenType::kUnused; }),
              HasSubstr("token 65"));
  EXPECT_THAT(with([](TokenizerSpec& s) { s.kind = TokenizerKind::kSentencePieceBpe; }),
              HasSubstr("kind"));
  EXPECT_THAT(with([](TokenizerSpec& s) { s.pre_tokenizer = PreTokenizer::kLlama3; }),
              HasSubstr("pre-tokenizer"));
  EXPECT_THAT(with([](TokenizerSpec& s) { s.normalize_nfc = !s.normalize_nfc; }),
              HasSubstr("normalizes"));
  EXPECT_THAT(with([](TokenizerSpec& s) { s.merges.pop_back(); }), HasSubstr("merges"));
  EXPECT_THAT(with([](TokenizerSpec& s) { std::swap(s.merges[3], s.merges[4]); }),
              HasSubstr("merge 3 differs"));
  EXPECT_THAT(with([](TokenizerSpec& s) { s.added.at(0).lstrip = true; }),
              HasSubstr("added token 0 differs"));
  // How a generation begins and ends does not change how text is read.
  EXPECT_EQ(with([](TokenizerSpec& s) {
              s.eos_ids = {1, 2};
              s.bos_id = 7;
            }),
            "");
}

}  // namespace
}  // namespace fixpoint
