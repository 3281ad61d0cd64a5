#include "base/bounded_queue.h"

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

TEST(BoundedQueueTest, RefusesWhenFullAndKeepsTheItem) {
  BoundedQueue<std::unique_ptr<int>> queue(2);
  EXPECT_EQ(queue.TryPush(std::make_unique<int>(1)), PushResult::kOk);
  EXPECT_EQ(queue.TryPush(std::make_unique<int>(2)), PushResult::kOk);
  auto third = std::make_unique<int>(3);
  EXPECT_EQ(queue.TryPush(std::move(third)), PushResult::kFull);
  ASSERT_NE(third, nullptr);
  EXPECT_EQ(**queue.TryPop(), 1);
  EXPECT_EQ(queue.TryPush(std::move(third)), PushResult::kOk);
  EXPECT_EQ(queue.size(), 2u);
  EXPECT_EQ(**queue.TryPop(), 2);
  EXPECT_EQ(**queue.TryPop(), 3);
  EXPECT_FALSE(queue.TryPop().has_value());
}

TEST(BoundedQueueTest, CloseDrainsThenEnds) {
  BoundedQueue<int> queue(2);
  EXPECT_EQ(queue.TryPush(1), PushResult::kOk);
  queue.Close();
  EXPECT_EQ(queue.TryPush(2), PushResult::kClosed);
  EXPECT_EQ(queue.Pop(absl::InfiniteDuration()), 1);
  EXPECT_EQ(queue.Pop(absl::InfiniteDuration()), std::nullopt);
  EXPECT_TRUE(queue.closed());
}

TEST(BoundedQueueTest, PopTimesOut) {
  BoundedQueue<int> queue(1);
  const absl::Time start = absl::Now();
  EXPECT_EQ(queue.Pop(absl::Milliseconds(30)), std::nullopt);
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(29));
  EXPECT_EQ(queue.Pop(absl::ZeroDuration()), std::nullopt);
  EXPECT_EQ(queue.Pop(-absl::InfiniteDuration()), std::nullopt);
}

TEST(BoundedQueueTest, CloseWakesWaitingConsumers) {
  BoundedQueue<int> queue(1);
  std::thread consumer([&] { EXPECT_EQ(queue.Pop(absl::InfiniteDuration()), std::nullopt); });
  queue.Close();
  consumer.join();
}

TEST(BoundedQueueTest, ManyThreadsLoseNothing) {
  constexpr int kProducers = 3, kConsumers = 3, kItems = 3000;
  BoundedQueue<int> queue(7);
  std::atomic<int64_t> sum{0};
  std::atomic<int> count{0};
  std::vector<std::thread> consumers, producers;
  for (int i = 0; i < kConsumers; ++i) {
    consumers.emplace_back([&] {
      while (const std::optional<int> item = queue.Pop(absl::Seconds(60))) {
        sum += *item;
        ++count;
      }
    });
  }
  for (int i = 0; i < kProducers; ++i) {
    producers.emplace_back([&] {
      for (int item = 1; item <= kItems; ++item) {
        while (queue.TryPush(int{item}) == PushResult::kFull) std::this_thread::yield();
      }
    });
  }
  for (std::thread& thread : producers) thread.join();
  queue.Close();
  for (std::thread& thread : consumers) thread.join();
  EXPECT_EQ(count, kProducers * kItems);
  EXPECT_EQ(sum, int64_t{kProducers} * kItems * (kItems + 1) / 2);
}

}  // namespace
}  // namespace fixpoint
