// Text to token ids and back, for both kinds of TokenizerSpec. Equal to the `tokenizers` package id
// for id.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/text_segment.h"
#include "text/tokenizer_spec.h"

namespace fixpoint {

// Immutable: all methods are const and thread-safe.
//
// Control tokens (AddedToken::special, TokenType::kControl) come only from text that the caller
// declares trusted. They are never the result of a merge or of a vocabulary lookup: Create drops
// such merges.
class Tokenizer {
 public:
  // Error: the spec does not pass ValidateTokenizerSpec.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(TokenizerSpec spec);

  // No BOS is added. With parse_control_tokens the whole text is trusted. Requires valid UTF-8
  // (text/utf8.h) of less than 512 MiB. A byte that the vocabulary does not know becomes
  // unknown_id, or nothing when there is none (as in `tokenizers`). `work`, when given, is added
  // to.
  std::vector<int32_t> Encode(absl::string_view utf8, bool parse_control_tokens,
                              EncodeWork* work = nullptr) const;

  // The same for text of mixed origin. Control tokens are found inside runs of adjacent trusted
  // segments; what is left between them is tokenized as one text, across segment borders. Each run
  // of trusted text, and all text together, must be valid UTF-8.
  std::vector<int32_t> EncodeSegments(const std::vector<TextSegment>& segments,
                                      EncodeWork* work = nullptr) const;

  // Valid UTF-8: ill-formed bytes become U+FFFD (see Detokenizer). skip_control leaves control
  // tokens out. Ids outside the vocabulary give nothing.
  std::string Decode(const std::vector<int32_t>& ids, bool skip_control) const;

  int32_t vocab_size() const { return static_cast<int32_t>(spec_.tokens.size()); }

  // The bytes that the token stands for, not always whole code points; SentencePiece's U+2581 is a
  // space here. Control tokens: their spelling. Empty outside [0, vocab_size()).
  absl::string_view TokenBytes(int32_t id) const;

  // A token that is no text: TokenType::kControl or kUnknown.
  bool IsControl(int32_t id) const;

  const TokenizerSpec& spec() const { return spec_; }

 private:
  explicit Tokenizer(TokenizerSpec spec);
  void IndexAddedTokens();
  void IndexVocabulary();
  void IndexMerges();
  void MarkWholePieces();

  std::vector<TextSpan> CutRaw(absl::string_view text, const std::vector<TextSpan>& trusted,
                               EncodeWork* work) const;
  void EncodePlain(absl::string_view text, std::vector<int32_t>* ids, EncodeWork* work) const;
  std::string Normalize(absl::string_view text) const;
  void EncodePiece(absl::string_view piece, std::vector<int32_t>* ids,
                   std::vector<BpeSymbol>* scratch, EncodeWork* work) const;
  void ByteSymbols(absl::string_view piece, std::vector<BpeSymbol>* symbols) const;
  void CharacterSymbols(absl::string_view piece, std::vector<BpeSymbol>* symbols) const;
  void Merge(absl::string_view piece, std::vector<BpeSymbol>* symbols, EncodeWork* work) const;

  TokenizerSpec spec_;
  AddedTokenMatcher raw_matcher_;         // special tokens and those with normalized = false
  AddedTokenMatcher normalized_matcher_;  // the others, matched after normalization
  // Tokens that plain text can reach, by their bytes (views into spec_.tokens).
  absl::flat_hash_map<absl::string_view, int32_t> by_text_;
  absl::flat_hash_map<uint64_t, BpeJoin> merges_;  // key: left id << 32 | right id
  std::vector<bool> whole_;   // by id: merging the token's bytes gives this token alone, so a piece
                              // equal to it is done
  size_t longest_piece_ = 0;  // bytes, over by_text_
  int32_t byte_id_[256];  // byte-level: token of one byte; SentencePiece: <0xNN>; -1 where there is
                          // none
  std::vector<std::string> decoded_;  // SentencePiece: TokenBytes by id; empty for byte-level
};

}  // namespace fixpoint
