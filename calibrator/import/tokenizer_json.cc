#include "calibrator/import/tokenizer_json.h"

#include <simdjson.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

#include "base/status_macros.h"
#include "text/byte_alphabet.h"

namespace fixpoint {
namespace {

namespace json = simdjson::dom;

constexpr size_t kMaxDepth = 32;
constexpr size_t kMaxFileBytes = 256u << 20;
constexpr int64_t kMaxTokens = 1 << 20;
constexpr absl::string_view kSpaceSymbol = "\xE2\x96\x81";  // U+2581

// The regexes as the files spell them; text/pre_tokenizer.cc has the scanner of each.
constexpr absl::string_view kGpt2Regex =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr absl::string_view kLlama3Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr absl::string_view kQwen2Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

template <typename... Parts>
absl::Status Broken(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: ", parts...));
}
template <typename... Parts>
absl::Status Refused(const Parts&... parts) {
  return absl::UnimplementedError(absl::StrCat("tokenizer.json: ", parts..., " is not supported"));
}

// --- Reading with defaults: a key that is absent or null counts as not given. ---

bool Has(const json::element& parent, const char* key, json::element* out) {
  return parent.at_key(key).get(*out) == simdjson::SUCCESS && !out->is_null();
}
std::string StringOr(const json::element& parent, const char* key, absl::string_view otherwise) {
  json::element value;
  std::string_view text;
  if (!Has(parent, key, &value) || value.get(text) != simdjson::SUCCESS)
    return std::string(otherwise);
  return std::string(text);
}
bool BoolOr(const json::element& parent, const char* key, bool otherwise) {
  json::element value;
  bool flag;
  return Has(parent, key, &value) && value.get(flag) == simdjson::SUCCESS ? flag : otherwise;
}
int64_t IntOr(const json::element& parent, const char* key, int64_t otherwise) {
  json::element value;
  int64_t number;
  return Has(parent, key, &value) && value.get(number) == simdjson::SUCCESS ? number : otherwise;
}
absl::string_view View(std::string_view text) { return {text.data(), text.size()}; }

// A section that may be one item or a {"type": "Sequence", list_key: [...]} of them, as a flat
// list.
absl::StatusOr<std::vector<json::element>> Steps(const json::element& root, const char* section,
                                                 const char* list_key) {
  std::vector<json::element> steps;
  json::element item;
  if (!Has(root, section, &item)) return steps;
  if (StringOr(item, "type", "") != "Sequence") return std::vector<json::element>{item};
  json::array list;
  if (item.at_key(list_key).get(list) != simdjson::SUCCESS) {
    return Broken(section, ": a Sequence without the list ", list_key);
  }
  for (const json::element& step : list) {
    if (StringOr(step, "type", "") == "Sequence")
      return Refused(section, " Sequence in a Sequence");
    steps.push_back(step);
  }
  return steps;
}

std::string PatternString(const json::element& step) {
  json::element pattern;
  return Has(step, "pattern", &pattern) ? StringOr(pattern, "String", "") : "";
}

// --- Pre-tokenizer and normalizer ---

absl::Status CheckByteLevel(const json::element& step, bool use_regex) {
  if (StringOr(step, "type", "") != "ByteLevel") {
    return Refused("pre_tokenizer ", StringOr(step, "type", "without a type"));
  }
  if (BoolOr(step, "add_prefix_space", true)) {
    return Refused("pre_tokenizer ByteLevel with add_prefix_space");
  }
  if (BoolOr(step, "use_regex", true) != use_regex) {
    return Refused("pre_tokenizer ByteLevel with use_regex = ", use_regex ? "false" : "true",
                   " in this place");
  }
  return absl::OkStatus();
}

absl::StatusOr<PreTokenizer> SplitRule(const json::element& split) {
  json::element pattern;
  const std::string regex = Has(split, "pattern", &pattern) ? StringOr(pattern, "Regex", "") : "";
  if (StringOr(split, "behavior", "") != "Isolated" || BoolOr(split, "invert", false)) {
    return Refused("pre_tokenizer Split with behavior ", StringOr(split, "behavior", ""),
                   BoolOr(split, "invert", false) ? ", inverted," : "");
  }
  if (regex == kGpt2Regex) return PreTokenizer::kGpt2;
  if (regex == kLlama3Regex) return PreTokenizer::kLlama3;
  if (regex == kQwen2Regex) return PreTokenizer::kQwen2;
  return Refused("pre_tokenizer Split by the regex ", regex);
}

absl::StatusOr<PreTokenizer> ByteLevelPreTokenizer(const json::element& root) {
  ASSIGN_OR_RETURN(const std::vector<json::element> steps,
                   Steps(root, "pre_tokenizer", "pretokenizers"));
  if (steps.empty()) return Refused("pre_tokenizer: none, with a byte-level decoder,");
  const std::string first = StringOr(steps[0], "type", "");
  if (steps.size() == 1) {
    RETURN_IF_ERROR(CheckByteLevel(steps[0], /*use_regex=*/true));
    return PreTokenizer::kGpt2;
  }
  if (steps.size() != 2) return Refused("pre_tokenizer Sequence of ", steps.size());
  if (first == "Digits") {
    if (!BoolOr(steps[0], "individual_digits", false)) {
      return Refused("pre_tokenizer Digits without individual_digits");
    }
    RETURN_IF_ERROR(CheckByteLevel(steps[1], /*use_regex=*/true));
    return PreTokenizer::kSmolLm;
  }
  if (first != "Split") return Refused("pre_tokenizer ", first);
  ASSIGN_OR_RETURN(const PreTokenizer rule, SplitRule(steps[0]));
  RETURN_IF_ERROR(CheckByteLevel(steps[1], /*use_regex=*/false));
  return rule;
}

absl::Status ReadByteLevelNormalizer(const json::element& root, TokenizerSpec* spec) {
  ASSIGN_OR_RETURN(const std::vector<json::element> steps,
                   Steps(root, "normalizer", "normalizers"));
  for (const json::element& step : steps) {
    const std::string type = StringOr(step, "type", "");
    if (type != "NFC") return Refused("normalizer ", type);
    spec->normalize_nfc = true;
  }
  return absl::OkStatus();
}

absl::Status ReadSentencePieceNormalizer(const json::element& root, TokenizerSpec* spec) {
  json::element pre_tokenizer;
  if (Has(root, "pre_tokenizer", &pre_tokenizer)) {
    return Refused("pre_tokenizer ", StringOr(pre_tokenizer, "type", ""),
                   " of a SentencePiece model");
  }
  ASSIGN_OR_RETURN(const std::vector<json::element> steps,
                   Steps(root, "normalizer", "normalizers"));
  bool replaces = false;
  for (const json::element& step : steps) {
    const std::string type = StringOr(step, "type", "");
    if (type == "Prepend" && StringOr(step, "prepend", "") == kSpaceSymbol && !replaces &&
        !spec->add_space_prefix) {
      spec->add_space_prefix = true;
    } else if (type == "Replace" && PatternString(step) == " " &&
               StringOr(step, "content", "") == kSpaceSymbol && !replaces) {
      replaces = true;
    } else {
      return Refused("normalizer ", type, " of a SentencePiece model in this form or place");
    }
  }
  if (!replaces) return Refused("a SentencePiece model without the normalizer Replace");
  return absl::OkStatus();
}

// --- Decoder: what it undoes must be what the rest of the file does. ---

absl::Status CheckSentencePieceDecoder(const json::element& root, bool space_prefix) {
  ASSIGN_OR_RETURN(const std::vector<json::element> steps, Steps(root, "decoder", "decoders"));
  std::string found;
  for (const json::element& step : steps) {
    const std::string type = StringOr(step, "type", "");
    if (type == "Replace" &&
        (PatternString(step) != kSpaceSymbol || StringOr(step, "content", "") != " ")) {
      return Refused("decoder Replace of another string than U+2581 by a space");
    }
    if (type == "Strip" && (StringOr(step, "content", "") != " " || IntOr(step, "start", 0) != 1 ||
                            IntOr(step, "stop", 0) != 0)) {
      return Refused("decoder Strip of anything but one space on the left");
    }
    absl::StrAppend(&found, found.empty() ? "" : ",", type);
  }
  const absl::string_view wanted =
      space_prefix ? "Replace,ByteFallback,Fuse,Strip" : "Replace,ByteFallback,Fuse";
  if (found != wanted) return Refused("decoder ", found, " (wanted: ", wanted, ")");
  return absl::OkStatus();
}

// --- Vocabulary and merges ---

using IdByText = absl::flat_hash_map<std::string, int32_t>;

absl::Status AddToken(int64_t id, std::string text, TokenType type, TokenizerSpec* spec) {
  if (id < 0 || id >= kMaxTokens) {
    return Broken("token id ", id, " is outside [0, ", kMaxTokens, ")");
  }
  if (static_cast<size_t>(id) >= spec->tokens.size()) {
    spec->tokens.resize(id + 1);
    spec->types.resize(id + 1, TokenType::kUnused);
  }
  spec->tokens[id] = std::move(text);
  spec->types[id] = type;
  return absl::OkStatus();
}

absl::StatusOr<IdByText> ReadVocabulary(const json::element& model, TokenizerSpec* spec) {
  json::object vocab;
  if (model.at_key("vocab").get(vocab) != simdjson::SUCCESS) return Broken("model has no vocab");
  IdByText ids;
  for (const auto& [key, value] : vocab) {
    int64_t id;
    if (value.get(id) != simdjson::SUCCESS)
      return Broken("vocab: id of \"", View(key), "\" is no integer");
    if (!ids.emplace(std::string(key), static_cast<int32_t>(id)).second) {
      return Broken("vocab lists \"", View(key), "\" twice");
    }
    if (id >= 0 && static_cast<size_t>(id) < spec->types.size() &&
        spec->types[id] != TokenType::kUnused) {
      return Broken("vocab gives id ", id, " to two tokens");
    }
    const bool is_byte = spec->kind == TokenizerKind::kSentencePieceBpe && key.size() == 6 &&
                         absl::StartsWith(View(key), "<0x") && key[5] == '>';
    RETURN_IF_ERROR(
        AddToken(id, std::string(key), is_byte ? TokenType::kByte : TokenType::kNormal, spec));
  }
  return ids;
}

absl::Status ReadMerges(const json::element& model, const IdByText& ids, TokenizerSpec* spec) {
  json::array merges;
  if (model.at_key("merges").get(merges) != simdjson::SUCCESS) return Broken("model has no merges");
  for (const json::element& entry : merges) {
    const std::string where = absl::StrCat("merge ", spec->merges.size());
    std::string left, right;
    std::string_view text;
    json::array pair;
    if (entry.get(text) == simdjson::SUCCESS) {  // "left right"
      const size_t space = text.find(' ');
      if (space == std::string_view::npos) return Broken(where, " has no space");
      left = std::string(text.substr(0, space));
      right = std::string(text.substr(space + 1));
    } else if (entry.get(pair) == simdjson::SUCCESS && pair.size() == 2) {  // ["left", "right"]
      for (const int side : {0, 1}) {
        if (pair.at(side).get(text) != simdjson::SUCCESS)
          return Broken(where, " is no pair of strings");
        (side == 0 ? left : right) = std::string(text);
      }
    } else {
      return Broken(where, " is neither a string nor a pair");
    }
    const auto l = ids.find(left), r = ids.find(right), joined = ids.find(left + right);
    if (l == ids.end() || r == ids.end() || joined == ids.end()) {
      return Broken(where, ": \"", left, "\" + \"", right, "\": not all in the vocabulary");
    }
    spec->merges.push_back({l->second, r->second, joined->second});
  }
  return absl::OkStatus();
}

absl::Status ReadAddedTokens(const json::element& root, const IdByText& ids, TokenizerSpec* spec) {
  json::array list;
  if (root.at_key("added_tokens").get(list) != simdjson::SUCCESS) return absl::OkStatus();
  for (const json::element& item : list) {
    AddedToken token;
    const int64_t id = IntOr(item, "id", -1);
    token.content = StringOr(item, "content", "");
    const auto in_vocabulary = ids.find(token.content);
    if (in_vocabulary != ids.end() && in_vocabulary->second != id) {
      return Broken("added token \"", token.content, "\" has id ", id, " but id ",
                    in_vocabulary->second, " in the vocabulary");
    }
    token.special = BoolOr(item, "special", false);
    token.single_word = BoolOr(item, "single_word", false);
    token.lstrip = BoolOr(item, "lstrip", false);
    token.rstrip = BoolOr(item, "rstrip", false);
    token.normalized = BoolOr(item, "normalized", !token.special);
    RETURN_IF_ERROR(AddToken(id, token.content,
                             token.special ? TokenType::kControl : TokenType::kUserDefined, spec));
    token.id = static_cast<int32_t>(id);
    spec->added.push_back(std::move(token));
  }
  return absl::OkStatus();
}

// Byte-level vocabularies are spelled in the byte alphabet, except for the added tokens, which are
// plain text.
absl::Status UndoByteAlphabet(TokenizerSpec* spec) {
  for (size_t id = 0; id < spec->tokens.size(); ++id) {
    if (spec->types[id] != TokenType::kNormal) continue;
    absl::StatusOr<std::string> bytes = BytesFromAlphabet(spec->tokens[id]);
    if (!bytes.ok()) return Broken("token ", id, ": ", bytes.status().message());
    spec->tokens[id] = *std::move(bytes);
  }
  return absl::OkStatus();
}

// A merge that reaches an added token spells it in two alphabets at once unless it is plain ASCII.
// Such merges cannot fire when the token is matched before them, so they are dropped; control
// tokens must not be merged together at all.
void DropMergesIntoAddedTokens(TokenizerSpec* spec) {
  auto is_normal = [&](int32_t id) { return spec->types[id] == TokenType::kNormal; };
  auto& merges = spec->merges;
  merges.erase(std::remove_if(merges.begin(), merges.end(),
                              [&](const TokenizerSpec::Merge& m) {
                                return !is_normal(m.left) || !is_normal(m.right) ||
                                       !is_normal(m.joined);
                              }),
               merges.end());
}

// --- Model, post-processor, special tokens ---

absl::Status CheckModel(const json::element& model, TokenizerSpec* spec) {
  const std::string type = StringOr(model, "type", "BPE");
  if (type != "BPE") return Refused("model ", type);
  json::element value;
  if (Has(model, "dropout", &value)) return Refused("model dropout");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!StringOr(model, key, "").empty()) return Refused("model ", key);
  }
  const bool byte_fallback = BoolOr(model, "byte_fallback", false);
  spec->kind = byte_fallback ? TokenizerKind::kSentencePieceBpe : TokenizerKind::kByteLevelBpe;
  spec->ignore_merges = BoolOr(model, "ignore_merges", false);
  if (byte_fallback && spec->ignore_merges)
    return Refused("ignore_merges of a SentencePiece model");
  if (byte_fallback && !BoolOr(model, "fuse_unk", false)) {
    return Refused("byte_fallback without fuse_unk");
  }
  return absl::OkStatus();
}

// Accepts a template that is the text alone, or one special token (bos) in front of it.
absl::Status ReadTemplate(const json::element& step, const TokenizerSpec& spec, int32_t* bos_id) {
  json::array single;
  if (step.at_key("single").get(single) != simdjson::SUCCESS) {
    return Broken("post_processor TemplateProcessing without single");
  }
  bool text_seen = false;
  for (const json::element& part : single) {
    json::element special;
    if (Has(part, "Sequence", &special)) {
      text_seen = true;
      continue;
    }
    if (!Has(part, "SpecialToken", &special) || text_seen || *bos_id >= 0) {
      return Refused(
          "post_processor TemplateProcessing with more than one token in front of the text");
    }
    const std::string content = StringOr(special, "id", "");
    for (const AddedToken& token : spec.added) {
      if (token.content == content) *bos_id = token.id;
    }
    if (*bos_id < 0) return Broken("post_processor names the unknown token \"", content, "\"");
  }
  return absl::OkStatus();
}

absl::Status ReadPostProcessor(const json::element& root, TokenizerSpec* spec) {
  ASSIGN_OR_RETURN(const std::vector<json::element> steps,
                   Steps(root, "post_processor", "processors"));
  int32_t bos_id = -1;
  for (const json::element& step : steps) {
    const std::string type = StringOr(step, "type", "");
    if (type == "ByteLevel") continue;  // moves offsets only
    if (type != "TemplateProcessing") return Refused("post_processor ", type);
    RETURN_IF_ERROR(ReadTemplate(step, *spec, &bos_id));
  }
  if (bos_id >= 0) {
    spec->bos_id = bos_id;
    spec->add_bos = true;
  }
  return absl::OkStatus();
}

// "bos_token": "<s>" or {"content": "<s>", ...}; id -1 when not given.
absl::StatusOr<int32_t> NamedToken(const json::element& config, const char* key,
                                   const TokenizerSpec& spec, const IdByText& ids) {
  json::element value;
  if (!Has(config, key, &value)) return -1;
  const std::string content =
      value.is_object() ? StringOr(value, "content", "") : StringOr(config, key, "");
  for (const AddedToken& token : spec.added) {
    if (token.content == content) return token.id;
  }
  const auto found = ids.find(content);
  if (found != ids.end()) return found->second;
  return absl::InvalidArgumentError(
      absl::StrCat("tokenizer_config.json: ", key, " \"", content, "\" is not in the vocabulary"));
}

absl::Status ParseJson(absl::string_view what, absl::string_view text, json::parser* parser,
                       json::element* root) {
  if (text.size() > kMaxFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": ", text.size(), " bytes are over the limit of ", kMaxFileBytes));
  }
  simdjson::error_code error = parser->allocate(text.size() + 1, kMaxDepth);
  if (!error) error = parser->parse(text.data(), text.size()).get(*root);
  if (error) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": ", simdjson::error_message(error)));
  }
  if (!root->is_object())
    return absl::InvalidArgumentError(absl::StrCat(what, ": not a JSON object"));
  return absl::OkStatus();
}

absl::Status ReadConfig(absl::string_view text, const IdByText& ids, TokenizerSpec* spec) {
  json::parser parser;
  json::element config;
  RETURN_IF_ERROR(ParseJson("tokenizer_config.json", text, &parser, &config));
  ASSIGN_OR_RETURN(const int32_t bos, NamedToken(config, "bos_token", *spec, ids));
  ASSIGN_OR_RETURN(const int32_t eos, NamedToken(config, "eos_token", *spec, ids));
  if (bos >= 0) spec->bos_id = bos;
  if (eos >= 0) spec->eos_ids = {eos};
  spec->add_bos = BoolOr(config, "add_bos_token", spec->add_bos) && spec->bos_id >= 0;
  if (BoolOr(config, "add_eos_token", false)) {
    return absl::UnimplementedError("tokenizer_config.json: add_eos_token is not supported");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerSpec> ParseTokenizerJson(absl::string_view json_text,
                                                 absl::string_view tokenizer_config_json) {
  json::parser parser;
  json::element root;
  RETURN_IF_ERROR(ParseJson("tokenizer.json", json_text, &parser, &root));
  json::element model;
  if (!Has(root, "model", &model) || !model.is_object()) return Broken("no model");

  TokenizerSpec spec;
  RETURN_IF_ERROR(CheckModel(model, &spec));
  const bool sentence_piece = spec.kind == TokenizerKind::kSentencePieceBpe;
  if (sentence_piece) {
    RETURN_IF_ERROR(ReadSentencePieceNormalizer(root, &spec));
    RETURN_IF_ERROR(CheckSentencePieceDecoder(root, spec.add_space_prefix));
  } else {
    json::element decoder;
    const std::string type =
        Has(root, "decoder", &decoder) ? StringOr(decoder, "type", "") : "none";
    if (type != "ByteLevel") return Refused("decoder ", type, " of a model without byte_fallback");
    ASSIGN_OR_RETURN(spec.pre_tokenizer, ByteLevelPreTokenizer(root));
    RETURN_IF_ERROR(ReadByteLevelNormalizer(root, &spec));
  }
  ASSIGN_OR_RETURN(const IdByText ids, ReadVocabulary(model, &spec));
  RETURN_IF_ERROR(ReadMerges(model, ids, &spec));
  RETURN_IF_ERROR(ReadAddedTokens(root, ids, &spec));
  DropMergesIntoAddedTokens(&spec);
  if (!sentence_piece) RETURN_IF_ERROR(UndoByteAlphabet(&spec));
  json::element unknown;
  if (Has(model, "unk_token", &unknown)) {
    const auto found = ids.find(StringOr(model, "unk_token", ""));
    if (found == ids.end()) return Broken("unk_token is not in the vocabulary");
    spec.unknown_id = found->second;
  }
  RETURN_IF_ERROR(ReadPostProcessor(root, &spec));
  if (!tokenizer_config_json.empty())
    RETURN_IF_ERROR(ReadConfig(tokenizer_config_json, ids, &spec));
  RETURN_IF_ERROR(ValidateTokenizerSpec(spec));
  return spec;
}

}  // namespace fixpoint
