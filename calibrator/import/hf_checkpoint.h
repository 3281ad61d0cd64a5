// The JSON files of a Hugging Face directory.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "calibrator/float_model.h"
#include "calibrator/import/rope.h"

namespace fixpoint {

struct HfConfig {
  FloatConfig config;
  RopeSpec rope;
  std::vector<int32_t> eos_ids;     // of config.json, empty where absent
  bool compressed_tensors = false;  // int8 weights: CompressedTensorsSource reads them
};

// config.json. Keys of transformers 4 and 5 (rope_theta and rope_scaling, or rope_parameters; type
// or rope_type). UNIMPLEMENTED naming key and value for every architecture, activation, bias,
// window, scaling or quantization that is not understood (CheckCompressedTensorsConfig is). `place`
// (the path) begins every message.
absl::StatusOr<HfConfig> ParseHfConfig(absl::string_view text, const std::string& place);

// eos_token_id (one id or a list) of generation_config.json; empty where absent.
absl::StatusOr<std::vector<int32_t>> ParseHfEosIds(absl::string_view text,
                                                   const std::string& place);

// chat_template of tokenizer_config.json: a string, or a list of {name, template} of which
// "default" counts. Empty where absent.
absl::StatusOr<std::string> ParseHfChatTemplate(absl::string_view text, const std::string& place);

}  // namespace fixpoint
