#include "server/watchdog.h"

#include <algorithm>

namespace fixpoint {

bool Watchdog::Look(absl::Duration now, bool work_is_open, uint64_t steps) {
  if (first_ || !work_is_open || steps != last_steps_) {
    stalled_ = absl::ZeroDuration();
  } else {
    stalled_ += std::min(now - last_look_, kMaxGap);
  }
  first_ = false;
  last_look_ = now;
  last_steps_ = steps;
  return stalled_ >= limit_;
}

}  // namespace fixpoint
