// Hugging Face tokenizer.json -> TokenizerSpec.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "text/tokenizer_spec.h"

namespace fixpoint {

// Reads two families, and refuses by name whatever would make a tokenizer tokenize differently:
//   byte-level BPE: splitting of GPT-2, SmolLM, Llama-3 or Qwen2/3, known by the exact regex or
//   pre-tokenizer list; no
//     normalizer or NFC; post-processor none, ByteLevel or a template that puts the bos token in
//     front.
//   SentencePiece-BPE (Llama-2): normalizer Replace " " by U+2581, with Prepend U+2581 or without;
//   byte fallback.
// `tokenizer_config_json` may be empty; it names bos and eos and may turn bos on or off. Only its
// eos_token is known here: end of turn tokens stand in generation_config.json, which is the
// caller's to read. `truncation` and `padding` are ignored: they are a matter of batches, and
// lengths are checked elsewhere. Errors: kInvalidArgument for broken files, kUnimplemented for
// refused ones.
absl::StatusOr<TokenizerSpec> ParseTokenizerJson(absl::string_view json_text,
                                                 absl::string_view tokenizer_config_json);

}  // namespace fixpoint
