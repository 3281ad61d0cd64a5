// A TokenizerSpec as the files of a Hugging Face directory.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "text/tokenizer_spec.h"

namespace fixpoint {

// tokenizer.json, for checkpoints that come without one (GGUF). `tokenizers` reads it and encodes
// as our Tokenizer does. SentencePiece ranks become merges: every way to split a piece into two
// pieces, in the order of the joined pieces' ranks; where two splits of one piece overlap in the
// text ("aaa"), the format cannot say which comes first. INVALID_ARGUMENT for two tokens that are
// spelled alike.
absl::StatusOr<std::string> WriteTokenizerJson(const TokenizerSpec& spec);

// tokenizer_config.json with the chat template (may be empty).
std::string WriteTokenizerConfig(const TokenizerSpec& spec, const std::string& chat_template,
                                 int32_t max_position_embeddings);

}  // namespace fixpoint
