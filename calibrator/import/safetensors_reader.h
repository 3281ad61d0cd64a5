// A strict reader of safetensors files and of sets of shards.
//
//   u64 N, N bytes of JSON {"NAME": {"dtype", "shape", "data_offsets": [begin, end)},
//   "__metadata__"}, data
//
// Row-major, little-endian; offsets count from the start of the data. Checks are those of the
// format's reference loader (tensors tile the data to the last byte of the file, sizes agree with
// shape and dtype by checked arithmetic) and the limits below; duplicate keys are refused. Messages
// name file, section (header, tensor NAME) and value.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/file.h"
#include "calibrator/import/dequantize.h"
#include "calibrator/import/tensor_source.h"

namespace fixpoint {

struct SafetensorsLimits {
  static constexpr uint64_t kHeaderBytes = 16 << 20;
  static constexpr uint64_t kTensors = 100'000;
  static constexpr uint64_t kNameBytes = 512;
  static constexpr uint64_t kRank = 8;
  static constexpr uint64_t kIndexBytes = 64 << 20;
  static constexpr uint64_t kShards = 10'000;
};

class Safetensors : public TensorSource {
 public:
  // One file.
  static absl::StatusOr<Safetensors> OpenFile(const std::string& path);

  // DIRECTORY/model.safetensors or, without it, the shards of
  // DIRECTORY/model.safetensors.index.json, whose weight_map must list every tensor of every shard
  // exactly once. NOT_FOUND where neither exists.
  static absl::StatusOr<Safetensors> OpenDirectory(const std::string& directory);

  // Paths of the files that hold tensors, and of the index where there is one.
  std::vector<std::string> FilePaths() const;

  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  const std::string& PathOf(size_t index) const override;
  // F32, F16 and BF16 only.
  absl::Status Read(size_t index, absl::Span<float> out) const override;
  // Elements [first, first + out.size()) of a tensor of dtype I8 (CHECKed, like the range).
  absl::Status ReadInt8(size_t index, int64_t first, absl::Span<int8_t> out) const;

 private:
  struct Placement {
    size_t file;      // index into files_
    uint64_t offset;  // in the file
  };

  Safetensors() = default;
  absl::Status AddFile(const std::string& path);

  std::string index_path_;  // empty without an index
  std::vector<RandomAccessFile> files_;
  std::vector<TensorInfo> tensors_;
  std::vector<Placement> placements_;  // as long as tensors_
};

}  // namespace fixpoint
