// A thread that does one thing again and again.
#pragma once

#include <functional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace fixpoint {

// Calls `work` every `period` until it is destroyed; a running call is waited for.
class Ticker {
 public:
  Ticker(absl::Duration period, std::function<void()> work);
  ~Ticker();

 private:
  void Run();

  const absl::Duration period_;
  const std::function<void()> work_;
  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace fixpoint
