#include "text/tokenizer_spec.h"

#include <cstring>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

#include "base/check.h"
#include "base/status_macros.h"
#include "text/added_tokens.h"
#include "text/utf8.h"

namespace fixpoint {
namespace {

constexpr char kMagic[4] = {'F', 'P', 'T', 'K'};
constexpr uint32_t kVersion = 1;
constexpr uint32_t kMaxTokens = 1 << 20;
constexpr uint32_t kMaxTokenBytes = 4096;
constexpr uint32_t kMaxMerges = 1 << 21;
constexpr uint32_t kMaxAdded = 1 << 16;
constexpr uint32_t kMaxEosIds = 64;
static_assert(AddedTokenMatcher::kMaxPatternBytes <= kMaxTokenBytes);

// U+2581 in front, and each space grows to three bytes, when a normalized added token meets
// SentencePiece.
constexpr uint32_t kMaxAddedBytes = 256;
static_assert(3 * (kMaxAddedBytes + 1) <= AddedTokenMatcher::kMaxPatternBytes);

enum SpecFlags : uint8_t { kNfc = 1, kIgnoreMerges = 2, kSpacePrefix = 4, kAddBos = 8 };
enum AddedFlags : uint8_t {
  kSpecial = 1,
  kSingleWord = 2,
  kLstrip = 4,
  kRstrip = 8,
  kNormalized = 16
};

template <typename... Parts>
absl::Status Bad(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("tokenizer: ", parts...));
}

class Writer {
 public:
  void U8(uint8_t value) { out_.push_back(static_cast<char>(value)); }
  void U32(uint32_t value) {
    for (int shift = 0; shift < 32; shift += 8) U8(static_cast<uint8_t>(value >> shift));
  }
  void I32(int32_t value) { U32(static_cast<uint32_t>(value)); }
  void String(absl::string_view text) {
    U32(static_cast<uint32_t>(text.size()));
    out_.append(text.data(), text.size());
  }
  std::string Take() { return std::move(out_); }

 private:
  std::string out_;
};

// Reads past the end give zeros and set failed(); counts are checked against the bytes left before
// anything is allocated.
class Reader {
 public:
  explicit Reader(absl::string_view bytes) : bytes_(bytes) {}

  uint8_t U8() { return static_cast<uint8_t>(Take(1).front()); }
  uint32_t U32() {
    const absl::string_view raw = Take(4);
    uint32_t value = 0;
    for (int i = 3; i >= 0; --i) value = value << 8 | static_cast<uint8_t>(raw[i]);
    return value;
  }
  int32_t I32() { return static_cast<int32_t>(U32()); }
  absl::Status String(absl::string_view what, uint32_t limit, std::string* out) {
    const uint32_t size = U32();
    RETURN_IF_ERROR(Fits(what, size, 1, limit));
    *out = std::string(Take(size));
    return absl::OkStatus();
  }
  absl::Status Count(absl::string_view what, uint32_t item_bytes, uint32_t limit, uint32_t* count) {
    *count = U32();
    return Fits(what, *count, item_bytes, limit);
  }
  bool failed() const { return failed_; }
  size_t left() const { return bytes_.size() - position_; }

 private:
  absl::Status Fits(absl::string_view what, uint32_t count, uint32_t item_bytes, uint32_t limit) {
    if (failed_) return Bad("ends inside ", what);
    if (count > limit) return Bad(what, ": ", count, " is over the limit of ", limit);
    if (uint64_t{count} * item_bytes > left()) {
      return Bad(what, ": ", count, " need more than the ", left(), " bytes left");
    }
    return absl::OkStatus();
  }
  absl::string_view Take(size_t size) {
    static constexpr char kZeros[4] = {};
    if (failed_ || size > left()) {
      failed_ = true;
      return absl::string_view(kZeros, sizeof kZeros);
    }
    const absl::string_view taken = bytes_.substr(position_, size);
    position_ += size;
    return taken;
  }

  absl::string_view bytes_;
  size_t position_ = 0;
  bool failed_ = false;
};

absl::Status ReadVocabulary(Reader* in, TokenizerSpec* spec) {
  uint32_t count;
  RETURN_IF_ERROR(in->Count("tokens", 5, kMaxTokens, &count));
  spec->tokens.resize(count);
  spec->types.resize(count);
  for (uint32_t id = 0; id < count; ++id) {
    spec->types[id] = static_cast<TokenType>(in->U8());
    RETURN_IF_ERROR(in->String("token text", kMaxTokenBytes, &spec->tokens[id]));
  }
  RETURN_IF_ERROR(in->Count("merges", 12, kMaxMerges, &count));
  spec->merges.resize(count);
  for (auto& merge : spec->merges) {
    merge.left = in->I32();
    merge.right = in->I32();
    merge.joined = in->I32();
  }
  RETURN_IF_ERROR(in->Count("ranks", 4, kMaxTokens, &count));
  spec->ranks.resize(count);
  for (int32_t& rank : spec->ranks) rank = in->I32();
  return absl::OkStatus();
}

absl::Status ReadAdded(Reader* in, TokenizerSpec* spec) {
  uint32_t count;
  RETURN_IF_ERROR(in->Count("added tokens", 9, kMaxAdded, &count));
  spec->added.resize(count);
  for (AddedToken& token : spec->added) {
    token.id = in->I32();
    const uint8_t flags = in->U8();
    if (flags > 31) return Bad("added token ", token.id, ": unknown flags ", flags);
    token.special = flags & kSpecial;
    token.single_word = flags & kSingleWord;
    token.lstrip = flags & kLstrip;
    token.rstrip = flags & kRstrip;
    token.normalized = flags & kNormalized;
    RETURN_IF_ERROR(in->String("added token text", kMaxAddedBytes, &token.content));
  }
  return absl::OkStatus();
}

bool IsBytePiece(absl::string_view piece) {
  return piece.size() == 6 && piece.substr(0, 3) == "<0x" && absl::ascii_isxdigit(piece[3]) &&
         absl::ascii_isxdigit(piece[4]) && piece[5] == '>';
}

absl::Status ValidateTokens(const TokenizerSpec& spec) {
  if (spec.tokens.empty()) return Bad("no tokens");
  if (spec.tokens.size() > kMaxTokens) {
    return Bad("tokens: ", spec.tokens.size(), " is over the limit of ", kMaxTokens);
  }
  if (spec.types.size() != spec.tokens.size()) {
    return Bad("types: ", spec.types.size(), " for ", spec.tokens.size(), " tokens");
  }
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    if (spec.tokens[id].size() > kMaxTokenBytes) {
      return Bad("token ", id, ": ", spec.tokens[id].size(), " bytes are over the limit of ",
                 kMaxTokenBytes);
    }
    if (spec.types[id] < TokenType::kNormal || spec.types[id] > TokenType::kByte) {
      return Bad("token ", id, ": unknown type ", static_cast<int>(spec.types[id]));
    }
    if (spec.types[id] == TokenType::kByte && !IsBytePiece(spec.tokens[id])) {
      return Bad("token ", id, ": a byte token must be spelled <0xNN>");
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateMerges(const TokenizerSpec& spec) {
  const auto count = static_cast<int32_t>(spec.tokens.size());
  if (spec.merges.size() > kMaxMerges) {
    return Bad("merges: ", spec.merges.size(), " is over the limit of ", kMaxMerges);
  }
  for (size_t i = 0; i < spec.merges.size(); ++i) {
    const TokenizerSpec::Merge& merge = spec.merges[i];
    for (const int32_t id : {merge.left, merge.right, merge.joined}) {
      if (id < 0 || id >= count) {
        return Bad("merge ", i, ": id ", id, " is outside the vocabulary of ", count);
      }
    }
    if (absl::StrCat(spec.tokens[merge.left], spec.tokens[merge.right]) !=
        spec.tokens[merge.joined]) {
      return Bad("merge ", i, ": token ", merge.joined, " is not token ", merge.left,
                 " followed by token ", merge.right);
    }
  }
  if (spec.ranks.empty()) return absl::OkStatus();
  if (spec.kind != TokenizerKind::kSentencePieceBpe)
    return Bad("ranks belong to SentencePiece only");
  if (!spec.merges.empty()) return Bad("has both merges and ranks");
  if (spec.ranks.size() != spec.tokens.size()) {
    return Bad("ranks: ", spec.ranks.size(), " for ", count, " tokens");
  }
  for (size_t id = 0; id < spec.ranks.size(); ++id) {
    if (spec.ranks[id] < 0 || spec.ranks[id] >= count) {
      return Bad("rank of token ", id, ": ", spec.ranks[id], " is outside [0, ", count, ")");
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateAdded(const TokenizerSpec& spec) {
  if (spec.added.size() > kMaxAdded) {
    return Bad("added tokens: ", spec.added.size(), " is over the limit of ", kMaxAdded);
  }
  for (const AddedToken& token : spec.added) {
    if (token.id < 0 || token.id >= static_cast<int64_t>(spec.tokens.size())) {
      return Bad("added token ", token.id, " is outside the vocabulary of ", spec.tokens.size());
    }
    if (token.content.empty() || token.content.size() > kMaxAddedBytes) {
      return Bad("added token ", token.id, ": ", token.content.size(), " bytes, must be 1 to ",
                 kMaxAddedBytes);
    }
    if (!IsValidUtf8(token.content)) return Bad("added token ", token.id, " is not valid UTF-8");
    const TokenType type = spec.types[token.id];
    const bool is_control = type == TokenType::kControl || type == TokenType::kUnknown;
    if (token.special != is_control) {
      return Bad("added token ", token.id, ": special is ", token.special, " but its type is ",
                 static_cast<int>(type));
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateSpecials(const TokenizerSpec& spec) {
  const auto count = static_cast<int64_t>(spec.tokens.size());
  if (spec.bos_id < -1 || spec.bos_id >= count) return Bad("bos id ", spec.bos_id, " of ", count);
  if (spec.unknown_id < -1 || spec.unknown_id >= count) {
    return Bad("unknown id ", spec.unknown_id, " of ", count);
  }
  if (spec.add_bos && spec.bos_id < 0) return Bad("asks for a bos token but has none");
  if (spec.eos_ids.size() > kMaxEosIds) {
    return Bad("eos ids: ", spec.eos_ids.size(), " is over the limit of ", kMaxEosIds);
  }
  for (const int32_t id : spec.eos_ids) {
    if (id < 0 || id >= count) return Bad("eos id ", id, " of ", count);
  }
  return absl::OkStatus();
}

}  // namespace

std::string SerializeTokenizerSpec(const TokenizerSpec& spec) {
  CHECK_EQ(spec.tokens.size(), spec.types.size());
  Writer out;
  for (const char c : kMagic) out.U8(static_cast<uint8_t>(c));
  out.U32(kVersion);
  out.U8(static_cast<uint8_t>(spec.kind));
  out.U8(static_cast<uint8_t>(spec.pre_tokenizer));
  out.U8((spec.normalize_nfc ? kNfc : 0) | (spec.ignore_merges ? kIgnoreMerges : 0) |
         (spec.add_space_prefix ? kSpacePrefix : 0) | (spec.add_bos ? kAddBos : 0));
  out.I32(spec.bos_id);
  out.I32(spec.unknown_id);
  out.U32(static_cast<uint32_t>(spec.eos_ids.size()));
  for (const int32_t id : spec.eos_ids) out.I32(id);
  out.U32(static_cast<uint32_t>(spec.tokens.size()));
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    out.U8(static_cast<uint8_t>(spec.types[id]));
    out.String(spec.tokens[id]);
  }
  out.U32(static_cast<uint32_t>(spec.merges.size()));
  for (const auto& merge : spec.merges) {
    out.I32(merge.left);
    out.I32(merge.right);
    out.I32(merge.joined);
  }
  out.U32(static_cast<uint32_t>(spec.ranks.size()));
  for (const int32_t rank : spec.ranks) out.I32(rank);
  out.U32(static_cast<uint32_t>(spec.added.size()));
  for (const AddedToken& token : spec.added) {
    out.I32(token.id);
    out.U8((token.special ? kSpecial : 0) | (token.single_word ? kSingleWord : 0) |
           (token.lstrip ? kLstrip : 0) | (token.rstrip ? kRstrip : 0) |
           (token.normalized ? kNormalized : 0));
    out.String(token.content);
  }
  return out.Take();
}

absl::StatusOr<TokenizerSpec> ParseTokenizerSpec(absl::string_view bytes) {
  Reader in(bytes);
  char magic[4];
  for (char& c : magic) c = static_cast<char>(in.U8());
  if (in.failed() || std::memcmp(magic, kMagic, sizeof magic) != 0) return Bad("wrong magic");
  if (const uint32_t version = in.U32(); version != kVersion) {
    return Bad("version ", version, ", this program reads version ", kVersion);
  }
  TokenizerSpec spec;
  const uint8_t kind = in.U8();
  if (kind != 1 && kind != 2) return Bad("unknown kind ", kind);
  spec.kind = static_cast<TokenizerKind>(kind);
  spec.pre_tokenizer = static_cast<PreTokenizer>(in.U8());
  const uint8_t flags = in.U8();
  if (flags > 15) return Bad("unknown flags ", flags);
  spec.normalize_nfc = flags & kNfc;
  spec.ignore_merges = flags & kIgnoreMerges;
  spec.add_space_prefix = flags & kSpacePrefix;
  spec.add_bos = flags & kAddBos;
  spec.bos_id = in.I32();
  spec.unknown_id = in.I32();
  uint32_t count;
  RETURN_IF_ERROR(in.Count("eos ids", 4, kMaxEosIds, &count));
  spec.eos_ids.resize(count);
  for (int32_t& id : spec.eos_ids) id = in.I32();
  RETURN_IF_ERROR(ReadVocabulary(&in, &spec));
  RETURN_IF_ERROR(ReadAdded(&in, &spec));
  if (in.failed()) return Bad("ends too early");
  if (in.left() != 0) return Bad(in.left(), " bytes behind the end");
  RETURN_IF_ERROR(ValidateTokenizerSpec(spec));
  return spec;
}

absl::Status ValidateTokenizerSpec(const TokenizerSpec& spec) {
  if (spec.kind != TokenizerKind::kByteLevelBpe && spec.kind != TokenizerKind::kSentencePieceBpe) {
    return Bad("unknown kind ", static_cast<int>(spec.kind));
  }
  if (spec.pre_tokenizer > PreTokenizer::kQwen2) {
    return Bad("unknown pre-tokenizer ", static_cast<int>(spec.pre_tokenizer));
  }
  if (spec.kind == TokenizerKind::kSentencePieceBpe &&
      (spec.pre_tokenizer != PreTokenizer::kNone || spec.normalize_nfc || spec.ignore_merges)) {
    return Bad("SentencePiece takes no pre-tokenizer, no NFC and no ignore_merges");
  }
  if (spec.kind == TokenizerKind::kByteLevelBpe && spec.add_space_prefix) {
    return Bad("a space prefix belongs to SentencePiece only");
  }
  RETURN_IF_ERROR(ValidateTokens(spec));
  RETURN_IF_ERROR(ValidateMerges(spec));
  RETURN_IF_ERROR(ValidateAdded(spec));
  return ValidateSpecials(spec);
}

}  // namespace fixpoint
