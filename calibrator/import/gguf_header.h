// The scalars and strings of a GGUF header, read front to back with bounds.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/file.h"
#include "base/status_macros.h"

namespace fixpoint {

// The numbers are the format's.
enum class GgufValueType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

inline bool IsFloating(GgufValueType type) {
  return type == GgufValueType::kFloat32 || type == GgufValueType::kFloat64;
}

// Fewest bytes that a value of this type takes in the file; a string has its length. Not for
// arrays.
uint64_t BytesMin(GgufValueType type);

// Messages say what was expected at which byte, the caller adds file and section. Not thread-safe.
class GgufHeaderReader {
 public:
  // `file` must outlive the reader.
  explicit GgufHeaderReader(const RandomAccessFile& file) : file_(file) {}

  uint64_t position() const { return position_; }
  uint64_t remaining() const { return file_.size() - position_; }

  // DATA_LOSS at the end of the file, OUT_OF_RANGE behind GgufLimits::kHeaderBytes.
  absl::Status Read(void* out, uint64_t num_bytes);

  template <typename T>
  absl::StatusOr<T> Scalar() {
    T value;
    RETURN_IF_ERROR(Read(&value, sizeof(value)));
    return value;
  }

  absl::StatusOr<std::string> String(uint64_t max_bytes);

  // A type id of the list above.
  absl::StatusOr<GgufValueType> ValueType();

  // A number of an integer type; a bool must be 0 or 1, a uint64 below 2^63.
  absl::StatusOr<int64_t> Integer(GgufValueType type);
  absl::StatusOr<double> Floating(GgufValueType type);

 private:
  const RandomAccessFile& file_;
  uint64_t position_ = 0;
  std::vector<char> window_;  // bytes [window_start_, window_start_ + window_.size()) of the file
  uint64_t window_start_ = 0;
};

}  // namespace fixpoint
