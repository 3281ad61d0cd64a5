#include "server/self_test.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "base/status_macros.h"
#include "engine/golden.h"
#include "server/open_calls.h"

namespace fixpoint {
namespace {

// The digest was made with a cache that holds every golden prompt; a smaller one would cut them.
bool CacheHolds(const ExecutorLimits& limits, const std::vector<std::vector<int32_t>>& prompts) {
  const int64_t capacity = int64_t{limits.num_blocks} * limits.block_tokens;
  for (const std::vector<int32_t>& prompt : prompts) {
    const auto needed =
        std::min<int64_t>(static_cast<int64_t>(prompt.size()), limits.max_sequence_tokens);
    if (needed > capacity) return false;
  }
  return true;
}

// How long all prompts take, from above: the second is measured, longer ones take less a token.
absl::StatusOr<absl::Duration> Estimate(Executor& executor,
                                        const std::vector<std::vector<int32_t>>& prompts) {
  const absl::Duration start = SteadyNow();
  RETURN_IF_ERROR(GoldenDigest(executor, absl::MakeConstSpan(prompts).subspan(1, 1)).status());
  const absl::Duration taken = SteadyNow() - start;
  int64_t tokens = 0;
  for (const std::vector<int32_t>& prompt : prompts) tokens += static_cast<int64_t>(prompt.size());
  return taken * tokens / static_cast<int64_t>(prompts[1].size());
}

// Empty: the golden digest can be compared.
absl::StatusOr<std::string> WhyNotGolden(Executor& executor,
                                         const std::vector<std::vector<int32_t>>& prompts,
                                         const std::string& golden_digest, absl::Duration budget) {
  if (golden_digest.empty()) return std::string("the bundle has no golden digest");
  if (!CacheHolds(executor.limits(), prompts)) {
    return std::string("the key/value cache is smaller than the golden prompts");
  }
  ASSIGN_OR_RETURN(const absl::Duration estimate, Estimate(executor, prompts));
  if (estimate <= budget) return std::string();
  return absl::StrCat("it might take ", absl::FormatDuration(estimate));
}

absl::Status Different(absl::string_view what, absl::string_view got, absl::string_view expected) {
  return absl::DataLossError(absl::StrCat("self-test: ", what, " gives the digest ", got,
                                          ", expected ", expected,
                                          ": this machine does not compute what it should"));
}

}  // namespace

absl::StatusOr<SelfTestResult> SelfTest(Executor& executor, const Tokenizer& tokenizer,
                                        const std::string& golden_digest, absl::Duration budget) {
  const absl::Duration start = SteadyNow();
  const std::vector<std::vector<int32_t>> prompts = GoldenPrompts(tokenizer);
  const auto one_prompt = absl::MakeConstSpan(prompts).subspan(0, 1);
  ASSIGN_OR_RETURN(const std::string by_token,
                   GoldenDigest(executor, one_prompt, /*chunk_tokens=*/1));
  ASSIGN_OR_RETURN(const std::string whole, GoldenDigest(executor, one_prompt));
  if (by_token != whole) return Different("a prompt token by token", by_token, whole);

  SelfTestResult result;
  ASSIGN_OR_RETURN(result.why_not_golden, WhyNotGolden(executor, prompts, golden_digest, budget));
  if (result.why_not_golden.empty()) {
    ASSIGN_OR_RETURN(const std::string digest, GoldenDigest(executor, prompts));
    if (digest != golden_digest) return Different("the golden run", digest, golden_digest);
    result.kind = SelfTestKind::kGolden;
  }
  result.taken = SteadyNow() - start;
  return result;
}

}  // namespace fixpoint
