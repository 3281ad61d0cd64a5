// The fixed leading tokens of every sequence, and openings for text that the model writes itself.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "calibrator/generate.h"
#include "text/tokenizer.h"

namespace fixpoint {

// One token: the beginning-of-sequence token, or without one the control token with which the chat
// template starts every conversation. Empty when the model has neither.
std::vector<int32_t> ChoosePrefix(const Tokenizer& tokenizer, const std::string& chat_template);

// The tokens with which the chat template starts every conversation, whatever its messages. Empty
// without a usable template.
std::vector<int32_t> ConstantOpening(const Tokenizer& tokenizer, const std::string& chat_template);

// What "float" is measured behind in evaluations: the beginning-of-sequence token alone, or
// nothing.
std::vector<int32_t> BosAlone(const Tokenizer& tokenizer);

// `count` openings: two of three are one random token of ordinary text, the others the chat
// template's text up to a user's first words, where the model has a template. Prefix tokens at
// their start are left out.
std::vector<Opening> ChooseOpenings(const Tokenizer& tokenizer, const std::string& chat_template,
                                    const std::vector<int32_t>& prefix, int32_t count,
                                    uint64_t seed);

// Ids of all control tokens.
std::vector<int32_t> ControlIds(const Tokenizer& tokenizer);

}  // namespace fixpoint
