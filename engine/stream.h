// The engine's side of a stream and the handle that callers hold. std::mutex rather than
// absl::Mutex: Debian's Abseil is not built for ThreadSanitizer.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>

#include "absl/time/time.h"
#include "engine/engine.h"
#include "engine/request.h"

namespace fixpoint {

// A bounded buffer of events between the engine thread, which never waits for it, and one reader.
// Shared by both sides.
class StreamBuffer {
 public:
  // `wake_engine` is called by Cancel, on the reader's thread.
  StreamBuffer(int32_t capacity_events, std::function<void()> wake_engine);

  // Engine thread. False when `capacity_events` token events wait: the event is dropped, the
  // request has to be ended.
  bool PushToken(Event event);
  // Engine thread, once. The end always finds room.
  void PushEnd(Event event);
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }

  // Reader's side: engine.h, Stream.
  bool TryNext(Event* event);
  bool Next(Event* event, absl::Duration timeout);
  void SetListener(std::function<void()> listener);
  void ClearListener();
  void Cancel();

 private:
  bool TakeLocked(Event* event);
  void Push(Event event);

  const int32_t capacity_events_;
  const std::function<void()> wake_engine_;
  std::atomic<bool> cancelled_{false};

  std::mutex mutex_;  // guards events_ and ended_
  std::condition_variable available_;
  std::deque<Event> events_;
  bool ended_ = false;  // the end has been pushed

  std::mutex listener_mutex_;  // held while the listener runs; taken before mutex_ where both are
  std::function<void()> listener_;
};

// Cancels the request when the last reference goes.
std::shared_ptr<Stream> MakeStreamHandle(std::shared_ptr<StreamBuffer> buffer);

}  // namespace fixpoint
