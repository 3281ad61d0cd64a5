// A user's wish to end a training early with what it has.
#pragma once

#include <atomic>

namespace fixpoint {

// Set by a signal handler, so both are lock-free.
struct StopSignal {
  std::atomic<bool> requested{false};
  std::atomic<bool> armed{false};  // a training runs that will see `requested`
};

}  // namespace fixpoint
