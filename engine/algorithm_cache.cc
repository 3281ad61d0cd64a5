#include "engine/algorithm_cache.h"

#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/digest.h"
#include "base/file.h"
#include "base/status_macros.h"

namespace fixpoint {
namespace {

constexpr absl::string_view kTitle = "fixpoint cuBLASLt algorithms 1";
constexpr absl::string_view kDevice = "device ";
constexpr absl::string_view kChecksum = "checksum ";
constexpr uint64_t kMaxFileBytes = kMaxCachedAlgorithms * 512;
constexpr size_t kShapeFields = 7;

std::string Checksum(absl::string_view text) {
  return absl::StrCat(absl::Hex(Xxh3_64(text.data(), text.size()), absl::kZeroPad16));
}

absl::Status Damaged(size_t line, absl::string_view what) {
  return absl::DataLossError(absl::StrCat("line ", line, ": ", what));
}

std::string EntryText(const MatmulShape& s, const MatmulAlgorithm& algorithm) {
  return absl::StrCat(absl::StrJoin({s.outputs, s.tokens, s.depth, s.weight_stride, s.x_stride,
                                     s.acc_stride, s.workspace_bytes},
                                    " "),
                      " ", HexEncode(algorithm.data(), sizeof(algorithm)), "\n");
}

bool ParseEntry(absl::string_view line, MatmulShape* shape, MatmulAlgorithm* algorithm) {
  const std::vector<absl::string_view> words = absl::StrSplit(line, ' ');
  if (words.size() != kShapeFields + 1) return false;
  int64_t* const fields[kShapeFields] = {
      &shape->outputs,  &shape->tokens,     &shape->depth,          &shape->weight_stride,
      &shape->x_stride, &shape->acc_stride, &shape->workspace_bytes};
  for (size_t i = 0; i < kShapeFields; ++i) {
    if (!absl::SimpleAtoi(words[i], fields[i])) return false;
  }
  const absl::string_view hex = words.back();
  if (hex.size() != 2 * sizeof(*algorithm)) return false;
  for (const char c : hex) {
    if (!absl::ascii_isxdigit(static_cast<unsigned char>(c))) return false;
  }
  absl::HexStringToBytes(hex).copy(reinterpret_cast<char*>(algorithm->data()), sizeof(*algorithm));
  return true;
}

}  // namespace

absl::Status AlgorithmCache::Parse(absl::string_view text) {
  algorithms_.clear();
  changed_ = true;  // until all of it is understood
  // Text ends with a line feed, so the last piece is empty.
  const std::vector<absl::string_view> lines = absl::StrSplit(text, '\n');
  if (lines.front() != kTitle) return Damaged(1, "no title of a file of algorithms");
  if (lines.size() < 4 || !lines.back().empty()) return Damaged(lines.size(), "cut off");
  absl::string_view sum = lines[lines.size() - 2];
  const size_t covered = static_cast<size_t>(sum.data() - text.data());
  if (!absl::ConsumePrefix(&sum, kChecksum) || sum != Checksum(text.substr(0, covered))) {
    return Damaged(lines.size() - 1, "the checksum does not match");
  }
  absl::string_view device = lines[1];
  if (!absl::ConsumePrefix(&device, kDevice)) return Damaged(2, "no device");
  if (device != device_) {
    return absl::FailedPreconditionError(
        absl::StrCat("made on '", device, "', this is '", device_, "'"));
  }
  std::map<MatmulShape, MatmulAlgorithm> algorithms;
  for (size_t i = 2; i + 2 < lines.size(); ++i) {
    MatmulShape shape;
    MatmulAlgorithm algorithm;
    // Numbers can be read in more forms than they are written in.
    if (!ParseEntry(lines[i], &shape, &algorithm) ||
        EntryText(shape, algorithm) != absl::StrCat(lines[i], "\n")) {
      return Damaged(i + 1, "no shape and algorithm");
    }
    if (algorithms.size() == kMaxCachedAlgorithms) {
      return Damaged(i + 1, absl::StrCat("more than ", kMaxCachedAlgorithms, " algorithms"));
    }
    if (!algorithms.empty() && shape <= algorithms.rbegin()->first) {
      return Damaged(i + 1, "not in order");
    }
    algorithms.emplace_hint(algorithms.end(), shape, algorithm);
  }
  algorithms_ = std::move(algorithms);
  changed_ = false;
  return absl::OkStatus();
}

std::string AlgorithmCache::Text() const {
  std::string text = absl::StrCat(kTitle, "\n", kDevice, device_, "\n");
  for (const auto& [shape, algorithm] : algorithms_) {
    absl::StrAppend(&text, EntryText(shape, algorithm));
  }
  const std::string checksum = Checksum(text);
  absl::StrAppend(&text, kChecksum, checksum, "\n");
  return text;
}

absl::Status AlgorithmCache::Read(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadWholeFile(path, kMaxFileBytes));
  return Annotate(Parse(text), absl::StrCat("'", path, "'"));
}

absl::Status AlgorithmCache::Write(const std::string& path) const {
  RETURN_IF_ERROR(WriteFileAtomically(path, Text()));
  changed_ = false;
  return absl::OkStatus();
}

const MatmulAlgorithm* AlgorithmCache::Find(const MatmulShape& shape) const {
  const auto found = algorithms_.find(shape);
  return found == algorithms_.end() ? nullptr : &found->second;
}

void AlgorithmCache::Put(const MatmulShape& shape, const MatmulAlgorithm& algorithm) {
  if (algorithms_.size() >= kMaxCachedAlgorithms && !algorithms_.contains(shape)) {
    algorithms_.clear();
  }
  algorithms_[shape] = algorithm;
  changed_ = true;
}

void AlgorithmCache::Forget(const MatmulShape& shape) {
  if (algorithms_.erase(shape) > 0) changed_ = true;
}

}  // namespace fixpoint
