#include "calibrator/import/gguf_reader.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <unordered_set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "calibrator/import/gguf_header.h"

namespace fixpoint {
namespace {

constexpr char kMagic[4] = {'G', 'G', 'U', 'F'};

// Fewest bytes that a metadata key (empty key, type, one byte) and a tensor info (empty name, rank,
// one dim, type, offset) can take: bounds their number by the file's size.
constexpr uint64_t kKeyBytesMin = 8 + 4 + 1;
constexpr uint64_t kTensorInfoBytesMin = 8 + 4 + 8 + 4 + 8;

// Pieces in which encoded weights are read: whole blocks of about 1 MiB.
constexpr int64_t kReadBytes = 1 << 20;

uint64_t AlignUp(uint64_t position, uint64_t alignment) {  // positions stay far below 2^63
  return (position + alignment - 1) / alignment * alignment;
}

// Names come from the file: keep control characters and broken UTF-8 out of the messages.
std::string Printable(absl::string_view name) { return absl::CHexEscape(name); }

}  // namespace

// Fills a GgufFile from front to back.
class GgufParser {
 public:
  explicit GgufParser(GgufFile* gguf) : gguf_(gguf), reader_(gguf->file_) {}

  absl::Status ParseHeader() {
    char magic[4];
    RETURN_IF_ERROR(reader_.Read(magic, sizeof(magic)));
    if (!std::equal(magic, magic + 4, kMagic)) {
      return absl::InvalidArgumentError(
          absl::StrCat("magic \"", Printable(absl::string_view(magic, 4)), "\" is not \"GGUF\""));
    }
    ASSIGN_OR_RETURN(gguf_->version_, reader_.Scalar<uint32_t>());
    if (gguf_->version_ != 2 && gguf_->version_ != 3) {
      return absl::UnimplementedError(absl::StrCat(
          "version ", gguf_->version_, " is not supported, only little-endian 2 and 3 are"));
    }
    ASSIGN_OR_RETURN(num_tensors_, reader_.Scalar<uint64_t>());
    ASSIGN_OR_RETURN(num_keys_, reader_.Scalar<uint64_t>());
    RETURN_IF_ERROR(CheckCount("tensors", num_tensors_, GgufLimits::kTensors, kTensorInfoBytesMin));
    return CheckCount("metadata keys", num_keys_, GgufLimits::kKeys, kKeyBytesMin);
  }

  absl::Status ParseMetadata() {
    gguf_->keys_.reserve(num_keys_);
    for (uint64_t i = 0; i < num_keys_; ++i) {
      absl::StatusOr<std::string> key = reader_.String(GgufLimits::kKeyBytes);
      if (!key.ok()) return Annotate(key.status(), absl::StrCat("metadata key ", i));
      const std::string section = absl::StrCat("metadata key ", Printable(*key));
      absl::StatusOr<GgufFile::Value> value = ParseValue();
      if (!value.ok()) return Annotate(value.status(), section);
      if (!gguf_->metadata_.emplace(*key, *std::move(value)).second) {
        return absl::InvalidArgumentError(absl::StrCat(section, ": appears twice"));
      }
      gguf_->keys_.push_back(*std::move(key));
    }
    return absl::OkStatus();
  }

  absl::Status ParseTensorInfos() {
    RETURN_IF_ERROR(ReadAlignment());
    std::unordered_set<std::string> names;
    for (uint64_t i = 0; i < num_tensors_; ++i) {
      absl::StatusOr<std::string> name = reader_.String(GgufLimits::kTensorNameBytes);
      if (!name.ok()) return Annotate(name.status(), absl::StrCat("tensor info ", i));
      const std::string section = absl::StrCat("tensor info ", Printable(*name));
      if (!names.insert(*name).second) {
        return absl::InvalidArgumentError(absl::StrCat(section, ": appears twice"));
      }
      TensorInfo info;
      info.name = *std::move(name);
      RETURN_IF_ERROR(Annotate(ParseTensorInfo(std::move(info)), section));
    }
    return absl::OkStatus();
  }

  // Turns relative offsets into file offsets and checks that the tensors tile the data section.
  absl::Status PlaceTensors() {
    const uint64_t file_bytes = gguf_->file_.size();
    const uint64_t data_start = AlignUp(reader_.position(), alignment_);
    std::vector<size_t> order(gguf_->placements_.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [this](size_t a, size_t b) {
      return gguf_->placements_[a].offset < gguf_->placements_[b].offset;
    });
    uint64_t expected = 0;                    // relative to data_start
    uint64_t end_bytes = reader_.position();  // of all that was described so far, without padding
    for (size_t n = 0; n < order.size(); ++n) {
      GgufFile::Placement& placement = gguf_->placements_[order[n]];
      const std::string section =
          absl::StrCat("tensor data ", Printable(gguf_->tensors_[order[n]].name));
      if (placement.offset != expected) {
        return absl::InvalidArgumentError(absl::StrCat(
            section,
            placement.offset < expected ? ": overlaps the tensor before it" : ": leaves a hole",
            ", its offset is ", placement.offset, ", expected ", expected));
      }
      // offset == expected <= file_bytes + alignment and num_bytes < 2^63: no wrap.
      const uint64_t begin = data_start + placement.offset;
      if (begin > file_bytes || placement.num_bytes > file_bytes - begin) {
        return absl::DataLossError(absl::StrCat(section, ": ", placement.num_bytes,
                                                " bytes from byte ", begin,
                                                " do not fit, the file has ", file_bytes));
      }
      placement.offset = begin;
      end_bytes = begin + placement.num_bytes;
      expected = AlignUp(end_bytes - data_start, alignment_);
    }
    const uint64_t padded_end = AlignUp(end_bytes, alignment_);
    if (file_bytes > padded_end) {
      return absl::InvalidArgumentError(absl::StrCat("tensor data: the file has ", file_bytes,
                                                     " bytes, its last tensor ends at ",
                                                     padded_end));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status CheckCount(absl::string_view what, uint64_t count, uint64_t limit,
                          uint64_t bytes_min) {
    if (count > limit) {
      return absl::InvalidArgumentError(
          absl::StrCat("number of ", what, " is ", count, ", the limit is ", limit));
    }
    if (count > reader_.remaining() / bytes_min) {
      return absl::DataLossError(absl::StrCat("number of ", what, " is ", count, ", but only ",
                                              reader_.remaining(), " bytes follow"));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<GgufFile::Value> ParseValue() {
    ASSIGN_OR_RETURN(const GgufValueType type, reader_.ValueType());
    if (type == GgufValueType::kArray) return ParseArray();
    if (type == GgufValueType::kString) return reader_.String(GgufLimits::kStringBytes);
    if (IsFloating(type)) return reader_.Floating(type);
    ASSIGN_OR_RETURN(const int64_t integer, reader_.Integer(type));
    if (type == GgufValueType::kBool) return integer == 1;
    return integer;
  }

  absl::StatusOr<GgufFile::Value> ParseArray() {
    ASSIGN_OR_RETURN(const GgufValueType type, reader_.ValueType());
    if (type == GgufValueType::kArray) {
      return absl::UnimplementedError("arrays of arrays are not supported");
    }
    ASSIGN_OR_RETURN(const uint64_t count, reader_.Scalar<uint64_t>());
    RETURN_IF_ERROR(
        CheckCount("array elements", count, GgufLimits::kArrayElements, BytesMin(type)));
    if (type == GgufValueType::kString) {
      std::vector<std::string> strings(count);
      for (std::string& string : strings) {
        ASSIGN_OR_RETURN(string, reader_.String(GgufLimits::kStringBytes));
      }
      return strings;
    }
    if (IsFloating(type)) {
      std::vector<double> numbers(count);
      for (double& number : numbers) {
        ASSIGN_OR_RETURN(number, reader_.Floating(type));
      }
      return numbers;
    }
    std::vector<int64_t> numbers(count);
    for (int64_t& number : numbers) {
      ASSIGN_OR_RETURN(number, reader_.Integer(type));
    }
    return numbers;
  }

  absl::Status ReadAlignment() {
    ASSIGN_OR_RETURN(const std::optional<int64_t> value, gguf_->FindInt("general.alignment"));
    if (!value.has_value()) return absl::OkStatus();
    const uint64_t alignment = *value < 0 ? 0 : static_cast<uint64_t>(*value);
    if (alignment < GgufLimits::kAlignmentMin || alignment > GgufLimits::kAlignmentMax ||
        (alignment & (alignment - 1)) != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("metadata key general.alignment: ", *value, " is not a power of two from ",
                       GgufLimits::kAlignmentMin, " to ", GgufLimits::kAlignmentMax));
    }
    alignment_ = alignment;
    return absl::OkStatus();
  }

  absl::Status ParseTensorInfo(TensorInfo info) {
    ASSIGN_OR_RETURN(const uint32_t rank, reader_.Scalar<uint32_t>());
    if (rank == 0 || rank > GgufLimits::kRank) {
      return absl::InvalidArgumentError(
          absl::StrCat("rank ", rank, " is not between 1 and ", GgufLimits::kRank));
    }
    info.shape.resize(rank);
    info.num_elements = 1;
    for (uint32_t axis = 0; axis < rank; ++axis) {
      ASSIGN_OR_RETURN(const uint64_t dim, reader_.Scalar<uint64_t>());
      if (dim == 0 || dim > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        return absl::InvalidArgumentError(absl::StrCat("dimension ", axis, " is ", dim));
      }
      info.shape[rank - 1 - axis] = static_cast<int64_t>(dim);  // file: contiguous axis first
      if (__builtin_mul_overflow(info.num_elements, static_cast<int64_t>(dim),
                                 &info.num_elements)) {
        return absl::InvalidArgumentError("the product of the dimensions exceeds 2^63");
      }
    }
    ASSIGN_OR_RETURN(const uint32_t type_id, reader_.Scalar<uint32_t>());
    info.type = GgufTypeName(type_id);
    const std::optional<WeightType> type = WeightTypeFromGgufId(type_id);
    if (!type.has_value()) {
      return absl::UnimplementedError(
          absl::StrCat("weights of type ", info.type,
                       " are not supported (F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, "
                       "Q5_K, Q6_K are)"));
    }
    const BlockSize block = BlockSizeOf(*type);
    if (info.shape.back() % block.elements != 0) {
      return absl::InvalidArgumentError(absl::StrCat("a row of ", info.shape.back(),
                                                     " elements is no multiple of ", info.type,
                                                     "'s block of ", block.elements));
    }
    int64_t num_bytes = 0;
    if (__builtin_mul_overflow(info.num_elements / block.elements, block.bytes, &num_bytes)) {
      return absl::InvalidArgumentError("the size in bytes exceeds 2^63");
    }
    ASSIGN_OR_RETURN(const uint64_t offset, reader_.Scalar<uint64_t>());
    if (offset % alignment_ != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("offset ", offset, " is no multiple of the alignment ", alignment_));
    }
    gguf_->tensors_.push_back(std::move(info));
    gguf_->placements_.push_back({*type, offset, static_cast<uint64_t>(num_bytes)});
    return absl::OkStatus();
  }

  GgufFile* gguf_;
  GgufHeaderReader reader_;
  uint64_t num_tensors_ = 0;
  uint64_t num_keys_ = 0;
  uint64_t alignment_ = 32;  // the format's default
};

absl::StatusOr<GgufFile> GgufFile::Open(const std::string& path, Contents contents) {
  ASSIGN_OR_RETURN(RandomAccessFile file, RandomAccessFile::Open(path));
  GgufFile gguf(std::move(file));
  GgufParser parser(&gguf);
  RETURN_IF_ERROR(Annotate(parser.ParseHeader(), absl::StrCat(path, ": header")));
  RETURN_IF_ERROR(Annotate(parser.ParseMetadata(), path));
  if (contents == Contents::kMetadataOnly) return gguf;
  RETURN_IF_ERROR(Annotate(parser.ParseTensorInfos(), path));
  RETURN_IF_ERROR(Annotate(parser.PlaceTensors(), path));
  return gguf;
}

template <typename T>
absl::StatusOr<const T*> GgufFile::FindAs(absl::string_view key, absl::string_view wanted) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end()) return nullptr;
  const T* value = std::get_if<T>(&found->second);
  if (value == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(file_.path(), ": metadata key ", key, ": is not ", wanted));
  }
  return value;
}

absl::StatusOr<std::optional<int64_t>> GgufFile::FindInt(absl::string_view key) const {
  ASSIGN_OR_RETURN(const int64_t* value, FindAs<int64_t>(key, "an integer"));
  return value == nullptr ? std::nullopt : std::optional<int64_t>(*value);
}

absl::StatusOr<std::optional<double>> GgufFile::FindDouble(absl::string_view key) const {
  ASSIGN_OR_RETURN(const double* value, FindAs<double>(key, "a floating-point number"));
  return value == nullptr ? std::nullopt : std::optional<double>(*value);
}

absl::StatusOr<std::optional<bool>> GgufFile::FindBool(absl::string_view key) const {
  ASSIGN_OR_RETURN(const bool* value, FindAs<bool>(key, "a boolean"));
  return value == nullptr ? std::nullopt : std::optional<bool>(*value);
}

absl::StatusOr<const std::string*> GgufFile::FindString(absl::string_view key) const {
  return FindAs<std::string>(key, "a string");
}

absl::StatusOr<const std::vector<int64_t>*> GgufFile::FindInts(absl::string_view key) const {
  return FindAs<std::vector<int64_t>>(key, "an array of integers");
}

absl::StatusOr<const std::vector<double>*> GgufFile::FindDoubles(absl::string_view key) const {
  return FindAs<std::vector<double>>(key, "an array of floating-point numbers");
}

absl::StatusOr<const std::vector<std::string>*> GgufFile::FindStrings(absl::string_view key) const {
  return FindAs<std::vector<std::string>>(key, "an array of strings");
}

bool GgufFile::Has(absl::string_view key) const { return metadata_.contains(key); }

absl::Status GgufFile::Read(size_t index, absl::Span<float> out) const {
  const TensorInfo& info = tensors_[index];
  const Placement& placement = placements_[index];
  CHECK_EQ(static_cast<int64_t>(out.size()), info.num_elements) << info.name;
  const BlockSize block = BlockSizeOf(placement.type);
  const int64_t blocks_per_read = kReadBytes / block.bytes;
  const int64_t num_blocks = info.num_elements / block.elements;
  std::vector<uint8_t> encoded(
      static_cast<size_t>(std::min(num_blocks, blocks_per_read) * block.bytes));
  const std::string section = absl::StrCat("tensor data ", Printable(info.name));
  for (int64_t first = 0; first < num_blocks; first += blocks_per_read) {
    const int64_t count = std::min(blocks_per_read, num_blocks - first);
    const auto piece = absl::MakeSpan(encoded.data(), static_cast<size_t>(count * block.bytes));
    RETURN_IF_ERROR(
        Annotate(file_.ReadAt(placement.offset + static_cast<uint64_t>(first * block.bytes),
                              piece.size(), piece.data()),
                 section));
    Dequantize(placement.type, piece,
               out.subspan(static_cast<size_t>(first * block.elements),
                           static_cast<size_t>(count * block.elements)));
  }
  return CheckFinite(out, absl::StrCat(file_.path(), ": ", section));
}

}  // namespace fixpoint
