// From named tensors to a FloatModel: which tensors a Llama-like model has, their shapes and their
// order of rows.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "calibrator/float_model.h"
#include "calibrator/import/tensor_source.h"

namespace fixpoint {

// Told about every stage of an import, with the fraction of it that is done, 0 to 1. May be empty.
using ImportProgress = std::function<void(std::string_view stage, double fraction)>;

enum class CheckpointFormat { kGguf, kHuggingFace };

// INVALID_ARGUMENT naming the field when a size is out of range or two contradict each other.
// `place` begins the message.
absl::Status ValidateFloatConfig(const FloatConfig& config, absl::string_view place);

// Reads all weights of `config` from `source`. rope_inverse_frequency is left to the caller.
// Before anything is read: a missing tensor, a shape other than the config's, and a tensor that the
// model has no place for are errors naming tensor, file and both shapes. Pure buffers
// (rotary_emb.inv_freq; rope_freqs.weight, which the caller reads) are passed over. A head beside a
// tied embedding is accepted only when it equals the embedding. GGUF rows of q and k of the llama
// architecture, stored for interleaved rotation, are put back into half-split order. Requires:
// ValidateFloatConfig holds.
absl::StatusOr<FloatModel> ReadLlamaWeights(const FloatConfig& config, const TensorSource& source,
                                            CheckpointFormat format,
                                            const ImportProgress& progress);

// "Q4_1, Q8_0, F32": the types of all tensors, the one with the most elements first.
std::string DescribeTypes(const TensorSource& source);

}  // namespace fixpoint
