// A few greedy completions of the float model and of the integer engine, side by side.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "calibrator/float_forward.h"
#include "calibrator/report/report.h"
#include "engine/cpu_executor.h"
#include "text/tokenizer.h"

namespace fixpoint {

struct SampleInput {
  const Tokenizer* tokenizer = nullptr;
  std::string chat_template;                  // empty: plain text only
  const FloatPrefix* float_prefix = nullptr;  // what each model runs behind
  const FloatPrefix* integer_prefix = nullptr;
  FloatForward* float_forward = nullptr;
  CpuExecutor* executor = nullptr;
};

// Two questions by the chat template and one beginning of a text, 48 tokens each or up to the first
// control token. Prompts that do not fit into the executor's cache are left out.
absl::StatusOr<std::vector<ReportSample>> WriteSamples(const SampleInput& input);

}  // namespace fixpoint
