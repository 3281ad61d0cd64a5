// What a tokenizer is made of, free of any file format. The calibrator's importers fill it from
// GGUF metadata or tokenizer.json, the bundle stores it (SerializeTokenizerSpec), the server builds
// a Tokenizer from it.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fixpoint {

enum class TokenizerKind : uint8_t {
  kByteLevelBpe = 1,      // GPT-2 family: pre-tokenizer, then BPE over bytes by merge rank
  kSentencePieceBpe = 2,  // Llama-2 family: no pre-tokenizer, merges by piece rank, byte fallback
};

// Which rule splits text before BPE (reference: the regular expressions of the tokenizers' own
// files).
enum class PreTokenizer : uint8_t { kNone = 0, kGpt2 = 1, kSmolLm = 2, kLlama3 = 3, kQwen2 = 4 };

enum class TokenType : uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,      // never produced from user text
  kUserDefined = 4,  // an added token that plain text may contain
  kUnused = 5,
  kByte = 6,  // SentencePiece <0xNN>
};

// An added token with the matching flags of tokenizer.json. Leftmost-longest among all that apply.
// `special` goes with the type: kControl or kUnknown when special, any other when not.
struct AddedToken {
  int32_t id = 0;
  std::string content;  // UTF-8
  bool special = false;
  bool single_word = false;
  bool lstrip = false;
  bool rstrip = false;
  bool normalized = false;
};

struct TokenizerSpec {
  TokenizerKind kind = TokenizerKind::kByteLevelBpe;
  PreTokenizer pre_tokenizer = PreTokenizer::kNone;
  bool normalize_nfc = false;     // Qwen2/3
  bool ignore_merges = false;     // Llama-3: a piece that is itself in the vocabulary skips merging
  bool add_space_prefix = false;  // SentencePiece: U+2581 before the text
  bool add_bos = false;           // the checkpoint asks for bos_id in front of raw prompts
  int32_t bos_id = -1;            // -1: none
  int32_t unknown_id = -1;
  std::vector<int32_t> eos_ids;  // end of sequence and end of turn; generation stops at any of them

  // Vocabulary by id. Byte-level: the raw bytes (the printable byte alphabet of GPT-2 is undone by
  // the importer). SentencePiece: UTF-8 with U+2581 for a space; <0xNN> pieces keep that spelling
  // and have type kByte.
  std::vector<std::string> tokens;
  std::vector<TokenType> types;  // as long as tokens

  // Merges by rank, as (left id, right id, id of the joined token). Byte-level, and SentencePiece
  // models whose file lists merges (tokenizer.json).
  struct Merge {
    int32_t left, right, joined;
  };
  std::vector<Merge> merges;

  // SentencePiece models whose file has scores (GGUF): rank of each token, 0 merges first (order of
  // falling score, ties by lower id). Empty otherwise, never beside merges.
  std::vector<int32_t> ranks;

  std::vector<AddedToken> added;
};

// Little-endian, versioned. Parse checks every count, id and length, makes the checks of
// ValidateTokenizerSpec and names what is wrong. Serialize requires as many types as tokens.
std::string SerializeTokenizerSpec(const TokenizerSpec& spec);
absl::StatusOr<TokenizerSpec> ParseTokenizerSpec(absl::string_view bytes);

// The checks that both sides make: ids in range, at most 2^20 tokens, 2^21 merges and 2^16 added
// tokens, token length at most 4,096 bytes, added token length 1 to 256 bytes, vectors of equal
// length, each merge's parts spelling the joined token.
absl::Status ValidateTokenizerSpec(const TokenizerSpec& spec);

}  // namespace fixpoint
