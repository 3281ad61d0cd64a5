// Writes one safetensors file, tensor after tensor, in the memory of one of them.
//
//   u64 N, N bytes of JSON {"__metadata__": {...}, "NAME": {"dtype", "shape", "data_offsets"}, ...}
//   padded with spaces so that the data starts at a multiple of 8, then the data without holes
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/file.h"

namespace fixpoint {

enum class SafetensorsDtype { kFloat32, kBf16, kInt8 };

struct SafetensorsEntry {
  std::string name;
  SafetensorsDtype dtype = SafetensorsDtype::kFloat32;
  std::vector<int64_t> shape;
};

// Appears under its path at Finish; an object destroyed before leaves nothing. One thread at a
// time.
class SafetensorsWriter {
 public:
  // `entries` in file order. For aligned data put wider dtypes first. INVALID_ARGUMENT for what our
  // own reader would refuse: repeated or long names, negative dimensions, too many tensors, a
  // header over SafetensorsLimits::kHeaderBytes.
  static absl::StatusOr<SafetensorsWriter> Create(
      const std::string& path, std::vector<SafetensorsEntry> entries,
      const std::map<std::string, std::string>& metadata);

  // The data of the next entry, whole. Name, dtype and size must be those of the entry (CHECKed).
  // Bf16 rounds to nearest, ties to even. DATA_LOSS naming tensor and index for a value that is not
  // finite, or is not after rounding.
  absl::Status Float32(const std::string& name, absl::Span<const float> values);
  absl::Status Bf16(const std::string& name, absl::Span<const float> values);
  absl::Status Int8(const std::string& name, absl::Span<const int8_t> values);

  // After the last entry (CHECKed).
  absl::Status Finish();
  uint64_t file_bytes() const { return file_.appended_bytes(); }

 private:
  SafetensorsWriter(std::string path, std::vector<SafetensorsEntry> entries, AtomicFileWriter file)
      : path_(std::move(path)), entries_(std::move(entries)), file_(std::move(file)) {}
  void TakeNext(const std::string& name, SafetensorsDtype dtype, size_t elements);
  absl::Status CheckFinite(const std::string& name, absl::Span<const float> values,
                           size_t first) const;

  std::string path_;
  std::vector<SafetensorsEntry> entries_;
  AtomicFileWriter file_;
  size_t next_ = 0;
};

}  // namespace fixpoint
