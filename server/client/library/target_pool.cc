#include "server/client/library/target_pool.h"

#include <algorithm>

#include "base/check.h"

namespace fixpoint::client {

TargetPool::TargetPool(int num_targets, TargetOrder order, BackoffOptions backoff)
    : num_targets_(num_targets), order_(order), backoff_(backoff) {
  CHECK_GE(num_targets, 1);
  targets_.resize(static_cast<size_t>(num_targets));
}

std::optional<TargetPool::Pick> TargetPool::Next(absl::Time now,
                                                 const std::vector<bool>& excluded) {
  CHECK_EQ(excluded.size(), static_cast<size_t>(num_targets_));
  absl::MutexLock lock(&mutex_);
  const uint64_t first = order_ == TargetOrder::kRotating ? turn_++ : 0;
  std::optional<Pick> best;
  for (int i = 0; i < num_targets_; ++i) {
    const size_t t = (first + static_cast<uint64_t>(i)) % targets_.size();
    if (excluded[t]) continue;
    const Pick pick{static_cast<int>(t), std::max(targets_[t].usable_at, now)};
    if (!best.has_value() || pick.usable_at < best->usable_at) best = pick;
  }
  return best;
}

void TargetPool::Failed(int target, absl::Time began, absl::Time now,
                        std::optional<absl::Duration> pushback) {
  absl::MutexLock lock(&mutex_);
  Target& t = targets_[static_cast<size_t>(target)];
  if (pushback.has_value()) {
    t.usable_at = std::max(t.usable_at, now + std::min(*pushback, kMaxPushback));
  }
  if (began < t.last_failure) return;
  t.last_failure = now;
  if (pushback.has_value()) return;  // it answered, and said when
  absl::Duration rest = backoff_.first;
  for (int i = 0; i < t.failures && rest < backoff_.most; ++i) rest *= 2;
  ++t.failures;
  t.usable_at = std::max(t.usable_at, now + std::min(rest, backoff_.most));
}

void TargetPool::Worked(int target, absl::Time began) {
  absl::MutexLock lock(&mutex_);
  Target& t = targets_[static_cast<size_t>(target)];
  if (began < t.last_failure) return;
  t.failures = 0;
  t.usable_at = absl::InfinitePast();
}

}  // namespace fixpoint::client
