#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "base/thread_pool.h"
#include "bundle/bundle.h"
#include "bundle/chunk_verifier.h"
#include "bundle/format.h"
#include "bundle/manifest.h"
#include "bundle/sections.h"

namespace fixpoint {
namespace {

static_assert(std::endian::native == std::endian::little, "the file's integers are little-endian");

constexpr int kMaxReaderThreads = 64;

template <typename... Parts>
absl::Status Damaged(const Parts&... parts) {
  return absl::DataLossError(absl::StrCat(parts...));
}

// INVALID_ARGUMENT from shared checks means here that the file is not what the writer made.
absl::Status AsDamage(const absl::Status& status, absl::string_view where) {
  if (status.code() != absl::StatusCode::kInvalidArgument) return Annotate(status, where);
  return absl::DataLossError(absl::StrCat(where, ": ", status.message()));
}

// The header's own consistency. It determines the size of the file.
absl::Status CheckHeader(const FileHeader& h) {
  if (std::memcmp(h.magic, kBundleMagic, sizeof(h.magic)) != 0) {
    return Damaged("header: this is not a model bundle (wrong magic)");
  }
  // The checksum stands before the versions are judged: every version keeps magic, versions and
  // checksum in their places, so a damaged version number is not taken for another version.
  if (h.header_xxh3 != Xxh3_64(&h, sizeof(h) - sizeof(h.header_xxh3))) {
    return Damaged("header: its checksum does not fit");
  }
  if (h.version != kBundleVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        "header: format version is ", h.version, ", this program reads version ", kBundleVersion));
  }
  if (h.numerics_version != kNumericsVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("header: numerics version is ", h.numerics_version,
                     ", this program computes by version ", kNumericsVersion));
  }
  if (h.manifest_offset != kSectionAlign) {
    return Damaged("header: manifest_offset is ", h.manifest_offset, ", must be ", kSectionAlign);
  }
  if (h.manifest_bytes == 0 || h.manifest_bytes > kMaxManifestBytes) {
    return Damaged("header: manifest_bytes is ", h.manifest_bytes, ", allowed is 1 to ",
                   kMaxManifestBytes);
  }
  if (h.data_offset != AlignSection(h.manifest_offset + h.manifest_bytes)) {
    return Damaged("header: data_offset is ", h.data_offset, ", must be ",
                   AlignSection(h.manifest_offset + h.manifest_bytes));
  }
  if (h.chunk_table_offset < h.data_offset || h.chunk_table_offset > kMaxBundleBytes ||
      h.chunk_table_offset % kSectionAlign != 0) {
    return Damaged("header: chunk_table_offset is ", h.chunk_table_offset,
                   ", allowed are multiples of ", kSectionAlign, " from ", h.data_offset, " to ",
                   kMaxBundleBytes);
  }
  const uint64_t chunks = (h.chunk_table_offset + kChunkBytes - 1) / kChunkBytes;
  if (h.chunk_count != chunks) {
    return Damaged("header: chunk_count is ", h.chunk_count, ", must be ", chunks);
  }
  return absl::OkStatus();
}

uint64_t FileBytes(const FileHeader& h) {
  return h.chunk_table_offset + h.chunk_count * sizeof(uint64_t) + kTrailerBytes;
}

class BundleReader {
 public:
  BundleReader(const RandomAccessFile& file, int threads)
      : file_(file), pool_(std::clamp(threads, 1, kMaxReaderThreads)) {}

  absl::StatusOr<Bundle> Read() {
    RETURN_IF_ERROR(ReadHeader());
    RETURN_IF_ERROR(ReadChunkTable());
    RETURN_IF_ERROR(ReadHead());
    RETURN_IF_ERROR(ParseHead());
    RETURN_IF_ERROR(AllocateAndPlan());
    RETURN_IF_ERROR(ReadPieces());
    RETURN_IF_ERROR(FinishBundle());
    return std::move(bundle_);
  }

 private:
  absl::Status ReadHeader();
  absl::Status ExplainTruncation();
  absl::Status ReadChunkTable();
  absl::Status ReadHead();
  absl::Status ParseHead();
  absl::Status AllocateAndPlan();
  absl::Status ReadPieces();
  absl::Status FinishBundle();
  // What lies in bytes [begin, end) of the file, for messages.
  std::string Where(uint64_t begin, uint64_t end) const;

  const RandomAccessFile& file_;
  ThreadPool pool_;
  FileHeader header_ = {};
  std::vector<uint64_t> chunk_hashes_;
  std::string head_;  // bytes [0, data_offset)
  std::vector<Section> sections_;
  std::vector<FilePiece> pieces_;
  std::string tokenizer_;
  Bundle bundle_;
};

absl::Status BundleReader::ReadHeader() {
  if (file_.size() < sizeof(header_)) {
    return Damaged("header: the file ends after ", file_.size(), " of ", sizeof(header_), " bytes");
  }
  RETURN_IF_ERROR(file_.ReadAt(0, sizeof(header_), &header_));
  RETURN_IF_ERROR(CheckHeader(header_));
  if (file_.size() < FileBytes(header_)) return ExplainTruncation();
  if (file_.size() > FileBytes(header_)) {
    return Damaged("trailer: the file has ", file_.size(), " bytes, its header says ",
                   FileBytes(header_));
  }
  return absl::OkStatus();
}

// Nothing in a cut file can be verified, but its manifest usually still tells where the cut is.
absl::Status BundleReader::ExplainTruncation() {
  const uint64_t manifest_end = header_.manifest_offset + header_.manifest_bytes;
  if (file_.size() >= manifest_end) {
    std::string manifest(header_.manifest_bytes, '\0');
    RETURN_IF_ERROR(file_.ReadAt(header_.manifest_offset, manifest.size(), manifest.data()));
    Bundle unverified;
    if (!ParseManifest(manifest, &unverified, &sections_).ok()) sections_.clear();
  }
  return Damaged(Where(file_.size(), file_.size() + 1), ": the file ends after ", file_.size(),
                 " of ", FileBytes(header_), " bytes");
}

std::string BundleReader::Where(uint64_t begin, uint64_t end) const {
  const uint64_t table_end = FileBytes(header_) - kTrailerBytes;
  if (begin >= table_end) return "trailer";
  if (begin >= header_.chunk_table_offset) return "chunk table";
  std::vector<std::string> names;
  if (begin < header_.manifest_offset) names.push_back("header");
  if (begin < header_.data_offset && end > header_.manifest_offset) names.push_back("manifest");
  for (size_t i = 0; i < sections_.size(); ++i) {
    // The padding behind a section counts as its own.
    const uint64_t section_begin = header_.data_offset + sections_[i].offset;
    const uint64_t section_end =
        header_.data_offset + AlignSection(sections_[i].offset + sections_[i].bytes);
    if (section_begin < end && section_end > begin) {
      names.push_back(absl::StrCat("section '", sections_[i].name, "'"));
    }
  }
  if (names.empty()) return "sections";
  if (names.size() == 1) return names.front();
  return absl::StrCat(names.front(), " to ", names.back());
}

absl::Status BundleReader::ReadChunkTable() {
  chunk_hashes_.resize(header_.chunk_count);
  return file_.ReadAt(header_.chunk_table_offset, chunk_hashes_.size() * sizeof(uint64_t),
                      chunk_hashes_.data());
}

// Header and manifest, verified before the manifest is parsed: a damaged file then says so instead
// of naming a strange key.
absl::Status BundleReader::ReadHead() {
  const uint64_t chunks = (header_.data_offset + kChunkBytes - 1) / kChunkBytes;
  head_.resize(std::min(chunks * kChunkBytes, header_.chunk_table_offset));
  RETURN_IF_ERROR(file_.ReadAt(0, head_.size(), head_.data()));
  for (uint64_t i = 0; i < chunks; ++i) {
    const uint64_t begin = i * kChunkBytes;
    const uint64_t bytes = std::min(kChunkBytes, head_.size() - begin);
    if (Xxh3_64(head_.data() + begin, bytes) == chunk_hashes_[i]) continue;
    return Damaged("header, manifest or the first sections: the checksum of chunk ", i, " (bytes ",
                   begin, " to ", begin + bytes, ") does not fit");
  }
  head_.resize(header_.data_offset);
  return absl::OkStatus();
}

absl::Status BundleReader::ParseHead() {
  const uint64_t manifest_end = header_.manifest_offset + header_.manifest_bytes;
  const absl::string_view head(head_);
  const auto only_zeros = [&](uint64_t begin, uint64_t end) {
    return head.substr(begin, end - begin).find_first_not_of('\0') == head.npos;
  };
  // ReadHeader read its bytes before: a file that is being replaced under us must not pass as one.
  if (std::memcmp(head_.data(), &header_, sizeof(header_)) != 0) {
    return Damaged("header: it changed while being read");
  }
  if (!only_zeros(sizeof(header_), header_.manifest_offset)) {
    return Damaged("header: the padding behind it is not zero");
  }
  if (!only_zeros(manifest_end, header_.data_offset)) {
    return Damaged("manifest: the padding behind it is not zero");
  }
  RETURN_IF_ERROR(
      AsDamage(ParseManifest(head.substr(header_.manifest_offset, header_.manifest_bytes), &bundle_,
                             &sections_),
               "manifest"));
  const uint64_t data_bytes = header_.chunk_table_offset - header_.data_offset;
  if (DataBytes(sections_) != data_bytes) {
    return Damaged("manifest: its sections take ", DataBytes(sections_), " bytes, the file has ",
                   data_bytes);
  }
  return absl::OkStatus();
}

// All sizes are known to fit the file by now, so the file's own size bounds what is allocated.
// Vectors zero their memory and the first touch of a page costs more than the zeros, so threads
// share that work.
absl::Status BundleReader::AllocateAndPlan() {
  std::vector<std::pair<uint64_t, std::function<std::byte*()>>> buffers;  // bytes, allocation
  size_t next = 0;  // sections_ has exactly the tensors of VisitTensors, less absent optional ones
  VisitTensors(bundle_.model, [&](const std::string& name, auto& values, int64_t rows,
                                  int64_t columns, bool optional) {
    if (optional && sections_[next].name != name) return;
    buffers.emplace_back(sections_[next].bytes, [&values, rows, columns] {
      values.resize(static_cast<size_t>(rows * columns));
      return reinterpret_cast<std::byte*>(values.data());
    });
    ++next;
  });
  buffers.emplace_back(sections_[next].bytes, [this, bytes = sections_[next].bytes] {
    tokenizer_.resize(bytes);
    return reinterpret_cast<std::byte*>(tokenizer_.data());
  });

  std::vector<std::byte*> data(buffers.size());
  std::vector<size_t> order(buffers.size());  // large ones first, so that threads end together
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return buffers[a].first > buffers[b].first; });
  std::atomic<bool> out_of_memory{false};
  pool_.ParallelFor(static_cast<int64_t>(order.size()), 1, [&](int64_t begin, int64_t, int) {
    try {
      data[order[begin]] = buffers[order[begin]].second();
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
    }
  });
  if (out_of_memory) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for its ", file_.size(), " bytes"));
  }

  pieces_.push_back({0, header_.data_offset, reinterpret_cast<std::byte*>(head_.data()), true});
  for (size_t i = 0; i < sections_.size(); ++i) {
    const uint64_t offset = header_.data_offset + sections_[i].offset;
    const uint64_t end = offset + sections_[i].bytes;
    if (sections_[i].bytes > 0) pieces_.push_back({offset, sections_[i].bytes, data[i]});
    if (AlignSection(end) > end) pieces_.push_back({end, AlignSection(end) - end, nullptr});
  }
  return absl::OkStatus();
}

absl::Status BundleReader::ReadPieces() {
  ChunkVerifier verifier(file_, pieces_, chunk_hashes_);
  if (absl::Status status = verifier.Run(&pool_); !status.ok()) {
    return Annotate(status, Where(verifier.failed_begin(), verifier.failed_end()));
  }
  verifier.sha().Update(chunk_hashes_.data(), chunk_hashes_.size() * sizeof(uint64_t));
  const Sha256Digest digest = verifier.sha().Finish();
  Sha256Digest expected;
  static_assert(sizeof(expected) == kTrailerBytes);
  RETURN_IF_ERROR(file_.ReadAt(file_.size() - kTrailerBytes, kTrailerBytes, expected.data()));
  if (digest != expected) {
    return Damaged("trailer: the file's SHA-256 is ", HexEncode(digest.data(), digest.size()),
                   ", the trailer says ", HexEncode(expected.data(), expected.size()));
  }
  bundle_.digest = HexEncode(digest.data(), digest.size());
  bundle_.file_bytes = file_.size();
  return absl::OkStatus();
}

absl::Status BundleReader::FinishBundle() {
  absl::StatusOr<TokenizerSpec> tokenizer = ParseTokenizerSpec(tokenizer_);
  if (!tokenizer.ok()) return AsDamage(tokenizer.status(), "section 'tokenizer'");
  bundle_.tokenizer = *std::move(tokenizer);
  if (bundle_.tokenizer.tokens.size() > static_cast<uint64_t>(bundle_.model.config.vocab_size)) {
    return Damaged("section 'tokenizer': it has ", bundle_.tokenizer.tokens.size(),
                   " tokens, the model's vocabulary ", bundle_.model.config.vocab_size);
  }
  return AsDamage(ValidateModel(bundle_.model), "model");
}

}  // namespace

absl::StatusOr<Bundle> ReadBundle(const std::string& path, int threads) {
  ASSIGN_OR_RETURN(const RandomAccessFile file, RandomAccessFile::Open(path));
  BundleReader reader(file, threads);
  absl::StatusOr<Bundle> bundle = reader.Read();
  if (!bundle.ok()) return Annotate(bundle.status(), absl::StrCat("bundle '", path, "'"));
  return bundle;
}

bool LooksLikeBundle(const std::string& path) {
  const absl::StatusOr<RandomAccessFile> file = RandomAccessFile::Open(path);
  char magic[sizeof(kBundleMagic)];
  return file.ok() && file->ReadAt(0, sizeof(magic), magic).ok() &&
         std::memcmp(magic, kBundleMagic, sizeof(magic)) == 0;
}

}  // namespace fixpoint
