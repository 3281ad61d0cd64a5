#include "calibrator/corpus.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
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
// Windows for evaluation: 64 MiB of ids, hours of work for the smallest model.
constexpr int64_t kMaxWindowTokens = 1 << 24;
// Bytes of a piece for each token of its window. Text has 2 to 5, runs of spaces more.
constexpr uint64_t kPieceBytesPerToken = 16;

// UTF-8 without NUL: a NUL byte is valid UTF-8, but no text has one. It comes from binary files and
// from UTF-16.
absl::Status CheckText(absl::string_view text, const std::string& path, uint64_t offset) {
  RETURN_IF_ERROR(CheckUtf8(text, path, offset));
  const size_t nul = text.find('\0');
  if (nul == text.npos) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(path, ": not text: byte ", offset + nul,
                                                 " is NUL, as in binary files and in UTF-16"));
}

// Bytes [begin, end) of the file without a code point cut at either side and, where a line ends
// within the first half, from a line's start; checked.
absl::StatusOr<std::string> ReadPiece(const RandomAccessFile& file, uint64_t begin, uint64_t end) {
  std::string text(end - begin, '\0');
  RETURN_IF_ERROR(file.ReadAt(begin, text.size(), text.data()));
  const auto continues = [&](size_t i) { return (static_cast<uint8_t>(text[i]) & 0xc0) == 0x80; };
  size_t start = 0;
  if (begin > 0) {
    const size_t line = text.find('\n');
    if (line < text.size() / 2) {
      start = line + 1;
    } else {
      while (start < std::min<size_t>(3, text.size()) && continues(start)) ++start;
    }
  }
  if (end < file.size()) {
    size_t cut = text.size();
    while (cut > start && text.size() - cut < 3 && continues(cut - 1)) --cut;
    if (cut > start && static_cast<uint8_t>(text[cut - 1]) >= 0xc0) text.resize(cut - 1);
  }
  text.erase(0, start);
  RETURN_IF_ERROR(CheckText(text, file.path(), begin + start));
  return text;
}

absl::Status AppendFile(const RandomAccessFile& file, uint64_t total_bytes,
                        const Tokenizer& tokenizer, std::vector<int32_t>* ids) {
  const auto add = [&](uint64_t begin, uint64_t end) -> absl::Status {
    ASSIGN_OR_RETURN(const std::string text, ReadPiece(file, begin, end));
    const std::vector<int32_t> more = tokenizer.Encode(text, /*parse_control_tokens=*/false);
    ids->insert(ids->end(), more.begin(), more.end());
    return absl::OkStatus();
  };
  if (total_bytes <= kMaxWholeBytes) return add(0, file.size());
  // A share of the pieces by size, each in the middle of its part of the file.
  const uint64_t pieces =
      std::max<uint64_t>(1, kPieces * (file.size() >> 10) / (total_bytes >> 10));
  const uint64_t part = file.size() / pieces;
  for (uint64_t i = 0; i < pieces; ++i) {
    const uint64_t begin = i * part + (part - std::min(part, kPieceBytes)) / 2;
    RETURN_IF_ERROR(add(begin, std::min(file.size(), begin + std::min(part, kPieceBytes))));
  }
  return absl::OkStatus();
}

absl::StatusOr<RandomAccessFile> OpenText(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": a directory, not a text file"));
  }
  ASSIGN_OR_RETURN(RandomAccessFile file, RandomAccessFile::Open(path));
  if (file.size() == 0)
    return absl::InvalidArgumentError(absl::StrCat(path, ": the file is empty"));
  return file;
}

absl::StatusOr<Windows> WindowsOfText(const std::string& path, absl::string_view text,
                                      const Tokenizer& tokenizer, const TextWindows& wanted) {
  const std::vector<int32_t> ids = tokenizer.Encode(text, /*parse_control_tokens=*/false);
  if (ids.size() < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", ids.size(), " tokens; at least 2 are needed to measure anything"));
  }
  const int32_t tokens =
      static_cast<int32_t>(std::min<int64_t>(wanted.tokens, static_cast<int64_t>(ids.size())));
  const int32_t stride = wanted.stride == 0 ? tokens : std::min(wanted.stride, tokens);
  int64_t count = (static_cast<int64_t>(ids.size()) - tokens) / stride + 1;
  if (wanted.limit > 0) count = std::min<int64_t>(count, wanted.limit);
  if (count > kMaxWindowTokens / tokens) {
    return absl::OutOfRangeError(absl::StrCat(path, ": ", count, " windows of ", tokens,
                                              " tokens; at most ", kMaxWindowTokens / tokens,
                                              " can be measured at once: set --limit"));
  }
  return CutWindows(ids, tokens, wanted.limit, stride);
}

uint64_t PieceBytes(const TextWindows& wanted) {
  return std::max(kPieceBytes, kPieceBytesPerToken * static_cast<uint64_t>(wanted.tokens));
}

// One window from the middle of each part of a file, which is longer than a piece.
absl::StatusOr<Windows> WindowsOfPieces(const RandomAccessFile& file, const Tokenizer& tokenizer,
                                        const TextWindows& wanted) {
  const uint64_t piece = PieceBytes(wanted);
  const uint64_t count = std::min({static_cast<uint64_t>(wanted.limit), file.size() / piece,
                                   static_cast<uint64_t>(kMaxWindowTokens / wanted.tokens)});
  CHECK_GE(count, 1u);
  const uint64_t part = file.size() / count;
  Windows windows{.tokens = wanted.tokens,
                  .stride = wanted.stride == wanted.tokens ? 0 : wanted.stride};
  size_t most = 0;
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t begin = i * part + (part - piece) / 2;
    ASSIGN_OR_RETURN(const std::string text, ReadPiece(file, begin, begin + piece));
    const std::vector<int32_t> ids = tokenizer.Encode(text, /*parse_control_tokens=*/false);
    most = std::max(most, ids.size());
    if (static_cast<int64_t>(ids.size()) < wanted.tokens) continue;
    windows.token_ids.insert(windows.token_ids.end(), ids.begin(), ids.begin() + wanted.tokens);
  }
  if (windows.count() > 0) return windows;
  return absl::InvalidArgumentError(absl::StrCat(file.path(), ": none of ", count, " pieces of ",
                                                 piece, " bytes holds a window of ", wanted.tokens,
                                                 " tokens; the most found is ", most));
}

}  // namespace

absl::Status CheckUtf8(absl::string_view text, const std::string& place, uint64_t offset) {
  if (IsValidUtf8(text)) return absl::OkStatus();
  size_t bad = 0;
  while (bad < text.size()) {
    const Utf8Front front = ClassifyUtf8(text.substr(bad));
    if (front.kind != Utf8Prefix::kValid) break;
    bad += front.length;
  }
  CHECK_LT(bad, text.size());
  return absl::InvalidArgumentError(absl::StrFormat("%s: not UTF-8 text (byte %d is 0x%02x)", place,
                                                    offset + bad, static_cast<uint8_t>(text[bad])));
}

absl::StatusOr<Corpus> ReadCorpus(const std::vector<std::string>& files, const Tokenizer& tokenizer,
                                  const CorpusLimits& limits) {
  if (files.empty()) return absl::InvalidArgumentError("the corpus has no file");
  std::vector<RandomAccessFile> open;
  uint64_t total_bytes = 0;
  for (const std::string& path : files) {
    ASSIGN_OR_RETURN(RandomAccessFile file, OpenText(path));
    total_bytes += file.size();
    open.push_back(std::move(file));
  }
  std::vector<int32_t> ids;
  for (const RandomAccessFile& file : open)
    RETURN_IF_ERROR(AppendFile(file, total_bytes, tokenizer, &ids));
  const Windows all = CutWindows(ids, kCorpusWindowTokens, 0);
  if (all.count() < kMinWindows) {
    const std::string others =
        files.size() > 1 ? absl::StrCat(" and ", files.size() - 1, " more") : "";
    return absl::InvalidArgumentError(
        absl::StrCat(files.front(), others, ": the corpus is too short: ", ids.size(),
                     " tokens, at least ", kMinWindows * kCorpusWindowTokens, " are needed (",
                     kMinWindows, " windows of ", kCorpusWindowTokens, ")"));
  }
  // Digests last: they take seconds for gigabytes, and only a corpus that is used needs one.
  std::string digests;
  for (const RandomAccessFile& file : open) {
    ASSIGN_OR_RETURN(const std::string digest, file.Sha256Hex());
    digests += digest;
  }
  Corpus corpus = SplitWindows(all, limits);
  corpus.source = "files";
  corpus.digest = open.size() == 1 ? digests : Sha256Hex(digests);
  return corpus;
}

Windows EvenWindows(const Windows& windows, int32_t count) {
  if (windows.count() <= count) return windows;
  Windows result{.tokens = windows.tokens};
  for (int32_t i = 0; i < count; ++i) {
    const int32_t* from =
        windows.window(static_cast<int32_t>(int64_t{i} * windows.count() / count));
    result.token_ids.insert(result.token_ids.end(), from, from + windows.tokens);
  }
  return result;
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

absl::StatusOr<Windows> ReadTextWindows(const std::string& path, const Tokenizer& tokenizer,
                                        const TextWindows& wanted) {
  CHECK(wanted.tokens >= 2 && wanted.stride >= 0 && wanted.stride <= wanted.tokens &&
        wanted.limit >= 0);
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status) &&
      !std::filesystem::is_directory(status)) {
    ASSIGN_OR_RETURN(const std::string text, ReadWholeFile(path, kMaxTextBytes));
    RETURN_IF_ERROR(CheckText(text, path, 0));
    return WindowsOfText(path, text, tokenizer, wanted);
  }
  ASSIGN_OR_RETURN(const RandomAccessFile file, OpenText(path));
  const uint64_t piece = PieceBytes(wanted);
  const bool is_long =
      file.size() > kMaxTextBytes || file.size() / piece >= static_cast<uint64_t>(wanted.limit);
  if (wanted.limit > 0 && file.size() > kMaxWholeBytes && piece <= kMaxWholeBytes && is_long)
    return WindowsOfPieces(file, tokenizer, wanted);
  if (file.size() > kMaxTextBytes) {
    return absl::OutOfRangeError(
        absl::StrCat(path, ": ", file.size(), " bytes; at most ", kMaxTextBytes,
                     " are measured whole: --limit N takes N windows from all of it"));
  }
  ASSIGN_OR_RETURN(const std::string text, ReadPiece(file, 0, file.size()));
  return WindowsOfText(path, text, tokenizer, wanted);
}

Windows CutWindows(const std::vector<int32_t>& ids, int32_t tokens, int32_t limit, int32_t stride) {
  CHECK_GE(tokens, 1);
  CHECK(stride >= 0 && stride <= tokens) << stride;
  const int64_t step = stride == 0 ? tokens : stride;
  const int64_t size = static_cast<int64_t>(ids.size());
  const int64_t all = size < tokens ? 0 : (size - tokens) / step + 1;
  const int64_t used = limit > 0 ? std::min<int64_t>(all, limit) : all;
  Windows windows{.tokens = tokens, .stride = stride == tokens ? 0 : stride};
  windows.token_ids.reserve(used * tokens);
  for (int64_t i = 0; i < used; ++i) {
    const int64_t begin = i * all / used * step;
    windows.token_ids.insert(windows.token_ids.end(), ids.begin() + begin,
                             ids.begin() + begin + tokens);
  }
  return windows;
}

}  // namespace fixpoint
