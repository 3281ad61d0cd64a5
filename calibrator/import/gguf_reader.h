// A strict reader of GGUF, versions 2 and 3, little-endian.
//
//   header       "GGUF", u32 version, u64 number of tensors, u64 number of metadata keys
//   metadata     per key: string key, u32 type, value (an array: u32 element type, u64 count,
//   elements) tensor info  per tensor: string name, u32 rank, u64 dims (contiguous axis first), u32
//   type, u64 offset in the data data         starts at the next multiple of general.alignment;
//   tensors packed, each padded to the alignment
//
// A file is untrusted: every count and size is checked against the file's size and the limits
// below, with checked arithmetic, before anything is allocated. Stricter than the format in that
// tensors must fill the data section without holes, overlaps or bytes after the last padding.
// Messages name file, section (header, metadata key K, tensor info NAME, tensor data NAME) and
// value.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/file.h"
#include "calibrator/import/dequantize.h"
#include "calibrator/import/tensor_source.h"

namespace fixpoint {

// Far above what published models need: Llama 3's metadata is 8 MB with 410,000 array elements.
struct GgufLimits {
  static constexpr uint64_t kTensors = 100'000;
  static constexpr uint64_t kKeys = 65'536;
  static constexpr uint64_t kKeyBytes = 65'535;
  static constexpr uint64_t kTensorNameBytes = 512;
  static constexpr uint64_t kStringBytes = 16 << 20;
  static constexpr uint64_t kArrayElements = 1 << 23;
  static constexpr uint64_t kHeaderBytes = 128 << 20;  // header, metadata and tensor infos together
  static constexpr uint32_t kRank = 4;
  static constexpr uint64_t kAlignmentMin = 8;
  static constexpr uint64_t kAlignmentMax = 65'536;
};

class GgufFile : public TensorSource {
 public:
  // kMetadataOnly stops behind the metadata: no tensor info is read or checked, tensors() is empty.
  enum class Contents { kAll, kMetadataOnly };
  static absl::StatusOr<GgufFile> Open(const std::string& path, Contents contents = Contents::kAll);

  uint32_t version() const { return version_; }
  const RandomAccessFile& file() const { return file_; }

  // Metadata by key; nothing (nullptr) where the key is absent, INVALID_ARGUMENT naming file and
  // key where it has another type. FindInt takes every integer type, FindDouble every floating
  // type.
  absl::StatusOr<std::optional<int64_t>> FindInt(absl::string_view key) const;
  absl::StatusOr<std::optional<double>> FindDouble(absl::string_view key) const;
  absl::StatusOr<std::optional<bool>> FindBool(absl::string_view key) const;
  absl::StatusOr<const std::string*> FindString(absl::string_view key) const;
  absl::StatusOr<const std::vector<int64_t>*> FindInts(absl::string_view key) const;
  absl::StatusOr<const std::vector<double>*> FindDoubles(absl::string_view key) const;
  absl::StatusOr<const std::vector<std::string>*> FindStrings(absl::string_view key) const;
  bool Has(absl::string_view key) const;

  // All keys in file order.
  const std::vector<std::string>& keys() const { return keys_; }

  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  const std::string& PathOf(size_t) const override { return file_.path(); }
  absl::Status Read(size_t index, absl::Span<float> out) const override;

 private:
  friend class GgufParser;

  using Value = std::variant<int64_t, double, bool, std::string, std::vector<int64_t>,
                             std::vector<double>, std::vector<std::string>>;
  struct Placement {
    WeightType type;
    uint64_t offset;  // in the file
    uint64_t num_bytes;
  };

  explicit GgufFile(RandomAccessFile file) : file_(std::move(file)) {}

  template <typename T>
  absl::StatusOr<const T*> FindAs(absl::string_view key, absl::string_view wanted) const;

  RandomAccessFile file_;
  uint32_t version_ = 0;
  std::vector<std::string> keys_;
  absl::flat_hash_map<std::string, Value> metadata_;
  std::vector<TensorInfo> tensors_;
  std::vector<Placement> placements_;  // as long as tensors_
};

}  // namespace fixpoint
