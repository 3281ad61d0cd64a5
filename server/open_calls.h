// The calls whose output a caller may take too slowly. Writing never blocks a thread here; this
// only ends calls that nobody reads, so that they do not hold the model's memory.
#pragma once

#include <cstddef>
#include <memory>
#include <set>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace fixpoint {

// Time that only runs forward; for measuring how long something takes.
absl::Duration SteadyNow();

class OutputWatch {
 public:
  virtual ~OutputWatch() = default;
  // Since when a message waits to be taken; InfiniteDuration when none does. Thread-safe.
  virtual absl::Duration waiting_since() const = 0;
  // Ends the call: its caller takes nothing. Thread-safe, quick, may come more than once.
  virtual void ReaderStuck() = 0;
};

// Thread-safe.
class OpenCalls {
 public:
  void Add(const std::shared_ptr<OutputWatch>& call);
  // Tells the calls whose message has waited for `timeout` or longer at `now`. Returns how many.
  size_t EndStuckReaders(absl::Duration now, absl::Duration timeout);
  size_t size() const;

 private:
  mutable absl::Mutex mutex_;
  // Calls that are gone leave an empty pointer behind until the next look.
  std::set<std::weak_ptr<OutputWatch>, std::owner_less<>> calls_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace fixpoint
