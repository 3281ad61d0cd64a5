#include "calibrator/import/gguf_header.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "calibrator/import/gguf_reader.h"

namespace fixpoint {
namespace {

constexpr uint64_t kWindowBytes = 256 << 10;

}  // namespace

uint64_t BytesMin(GgufValueType type) {
  switch (type) {
    case GgufValueType::kUint8:
    case GgufValueType::kInt8:
    case GgufValueType::kBool:
      return 1;
    case GgufValueType::kUint16:
    case GgufValueType::kInt16:
      return 2;
    case GgufValueType::kUint32:
    case GgufValueType::kInt32:
    case GgufValueType::kFloat32:
      return 4;
    case GgufValueType::kString:
    case GgufValueType::kUint64:
    case GgufValueType::kInt64:
    case GgufValueType::kFloat64:
      return 8;
    case GgufValueType::kArray:
      break;
  }
  CHECK(false) << "value type " << static_cast<uint32_t>(type);
  return 1;
}

absl::Status GgufHeaderReader::Read(void* out, uint64_t num_bytes) {
  if (num_bytes > remaining()) {
    return absl::DataLossError(absl::StrCat("truncated: ", num_bytes, " bytes expected at byte ",
                                            position_, ", the file has ", file_.size()));
  }
  if (num_bytes > GgufLimits::kHeaderBytes - position_) {
    return absl::OutOfRangeError(absl::StrCat("header, metadata and tensor infos exceed ",
                                              GgufLimits::kHeaderBytes, " bytes"));
  }
  char* destination = static_cast<char*>(out);
  while (num_bytes > 0) {
    const uint64_t window_end = window_start_ + window_.size();
    if (position_ >= window_end) {
      window_.resize(std::min(kWindowBytes, remaining()));
      window_start_ = position_;
      RETURN_IF_ERROR(file_.ReadAt(window_start_, window_.size(), window_.data()));
      continue;
    }
    const uint64_t piece = std::min(num_bytes, window_end - position_);
    std::memcpy(destination, window_.data() + (position_ - window_start_), piece);
    destination += piece;
    position_ += piece;
    num_bytes -= piece;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> GgufHeaderReader::String(uint64_t max_bytes) {
  ASSIGN_OR_RETURN(const uint64_t num_bytes, Scalar<uint64_t>());
  if (num_bytes > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a string of ", num_bytes, " bytes, the limit is ", max_bytes));
  }
  if (num_bytes > remaining()) {
    return absl::DataLossError(absl::StrCat("truncated: a string of ", num_bytes, " bytes at byte ",
                                            position_, ", the file has ", file_.size()));
  }
  std::string bytes(num_bytes, '\0');
  RETURN_IF_ERROR(Read(bytes.data(), num_bytes));
  return bytes;
}

absl::StatusOr<GgufValueType> GgufHeaderReader::ValueType() {
  ASSIGN_OR_RETURN(const uint32_t id, Scalar<uint32_t>());
  if (id > static_cast<uint32_t>(GgufValueType::kFloat64)) {
    return absl::InvalidArgumentError(absl::StrCat("value type ", id, " is unknown"));
  }
  return static_cast<GgufValueType>(id);
}

absl::StatusOr<int64_t> GgufHeaderReader::Integer(GgufValueType type) {
  switch (type) {
    case GgufValueType::kUint8:
      return Scalar<uint8_t>();
    case GgufValueType::kInt8:
      return Scalar<int8_t>();
    case GgufValueType::kUint16:
      return Scalar<uint16_t>();
    case GgufValueType::kInt16:
      return Scalar<int16_t>();
    case GgufValueType::kUint32:
      return Scalar<uint32_t>();
    case GgufValueType::kInt32:
      return Scalar<int32_t>();
    case GgufValueType::kInt64:
      return Scalar<int64_t>();
    case GgufValueType::kBool: {
      ASSIGN_OR_RETURN(const uint8_t value, Scalar<uint8_t>());
      if (value > 1) {
        return absl::InvalidArgumentError(absl::StrCat("a boolean of value ", int{value}));
      }
      return value;
    }
    case GgufValueType::kUint64: {
      ASSIGN_OR_RETURN(const uint64_t value, Scalar<uint64_t>());
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        return absl::InvalidArgumentError(absl::StrCat("integer ", value, " exceeds 2^63"));
      }
      return static_cast<int64_t>(value);
    }
    default:
      break;
  }
  CHECK(false) << "value type " << static_cast<uint32_t>(type) << " is no integer";
  return 0;
}

absl::StatusOr<double> GgufHeaderReader::Floating(GgufValueType type) {
  if (type == GgufValueType::kFloat32) {
    ASSIGN_OR_RETURN(const float value, Scalar<float>());
    return static_cast<double>(value);
  }
  return Scalar<double>();
}

}  // namespace fixpoint
