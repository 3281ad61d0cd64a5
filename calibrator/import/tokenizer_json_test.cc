#include "calibrator/import/tokenizer_json.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

#include "text/tokenizer.h"

namespace fixpoint {
namespace {

// GPT-2's form, with merges as strings. Ids: a 0, b 1, U+0120 2, ab 3, <end> 4.
constexpr absl::string_view kByteLevel = R"({
  "truncation": null, "padding": null,
  "added_tokens": [{"id": 4, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": true, "normalized": false, "special": true}],
  "normalizer": null,
  "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
  "post_processor": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
  "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
  "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "", "end_of_word_suffix": "",
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": {"a": 0, "b": 1, "\u0120": 2, "ab": 3}, "merges": ["a b"]}
})";

// Ids: <unk> 0, <s> 1, U+2581 2, a 3, U+2581a 4, <0x41> 5.
constexpr absl::string_view kSentencePiece = R"({
  "added_tokens": [{"id": 0, "content": "<unk>", "special": true, "normalized": false}, {"id": 1, "content": "<s>", "special": true, "normalized": false}],
  "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"},
                 {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
  "pre_tokenizer": null,
  "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                     "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
  "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
              {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
  "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "vocab": {"<unk>": 0, "<s>": 1, "\u2581": 2, "a": 3, "\u2581a": 4, "<0x41>": 5}, "merges": [["\u2581", "a"]]}
})";

std::string Edited(absl::string_view json, absl::string_view from, absl::string_view to) {
  EXPECT_NE(json.find(from), absl::string_view::npos) << from;
  return absl::StrReplaceAll(json, {{from, to}});
}

TEST(TokenizerJsonTest, ReadsByteLevel) {
  const auto spec = ParseTokenizerJson(kByteLevel, "");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->kind, TokenizerKind::kByteLevelBpe);
  EXPECT_EQ(spec->pre_tokenizer, PreTokenizer::kGpt2);
  EXPECT_EQ(spec->tokens, (std::vector<std::string>{"a", "b", " ", "ab", "<end>"}));
  EXPECT_EQ(spec->types.back(), TokenType::kControl);
  ASSERT_EQ(spec->merges.size(), 1u);
  EXPECT_EQ(spec->merges[0].joined, 3);
  ASSERT_EQ(spec->added.size(), 1u);
  EXPECT_TRUE(spec->added[0].rstrip);
  EXPECT_EQ(spec->bos_id, -1);
  EXPECT_EQ(spec->unknown_id, -1);
  EXPECT_FALSE(spec->add_bos);
}

TEST(TokenizerJsonTest, MergesMayBePairs) {
  const auto spec = ParseTokenizerJson(Edited(kByteLevel, R"(["a b"])", R"([["a", "b"]])"), "");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->merges[0].right, 1);
}

TEST(TokenizerJsonTest, KnowsTheSplits) {
  const std::string whole =
      R"({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true})";
  const std::string bytes_only =
      R"({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false})";
  const std::string llama =
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+)";
  auto split = [&](const std::string& regex, absl::string_view behavior = "Isolated") {
    return absl::StrCat(
        R"({"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": ")", regex,
        R"("}, "behavior": ")", behavior, R"(", "invert": false}, )", bytes_only, "]}");
  };
  auto rule = [&](const std::string& pre_tokenizer) {
    return ParseTokenizerJson(Edited(kByteLevel, absl::StrCat("\"pre_tokenizer\": ", whole),
                                     absl::StrCat("\"pre_tokenizer\": ", pre_tokenizer)),
                              "");
  };
  EXPECT_EQ(rule(split(llama))->pre_tokenizer, PreTokenizer::kLlama3);
  EXPECT_EQ(rule(split(absl::StrReplaceAll(llama, {{"{1,3}", ""}})))->pre_tokenizer,
            PreTokenizer::kQwen2);
  EXPECT_EQ(
      rule(
          absl::StrCat(
              R"({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, )",
              whole, "]}"))
          ->pre_tokenizer,
      PreTokenizer::kSmolLm);
  EXPECT_EQ(rule(split(absl::StrReplaceAll(llama, {{"{1,3}", "{1,2}"}}))).status().code(),
            absl::StatusCode::kUnimplemented);
  EXPECT_EQ(rule(split(llama, "Removed")).status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(rule(R"({"type": "Whitespace"})").status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(rule(bytes_only).status().code(), absl::StatusCode::kUnimplemented);
}

TEST(TokenizerJsonTest, ReadsSentencePiece) {
  const auto spec = ParseTokenizerJson(kSentencePiece, "");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->kind, TokenizerKind::kSentencePieceBpe);
  EXPECT_TRUE(spec->add_space_prefix);
  EXPECT_TRUE(spec->add_bos);
  EXPECT_EQ(spec->bos_id, 1);
  EXPECT_EQ(spec->unknown_id, 0);
  EXPECT_EQ(spec->types[5], TokenType::kByte);
  const auto tokenizer = Tokenizer::Create(*spec);
  ASSERT_TRUE(tokenizer.ok());
  EXPECT_EQ((*tokenizer)->Encode("a A", false), (std::vector<int32_t>{4, 2, 5}));
}

TEST(TokenizerJsonTest, ConfigNamesBosAndEos) {
  const auto spec = ParseTokenizerJson(
      kByteLevel,
      R"({"bos_token": {"content": "<end>"}, "eos_token": "ab", "add_bos_token": true, "model_max_length": 1e30})");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->bos_id, 4);
  EXPECT_EQ(spec->eos_ids, (std::vector<int32_t>{3}));
  EXPECT_TRUE(spec->add_bos);
  EXPECT_FALSE(ParseTokenizerJson(kSentencePiece, R"({"bos_token": "<s>", "add_bos_token": false})")
                   ->add_bos);
  EXPECT_FALSE(ParseTokenizerJson(kByteLevel, R"({"eos_token": "nope"})").ok());
  EXPECT_FALSE(ParseTokenizerJson(kByteLevel, "[]").ok());
}

TEST(TokenizerJsonTest, RefusesByName) {
  const std::tuple<absl::string_view, const char*, const char*, const char*> cases[] = {
      {kByteLevel, R"("type": "BPE")", R"("type": "Unigram")", "model Unigram"},
      {kByteLevel, R"("dropout": null)", R"("dropout": 0.1)", "dropout"},
      {kByteLevel, R"("end_of_word_suffix": "")", R"("end_of_word_suffix": "</w>")",
       "end_of_word_suffix"},
      {kByteLevel, R"("normalizer": null)", R"("normalizer": {"type": "NFKC"})", "NFKC"},
      {kByteLevel, R"("add_prefix_space": false)", R"("add_prefix_space": true)",
       "add_prefix_space"},
      {kByteLevel, R"("post_processor": {"type": "ByteLevel")",
       R"("post_processor": {"type": "RobertaProcessing")", "RobertaProcessing"},
      {kByteLevel, R"("decoder": {"type": "ByteLevel")", R"("decoder": {"type": "WordPiece")",
       "WordPiece"},
      {kByteLevel, R"("a b")", R"("a c")", "not all in the vocabulary"},
      {kByteLevel, R"("b": 1)", R"("b": 0)", "id 0 to two tokens"},
      {kByteLevel, R"("b": 1)", R"("b": 99999999)", "99999999"},
      {kByteLevel, R"("content": "<end>")", R"("content": "ab")", "id 3 in the vocabulary"},
      {kSentencePiece, R"("fuse_unk": true)", R"("fuse_unk": false)", "fuse_unk"},
      {kSentencePiece, R"("prepend": "\u2581")", R"("prepend": "_")", "Prepend"},
      {kSentencePiece, R"("pre_tokenizer": null)", R"("pre_tokenizer": {"type": "Metaspace"})",
       "Metaspace"},
      {kSentencePiece, R"({"type": "Fuse"},)", "", "decoder"},
      {kSentencePiece, R"("start": 1)", R"("start": 2)", "Strip"},
  };
  for (const auto& [json, from, to, message] : cases) {
    const auto spec = ParseTokenizerJson(Edited(json, from, to), "");
    ASSERT_FALSE(spec.ok()) << to;
    EXPECT_NE(spec.status().message().find(message), absl::string_view::npos) << spec.status();
  }
}

TEST(TokenizerJsonTest, EveryTruncationIsAnError) {
  for (const absl::string_view json : {kByteLevel, kSentencePiece}) {
    for (size_t size = 0; size + 1 < json.size(); ++size) {
      EXPECT_FALSE(ParseTokenizerJson(json.substr(0, size), "").ok()) << size;
    }
  }
  EXPECT_FALSE(ParseTokenizerJson(std::string(100'000, '['), "").ok());
}

}  // namespace
}  // namespace fixpoint
