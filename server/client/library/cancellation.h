// Ending a call from another thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace fixpoint::client {

// Once cancelled it stays so. Thread-safe.
class Cancellation {
 public:
  void Cancel();
  bool cancelled() const;
  // Returns when cancelled, at `time` at the latest.
  void WaitUntil(absl::Time time) const;

  // While it lives, Cancel() also calls `hook`: at most once, at once when already cancelled, never
  // after the destructor. The hook may not touch the same Cancellation. A null `cancellation`: does
  // nothing.
  class Scope {
   public:
    Scope(Cancellation* cancellation, std::function<void()> hook);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Cancellation* const cancellation_;
    int64_t number_ = 0;
  };

 private:
  mutable absl::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t next_number_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<int64_t, std::function<void()>> hooks_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace fixpoint::client
