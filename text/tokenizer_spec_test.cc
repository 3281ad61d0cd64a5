#include "text/tokenizer_spec.h"

#include <gtest/gtest.h>

#include <functional>

#include "text/test_tokenizers.h"

namespace fixpoint {
namespace {

TokenizerSpec Example() {
  AddedToken end;
  end.content = "<end>";
  end.special = end.rstrip = true;
  AddedToken tool;
  tool.content = "<tool>";
  tool.lstrip = tool.single_word = tool.normalized = true;
  TokenizerSpec spec = ByteLevelSpec({"ab", "abc"}, {end, tool});
  spec.pre_tokenizer = PreTokenizer::kQwen2;
  spec.normalize_nfc = spec.ignore_merges = spec.add_bos = true;
  spec.bos_id = 258;
  spec.eos_ids = {258, 3};
  return spec;
}

void ExpectEqual(const TokenizerSpec& a, const TokenizerSpec& b) {
  EXPECT_EQ(SerializeTokenizerSpec(a), SerializeTokenizerSpec(b));
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.types, b.types);
  EXPECT_EQ(a.ranks, b.ranks);
  EXPECT_EQ(a.eos_ids, b.eos_ids);
  EXPECT_EQ(a.merges.size(), b.merges.size());
  ASSERT_EQ(a.added.size(), b.added.size());
  for (size_t i = 0; i < a.added.size(); ++i) {
    EXPECT_EQ(a.added[i].content, b.added[i].content);
    EXPECT_EQ(a.added[i].rstrip, b.added[i].rstrip);
    EXPECT_EQ(a.added[i].normalized, b.added[i].normalized);
  }
}

TEST(TokenizerSpecTest, ComesBackAsItWas) {
  for (const TokenizerSpec& spec : {Example(), SentencePieceSpec({"a", "\u2581"})}) {
    const auto read = ParseTokenizerSpec(SerializeTokenizerSpec(spec));
    ASSERT_TRUE(read.ok()) << read.status();
    ExpectEqual(spec, *read);
  }
}

TEST(TokenizerSpecTest, EveryTruncationIsAnError) {
  const std::string bytes = SerializeTokenizerSpec(Example());
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(ParseTokenizerSpec(absl::string_view(bytes).substr(0, size)).ok()) << size;
  }
  EXPECT_FALSE(ParseTokenizerSpec(bytes + '\0').ok());
}

TEST(TokenizerSpecTest, AnyChangedByteIsReadOrRefusedWithoutHarm) {
  const std::string bytes = SerializeTokenizerSpec(Example());
  for (size_t i = 0; i < bytes.size(); ++i) {
    for (const int flip : {1, 0x80, 0xFF}) {
      std::string changed = bytes;
      changed[i] = static_cast<char>(changed[i] ^ flip);
      const auto read = ParseTokenizerSpec(changed);
      if (!read.ok()) continue;
      EXPECT_TRUE(ValidateTokenizerSpec(*read).ok());
      if (i % 97 != 0) continue;
      EXPECT_TRUE(Tokenizer::Create(*read).ok());
    }
  }
}

TEST(TokenizerSpecTest, CountsAreCheckedBeforeAnythingIsAllocated) {
  std::string bytes = SerializeTokenizerSpec(Example());
  const size_t eos_count = 4 + 4 + 3 + 8;
  const size_t token_count = eos_count + 4 + 2 * 4;
  for (const size_t at : {eos_count, token_count}) {
    std::string changed = bytes;
    for (int i = 0; i < 4; ++i) changed[at + i] = static_cast<char>(0xFF);
    const auto read = ParseTokenizerSpec(changed);
    EXPECT_NE(read.status().message().find("over the limit"), absl::string_view::npos)
        << read.status();
  }
  bytes[token_count + 2] = 8;  // 2^19 tokens and a few: within the limit, but not within the file
  EXPECT_NE(ParseTokenizerSpec(bytes).status().message().find("bytes left"),
            absl::string_view::npos);
}

TEST(TokenizerSpecTest, ValidateNamesWhatIsWrong) {
  const std::pair<const char*, std::function<void(TokenizerSpec*)>> cases[] = {
      {"types: 1", [](TokenizerSpec* s) { s->types.resize(1); }},
      {"no tokens", [](TokenizerSpec* s) { s->tokens.clear(); }},
      {"token 7: 4097 bytes", [](TokenizerSpec* s) { s->tokens[7] = std::string(4097, 'x'); }},
      {"merge 0: id 9999", [](TokenizerSpec* s) { s->merges[0].left = 9999; }},
      {"merge 0: id -1", [](TokenizerSpec* s) { s->merges[0].joined = -1; }},
      {"merge 1: token 257 is not", [](TokenizerSpec* s) { s->merges[1].left = 1; }},
      {"ranks belong", [](TokenizerSpec* s) { s->ranks.resize(s->tokens.size()); }},
      {"bos id 5000", [](TokenizerSpec* s) { s->bos_id = 5000; }},
      {"asks for a bos", [](TokenizerSpec* s) { s->bos_id = -1; }},
      {"unknown id -2", [](TokenizerSpec* s) { s->unknown_id = -2; }},
      {"eos id -1", [](TokenizerSpec* s) { s->eos_ids.push_back(-1); }},
      {"added token 260", [](TokenizerSpec* s) { s->added[0].id = 260; }},
      {"special is 0", [](TokenizerSpec* s) { s->added[0].special = false; }},
      {"0 bytes", [](TokenizerSpec* s) { s->added[0].content.clear(); }},
      {"not valid UTF-8", [](TokenizerSpec* s) { s->added[0].content.assign(1, '\xFF'); }},
      {"unknown pre-tokenizer 9",
       [](TokenizerSpec* s) { s->pre_tokenizer = static_cast<PreTokenizer>(9); }},
      {"unknown type 0", [](TokenizerSpec* s) { s->types[3] = static_cast<TokenType>(0); }},
      {"spelled <0xNN>", [](TokenizerSpec* s) { s->types[3] = TokenType::kByte; }},
      {"space prefix", [](TokenizerSpec* s) { s->add_space_prefix = true; }},
      {"no NFC", [](TokenizerSpec* s) { s->kind = TokenizerKind::kSentencePieceBpe; }},
  };
  ASSERT_TRUE(ValidateTokenizerSpec(Example()).ok()) << ValidateTokenizerSpec(Example());
  for (const auto& [message, change] : cases) {
    TokenizerSpec spec = Example();
    change(&spec);
    const absl::Status status = ValidateTokenizerSpec(spec);
    EXPECT_NE(status.message().find(message), absl::string_view::npos)
        << message << " against " << status;
    if (spec.types.size() == spec.tokens.size()) {  // else it cannot be written at all
      EXPECT_FALSE(ParseTokenizerSpec(SerializeTokenizerSpec(spec)).ok()) << message;
    }
  }
}

}  // namespace
}  // namespace fixpoint
