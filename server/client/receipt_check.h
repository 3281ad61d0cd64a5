// Receipts computed here, from what an answer shows, to be held against those of servers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "fixpoint/v1/generation.pb.h"

namespace fixpoint::client {

// The receipt (server/receipt.h) of one choice's answer. `request`: of that choice alone, with its
// own seed; max_tokens and the end are taken from `finished`. `prompt_ids` as Tokenize gives them.
// INVALID_ARGUMENT when the request's sampling is not valid for the model.
absl::StatusOr<std::string> ComputeReceipt(const v1::GetModelResponse& model,
                                           const v1::GenerateRequest& request,
                                           const std::vector<uint32_t>& prompt_ids,
                                           const std::vector<uint32_t>& output_ids,
                                           const v1::Finished& finished);

}  // namespace fixpoint::client
