#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "bundle/bundle.h"
#include "bundle/format.h"
#include "bundle/manifest.h"
#include "bundle/sections.h"

namespace fixpoint {
namespace {

constexpr char kZeros[kSectionAlign] = {};

// Appends to the file while hashing: every byte goes through SHA-256, every byte before the chunk
// table through XXH3 of its chunk.
class HashingWriter {
 public:
  explicit HashingWriter(AtomicFileWriter* file) : file_(file) {}

  // In pieces that end at chunk borders, so that both hashes find the bytes in the cache.
  absl::Status Append(const void* data, uint64_t num_bytes) {
    const char* bytes = static_cast<const char*>(data);
    while (num_bytes > 0) {
      const uint64_t n = std::min(num_bytes, kChunkBytes - chunk_fill_);
      RETURN_IF_ERROR(file_->Append(bytes, n));
      sha_.Update(bytes, n);
      chunk_.Update(bytes, n);
      chunk_fill_ += n;
      if (chunk_fill_ == kChunkBytes) EndChunk();
      bytes += n;
      num_bytes -= n;
    }
    return absl::OkStatus();
  }

  absl::Status PadToSection() {
    const uint64_t end = file_->appended_bytes();
    return Append(kZeros, AlignSection(end) - end);
  }

  // Writes chunk table and trailer; returns the digest.
  absl::StatusOr<std::string> Finish() {
    if (chunk_fill_ > 0) EndChunk();
    const uint64_t table_bytes = chunk_hashes_.size() * sizeof(uint64_t);
    RETURN_IF_ERROR(file_->Append(chunk_hashes_.data(), table_bytes));
    sha_.Update(chunk_hashes_.data(), table_bytes);
    const Sha256Digest digest = sha_.Finish();
    static_assert(sizeof(digest) == kTrailerBytes);
    RETURN_IF_ERROR(file_->Append(digest.data(), digest.size()));
    return HexEncode(digest.data(), digest.size());
  }

 private:
  void EndChunk() {
    chunk_hashes_.push_back(chunk_.Digest());
    chunk_.Reset();
    chunk_fill_ = 0;
  }

  AtomicFileWriter* file_;
  Sha256 sha_;
  Xxh3Stream chunk_;
  uint64_t chunk_fill_ = 0;
  std::vector<uint64_t> chunk_hashes_;
};

FileHeader MakeHeader(uint64_t manifest_bytes, uint64_t data_bytes) {
  FileHeader header = {};
  std::memcpy(header.magic, kBundleMagic, sizeof(header.magic));
  header.version = kBundleVersion;
  header.numerics_version = kNumericsVersion;
  header.manifest_offset = kSectionAlign;
  header.manifest_bytes = manifest_bytes;
  header.data_offset = AlignSection(kSectionAlign + manifest_bytes);
  header.chunk_table_offset = header.data_offset + data_bytes;
  header.chunk_count = (header.chunk_table_offset + kChunkBytes - 1) / kChunkBytes;
  header.header_xxh3 = Xxh3_64(&header, sizeof(header) - sizeof(header.header_xxh3));
  return header;
}

absl::Status AppendSections(const IntegerModel& model, const std::string& tokenizer,
                            HashingWriter* out) {
  absl::Status status;
  VisitTensors(model, [&](const std::string&, const auto& values, int64_t, int64_t, bool) {
    if (!status.ok() || values.empty()) return;
    status = out->Append(values.data(), values.size() * sizeof(values[0]));
    if (status.ok()) status = out->PadToSection();
  });
  RETURN_IF_ERROR(status);
  RETURN_IF_ERROR(out->Append(tokenizer.data(), tokenizer.size()));
  return out->PadToSection();
}

absl::StatusOr<std::string> WriteChecked(const Bundle& bundle, const std::string& path) {
  RETURN_IF_ERROR(ValidateModel(bundle.model));
  RETURN_IF_ERROR(ValidateTokenizerSpec(bundle.tokenizer));
  if (bundle.tokenizer.tokens.size() > static_cast<uint64_t>(bundle.model.config.vocab_size)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the tokenizer has ", bundle.tokenizer.tokens.size(),
                     " tokens, the model's vocabulary ", bundle.model.config.vocab_size));
  }
  std::vector<std::string> optional;  // names of the optional tensors that are there
  VisitTensors(bundle.model, [&](const std::string& name, const auto& values, int64_t, int64_t,
                                 bool is_optional) {
    if (is_optional && !values.empty()) optional.push_back(name);
  });
  const std::string tokenizer = SerializeTokenizerSpec(bundle.tokenizer);
  const std::vector<Section> sections =
      PlanSections(bundle.model, tokenizer.size(), [&](absl::string_view name) {
        return std::find(optional.begin(), optional.end(), name) != optional.end();
      });
  ASSIGN_OR_RETURN(const std::string manifest, SerializeManifest(bundle, sections));
  const FileHeader header = MakeHeader(manifest.size(), DataBytes(sections));
  if (header.chunk_table_offset > kMaxBundleBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the file would have ",
                                                   header.chunk_table_offset,
                                                   " bytes, allowed is up to ", kMaxBundleBytes));
  }

  ASSIGN_OR_RETURN(AtomicFileWriter file, AtomicFileWriter::Create(path));
  HashingWriter out(&file);
  RETURN_IF_ERROR(out.Append(&header, sizeof(header)));
  RETURN_IF_ERROR(out.PadToSection());
  RETURN_IF_ERROR(out.Append(manifest.data(), manifest.size()));
  RETURN_IF_ERROR(out.PadToSection());
  RETURN_IF_ERROR(AppendSections(bundle.model, tokenizer, &out));
  ASSIGN_OR_RETURN(std::string digest, out.Finish());
  RETURN_IF_ERROR(file.Commit());
  return digest;
}

}  // namespace

absl::StatusOr<std::string> WriteBundle(const Bundle& bundle, const std::string& path) {
  absl::StatusOr<std::string> digest = WriteChecked(bundle, path);
  if (!digest.ok()) return Annotate(digest.status(), absl::StrCat("bundle '", path, "'"));
  return digest;
}

}  // namespace fixpoint
