// From a checked request to the engine requests of its choices: tokenizing, limits that need token
// ids, constraints, the beginning of receipts.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "server/choice.h"
#include "server/served_model.h"
#include "server/validation.h"

namespace fixpoint {

struct CallPlan {
  // Choice i of prompt p is choices[p * n + i]. `id` and `deadline` of the requests stay to be set.
  std::vector<ChoicePlan> choices;
  int32_t prompts = 1;
  int64_t prompt_tokens = 0;  // of all prompts, each once
};

// May take long (see ServedModel::EncodePrompt). INVALID_ARGUMENT and FAILED_PRECONDITION as in
// validation.h and served_model.h. `model` must outlive the plan.
absl::StatusOr<CallPlan> PlanCall(const ParsedRequest& parsed, const ServedModel& model);

}  // namespace fixpoint
