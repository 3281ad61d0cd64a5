#include "calibrator/export/safetensors_writer.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/json_writer.h"
#include "base/status_macros.h"
#include "calibrator/import/safetensors_reader.h"
#include "calibrator/vector_loops.h"
#include "text/utf8.h"

namespace fixpoint {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr size_t kPieceElements = 1 << 18;
constexpr size_t kAlignment = 8;

struct DtypeInfo {
  const char* name;
  int64_t bytes;
};

DtypeInfo InfoOf(SafetensorsDtype dtype) {
  switch (dtype) {
    case SafetensorsDtype::kFloat32:
      return {"F32", 4};
    case SafetensorsDtype::kBf16:
      return {"BF16", 2};
    case SafetensorsDtype::kInt8:
      return {"I8", 1};
  }
  return {"", 0};
}

absl::StatusOr<int64_t> BytesOf(const SafetensorsEntry& entry) {
  int64_t bytes = InfoOf(entry.dtype).bytes;
  for (const int64_t dim : entry.shape) {
    if (dim < 0 || __builtin_mul_overflow(bytes, dim, &bytes)) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", entry.name, ": shape ", ShapeText(entry.shape)));
    }
  }
  return bytes;
}

absl::Status CheckEntries(const std::vector<SafetensorsEntry>& entries) {
  if (entries.size() > SafetensorsLimits::kTensors) {
    return absl::InvalidArgumentError(
        absl::StrCat(entries.size(), " tensors, the limit is ", SafetensorsLimits::kTensors));
  }
  std::set<std::string> names;
  for (const SafetensorsEntry& entry : entries) {
    if (entry.name.empty() || entry.name.size() > SafetensorsLimits::kNameBytes ||
        entry.name == "__metadata__" || !IsValidUtf8(entry.name) ||
        !names.insert(entry.name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor name \"", entry.name, "\" is unusable or repeated"));
    }
    if (entry.shape.size() > SafetensorsLimits::kRank) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", entry.name, ": rank ",
                                                     entry.shape.size(), ", the limit is ",
                                                     SafetensorsLimits::kRank));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> Header(const std::vector<SafetensorsEntry>& entries,
                                   const std::map<std::string, std::string>& metadata) {
  RETURN_IF_ERROR(CheckEntries(entries));
  JsonWriter json;
  json.BeginObject();
  json.Key("__metadata__");
  json.BeginObject();
  for (const auto& [key, value] : metadata) json.Field(key, value);
  json.EndObject();
  int64_t begin = 0;
  for (const SafetensorsEntry& entry : entries) {
    ASSIGN_OR_RETURN(const int64_t bytes, BytesOf(entry));
    int64_t end = 0;
    if (__builtin_add_overflow(begin, bytes, &end))
      return absl::InvalidArgumentError("the tensors take more than 2^63 bytes");
    json.Key(entry.name);
    json.BeginObject();
    json.Field("dtype", InfoOf(entry.dtype).name);
    json.Key("shape");
    json.BeginArray();
    for (const int64_t dim : entry.shape) json.Int(dim);
    json.EndArray();
    json.Key("data_offsets");
    json.BeginArray();
    json.Int(begin);
    json.Int(end);
    json.EndArray();
    json.EndObject();
    begin = end;
  }
  json.EndObject();
  std::string header = json.Take();
  header.append((kAlignment - header.size() % kAlignment) % kAlignment, ' ');
  if (header.size() > SafetensorsLimits::kHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the header has ", header.size(),
                                                   " bytes, the limit is ",
                                                   SafetensorsLimits::kHeaderBytes));
  }
  return header;
}

}  // namespace

absl::StatusOr<SafetensorsWriter> SafetensorsWriter::Create(
    const std::string& path, std::vector<SafetensorsEntry> entries,
    const std::map<std::string, std::string>& metadata) {
  const absl::StatusOr<std::string> header = Header(entries, metadata);
  if (!header.ok()) return Annotate(header.status(), path);
  ASSIGN_OR_RETURN(AtomicFileWriter file, AtomicFileWriter::Create(path));
  const uint64_t header_bytes = header->size();
  RETURN_IF_ERROR(file.Append(&header_bytes, sizeof(header_bytes)));
  RETURN_IF_ERROR(file.Append(*header));
  return SafetensorsWriter(path, std::move(entries), std::move(file));
}

void SafetensorsWriter::TakeNext(const std::string& name, SafetensorsDtype dtype, size_t elements) {
  CHECK_LT(next_, entries_.size()) << name;
  const SafetensorsEntry& entry = entries_[next_++];
  CHECK(entry.name == name) << name << ", expected " << entry.name;
  CHECK(entry.dtype == dtype) << name;
  int64_t expected = 1;
  for (const int64_t dim : entry.shape) expected *= dim;
  CHECK_EQ(static_cast<int64_t>(elements), expected) << name;
}

absl::Status SafetensorsWriter::CheckFinite(const std::string& name, absl::Span<const float> values,
                                            size_t first) const {
  for (size_t i = 0; i < values.size(); ++i) {
    if (std::isfinite(values[i])) continue;
    return absl::DataLossError(
        absl::StrCat(path_, ": tensor ", name, ": value ", first + i, " is ", values[i]));
  }
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Float32(const std::string& name, absl::Span<const float> values) {
  TakeNext(name, SafetensorsDtype::kFloat32, values.size());
  RETURN_IF_ERROR(CheckFinite(name, values, 0));
  return file_.Append(values.data(), values.size() * sizeof(float));
}

absl::Status SafetensorsWriter::Bf16(const std::string& name, absl::Span<const float> values) {
  TakeNext(name, SafetensorsDtype::kBf16, values.size());
  std::vector<uint16_t> piece(std::min(values.size(), kPieceElements));
  std::vector<float> rounded(piece.size());
  for (size_t first = 0; first < values.size(); first += kPieceElements) {
    const absl::Span<const float> from = values.subspan(first, kPieceElements);
    // The unrounded values too: rounding may turn a NaN into an infinity or the reverse.
    RETURN_IF_ERROR(CheckFinite(name, from, first));
    Vec().to_bf16(from.data(), static_cast<int64_t>(from.size()), piece.data());
    Vec().from_bf16(piece.data(), static_cast<int64_t>(from.size()), rounded.data());
    RETURN_IF_ERROR(CheckFinite(name, absl::MakeConstSpan(rounded.data(), from.size()), first));
    RETURN_IF_ERROR(file_.Append(piece.data(), from.size() * sizeof(uint16_t)));
  }
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Int8(const std::string& name, absl::Span<const int8_t> values) {
  TakeNext(name, SafetensorsDtype::kInt8, values.size());
  return file_.Append(values.data(), values.size());
}

absl::Status SafetensorsWriter::Finish() {
  CHECK_EQ(next_, entries_.size()) << path_;
  return file_.Commit();
}

}  // namespace fixpoint
