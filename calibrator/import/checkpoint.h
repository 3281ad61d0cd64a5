// From a path to everything that the calibrator needs of a checkpoint.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "calibrator/float_model.h"
#include "calibrator/import/llama_weights.h"
#include "text/tokenizer_spec.h"

namespace fixpoint {

// `path` is a GGUF file or a Hugging Face directory: config.json, tokenizer.json, model.safetensors
// or its shards, and where present tokenizer_config.json, generation_config.json and
// chat_template.jinja.
//
// Llama architecture (LlamaForCausalLM, MistralForCausalLM without a window, Qwen2ForCausalLM;
// general.architecture llama and qwen2). What is not understood is refused by name; all errors name
// file, section and value.
//   vocab_size may exceed the number of tokens (padding rows; progress is told a stage that says
//   so), not the reverse. eos_ids of a directory: those of generation_config.json, else of
//   config.json, else of the tokenizer; well-known names of the end of a turn among its special
//   tokens are added. chat_template: chat_template.jinja, else tokenizer_config.json.
//   A directory in the compressed-tensors format with symmetric int8 weights
//   (compressed_tensors_reader.h) gives them as float32(q) * scale, and static input scales in
//   input_scales.
//   source_sha256: of a GGUF file, its SHA-256. Of a directory, the SHA-256 of the text that
//   `sha256sum FILES` prints ("DIGEST  NAME\n" per file, bare names) for the files that were read,
//   in byte order of names.
// Needs memory for the float32 weights once, and about 1 MiB more.
absl::StatusOr<Checkpoint> ImportCheckpoint(const std::string& path,
                                            const ImportProgress& progress);

struct TokenizerAndTemplate {
  TokenizerSpec tokenizer;
  std::string chat_template;  // empty where there is none
};

// Without weights: a GGUF file (one with nothing but a vocabulary too, of any architecture), a
// Hugging Face directory, or a tokenizer.json, whose neighbours tokenizer_config.json,
// generation_config.json and so on count where present.
absl::StatusOr<TokenizerAndTemplate> ImportTokenizer(const std::string& path);

}  // namespace fixpoint
