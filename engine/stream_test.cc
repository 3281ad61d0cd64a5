#include "engine/stream.h"

#include <atomic>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace fixpoint {
namespace {

Event Token(int32_t index) {
  Event event;
  event.index = index;
  return event;
}
Event End() {
  Event event;
  event.finished = true;
  return event;
}

TEST(StreamBufferTest, HandsOutInOrderAndThenNothing) {
  StreamBuffer buffer(10, [] {});
  EXPECT_TRUE(buffer.PushToken(Token(0)));
  EXPECT_TRUE(buffer.PushToken(Token(1)));
  buffer.PushEnd(End());
  Event event;
  ASSERT_TRUE(buffer.TryNext(&event));
  EXPECT_EQ(event.index, 0);
  ASSERT_TRUE(buffer.Next(&event, absl::InfiniteDuration()));
  EXPECT_EQ(event.index, 1);
  ASSERT_TRUE(buffer.TryNext(&event));
  EXPECT_TRUE(event.finished);
  EXPECT_FALSE(buffer.TryNext(&event));
  EXPECT_FALSE(buffer.Next(&event, absl::InfiniteDuration()));  // behind the end: at once
}

TEST(StreamBufferTest, NextTimesOut) {
  StreamBuffer buffer(10, [] {});
  Event event;
  const absl::Time start = absl::Now();
  EXPECT_FALSE(buffer.Next(&event, absl::Milliseconds(20)));
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(19));
}

TEST(StreamBufferTest, IsBoundedButTheEndFindsRoom) {
  StreamBuffer buffer(2, [] {});
  EXPECT_TRUE(buffer.PushToken(Token(0)));
  EXPECT_TRUE(buffer.PushToken(Token(1)));
  EXPECT_FALSE(buffer.PushToken(Token(2)));
  buffer.PushEnd(End());
  Event event;
  int events = 0;
  while (buffer.TryNext(&event)) ++events;
  EXPECT_EQ(events, 3);
}

TEST(StreamBufferTest, CancelWakesTheEngineOnceAndNotBehindTheEnd) {
  int wakes = 0;
  StreamBuffer buffer(2, [&] { ++wakes; });
  EXPECT_FALSE(buffer.cancelled());
  buffer.Cancel();
  buffer.Cancel();
  EXPECT_TRUE(buffer.cancelled());
  EXPECT_EQ(wakes, 1);
  StreamBuffer ended(2, [&] { ++wakes; });
  ended.PushEnd(End());
  ended.Cancel();
  EXPECT_EQ(wakes, 1);
}

TEST(StreamBufferTest, DroppingTheHandleCancels) {
  auto buffer = std::make_shared<StreamBuffer>(2, [] {});
  auto handle = MakeStreamHandle(buffer);
  auto copy = handle;
  handle.reset();
  EXPECT_FALSE(buffer->cancelled());
  copy.reset();
  EXPECT_TRUE(buffer->cancelled());
}

TEST(StreamBufferTest, ListenerIsCalledAtOnceIfEventsWait) {
  StreamBuffer buffer(5, [] {});
  int calls = 0;
  buffer.PushToken(Token(0));
  buffer.SetListener([&] { ++calls; });
  EXPECT_EQ(calls, 1);
  buffer.PushToken(Token(1));
  EXPECT_EQ(calls, 2);
  buffer.ClearListener();
  buffer.PushToken(Token(2));
  EXPECT_EQ(calls, 2);
  StreamBuffer empty(5, [] {});
  empty.SetListener([&] { ++calls; });
  EXPECT_EQ(calls, 2);
}

// A reader that only reads when it is told to misses nothing, and after ClearListener the
// listener's data may go.
TEST(StreamBufferTest, ListenerMissesNothingBesideAWriter) {
  constexpr int kEvents = 20000;
  StreamBuffer buffer(kEvents, [] {});
  std::thread writer([&] {
    for (int32_t i = 0; i < kEvents; ++i) ASSERT_TRUE(buffer.PushToken(Token(i)));
    buffer.PushEnd(End());
  });
  int32_t next = 0;
  std::atomic<bool> finished{false};
  {
    const auto drain = [&] {
      Event event;
      while (buffer.TryNext(&event)) {
        if (event.finished) {
          finished = true;
        } else {
          ASSERT_EQ(event.index, next++);
        }
      }
    };
    buffer.SetListener(drain);
    while (!finished) std::this_thread::yield();
    buffer.ClearListener();
  }
  EXPECT_EQ(next, kEvents);
  writer.join();
}

}  // namespace
}  // namespace fixpoint
