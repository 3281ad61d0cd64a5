// Whether an answer that was given once is given again. Pure.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "server/client/answer_record.h"

namespace fixpoint::client {

// What to ask: the recorded request without what cannot change tokens (output, priority,
// speculation, cache) and without resume_token_ids, so that the whole answer is made anew.
v1::GenerateRequest ReplayRequest(const AnswerRecord& record);

struct Replayed {
  std::vector<uint32_t> output_ids;
  v1::Finished finished;
  // Receipts computed here: of the recorded answer and of the new one. Nothing: not to be checked.
  std::optional<std::string> recorded_receipt;
  std::optional<std::string> new_receipt;
};

struct Verdict {
  bool equal = false;
  std::string sentence;
};

// Equal when ids, end and receipts are. Else the first difference: of the tokens by index, both ids
// ("the end" where one answer is longer), then of the end, then of the receipts.
Verdict Compare(const AnswerRecord& record, const Replayed& replayed);

}  // namespace fixpoint::client
