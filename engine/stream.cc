#include "engine/stream.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/check.h"

namespace fixpoint {
namespace {

// Longer waits count as this one: the steady clock's nanoseconds must not overflow.
constexpr absl::Duration kLongestWait = absl::Hours(24 * 365);

class StreamHandle final : public Stream {
 public:
  explicit StreamHandle(std::shared_ptr<StreamBuffer> buffer) : buffer_(std::move(buffer)) {}
  ~StreamHandle() override {
    buffer_->ClearListener();
    buffer_->Cancel();
  }
  bool TryNext(Event* event) override { return buffer_->TryNext(event); }
  bool Next(Event* event, absl::Duration timeout) override { return buffer_->Next(event, timeout); }
  void SetListener(std::function<void()> listener) override {
    buffer_->SetListener(std::move(listener));
  }
  void ClearListener() override { buffer_->ClearListener(); }
  void Cancel() override { buffer_->Cancel(); }

 private:
  const std::shared_ptr<StreamBuffer> buffer_;
};

}  // namespace

StreamBuffer::StreamBuffer(int32_t capacity_events, std::function<void()> wake_engine)
    : capacity_events_(capacity_events), wake_engine_(std::move(wake_engine)) {}

bool StreamBuffer::PushToken(Event event) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (events_.size() >= static_cast<size_t>(capacity_events_)) return false;
  }
  // Only the engine thread adds events, so the room is still there.
  Push(std::move(event));
  return true;
}

void StreamBuffer::PushEnd(Event event) { Push(std::move(event)); }

void StreamBuffer::Push(Event event) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    CHECK(!ended_) << "an event behind the end of a stream";
    ended_ = event.finished;
    events_.push_back(std::move(event));
  }
  available_.notify_all();
  std::lock_guard<std::mutex> lock(listener_mutex_);
  if (listener_) listener_();
}

bool StreamBuffer::TakeLocked(Event* event) {
  if (events_.empty()) return false;
  *event = std::move(events_.front());
  events_.pop_front();
  return true;
}

bool StreamBuffer::TryNext(Event* event) {
  std::lock_guard<std::mutex> lock(mutex_);
  return TakeLocked(event);
}

bool StreamBuffer::Next(Event* event, absl::Duration timeout) {
  const auto deadline =
      std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(std::min(timeout, kLongestWait));
  std::unique_lock<std::mutex> lock(mutex_);
  available_.wait_until(lock, deadline, [&] { return !events_.empty() || ended_; });
  return TakeLocked(event);
}

void StreamBuffer::SetListener(std::function<void()> listener) {
  std::lock_guard<std::mutex> lock(listener_mutex_);
  CHECK(!listener_) << "a stream has one listener";
  listener_ = std::move(listener);
  bool waiting;
  {
    std::lock_guard<std::mutex> events_lock(mutex_);
    waiting = !events_.empty();
  }
  if (waiting && listener_) listener_();
}

void StreamBuffer::ClearListener() {
  std::lock_guard<std::mutex> lock(listener_mutex_);
  listener_ = nullptr;
}

void StreamBuffer::Cancel() {
  {
    // Behind the end there is nothing to wake the engine for.
    std::lock_guard<std::mutex> lock(mutex_);
    if (ended_) return;
  }
  if (!cancelled_.exchange(true)) wake_engine_();
}

std::shared_ptr<Stream> MakeStreamHandle(std::shared_ptr<StreamBuffer> buffer) {
  return std::make_shared<StreamHandle>(std::move(buffer));
}

}  // namespace fixpoint
