// config.json and generation_config.json of an exported checkpoint.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "calibrator/float_model.h"
#include "text/tokenizer_spec.h"

namespace fixpoint {

// quantization_config: symmetric int8, weights per channel, inputs static per tensor, for all
// linear layers but `ignored` (full module names).
std::string QuantizationConfigJson(const std::vector<std::string>& ignored);

// The original config.json with an untied head, bf16 and `quantization`. INVALID_ARGUMENT, with
// `place` in front, when `original` is no JSON object.
absl::StatusOr<std::string> ConfigFromOriginal(absl::string_view original, const std::string& place,
                                               absl::string_view quantization);

// A config.json for a model whose source has none. The RoPE scaling is recognised from the
// frequencies: none, linear, or llama3 with the published factors 1 and 4 of 8192 tokens;
// UNIMPLEMENTED for others.
absl::StatusOr<std::string> ConfigFromModel(const FloatModel& model, const TokenizerSpec& tokenizer,
                                            absl::string_view quantization);

// generation_config.json: bos and eos ids.
std::string GenerationConfigJson(const TokenizerSpec& tokenizer);

}  // namespace fixpoint
