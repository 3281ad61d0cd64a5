// Small vocabularies for tests of this folder.
#pragma once

#include <initializer_list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "text/tokenizer.h"

namespace fixpoint {

// Byte-level: the 256 bytes as ids 0 to 255, then one token per merge of `words` (each joined from
// the left), then `added` (control when special).
inline TokenizerSpec ByteLevelSpec(const std::vector<std::string>& words,
                                   std::vector<AddedToken> added) {
  TokenizerSpec spec;
  spec.pre_tokenizer = PreTokenizer::kGpt2;
  for (int byte = 0; byte < 256; ++byte) spec.tokens.emplace_back(1, static_cast<char>(byte));
  for (const std::string& word : words) {
    auto id_of = [&](const std::string& token) {
      for (size_t id = 0; id < spec.tokens.size(); ++id) {
        if (spec.tokens[id] == token) return static_cast<int32_t>(id);
      }
      return -1;
    };
    int32_t left = id_of(word.substr(0, 1));
    for (size_t size = 2; size <= word.size(); ++size) {
      int32_t joined = id_of(word.substr(0, size));
      if (joined < 0) {
        joined = static_cast<int32_t>(spec.tokens.size());
        spec.tokens.push_back(word.substr(0, size));
        spec.merges.push_back({left, id_of(word.substr(size - 1, 1)), joined});
      }
      left = joined;
    }
  }
  spec.types.assign(spec.tokens.size(), TokenType::kNormal);
  for (AddedToken& token : added) {
    token.id = static_cast<int32_t>(spec.tokens.size());
    spec.tokens.push_back(token.content);
    spec.types.push_back(token.special ? TokenType::kControl : TokenType::kUserDefined);
    spec.added.push_back(token);
  }
  return spec;
}

inline std::unique_ptr<Tokenizer> MakeTokenizer(TokenizerSpec spec) {
  auto tokenizer = Tokenizer::Create(std::move(spec));
  CHECK(tokenizer.ok()) << tokenizer.status().ToString();
  return *std::move(tokenizer);
}

// SentencePiece: <unk> <s> </s>, the bytes as ids 3 to 258, then `pieces` with falling score.
inline TokenizerSpec SentencePieceSpec(const std::vector<std::string>& pieces) {
  TokenizerSpec spec;
  spec.kind = TokenizerKind::kSentencePieceBpe;
  spec.add_space_prefix = true;
  spec.tokens = {"<unk>", "<s>", "</s>"};
  spec.types = {TokenType::kUnknown, TokenType::kControl, TokenType::kControl};
  spec.unknown_id = 0;
  spec.bos_id = 1;
  spec.eos_ids = {2};
  for (int32_t id = 0; id < 3; ++id) spec.added.push_back({id, spec.tokens[id], true});
  static constexpr char kHex[] = "0123456789ABCDEF";
  for (int byte = 0; byte < 256; ++byte) {
    spec.tokens.push_back(std::string("<0x") + kHex[byte / 16] + kHex[byte % 16] + ">");
    spec.types.push_back(TokenType::kByte);
  }
  for (const std::string& piece : pieces) {
    spec.tokens.push_back(piece);
    spec.types.push_back(TokenType::kNormal);
  }
  const auto count = static_cast<int32_t>(spec.tokens.size());
  for (int32_t id = 0; id < count; ++id) spec.ranks.push_back(id < 259 ? count - 1 : id - 259);
  return spec;
}

}  // namespace fixpoint
