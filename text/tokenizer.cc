#include "text/tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

#include "base/status_macros.h"
#include "text/detokenizer.h"
#include "text/normalize.h"
#include "text/pre_tokenizer.h"
#include "text/utf8.h"

namespace fixpoint {
namespace {

constexpr absl::string_view kSpaceSymbol = "\xE2\x96\x81";  // U+2581

uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
}

int HexDigit(char c) { return c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10; }

// Value of a piece spelled <0xNN>, whose form ValidateTokenizerSpec has checked.
uint8_t ByteOfPiece(absl::string_view piece) {
  return static_cast<uint8_t>(HexDigit(piece[3]) * 16 + HexDigit(piece[4]));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Create(TokenizerSpec spec) {
  RETURN_IF_ERROR(ValidateTokenizerSpec(spec));
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(spec)));
}

Tokenizer::Tokenizer(TokenizerSpec spec) : spec_(std::move(spec)) {
  IndexVocabulary();
  IndexMerges();
  IndexAddedTokens();
  MarkWholePieces();
}

void Tokenizer::IndexVocabulary() {
  std::fill(std::begin(byte_id_), std::end(byte_id_), -1);
  const bool sentence_piece = spec_.kind == TokenizerKind::kSentencePieceBpe;
  by_text_.reserve(spec_.tokens.size());
  for (int32_t id = 0; id < vocab_size(); ++id) {
    const std::string& token = spec_.tokens[id];
    if (sentence_piece && spec_.types[id] == TokenType::kByte) {
      byte_id_[ByteOfPiece(token)] = id;
    }
    if (spec_.types[id] != TokenType::kNormal || token.empty()) continue;
    longest_piece_ = std::max(longest_piece_, token.size());
    by_text_.emplace(token, id);  // of two tokens with the same bytes the lower id stays
    if (!sentence_piece && token.size() == 1) {
      int32_t& byte_id = byte_id_[static_cast<uint8_t>(token[0])];
      if (byte_id < 0) byte_id = id;
    }
  }
  if (!sentence_piece) return;
  decoded_.reserve(spec_.tokens.size());
  for (int32_t id = 0; id < vocab_size(); ++id) {
    if (spec_.types[id] == TokenType::kByte) {
      decoded_.emplace_back(1, static_cast<char>(ByteOfPiece(spec_.tokens[id])));
    } else if (spec_.types[id] == TokenType::kNormal) {
      decoded_.push_back(absl::StrReplaceAll(spec_.tokens[id], {{kSpaceSymbol, " "}}));
    } else {
      decoded_.push_back(spec_.tokens[id]);
    }
  }
}

void Tokenizer::IndexMerges() {
  merges_.reserve(spec_.merges.size());
  for (size_t rank = 0; rank < spec_.merges.size(); ++rank) {
    const TokenizerSpec::Merge& merge = spec_.merges[rank];
    const TokenType type = spec_.types[merge.joined];
    if (type == TokenType::kControl || type == TokenType::kUnused) continue;
    merges_.insert_or_assign(PairKey(merge.left, merge.right),
                             BpeJoin{static_cast<int32_t>(rank), merge.joined});
  }
}

void Tokenizer::IndexAddedTokens() {
  for (const AddedToken& token : spec_.added) {
    if (token.special || !token.normalized) {
      raw_matcher_.Add(token, token.content);
    } else {
      normalized_matcher_.Add(token, Normalize(token.content));
    }
  }
}

// Most pieces of ordinary text are one token. Whether merging would find it is a property of the
// token alone, so it is worked out once. (It is not always so: a token whose parts are joined
// elsewhere first is never reached.)
void Tokenizer::MarkWholePieces() {
  if (spec_.kind != TokenizerKind::kByteLevelBpe) return;
  whole_.assign(spec_.tokens.size(), false);
  std::vector<BpeSymbol> symbols;
  EncodeWork work;
  for (const auto& [text, id] : by_text_) {
    symbols.clear();
    ByteSymbols(text, &symbols);
    Merge(text, &symbols, &work);
    whole_[id] = symbols.size() == 1 && symbols[0].id == id && symbols[0].end == text.size();
  }
}

std::vector<int32_t> Tokenizer::Encode(absl::string_view utf8, bool parse_control_tokens,
                                       EncodeWork* work) const {
  return EncodeSegments({TextSegment{std::string(utf8), parse_control_tokens}}, work);
}

std::vector<int32_t> Tokenizer::EncodeSegments(const std::vector<TextSegment>& segments,
                                               EncodeWork* work) const {
  EncodeWork unread;
  if (work == nullptr) work = &unread;
  std::string text;
  std::vector<TextSpan> trusted;  // maximal runs
  for (const TextSegment& segment : segments) {
    const size_t begin = text.size();
    text += segment.text;
    if (!segment.trusted || segment.text.empty()) continue;
    if (!trusted.empty() && trusted.back().end == begin) {
      trusted.back().end = text.size();
    } else {
      trusted.push_back({begin, text.size(), -1});
    }
  }

  std::vector<int32_t> ids;
  for (const TextSpan& span : CutRaw(text, trusted, work)) {
    if (span.id >= 0) {
      ids.push_back(span.id);
    } else {
      EncodePlain(absl::string_view(text).substr(span.begin, span.end - span.begin), &ids, work);
    }
  }
  return ids;
}

// The control tokens of trusted runs come first, whatever stands beside them: no user text can
// reach over a border and hide one. Only the white space that lstrip and rstrip take may lie beyond
// the border. The other tokens are then looked for between them.
std::vector<TextSpan> Tokenizer::CutRaw(absl::string_view text,
                                        const std::vector<TextSpan>& trusted,
                                        EncodeWork* work) const {
  SpanCutter cutter(text);
  size_t done = 0;
  auto cut_gap = [&](size_t end) {
    raw_matcher_.ForEachMatch(
        text, done, end,
        [&](const AddedToken& token, size_t match_begin, size_t match_end) {
          if (!token.special) cutter.Take(token, match_begin, match_end);
        },
        work);
  };
  for (const TextSpan& run : trusted) {
    raw_matcher_.ForEachMatch(
        text, run.begin, run.end,
        [&](const AddedToken& token, size_t match_begin, size_t match_end) {
          if (!token.special) return;
          cut_gap(match_begin);
          cutter.Take(token, match_begin, match_end);
          done = match_end;
        },
        work);
  }
  cut_gap(text.size());
  return cutter.Finish();
}

std::string Tokenizer::Normalize(absl::string_view text) const {
  if (spec_.kind == TokenizerKind::kSentencePieceBpe) {
    std::string out(spec_.add_space_prefix && !text.empty() ? kSpaceSymbol : "");
    absl::StrAppend(&out, absl::StrReplaceAll(text, {{" ", kSpaceSymbol}}));
    return out;
  }
  return spec_.normalize_nfc ? ToNfc(text) : std::string(text);
}

void Tokenizer::EncodePlain(absl::string_view text, std::vector<int32_t>* ids,
                            EncodeWork* work) const {
  const std::string normalized = Normalize(text);
  SpanCutter cutter(normalized);
  normalized_matcher_.ForEachMatch(
      normalized, 0, normalized.size(),
      [&](const AddedToken& token, size_t begin, size_t end) { cutter.Take(token, begin, end); },
      work);
  std::vector<BpeSymbol> scratch;
  for (const TextSpan& span : cutter.Finish()) {
    if (span.id >= 0) {
      ids->push_back(span.id);
      continue;
    }
    SplitText(
        spec_.pre_tokenizer,
        absl::string_view(normalized).substr(span.begin, span.end - span.begin),
        [&](absl::string_view piece) { EncodePiece(piece, ids, &scratch, work); },
        &work->characters_scanned);
  }
}

void Tokenizer::EncodePiece(absl::string_view piece, std::vector<int32_t>* ids,
                            std::vector<BpeSymbol>* scratch, EncodeWork* work) const {
  scratch->clear();
  if (spec_.kind == TokenizerKind::kSentencePieceBpe) {
    CharacterSymbols(piece, scratch);
  } else {
    const auto found = by_text_.find(piece);
    if (found != by_text_.end() && (spec_.ignore_merges || whole_[found->second])) {
      ids->push_back(found->second);
      return;
    }
    ByteSymbols(piece, scratch);
  }
  Merge(piece, scratch, work);
  for (const BpeSymbol& symbol : *scratch) ids->push_back(symbol.id);
}

void Tokenizer::ByteSymbols(absl::string_view piece, std::vector<BpeSymbol>* symbols) const {
  for (uint32_t i = 0; i < piece.size(); ++i) {
    const int32_t id = byte_id_[static_cast<uint8_t>(piece[i])];
    if (id >= 0) {
      symbols->push_back({id, i, i + 1});
    } else if (spec_.unknown_id >= 0) {
      symbols->push_back({spec_.unknown_id, i, i + 1});
    }
  }
}

// A character without a token falls back to its bytes; where even those are missing, neighbours
// fuse into one unknown.
void Tokenizer::CharacterSymbols(absl::string_view piece, std::vector<BpeSymbol>* symbols) const {
  for (uint32_t i = 0; i < piece.size();) {
    const uint32_t end = i + ReadCodePoint(piece, i).length;
    const auto found = by_text_.find(piece.substr(i, end - i));
    if (found != by_text_.end()) {
      symbols->push_back({found->second, i, end});
      i = end;
      continue;
    }
    const bool has_bytes = std::all_of(piece.begin() + i, piece.begin() + end, [&](char byte) {
      return byte_id_[static_cast<uint8_t>(byte)] >= 0;
    });
    if (has_bytes) {
      for (; i < end; ++i) {
        symbols->push_back({byte_id_[static_cast<uint8_t>(piece[i])], i, i + 1});
      }
    } else if (!symbols->empty() && symbols->back().id == spec_.unknown_id &&
               symbols->back().end == i) {
      symbols->back().end = end;
    } else if (spec_.unknown_id >= 0) {
      symbols->push_back({spec_.unknown_id, i, end});
    }
    i = end;
  }
}

void Tokenizer::Merge(absl::string_view piece, std::vector<BpeSymbol>* symbols,
                      EncodeWork* work) const {
  if (spec_.ranks.empty()) {
    MergePairs(
        [&](const BpeSymbol& left, const BpeSymbol& right, BpeJoin* join) {
          const auto found = merges_.find(PairKey(left.id, right.id));
          if (found == merges_.end()) return false;
          *join = found->second;
          return true;
        },
        symbols, work);
    return;
  }
  // By rank of the joined piece, whose bytes lie side by side in the text. Bytes of a fallback join
  // with nothing.
  auto is_piece = [&](const BpeSymbol& s) { return spec_.types[s.id] == TokenType::kNormal; };
  MergePairs(
      [&](const BpeSymbol& left, const BpeSymbol& right, BpeJoin* join) {
        if (!is_piece(left) || !is_piece(right) || left.end != right.begin ||
            right.end - left.begin > longest_piece_) {
          return false;
        }
        const auto found = by_text_.find(piece.substr(left.begin, right.end - left.begin));
        if (found == by_text_.end()) return false;
        *join = {spec_.ranks[found->second], found->second};
        return true;
      },
      symbols, work);
}

std::string Tokenizer::Decode(const std::vector<int32_t>& ids, bool skip_control) const {
  Detokenizer detokenizer(this, {.skip_control = skip_control});
  std::string text;
  for (const int32_t id : ids) text += detokenizer.Push(id);
  return text + detokenizer.Finish();
}

absl::string_view Tokenizer::TokenBytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  return decoded_.empty() ? spec_.tokens[id] : decoded_[id];
}

bool Tokenizer::IsControl(int32_t id) const {
  return id >= 0 && id < vocab_size() &&
         (spec_.types[id] == TokenType::kControl || spec_.types[id] == TokenType::kUnknown);
}

}  // namespace fixpoint
