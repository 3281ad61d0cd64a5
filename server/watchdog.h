// Tells when the engine is stuck: work is open and no step has ended for too long.
#pragma once

#include <cstdint>

#include "absl/time/time.h"

namespace fixpoint {

// A pure decision: times and counts come in. One thread at a time.
//
// Looks at the engine now and then instead of waiting for it. Only time that passed between two
// looks counts, and of a gap at most `kMaxGap`: a process that was stopped (SIGSTOP, a suspended
// machine) does not find its engine stuck when it goes on.
class Watchdog {
 public:
  static constexpr absl::Duration kMaxGap = absl::Seconds(1);

  // `limit` > 0.
  explicit Watchdog(absl::Duration limit) : limit_(limit) {}

  // `now` on any clock that runs forward; steps: how many have ended since the engine started.
  // Returns whether the engine is stuck.
  bool Look(absl::Duration now, bool work_is_open, uint64_t steps);

  // How long work has been open without the end of a step.
  absl::Duration stalled() const { return stalled_; }

 private:
  const absl::Duration limit_;
  bool first_ = true;
  absl::Duration last_look_;
  uint64_t last_steps_ = 0;
  absl::Duration stalled_;
};

}  // namespace fixpoint
