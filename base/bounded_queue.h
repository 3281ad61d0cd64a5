// A queue between threads with a stated bound and an answer for when it is full.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/time/time.h"

namespace fixpoint {

enum class PushResult { kOk, kFull, kClosed };

// First in, first out, any number of producers and consumers. Thread-safe. std::mutex rather than
// absl::Mutex: Debian's Abseil is built without ThreadSanitizer's annotations, so races next to an
// absl::Mutex would be reported that are none.
template <typename T>
class BoundedQueue {
 public:
  explicit BoundedQueue(size_t capacity) : capacity_(capacity) {}
  BoundedQueue(const BoundedQueue&) = delete;
  BoundedQueue& operator=(const BoundedQueue&) = delete;

  // Never blocks. `item` is moved from only when the result is kOk.
  PushResult TryPush(T&& item) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (closed_) return PushResult::kClosed;
      if (items_.size() >= capacity_) return PushResult::kFull;
      items_.push_back(std::move(item));
    }
    not_empty_.notify_one();
    return PushResult::kOk;
  }

  std::optional<T> TryPop() {
    std::lock_guard<std::mutex> lock(mutex_);
    return PopLocked();
  }

  // Waits until there is an item, the queue is closed and empty, or the timeout has passed (nullopt
  // in the last two cases: `closed()` tells them apart).
  std::optional<T> Pop(absl::Duration timeout) {
    std::unique_lock<std::mutex> lock(mutex_);
    const auto ready = [this] { return closed_ || !items_.empty(); };
    // A year stands in for longer waits: the clock's int64 nanoseconds must not overflow.
    if (timeout > absl::Hours(24 * 365)) {
      not_empty_.wait(lock, ready);
    } else if (timeout > absl::ZeroDuration()) {
      not_empty_.wait_until(
          lock, std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(timeout), ready);
    }
    return PopLocked();
  }

  // Refuses further pushes and wakes all waiting consumers; what is queued can still be popped.
  // Idempotent.
  void Close() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closed_ = true;
    }
    not_empty_.notify_all();
  }

  bool closed() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return closed_;
  }
  size_t size() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return items_.size();
  }
  size_t capacity() const { return capacity_; }

 private:
  std::optional<T> PopLocked() {
    if (items_.empty()) return std::nullopt;
    std::optional<T> item(std::move(items_.front()));
    items_.pop_front();
    return item;
  }

  const size_t capacity_;
  mutable std::mutex mutex_;  // guards the fields below
  std::condition_variable not_empty_;
  std::deque<T> items_;
  bool closed_ = false;
};

}  // namespace fixpoint
