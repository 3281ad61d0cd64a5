#include "calibrator/import/safetensors_reader.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "calibrator/import/json.h"

namespace fixpoint {
namespace {

// The header nests object, tensor, array: 3. A little room, so that the message says what is wrong
// rather than "depth".
constexpr size_t kHeaderDepth = 8;
constexpr int64_t kReadElements = 1 << 18;

// Bytes of an element; 0 for what we do not know (types below one byte among them).
int64_t DtypeBytes(absl::string_view dtype) {
  static constexpr std::pair<absl::string_view, int64_t> kBytes[] = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"F8_E8M0", 1},
      {"U16", 2},  {"I16", 2}, {"F16", 2}, {"BF16", 2},    {"U32", 4},     {"I32", 4},
      {"F32", 4},  {"U64", 8}, {"I64", 8}, {"F64", 8},     {"C64", 8}};
  for (const auto& [name, bytes] : kBytes) {
    if (name == dtype) return bytes;
  }
  return 0;
}

std::optional<WeightType> WeightTypeOf(absl::string_view dtype) {
  if (dtype == "F32") return WeightType::kF32;
  if (dtype == "F16") return WeightType::kF16;
  if (dtype == "BF16") return WeightType::kBF16;
  return std::nullopt;
}

std::string Printable(absl::string_view name) { return absl::CHexEscape(name); }

// A tensor of one file; begin and end count from the start of the data.
struct Entry {
  TensorInfo info;
  uint64_t begin = 0;
  uint64_t end = 0;
};

absl::StatusOr<std::vector<uint64_t>> UnsignedArray(const JsonObject& object, absl::string_view key,
                                                    size_t max_size) {
  const std::optional<simdjson::dom::element> element = object.Find(key);
  simdjson::dom::array array;
  if (!element.has_value() || element->get(array)) return object.Error(key, "is not an array");
  if (array.size() > max_size) {
    return object.Error(key, absl::StrCat("has ", array.size(), " items, the limit is ", max_size));
  }
  std::vector<uint64_t> values;
  for (const simdjson::dom::element item : array) {
    uint64_t value = 0;
    if (item.get(value)) {
      return object.Error(key, "holds something else than non-negative integers");
    }
    values.push_back(value);
  }
  return values;
}

absl::StatusOr<Entry> ParseEntry(const std::string& name, const JsonObject& object) {
  for (const simdjson::dom::key_value_pair field : object.object()) {
    if (field.key != "dtype" && field.key != "shape" && field.key != "data_offsets") {
      return object.Error(Printable(absl::string_view(field.key.data(), field.key.size())),
                          "is not a key of a tensor");
    }
  }
  Entry entry;
  entry.info.name = name;
  ASSIGN_OR_RETURN(const std::optional<std::string> dtype, object.FindString("dtype"));
  if (!dtype.has_value()) return object.Error("dtype", "is missing");
  entry.info.type = *dtype;
  const int64_t element_bytes = DtypeBytes(*dtype);
  if (element_bytes == 0) {
    return absl::UnimplementedError(
        absl::StrCat(object.place(), ": dtype \"", Printable(*dtype), "\" is not supported"));
  }
  ASSIGN_OR_RETURN(const std::vector<uint64_t> shape,
                   UnsignedArray(object, "shape", SafetensorsLimits::kRank));
  // A zero dimension is legal and makes the product zero; a later dimension must not hide an
  // overflow before it.
  entry.info.num_elements = 1;
  for (const uint64_t dim : shape) {
    if (dim > uint64_t{1} << 62 ||
        __builtin_mul_overflow(entry.info.num_elements, static_cast<int64_t>(dim),
                               &entry.info.num_elements)) {
      return object.Error("shape", "the product of the dimensions exceeds 2^63");
    }
    entry.info.shape.push_back(static_cast<int64_t>(dim));
  }
  int64_t num_bytes = 0;
  if (__builtin_mul_overflow(entry.info.num_elements, element_bytes, &num_bytes)) {
    return object.Error("shape", "the size in bytes exceeds 2^63");
  }
  ASSIGN_OR_RETURN(const std::vector<uint64_t> offsets, UnsignedArray(object, "data_offsets", 2));
  if (offsets.size() != 2 || offsets[0] > offsets[1]) {
    return object.Error("data_offsets", "is not a pair [begin, end)");
  }
  entry.begin = offsets[0];
  entry.end = offsets[1];
  if (entry.end - entry.begin != static_cast<uint64_t>(num_bytes)) {
    return object.Error("data_offsets",
                        absl::StrCat("span ", entry.end - entry.begin, " bytes, ", *dtype, " ",
                                     ShapeText(entry.info.shape), " takes ", num_bytes));
  }
  return entry;
}

absl::Status CheckMetadata(const JsonObject& root) {
  ASSIGN_OR_RETURN(const std::optional<JsonObject> metadata, root.FindObject("__metadata__"));
  if (!metadata.has_value()) return absl::OkStatus();
  for (const simdjson::dom::key_value_pair field : metadata->object()) {
    if (!field.value.is_string()) {
      return metadata->Error(Printable(absl::string_view(field.key.data(), field.key.size())),
                             "is not a string");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Entry>> ParseEntries(const JsonObject& root) {
  RETURN_IF_ERROR(CheckMetadata(root));
  std::vector<Entry> entries;
  for (const simdjson::dom::key_value_pair field : root.object()) {
    if (field.key == "__metadata__") continue;
    const std::string name(field.key);
    if (name.size() > SafetensorsLimits::kNameBytes) {
      return absl::InvalidArgumentError(absl::StrCat(root.place(), ": a tensor name of ",
                                                     name.size(), " bytes, the limit is ",
                                                     SafetensorsLimits::kNameBytes));
    }
    if (entries.size() == SafetensorsLimits::kTensors) {
      return absl::InvalidArgumentError(
          absl::StrCat(root.place(), ": more than ", SafetensorsLimits::kTensors, " tensors"));
    }
    simdjson::dom::object object;
    if (field.value.get(object)) return root.Error(Printable(name), "is not an object");
    ASSIGN_OR_RETURN(Entry entry,
                     ParseEntry(name, JsonObject(object, absl::StrCat(root.place(), ": tensor ",
                                                                      Printable(name)))));
    entries.push_back(std::move(entry));
  }
  return entries;
}

// The tensors must tile [0, data_bytes): no hole, no overlap, nothing behind the last.
absl::Status CheckTiling(std::vector<Entry>& entries, uint64_t data_bytes,
                         const std::string& path) {
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::make_pair(a.begin, a.end) < std::make_pair(b.begin, b.end);
  });
  uint64_t expected = 0;
  for (const Entry& entry : entries) {
    const std::string section = absl::StrCat(path, ": tensor ", Printable(entry.info.name));
    if (entry.begin != expected) {
      return absl::InvalidArgumentError(absl::StrCat(
          section, entry.begin < expected ? ": overlaps the tensor before it" : ": leaves a hole",
          ", begins at ", entry.begin, ", expected ", expected));
    }
    if (entry.end > data_bytes) {
      return absl::DataLossError(absl::StrCat(section, ": ends at byte ", entry.end,
                                              " of the data, which has ", data_bytes));
    }
    expected = entry.end;
  }
  if (expected != data_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": header: the tensors take ", expected,
                                                   " bytes of data, the file has ", data_bytes));
  }
  return absl::OkStatus();
}

bool Exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

// weight_map of the index: tensor name to shard file name.
absl::StatusOr<std::map<std::string, std::string>> ReadIndex(const std::string& path) {
  ASSIGN_OR_RETURN(const RandomAccessFile file, RandomAccessFile::Open(path));
  ASSIGN_OR_RETURN(const std::string text, file.ReadAll(SafetensorsLimits::kIndexBytes));
  ASSIGN_OR_RETURN(const JsonDocument document, JsonDocument::Parse(text, path, kHeaderDepth));
  ASSIGN_OR_RETURN(const std::optional<JsonObject> weight_map,
                   document.root().FindObject("weight_map"));
  if (!weight_map.has_value()) return document.root().Error("weight_map", "is missing");
  std::map<std::string, std::string> shard_of;
  for (const simdjson::dom::key_value_pair field : weight_map->object()) {
    const std::string name(field.key);
    std::string_view shard;
    if (field.value.get(shard)) return weight_map->Error(Printable(name), "is not a string");
    const absl::string_view shard_name(shard.data(), shard.size());
    if (absl::StrContains(shard_name, "/") || absl::StrContains(shard_name, "\\") ||
        absl::StrContains(shard_name, absl::string_view("\0", 1)) ||
        !absl::EndsWith(shard_name, ".safetensors")) {
      return weight_map->Error(Printable(name),
                               absl::StrCat("\"", Printable(shard_name),
                                            "\" is not the name of a .safetensors file here"));
    }
    shard_of.emplace(name, std::string(shard));
  }
  return shard_of;
}

}  // namespace

absl::Status Safetensors::AddFile(const std::string& path) {
  ASSIGN_OR_RETURN(RandomAccessFile file, RandomAccessFile::Open(path));
  uint64_t header_bytes = 0;
  RETURN_IF_ERROR(Annotate(file.ReadAt(0, sizeof(header_bytes), &header_bytes), "header"));
  if (header_bytes > SafetensorsLimits::kHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": header: has ", header_bytes,
                                                   " bytes, the limit is ",
                                                   SafetensorsLimits::kHeaderBytes));
  }
  if (header_bytes > file.size() - sizeof(header_bytes)) {
    return absl::DataLossError(
        absl::StrCat(path, ": header: has ", header_bytes, " bytes, the file only ", file.size()));
  }
  std::string header(header_bytes, '\0');
  RETURN_IF_ERROR(
      Annotate(file.ReadAt(sizeof(header_bytes), header_bytes, header.data()), "header"));
  if (!absl::StartsWith(header, "{")) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": header: does not begin with '{'"));
  }
  ASSIGN_OR_RETURN(const JsonDocument document,
                   JsonDocument::Parse(header, absl::StrCat(path, ": header"), kHeaderDepth));
  ASSIGN_OR_RETURN(std::vector<Entry> entries, ParseEntries(document.root()));
  const uint64_t data_start = sizeof(header_bytes) + header_bytes;
  RETURN_IF_ERROR(CheckTiling(entries, file.size() - data_start, path));
  for (Entry& entry : entries) {
    tensors_.push_back(std::move(entry.info));
    placements_.push_back({files_.size(), data_start + entry.begin});
  }
  files_.push_back(std::move(file));
  return absl::OkStatus();
}

absl::StatusOr<Safetensors> Safetensors::OpenFile(const std::string& path) {
  Safetensors safetensors;
  RETURN_IF_ERROR(safetensors.AddFile(path));
  return safetensors;
}

absl::StatusOr<Safetensors> Safetensors::OpenDirectory(const std::string& directory) {
  const std::string single = absl::StrCat(directory, "/model.safetensors");
  if (Exists(single)) return OpenFile(single);
  Safetensors safetensors;
  safetensors.index_path_ = absl::StrCat(directory, "/model.safetensors.index.json");
  if (!Exists(safetensors.index_path_)) {
    return absl::NotFoundError(absl::StrCat(
        directory, ": holds neither model.safetensors nor model.safetensors.index.json"));
  }
  ASSIGN_OR_RETURN(auto shard_of, ReadIndex(safetensors.index_path_));
  std::set<std::string> shards;
  for (const auto& [name, shard] : shard_of) shards.insert(shard);
  if (shards.size() > SafetensorsLimits::kShards) {
    return absl::InvalidArgumentError(absl::StrCat(safetensors.index_path_, ": lists ",
                                                   shards.size(), " files, the limit is ",
                                                   SafetensorsLimits::kShards));
  }
  for (const std::string& shard : shards) {
    const size_t first = safetensors.tensors_.size();
    const std::string path = absl::StrCat(directory, "/", shard);
    RETURN_IF_ERROR(safetensors.AddFile(path));
    for (size_t i = first; i < safetensors.tensors_.size(); ++i) {
      const std::string& name = safetensors.tensors_[i].name;
      const auto listed = shard_of.find(name);
      if (listed == shard_of.end() || listed->second != shard) {
        return absl::InvalidArgumentError(
            absl::StrCat(path, ": tensor ", Printable(name), ": the index does not list it there",
                         listed == shard_of.end() ? ", or it appears twice" : ""));
      }
      shard_of.erase(listed);
    }
  }
  if (!shard_of.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(safetensors.index_path_, ": weight_map: tensor ",
                                                   Printable(shard_of.begin()->first),
                                                   " is not in ", shard_of.begin()->second));
  }
  return safetensors;
}

std::vector<std::string> Safetensors::FilePaths() const {
  std::vector<std::string> paths;
  if (!index_path_.empty()) paths.push_back(index_path_);
  for (const RandomAccessFile& file : files_) paths.push_back(file.path());
  return paths;
}

const std::string& Safetensors::PathOf(size_t index) const {
  return files_[placements_[index].file].path();
}

absl::Status Safetensors::Read(size_t index, absl::Span<float> out) const {
  const TensorInfo& info = tensors_[index];
  const RandomAccessFile& file = files_[placements_[index].file];
  CHECK_EQ(static_cast<int64_t>(out.size()), info.num_elements) << info.name;
  const std::string section = absl::StrCat(file.path(), ": tensor ", Printable(info.name));
  const std::optional<WeightType> type = WeightTypeOf(info.type);
  if (!type.has_value()) {
    return absl::UnimplementedError(absl::StrCat(section, ": weights of dtype ", info.type,
                                                 " are not supported (F32, F16, BF16 are)"));
  }
  const int64_t element_bytes = BlockSizeOf(*type).bytes;
  std::vector<uint8_t> encoded(
      static_cast<size_t>(std::min(info.num_elements, kReadElements) * element_bytes));
  for (int64_t first = 0; first < info.num_elements; first += kReadElements) {
    const int64_t count = std::min(kReadElements, info.num_elements - first);
    const auto piece = absl::MakeSpan(encoded.data(), static_cast<size_t>(count * element_bytes));
    RETURN_IF_ERROR(Annotate(
        file.ReadAt(placements_[index].offset + static_cast<uint64_t>(first * element_bytes),
                    piece.size(), piece.data()),
        section));
    Dequantize(*type, piece, out.subspan(static_cast<size_t>(first), static_cast<size_t>(count)));
  }
  return CheckFinite(out, section);
}

absl::Status Safetensors::ReadInt8(size_t index, int64_t first, absl::Span<int8_t> out) const {
  const TensorInfo& info = tensors_[index];
  CHECK(info.type == "I8") << info.name;
  CHECK(first >= 0 && first + static_cast<int64_t>(out.size()) <= info.num_elements) << info.name;
  const RandomAccessFile& file = files_[placements_[index].file];
  return Annotate(
      file.ReadAt(placements_[index].offset + static_cast<uint64_t>(first), out.size(), out.data()),
      absl::StrCat(file.path(), ": tensor ", Printable(info.name)));
}

}  // namespace fixpoint
