// Whether two models read text alike.
#pragma once

#include <string>

#include "text/tokenizer_spec.h"

namespace fixpoint {

// The first thing in which two tokenizers differ that changes the ids of a text or what they are
// called: "token 17 is \"a\" and \"b\"". Empty when there is none; what only ends or begins a
// generation (eos_ids, bos_id, add_bos) may differ.
std::string TokenizerDifference(const TokenizerSpec& a, const TokenizerSpec& b);

}  // namespace fixpoint
