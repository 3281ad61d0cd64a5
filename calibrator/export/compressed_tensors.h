// Writes an ExportModel as a Hugging Face directory in the compressed-tensors format (quantization
// "int-quantized", symmetric W8A8, weights per channel, inputs static per tensor), as vLLM loads
// it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "calibrator/export/export_model.h"
#include "text/tokenizer_spec.h"

namespace fixpoint {

struct CompressedTensorsFiles {
  const ExportModel* model = nullptr;
  const TokenizerSpec* tokenizer = nullptr;
  std::string chat_template;
  // A Hugging Face directory whose configuration, tokenizer and licence files are taken over;
  // empty: they are made from the model and the tokenizer.
  std::string source_directory;
  // For README.md and the metadata of the weights.
  std::string source_name, source_sha256, bundle_name, bundle_digest;
  std::string figures;                   // Markdown
  std::vector<std::string> not_carried;  // one sentence each
};

// Full module names of the linear layers that stay in bf16: lm_head and the linears of unquantized
// sites.
std::vector<std::string> IgnoredModules(const ExportModel& model);

// Fills the existing, empty folder `directory`: model.safetensors, config.json,
// generation_config.json, tokenizer files, README.md. Returns the bytes of all files. On an error
// some of the files may be there: see NewFolder.
absl::StatusOr<uint64_t> WriteCompressedTensors(const CompressedTensorsFiles& files,
                                                const std::string& directory);

}  // namespace fixpoint
