// A fixed number of threads that run jobs in the order they came.
#pragma once

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace fixpoint {

// Thread-safe. The destructor runs what is queued, then joins.
class WorkerPool {
 public:
  // threads >= 1. At most `capacity` jobs wait for TryPost; Post goes beyond it.
  WorkerPool(int threads, size_t capacity);
  ~WorkerPool();

  // False when `capacity` jobs wait already.
  [[nodiscard]] bool TryPost(std::function<void()> job);
  // For jobs whose number is bounded elsewhere, such as at most one for each open call.
  void Post(std::function<void()> job);

 private:
  void Work();

  const size_t capacity_;
  absl::Mutex mutex_;
  std::deque<std::function<void()>> jobs_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace fixpoint
