#include "calibrator/corpus.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/digest.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "text/utf8.h"

namespace fixpoint {
namespace {

constexpr uint64_t kMaxWholeBytes = 8 << 20;
constexpr uint64_t kPieceBytes = 64 << 10;
constexpr uint64_t kPieces = kMaxWholeBytes / kPieceBytes;
constexpr uint64_t kMaxTextBytes = 64 << 20;
constexpr int32_t kMinWindows = 4;

// Bytes [begin, end) of the file without a code point cut at either side and, where a line ends
// near, from a line's start.
absl::StatusOr<std::string> ReadPiece(const RandomAccessFile& file, uint64_t begin, uint64_t end) {
  std::string text(end - begin, '\0');
  RETURN_IF_ERROR(file.ReadAt(begin, text.size(), text.data()));
  if (begin > 0) {
    const size_t line = text.find('\n');
    size_t start = line == std::string::npos ? 0 : line + 1;
    while (start < text.size() && (static_cast<uint8_t>(text[start]) & 0xc0) == 0x80) ++start;
    text.erase(0, start);
  }
  if (end < file.size()) {
    size_t cut = text.size();
    while (cut > 0 && text.size() - cut < 4 && (static_cast<uint8_t>(text[cut - 1]) & 0xc0) == 0x80)
      --cut;
    if (cut > 0 && static_cast<uint8_t>(text[cut - 1]) >= 0xc0) text.resize(cut - 1);
  }
  return text;
}

absl::Status AppendFile(const RandomAccessFile& file, uint64_t total_bytes,
                        const Tokenizer& tokenizer, std::vector<int32_t>* ids) {
  const auto add = [&](uint64_t begin, uint64_t end) -> absl::Status {
    ASSIGN_OR_RETURN(const std::string text, ReadPiece(file, begin, end));
    RETURN_IF_ERROR(CheckUtf8(text, file.path()));
    const std::vector<int32_t> more = tokenizer.Encode(text, /*parse_control_tokens=*/false);
    ids->insert(ids->end(), more.begin(), more.end());
    return absl::OkStatus();
  };
  if (total_bytes <= kMaxWholeBytes) return add(0, file.size());
  // A share of the pieces by size, each in the middle of its part of the file.
  const uint64_t pieces =
      std::max<uint64_t>(1, kPieces * (file.size() >> 10) / (total_bytes >> 10));
  for (uint64_t i = 0; i < pieces; ++i) {
    const uint64_t part = file.size() / pieces;
    const uint64_t begin = i * part + (part - std::min(part, kPieceBytes)) / 2;
    RETURN_IF_ERROR(add(begin, std::min(file.size(), begin + std::min(part, kPieceBytes))));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckUtf8(absl::string_view text, const std::string& place) {
  if (IsValidUtf8(text)) return absl::OkStatus();
  size_t offset = 0;
  while (offset < text.size()) {
    const Utf8Front front = ClassifyUtf8(text.substr(offset));
    if (front.kind != Utf8Prefix::kValid) break;
    offset += front.length;
  }
  return absl::InvalidArgumentError(
      absl::StrCat(place, ": not UTF-8 text (byte ", offset, " of what was read)"));
}

absl::StatusOr<Corpus> ReadCorpus(const std::vector<std::string>& files, const Tokenizer& tokenizer,
                                  const CorpusLimits& limits) {
  std::vector<RandomAccessFile> open;
  uint64_t total_bytes = 0;
  for (const std::string& path : files) {
    ASSIGN_OR_RETURN(RandomAccessFile file, RandomAccessFile::Open(path));
    if (file.size() == 0)
      return absl::InvalidArgumentError(absl::StrCat(path, ": the corpus file is empty"));
    total_bytes += file.size();
    open.push_back(std::move(file));
  }
  std::vector<int32_t> ids;
  std::string digests;
  for (const RandomAccessFile& file : open) {
    RETURN_IF_ERROR(AppendFile(file, total_bytes, tokenizer, &ids));
    ASSIGN_OR_RETURN(const std::string digest, file.Sha256Hex());
    digests += digest;
  }
  const Windows all = CutWindows(ids, kCorpusWindowTokens, 0);
  if (all.count() < kMinWindows) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the corpus (", files.front(), files.size() > 1 ? " and others" : "", ") has ", ids.size(),
        " tokens, at least ", kMinWindows * kCorpusWindowTokens, " are needed"));
  }
  Corpus corpus = SplitWindows(all, limits);
  corpus.source = "files";
  corpus.digest = open.size() == 1 ? digests : Sha256Hex(digests);
  return corpus;
}

Corpus SplitWindows(const Windows& all, const CorpusLimits& limits) {
  CHECK_GE(all.count(), 2);
  const int32_t used = std::min(all.count(), limits.max_train + limits.max_held_out);
  const int32_t held_out =
      std::max<int32_t>(1, static_cast<int32_t>(int64_t{used} * limits.max_held_out /
                                                (limits.max_train + limits.max_held_out)));
  Corpus corpus;
  corpus.train.tokens = corpus.held_out.tokens = all.tokens;
  for (int32_t i = 0; i < used; ++i) {
    const int32_t* window = all.window(static_cast<int32_t>(int64_t{i} * all.count() / used));
    const bool hold = int64_t{i + 1} * held_out / used != int64_t{i} * held_out / used;
    std::vector<int32_t>& to = hold ? corpus.held_out.token_ids : corpus.train.token_ids;
    to.insert(to.end(), window, window + all.tokens);
  }
  return corpus;
}

absl::StatusOr<std::vector<int32_t>> TokenizeFile(const std::string& path,
                                                  const Tokenizer& tokenizer) {
  ASSIGN_OR_RETURN(const std::string text, ReadWholeFile(path, kMaxTextBytes));
  RETURN_IF_ERROR(CheckUtf8(text, path));
  return tokenizer.Encode(text, /*parse_control_tokens=*/false);
}

Windows CutWindows(const std::vector<int32_t>& ids, int32_t tokens, int32_t limit) {
  CHECK_GE(tokens, 1);
  int64_t count = static_cast<int64_t>(ids.size()) / tokens;
  if (limit > 0) count = std::min<int64_t>(count, limit);
  Windows windows;
  windows.tokens = tokens;
  windows.token_ids.assign(ids.begin(), ids.begin() + count * tokens);
  return windows;
}

}  // namespace fixpoint
