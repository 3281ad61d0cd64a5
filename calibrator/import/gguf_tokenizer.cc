#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "calibrator/import/gguf_checkpoint.h"
#include "text/byte_alphabet.h"

namespace fixpoint {
namespace {

constexpr int64_t kTokensMax =
    1 << 20;  // ValidateTokenizerSpec's limit, checked here before anything is copied

// Names that end a turn or a text in the model families that we read.
constexpr absl::string_view kWellKnownEos[] = {"<|im_end|>", "<|eot_id|>", "<|end_of_text|>",
                                               "<|endoftext|>"};

struct Splitter {
  absl::string_view name;
  PreTokenizer pre_tokenizer;
};
constexpr Splitter kSplitters[] = {
    {"default", PreTokenizer::kGpt2},  {"gpt-2", PreTokenizer::kGpt2},
    {"smollm", PreTokenizer::kSmolLm}, {"llama-bpe", PreTokenizer::kLlama3},
    {"llama3", PreTokenizer::kLlama3}, {"llama-v3", PreTokenizer::kLlama3},
    {"qwen2", PreTokenizer::kQwen2},
};

std::string Quoted(absl::string_view text) {
  return absl::StrCat("\"", absl::CHexEscape(text), "\"");
}

// Builds the spec from tokenizer.ggml.*. Messages: FILE: metadata key KEY: ...
class SpecBuilder {
 public:
  explicit SpecBuilder(const GgufFile& gguf) : gguf_(gguf) {}

  absl::StatusOr<TokenizerSpec> Build() {
    ASSIGN_OR_RETURN(const std::string* model, gguf_.FindString(Key("model")));
    if (model == nullptr) return Error("model", "is missing: the file has no tokenizer");
    if (*model == "gpt2") {
      spec_.kind = TokenizerKind::kByteLevelBpe;
    } else if (*model == "llama") {
      spec_.kind = TokenizerKind::kSentencePieceBpe;
    } else {
      return Unsupported("model",
                         absl::StrCat(Quoted(*model), " is not supported (gpt2 and llama are)"));
    }
    RETURN_IF_ERROR(RefuseVariants());
    RETURN_IF_ERROR(ReadPreTokenizer());
    RETURN_IF_ERROR(ReadTypes());
    if (byte_level()) {
      RETURN_IF_ERROR(ReadByteLevelTokens());
      RETURN_IF_ERROR(ReadMerges());
    } else {
      RETURN_IF_ERROR(ReadPieces());
      RETURN_IF_ERROR(ReadRanks());
    }
    AddAddedTokens();
    RETURN_IF_ERROR(ReadSpecialIds());
    RETURN_IF_ERROR(ReadPrefixes());
    RETURN_IF_ERROR(Annotate(ValidateTokenizerSpec(spec_), gguf_.file().path()));
    return std::move(spec_);
  }

 private:
  static std::string Key(absl::string_view name) { return absl::StrCat("tokenizer.ggml.", name); }
  std::string Place(absl::string_view name) const {
    return absl::StrCat(gguf_.file().path(), ": metadata key ", Key(name), ": ");
  }
  absl::Status Error(absl::string_view name, absl::string_view message) const {
    return absl::InvalidArgumentError(absl::StrCat(Place(name), message));
  }
  absl::Status Unsupported(absl::string_view name, absl::string_view message) const {
    return absl::UnimplementedError(absl::StrCat(Place(name), message));
  }
  bool byte_level() const { return spec_.kind == TokenizerKind::kByteLevelBpe; }

  // Options that we would otherwise ignore silently.
  absl::Status RefuseVariants() const {
    for (const absl::string_view name :
         {"add_eos_token", "add_sep_token", "remove_extra_whitespaces"}) {
      ASSIGN_OR_RETURN(const std::optional<bool> value, gguf_.FindBool(Key(name)));
      if (value.value_or(false)) return Unsupported(name, "true is not supported");
    }
    if (gguf_.Has(Key("precompiled_charsmap"))) {
      return Unsupported("precompiled_charsmap", "is not supported");
    }
    return absl::OkStatus();
  }

  absl::Status ReadPreTokenizer() {
    ASSIGN_OR_RETURN(const std::string* pre, gguf_.FindString(Key("pre")));
    if (!byte_level()) {
      if (pre == nullptr || *pre == "default") return absl::OkStatus();
      return Unsupported("pre", absl::StrCat(Quoted(*pre), " is not supported beside model llama"));
    }
    if (pre == nullptr) return Error("pre", "is missing: how text is split is unknown");
    for (const Splitter& splitter : kSplitters) {
      if (splitter.name != *pre) continue;
      spec_.pre_tokenizer = splitter.pre_tokenizer;
      spec_.ignore_merges = splitter.pre_tokenizer == PreTokenizer::kLlama3;
      spec_.normalize_nfc = splitter.pre_tokenizer == PreTokenizer::kQwen2;
      return absl::OkStatus();
    }
    return Unsupported("pre", absl::StrCat(Quoted(*pre),
                                           " is not supported (default, gpt-2, smollm, llama-bpe, "
                                           "llama3, llama-v3 and qwen2 are)"));
  }

  absl::Status ReadTypes() {
    ASSIGN_OR_RETURN(texts_, gguf_.FindStrings(Key("tokens")));
    if (texts_ == nullptr) return Error("tokens", "is missing");
    if (texts_->empty() || static_cast<int64_t>(texts_->size()) > kTokensMax) {
      return Error("tokens",
                   absl::StrCat(texts_->size(), " tokens, the limits are 1 and ", kTokensMax));
    }
    ASSIGN_OR_RETURN(const std::vector<int64_t>* types, gguf_.FindInts(Key("token_type")));
    if (types == nullptr) return Error("token_type", "is missing");
    if (types->size() != texts_->size()) {
      return Error("token_type",
                   absl::StrCat(types->size(), " types for ", texts_->size(), " tokens"));
    }
    spec_.types.reserve(types->size());
    for (size_t id = 0; id < types->size(); ++id) {
      const int64_t type = (*types)[id];
      if (type < 1 || type > 6) {
        return Error("token_type", absl::StrCat("token ", id, " has unknown type ", type));
      }
      spec_.types.push_back(static_cast<TokenType>(type));
    }
    return IndexTexts();
  }

  absl::Status IndexTexts() {
    id_of_.reserve(texts_->size());
    for (size_t id = 0; id < texts_->size(); ++id) {
      const auto [found, inserted] = id_of_.emplace((*texts_)[id], static_cast<int32_t>(id));
      if (!inserted) {
        return Error("tokens", absl::StrCat("tokens ", found->second, " and ", id, " are both ",
                                            Quoted((*texts_)[id])));
      }
    }
    return absl::OkStatus();
  }

  // Ordinary tokens are spelled in the byte alphabet, all others in plain text.
  absl::Status ReadByteLevelTokens() {
    spec_.tokens.reserve(texts_->size());
    for (size_t id = 0; id < texts_->size(); ++id) {
      const std::string& text = (*texts_)[id];
      if (spec_.types[id] == TokenType::kByte) {
        return Error("token_type", absl::StrCat("token ", id, " ", Quoted(text),
                                                " is a byte token in a byte-level vocabulary"));
      }
      if (spec_.types[id] != TokenType::kNormal) {
        spec_.tokens.push_back(text);
        continue;
      }
      absl::StatusOr<std::string> bytes = BytesFromAlphabet(text);
      if (!bytes.ok()) {
        return Annotate(bytes.status(),
                        absl::StrCat(Place("tokens"), "token ", id, " ", Quoted(text)));
      }
      spec_.tokens.push_back(*std::move(bytes));
    }
    return absl::OkStatus();
  }

  absl::Status ReadMerges() {
    ASSIGN_OR_RETURN(const std::vector<std::string>* merges, gguf_.FindStrings(Key("merges")));
    if (merges == nullptr) return Error("merges", "is missing");
    spec_.merges.reserve(merges->size());
    for (size_t rank = 0; rank < merges->size(); ++rank) {
      const std::string& text = (*merges)[rank];
      const size_t space = text.find(' ');  // a space itself is spelled U+0120
      if (space == std::string::npos || space == 0 || space + 1 == text.size() ||
          text.find(' ', space + 1) != std::string::npos) {
        return Error("merges", absl::StrCat("rank ", rank, " ", Quoted(text),
                                            " is not two tokens with one space between them"));
      }
      const std::string left = text.substr(0, space);
      const std::string right = text.substr(space + 1);
      const std::string joined = left + right;
      int32_t ids[3];
      int32_t* next = ids;
      bool all_normal = true;
      for (const std::string* part : {&left, &right, &joined}) {
        const auto found = id_of_.find(*part);
        if (found == id_of_.end()) {
          return Error("merges", absl::StrCat("rank ", rank, " ", Quoted(text), ": ", Quoted(*part),
                                              " is not in the vocabulary"));
        }
        *next++ = found->second;
        all_normal &= spec_.types[static_cast<size_t>(found->second)] == TokenType::kNormal;
      }
      // Added tokens are matched before BPE or, when special, must never come out of user text: no
      // merge may build one.
      if (all_normal) spec_.merges.push_back({ids[0], ids[1], ids[2]});
    }
    return absl::OkStatus();
  }

  absl::Status ReadPieces() {
    for (size_t id = 0; id < texts_->size(); ++id) {
      const std::string& text = (*texts_)[id];
      if (spec_.types[id] != TokenType::kByte) continue;
      if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>' || !IsHex(text[3]) ||
          !IsHex(text[4])) {
        return Error("tokens",
                     absl::StrCat("byte token ", id, " ", Quoted(text), " is not <0xNN>"));
      }
    }
    spec_.tokens = *texts_;
    return absl::OkStatus();
  }

  static bool IsHex(char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F'); }

  // SentencePiece merges the pair whose piece has the highest score; a rank says the same in
  // integers.
  absl::Status ReadRanks() {
    ASSIGN_OR_RETURN(const std::vector<double>* scores, gguf_.FindDoubles(Key("scores")));
    if (scores == nullptr) return Error("scores", "is missing");
    if (scores->size() != texts_->size()) {
      return Error("scores",
                   absl::StrCat(scores->size(), " scores for ", texts_->size(), " tokens"));
    }
    for (size_t id = 0; id < scores->size(); ++id) {
      if (!std::isfinite((*scores)[id])) {
        return Error("scores", absl::StrCat("token ", id, " has score ", (*scores)[id]));
      }
    }
    std::vector<int32_t> order(scores->size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [scores](int32_t a, int32_t b) {
      return (*scores)[static_cast<size_t>(a)] > (*scores)[static_cast<size_t>(b)];
    });
    spec_.ranks.resize(order.size());
    for (size_t rank = 0; rank < order.size(); ++rank) {
      spec_.ranks[static_cast<size_t>(order[rank])] = static_cast<int32_t>(rank);
    }
    return absl::OkStatus();
  }

  void AddAddedTokens() {
    for (size_t id = 0; id < texts_->size(); ++id) {
      const TokenType type = spec_.types[id];
      const bool special = type == TokenType::kControl || type == TokenType::kUnknown;
      if ((!special && type != TokenType::kUserDefined) || (*texts_)[id].empty()) continue;
      AddedToken added;
      added.id = static_cast<int32_t>(id);
      added.content = (*texts_)[id];
      added.special = special;
      spec_.added.push_back(std::move(added));
    }
  }

  absl::StatusOr<int32_t> ReadId(absl::string_view name) const {
    ASSIGN_OR_RETURN(const std::optional<int64_t> id, gguf_.FindInt(Key(name)));
    // -1 and its unsigned form say "none" in files of older converters.
    if (!id.has_value() || *id == -1 || *id == 0xffffffff) return -1;
    if (*id < 0 || *id >= static_cast<int64_t>(texts_->size())) {
      return Error(name, absl::StrCat(*id, " is no token, there are ", texts_->size()));
    }
    return static_cast<int32_t>(*id);
  }

  absl::Status ReadSpecialIds() {
    ASSIGN_OR_RETURN(spec_.bos_id, ReadId("bos_token_id"));
    ASSIGN_OR_RETURN(const int32_t unknown, ReadId("unknown_token_id"));
    if (!byte_level()) spec_.unknown_id = unknown;
    for (const absl::string_view name : {"eos_token_id", "eot_token_id"}) {
      ASSIGN_OR_RETURN(const int32_t id, ReadId(name));
      if (id >= 0 &&
          std::find(spec_.eos_ids.begin(), spec_.eos_ids.end(), id) == spec_.eos_ids.end()) {
        spec_.eos_ids.push_back(id);
      }
    }
    AppendWellKnownEosIds(&spec_);
    return absl::OkStatus();
  }

  // Where the keys are absent: SentencePiece models add both, byte-level ones neither, except Llama
  // 3, which adds its BOS.
  absl::Status ReadPrefixes() {
    ASSIGN_OR_RETURN(const std::optional<bool> space, gguf_.FindBool(Key("add_space_prefix")));
    if (byte_level() && space.value_or(false)) {
      return Unsupported("add_space_prefix", "true is not supported beside model gpt2");
    }
    spec_.add_space_prefix = !byte_level() && space.value_or(true);
    ASSIGN_OR_RETURN(const std::optional<bool> bos, gguf_.FindBool(Key("add_bos_token")));
    if (bos.value_or(false) && spec_.bos_id < 0) {
      return Error("add_bos_token", "is true, but there is no bos_token_id");
    }
    const bool fallback = !byte_level() || spec_.pre_tokenizer == PreTokenizer::kLlama3;
    spec_.add_bos = bos.value_or(fallback && spec_.bos_id >= 0);
    return absl::OkStatus();
  }

  const GgufFile& gguf_;
  const std::vector<std::string>* texts_ = nullptr;  // tokens as the file spells them
  absl::flat_hash_map<absl::string_view, int32_t> id_of_;
  TokenizerSpec spec_;
};

}  // namespace

absl::StatusOr<TokenizerSpec> ParseGgufTokenizer(const GgufFile& gguf) {
  return SpecBuilder(gguf).Build();
}

void AppendWellKnownEosIds(TokenizerSpec* spec) {
  for (const absl::string_view name : kWellKnownEos) {
    for (const AddedToken& added : spec->added) {
      if (!added.special || added.content != name) continue;
      if (std::find(spec->eos_ids.begin(), spec->eos_ids.end(), added.id) == spec->eos_ids.end()) {
        spec->eos_ids.push_back(added.id);
      }
    }
  }
}

}  // namespace fixpoint
