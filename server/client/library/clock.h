// Time, so that tests need not wait.
#pragma once

#include "absl/time/time.h"
#include "server/client/library/cancellation.h"

namespace fixpoint::client {

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() = 0;
  // Returns at `time`, or earlier when cancelled.
  virtual void WaitUntil(absl::Time time, const Cancellation& cancellation) = 0;

  // The system's clock; lives forever.
  static Clock* Real();
};

}  // namespace fixpoint::client
