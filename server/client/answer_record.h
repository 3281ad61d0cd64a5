// One answer with everything that it takes to ask for it again: what `fixpoint generate --json`
// prints and `fixpoint replay` reads. docs/CLIENT.md describes the document.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "fixpoint/v1/generation.pb.h"
#include "server/client/library/answer.h"

namespace fixpoint::client {

inline constexpr char kRecordFormat[] = "fixpoint-answer-1";

// The document of one choice, on one line without a line feed. `request` is that of the whole call;
// the document's is for this choice alone: one prompt, no n, the choice's own seed, max_tokens as
// the server resolved it, and without cache_salt, which is a secret of the tenant. `prompt`: what
// the call told about the choice's prompt, or null.
std::string RecordJson(const v1::GenerateRequest& request, uint32_t choice, const Answer& answer,
                       const PromptReport* prompt, const std::string& target);

struct AnswerRecord {
  v1::GenerateRequest request;       // of one choice, resume_token_ids moved to output_ids
  std::vector<uint32_t> output_ids;  // of the whole answer
  v1::Finished finished;             // reason, stopped_by, receipt (may be empty), max_tokens
  std::string system_fingerprint;
};

// Documents one behind the other; white space between and in them does not matter. Keys that are
// not needed are not looked at. INVALID_ARGUMENT names the document (from 1) and the key.
absl::StatusOr<std::vector<AnswerRecord>> ParseRecords(absl::string_view text);

}  // namespace fixpoint::client
