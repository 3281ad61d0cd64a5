#include "calibrator/export/tokenizer_files.h"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/json_writer.h"
#include "base/status_macros.h"
#include "text/byte_alphabet.h"
#include "text/utf8.h"

namespace fixpoint {
namespace {

constexpr absl::string_view kSpaceSymbol = "\xE2\x96\x81";  // U+2581

// The splitting regexes as published files spell them (docs of the importer: tokenizer_json.cc).
constexpr absl::string_view kLlama3Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr absl::string_view kQwen2Regex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

class TokenizerJson {
 public:
  explicit TokenizerJson(const TokenizerSpec& spec)
      : spec_(spec), sentence_piece_(spec.kind == TokenizerKind::kSentencePieceBpe) {}

  absl::StatusOr<std::string> Write() {
    RETURN_IF_ERROR(SpellTokens());
    json_.BeginObject();
    json_.Field("version", "1.0");
    Null("truncation");
    Null("padding");
    AddedTokens();
    Normalizer();
    PreTokenizerSection();
    PostProcessor();
    Decoder();
    Model();
    json_.EndObject();
    return json_.Take();
  }

 private:
  void Null(const char* key) {
    json_.Key(key);
    json_.Null();
  }

  // Ordinary byte-level tokens in the byte alphabet, everything else as it is.
  absl::Status SpellTokens() {
    spelled_.reserve(spec_.tokens.size());
    for (size_t id = 0; id < spec_.tokens.size(); ++id) {
      const bool bytes = !sentence_piece_ && spec_.types[id] == TokenType::kNormal;
      spelled_.push_back(bytes ? AlphabetFromBytes(spec_.tokens[id]) : spec_.tokens[id]);
      if (!IsValidUtf8(spelled_.back())) {
        return absl::InvalidArgumentError(absl::StrCat(
            "token ", id, " \"", absl::CHexEscape(spelled_.back()), "\" is not UTF-8"));
      }
      const auto [found, inserted] = id_of_.emplace(spelled_.back(), static_cast<int32_t>(id));
      if (!inserted) {
        return absl::InvalidArgumentError(absl::StrCat("tokens ", found->second, " and ", id,
                                                       " are both spelled \"",
                                                       absl::CHexEscape(spelled_.back()), "\""));
      }
    }
    return absl::OkStatus();
  }

  void AddedTokens() {
    json_.Key("added_tokens");
    json_.BeginArray();
    std::vector<const AddedToken*> order;
    for (const AddedToken& token : spec_.added) order.push_back(&token);
    std::sort(order.begin(), order.end(),
              [](const AddedToken* a, const AddedToken* b) { return a->id < b->id; });
    for (const AddedToken* token : order) {
      json_.BeginObject();
      json_.Field("id", token->id);
      json_.Field("content", token->content);
      json_.Field("single_word", token->single_word);
      json_.Field("lstrip", token->lstrip);
      json_.Field("rstrip", token->rstrip);
      json_.Field("normalized", token->normalized);
      json_.Field("special", token->special);
      json_.EndObject();
    }
    json_.EndArray();
  }

  void Replace(absl::string_view from, absl::string_view to) {
    json_.BeginObject();
    json_.Field("type", "Replace");
    json_.Key("pattern");
    json_.BeginObject();
    json_.Field("String", from);
    json_.EndObject();
    json_.Field("content", to);
    json_.EndObject();
  }

  void Normalizer() {
    json_.Key("normalizer");
    if (!sentence_piece_) {
      if (!spec_.normalize_nfc) return json_.Null();
      json_.BeginObject();
      json_.Field("type", "NFC");
      return json_.EndObject();
    }
    json_.BeginObject();
    json_.Field("type", "Sequence");
    json_.Key("normalizers");
    json_.BeginArray();
    if (spec_.add_space_prefix) {
      json_.BeginObject();
      json_.Field("type", "Prepend");
      json_.Field("prepend", kSpaceSymbol);
      json_.EndObject();
    }
    Replace(" ", kSpaceSymbol);
    json_.EndArray();
    json_.EndObject();
  }

  void ByteLevel(bool use_regex) {
    json_.BeginObject();
    json_.Field("type", "ByteLevel");
    json_.Field("add_prefix_space", false);
    json_.Field("trim_offsets", true);
    json_.Field("use_regex", use_regex);
    json_.EndObject();
  }

  void PreTokenizerSection() {
    json_.Key("pre_tokenizer");
    if (sentence_piece_) return json_.Null();
    if (spec_.pre_tokenizer == PreTokenizer::kGpt2 || spec_.pre_tokenizer == PreTokenizer::kNone)
      return ByteLevel(/*use_regex=*/spec_.pre_tokenizer == PreTokenizer::kGpt2);
    json_.BeginObject();
    json_.Field("type", "Sequence");
    json_.Key("pretokenizers");
    json_.BeginArray();
    json_.BeginObject();
    if (spec_.pre_tokenizer == PreTokenizer::kSmolLm) {
      json_.Field("type", "Digits");
      json_.Field("individual_digits", true);
    } else {
      json_.Field("type", "Split");
      json_.Key("pattern");
      json_.BeginObject();
      json_.Field("Regex",
                  spec_.pre_tokenizer == PreTokenizer::kLlama3 ? kLlama3Regex : kQwen2Regex);
      json_.EndObject();
      json_.Field("behavior", "Isolated");
      json_.Field("invert", false);
    }
    json_.EndObject();
    ByteLevel(/*use_regex=*/spec_.pre_tokenizer == PreTokenizer::kSmolLm);
    json_.EndArray();
    json_.EndObject();
  }

  // One text, or the second of a pair, with bos in front.
  void TemplatePart(const std::string& bos, const char* sequence, int type_id) {
    json_.BeginObject();
    json_.Key("SpecialToken");
    json_.BeginObject();
    json_.Field("id", bos);
    json_.Field("type_id", type_id);
    json_.EndObject();
    json_.EndObject();
    json_.BeginObject();
    json_.Key("Sequence");
    json_.BeginObject();
    json_.Field("id", sequence);
    json_.Field("type_id", type_id);
    json_.EndObject();
    json_.EndObject();
  }

  void PostProcessor() {
    json_.Key("post_processor");
    if (!spec_.add_bos || spec_.bos_id < 0) {
      if (sentence_piece_) return json_.Null();
      return ByteLevel(/*use_regex=*/true);  // moves offsets only
    }
    const std::string& bos = spec_.tokens[static_cast<size_t>(spec_.bos_id)];
    json_.BeginObject();
    json_.Field("type", "TemplateProcessing");
    json_.Key("single");
    json_.BeginArray();
    TemplatePart(bos, "A", 0);
    json_.EndArray();
    json_.Key("pair");
    json_.BeginArray();
    TemplatePart(bos, "A", 0);
    TemplatePart(bos, "B", 1);
    json_.EndArray();
    json_.Key("special_tokens");
    json_.BeginObject();
    json_.Key(bos);
    json_.BeginObject();
    json_.Field("id", bos);
    json_.Key("ids");
    json_.BeginArray();
    json_.Int(spec_.bos_id);
    json_.EndArray();
    json_.Key("tokens");
    json_.BeginArray();
    json_.String(bos);
    json_.EndArray();
    json_.EndObject();
    json_.EndObject();
    json_.EndObject();
  }

  void Decoder() {
    json_.Key("decoder");
    if (!sentence_piece_) return ByteLevel(/*use_regex=*/true);
    json_.BeginObject();
    json_.Field("type", "Sequence");
    json_.Key("decoders");
    json_.BeginArray();
    Replace(kSpaceSymbol, " ");
    for (const char* type : {"ByteFallback", "Fuse"}) {
      json_.BeginObject();
      json_.Field("type", type);
      json_.EndObject();
    }
    if (spec_.add_space_prefix) {
      json_.BeginObject();
      json_.Field("type", "Strip");
      json_.Field("content", " ");
      json_.Field("start", 1);
      json_.Field("stop", 0);
      json_.EndObject();
    }
    json_.EndArray();
    json_.EndObject();
  }

  void Model() {
    json_.Key("model");
    json_.BeginObject();
    json_.Field("type", "BPE");
    Null("dropout");
    if (spec_.unknown_id >= 0)
      json_.Field("unk_token", spelled_[static_cast<size_t>(spec_.unknown_id)]);
    else
      Null("unk_token");
    Null("continuing_subword_prefix");
    Null("end_of_word_suffix");
    json_.Field("fuse_unk", sentence_piece_);
    json_.Field("byte_fallback", sentence_piece_);
    json_.Field("ignore_merges", spec_.ignore_merges);
    json_.Key("vocab");
    json_.BeginObject();
    for (size_t id = 0; id < spelled_.size(); ++id)
      json_.Field(spelled_[id], static_cast<int64_t>(id));
    json_.EndObject();
    json_.Key("merges");
    json_.BeginArray();
    for (const auto& [left, right] : spec_.ranks.empty() ? ListedMerges() : MergesOfRanks()) {
      json_.BeginArray();
      json_.String(spelled_[static_cast<size_t>(left)]);
      json_.String(spelled_[static_cast<size_t>(right)]);
      json_.EndArray();
    }
    json_.EndArray();
    json_.EndObject();
  }

  using Pair = std::pair<int32_t, int32_t>;

  std::vector<Pair> ListedMerges() const {
    std::vector<Pair> merges;
    for (const TokenizerSpec::Merge& merge : spec_.merges)
      merges.push_back({merge.left, merge.right});
    return merges;
  }

  bool Mergeable(int32_t id) const {
    const TokenType type = spec_.types[static_cast<size_t>(id)];
    return type == TokenType::kNormal || type == TokenType::kUserDefined;
  }

  // All pairs of pieces that join to a piece, those of better rank first; of one piece the pair
  // with the longer left part first, as converters do it.
  std::vector<Pair> MergesOfRanks() const {
    std::vector<int32_t> by_rank(spec_.tokens.size());
    std::iota(by_rank.begin(), by_rank.end(), 0);
    std::stable_sort(by_rank.begin(), by_rank.end(), [this](int32_t a, int32_t b) {
      return spec_.ranks[static_cast<size_t>(a)] < spec_.ranks[static_cast<size_t>(b)];
    });
    std::vector<Pair> merges;
    for (const int32_t id : by_rank) {
      if (spec_.types[static_cast<size_t>(id)] != TokenType::kNormal) continue;
      const std::string& piece = spec_.tokens[static_cast<size_t>(id)];
      for (size_t cut = piece.size(); cut > 1;) {
        cut = PreviousCodePoint(piece, cut);
        if (cut == 0) break;
        const auto left = id_of_.find(piece.substr(0, cut));
        const auto right = id_of_.find(piece.substr(cut));
        if (left == id_of_.end() || right == id_of_.end()) continue;
        if (Mergeable(left->second) && Mergeable(right->second))
          merges.push_back({left->second, right->second});
      }
    }
    return merges;
  }

  const TokenizerSpec& spec_;
  const bool sentence_piece_;
  std::vector<std::string> spelled_;  // by id
  absl::flat_hash_map<std::string, int32_t> id_of_;
  JsonWriter json_;
};

}  // namespace

absl::StatusOr<std::string> WriteTokenizerJson(const TokenizerSpec& spec) {
  RETURN_IF_ERROR(Annotate(ValidateTokenizerSpec(spec), "tokenizer"));
  return TokenizerJson(spec).Write();
}

std::string WriteTokenizerConfig(const TokenizerSpec& spec, const std::string& chat_template,
                                 int32_t max_position_embeddings) {
  JsonWriter json;
  json.BeginObject();
  json.Field("tokenizer_class", "PreTrainedTokenizerFast");
  const auto token = [&](const char* key, int32_t id) {
    if (id >= 0) json.Field(key, spec.tokens[static_cast<size_t>(id)]);
  };
  token("bos_token", spec.bos_id);
  token("eos_token", spec.eos_ids.empty() ? -1 : spec.eos_ids.front());
  token("unk_token", spec.unknown_id);
  json.Field("add_bos_token", spec.add_bos && spec.bos_id >= 0);
  json.Field("add_eos_token", false);
  json.Field("clean_up_tokenization_spaces", false);
  json.Field("model_max_length", max_position_embeddings);
  if (!chat_template.empty()) json.Field("chat_template", chat_template);
  json.EndObject();
  return json.Take();
}

}  // namespace fixpoint
