// SIGTERM and SIGINT as something to wait for. No signal handler runs: a thread takes the signals
// with sigwait.
#pragma once

#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace fixpoint {

// Create it first in main, before any other thread: threads inherit the signal mask. One per
// process. The second signal ends the process at once, with status 128 + its number.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();

  // The signal that came, or 0.
  int signal() const;
  // True when a signal came before the timeout. Thread-safe.
  bool Wait(absl::Duration timeout) const;

 private:
  void Watch();

  mutable absl::Mutex mutex_;
  int signal_ ABSL_GUARDED_BY(mutex_) = 0;
  std::thread thread_;
};

}  // namespace fixpoint
