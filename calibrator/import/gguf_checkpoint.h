// The configuration and the tokenizer that a GGUF file carries in its metadata.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "calibrator/float_model.h"
#include "calibrator/import/gguf_reader.h"
#include "calibrator/import/llama_weights.h"
#include "text/tokenizer_spec.h"

namespace fixpoint {

// Configuration of architecture llama or qwen2 (general.architecture). UNIMPLEMENTED naming the key
// for whatever changes the model's arithmetic and is not understood, among it every unknown key of
// the architecture. Uses the tensor list only for the vocabulary's size (rows of token_embd.weight)
// and for tied heads (no output.weight).
absl::StatusOr<FloatConfig> ParseGgufConfig(const GgufFile& gguf);

// Frequencies from {arch}.rope.* and, where the file has it, rope_freqs.weight (one divisor per
// pair: llama3 scaling).
absl::StatusOr<std::vector<double>> ParseGgufRope(const GgufFile& gguf, const FloatConfig& config);

// tokenizer.ggml.*: "gpt2" (byte-level BPE; tokenizer.ggml.pre must be one that we know) and
// "llama" (SentencePiece-BPE, scores become ranks). Tokens of type control and unknown become
// special added tokens, user-defined ones added tokens that plain text may contain.
//   eos_ids: eos_token_id, eot_token_id, then well-known end-of-turn names among the control
//   tokens. unknown_id stays -1 for byte-level BPE: the metadata then repeats a name of
//   tokenizer_config.json, BPE itself has none.
absl::StatusOr<TokenizerSpec> ParseGgufTokenizer(const GgufFile& gguf);

// tokenizer.chat_template, empty where absent.
absl::StatusOr<std::string> ParseGgufChatTemplate(const GgufFile& gguf);

// Appends the ids of special added tokens whose names are well known to end a turn or a text, where
// not yet listed.
void AppendWellKnownEosIds(TokenizerSpec* spec);

}  // namespace fixpoint
