// Whether this machine computes what the bundle promises, before anybody is served.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/executor.h"
#include "text/tokenizer.h"

namespace fixpoint {

enum class SelfTestKind {
  kGolden,      // the golden digest of all built-in prompts equals the bundle's
  kConsistent,  // one built-in prompt gives the same logits in chunks of one token and as a whole
};

struct SelfTestResult {
  SelfTestKind kind = SelfTestKind::kConsistent;
  std::string why_not_golden;  // for logs; empty for kGolden
  absl::Duration taken;
};

// Runs the short golden prompt both ways, then all of them if the bundle has a digest, the cache
// holds them, and the estimate from one of them stays within `budget`. DATA_LOSS naming both
// digests when they differ. Uses the executor alone and overwrites its KV cache: call it before an
// engine does.
absl::StatusOr<SelfTestResult> SelfTest(Executor& executor, const Tokenizer& tokenizer,
                                        const std::string& golden_digest, absl::Duration budget);

}  // namespace fixpoint
