// Which server to try next, and when.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace fixpoint::client {

// A target rests after a failure: `first`, then twice as long with each failure in a row, up to
// `most`. A server that names a time itself (grpc-retry-pushback-ms) rests for exactly that, up to
// kMaxPushback.
struct BackoffOptions {
  absl::Duration first = absl::Milliseconds(100);
  absl::Duration most = absl::Seconds(10);
};
inline constexpr absl::Duration kMaxPushback = absl::Minutes(5);

enum class TargetOrder {
  kListed,    // the first of the list that does not rest
  kRotating,  // each call begins one further
};

// Shared by all calls of a client, so that one call's failure spares the others the same wait.
// Targets are numbers from 0. Thread-safe.
class TargetPool {
 public:
  // Requires num_targets >= 1.
  TargetPool(int num_targets, TargetOrder order, BackoffOptions backoff);

  int size() const { return num_targets_; }

  struct Pick {
    int target = 0;
    absl::Time usable_at;  // not after `now`: at once
  };
  // The next one that is not `excluded` (one flag for each target); when all rest, the one that
  // rests the shortest. Nothing when all are excluded.
  std::optional<Pick> Next(absl::Time now, const std::vector<bool>& excluded);

  // How an attempt ended that had begun at `began`. Reports of attempts that began before the
  // target's last failure tell nothing new (a thousand streams may break at once), so they neither
  // lengthen nor end its rest.
  void Failed(int target, absl::Time began, absl::Time now, std::optional<absl::Duration> pushback);
  void Worked(int target, absl::Time began);

 private:
  struct Target {
    int failures = 0;  // in a row
    absl::Time last_failure = absl::InfinitePast();
    absl::Time usable_at = absl::InfinitePast();
  };

  const int num_targets_;
  const TargetOrder order_;
  const BackoffOptions backoff_;
  absl::Mutex mutex_;
  uint64_t turn_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<Target> targets_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace fixpoint::client
