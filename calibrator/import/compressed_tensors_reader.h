// int8 checkpoints of the compressed-tensors format seen as float ones.
//
// A linear layer P of such a checkpoint is P.weight int8 [out, in] with P.weight_scale [out, 1]
// (one scale per output row) or one scale for all, and, with static inputs, P.input_scale [1].
// Everything else is as in a float checkpoint.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "calibrator/import/json.h"
#include "calibrator/import/safetensors_reader.h"
#include "calibrator/import/tensor_source.h"

namespace fixpoint {

// `quantization` is quantization_config of config.json. OK for what the class below reads: method
// compressed-tensors, format int-quantized, symmetric int8 weights per channel or per tensor,
// symmetric int8 inputs (static per tensor, or dynamic per token) or float ones. UNIMPLEMENTED
// naming key and value for everything else.
absl::Status CheckCompressedTensorsConfig(const JsonObject& quantization);

class CompressedTensorsSource : public TensorSource {
 public:
  // `files` must outlive the result. Reads all scales. INVALID_ARGUMENT naming file and tensor for
  // int8 weights without a scale, scales without int8 weights, shapes that do not belong together
  // and scales that are not positive; UNIMPLEMENTED for zero points.
  static absl::StatusOr<CompressedTensorsSource> Create(const Safetensors& files);

  // The tensors of `files` but for the scales.
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  const std::string& PathOf(size_t index) const override {
    return files_->PathOf(placements_[index].file_index);
  }
  // int8 weights as float32(q) * float32(scale), rounded once.
  absl::Status Read(size_t index, absl::Span<float> out) const override;

  // Static input scales by layer name ("model.layers.0.self_attn.q_proj"): x counts as
  // scale * clamp(round(x / scale), -128, 127).
  const std::map<std::string, float>& input_scales() const { return input_scales_; }

 private:
  struct Placement {
    size_t file_index;          // in files_->tensors()
    std::vector<float> scales;  // one, or one per row; empty for float tensors
  };

  explicit CompressedTensorsSource(const Safetensors& files) : files_(&files) {}

  const Safetensors* files_;
  std::vector<TensorInfo> tensors_;
  std::vector<Placement> placements_;  // as long as tensors_
  std::map<std::string, float> input_scales_;
};

}  // namespace fixpoint
