#include "server/client/library/target_pool.h"

#include <gtest/gtest.h>

namespace fixpoint::client {
namespace {

constexpr absl::Duration kMs = absl::Milliseconds(1);
const absl::Time kStart = absl::UnixEpoch() + absl::Hours(1);
const BackoffOptions kBackoff = {.first = 100 * kMs, .most = 1000 * kMs};

int Next(TargetPool& pool, absl::Time now, std::vector<bool> excluded = {}) {
  excluded.resize(static_cast<size_t>(pool.size()));
  const auto pick = pool.Next(now, excluded);
  return pick.has_value() ? pick->target : -1;
}

TEST(TargetPoolTest, ListedTakesTheFirstThatDoesNotRest) {
  TargetPool pool(3, TargetOrder::kListed, kBackoff);
  EXPECT_EQ(Next(pool, kStart), 0);
  EXPECT_EQ(Next(pool, kStart), 0);
  pool.Failed(0, kStart, kStart, std::nullopt);
  EXPECT_EQ(Next(pool, kStart), 1);
  EXPECT_EQ(Next(pool, kStart, {true, true}), 2);
  EXPECT_EQ(Next(pool, kStart, {true, true, true}), -1);
  EXPECT_EQ(Next(pool, kStart + 99 * kMs), 1);
  EXPECT_EQ(Next(pool, kStart + 100 * kMs), 0);
}

TEST(TargetPoolTest, RotatingGoesOnWithEachCall) {
  TargetPool pool(3, TargetOrder::kRotating, kBackoff);
  std::vector<int> order;
  for (int i = 0; i < 7; ++i) order.push_back(Next(pool, kStart));
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 0, 1, 2, 0}));
  pool.Failed(1, kStart, kStart, std::nullopt);
  EXPECT_EQ(Next(pool, kStart), 2);  // 1 is due and rests
}

TEST(TargetPoolTest, WhenAllRestTheShortestRestWins) {
  TargetPool pool(2, TargetOrder::kListed, kBackoff);
  pool.Failed(1, kStart, kStart, std::nullopt);
  pool.Failed(0, kStart + 5 * kMs, kStart + 5 * kMs, std::nullopt);
  const auto pick = pool.Next(kStart + 10 * kMs, {false, false});
  EXPECT_EQ(pick->target, 1);
  EXPECT_EQ(pick->usable_at, kStart + 100 * kMs);
}

TEST(TargetPoolTest, RestsDoubleUpToTheMost) {
  TargetPool pool(1, TargetOrder::kListed, kBackoff);
  absl::Time now = kStart;
  for (const int expected : {100, 200, 400, 800, 1000, 1000}) {
    pool.Failed(0, now, now, std::nullopt);
    const absl::Time usable = pool.Next(now, {false})->usable_at;
    EXPECT_EQ(usable - now, expected * kMs);
    now = usable;
  }
  pool.Worked(0, now);
  pool.Failed(0, now, now, std::nullopt);
  EXPECT_EQ(pool.Next(now, {false})->usable_at - now, 100 * kMs);
}

TEST(TargetPoolTest, StreamsThatBreakTogetherCountOnce) {
  TargetPool pool(1, TargetOrder::kListed, kBackoff);
  for (int i = 0; i < 1000; ++i) pool.Failed(0, kStart, kStart + kMs * (1 + i / 500), std::nullopt);
  EXPECT_EQ(pool.Next(kStart, {false})->usable_at, kStart + 101 * kMs);
  pool.Worked(0, kStart);  // an attempt that began before the failure ends no rest
  EXPECT_EQ(pool.Next(kStart, {false})->usable_at, kStart + 101 * kMs);
}

TEST(TargetPoolTest, PushbackIsObeyedToTheMillisecondAndBounded) {
  TargetPool pool(1, TargetOrder::kListed, kBackoff);
  pool.Failed(0, kStart, kStart, 2500 * kMs);
  EXPECT_EQ(pool.Next(kStart, {false})->usable_at, kStart + 2500 * kMs);
  pool.Failed(0, kStart, kStart, 100 * kMs);  // a shorter one does not take it back
  EXPECT_EQ(pool.Next(kStart, {false})->usable_at, kStart + 2500 * kMs);
  pool.Failed(0, kStart, kStart, absl::Hours(9));
  EXPECT_EQ(pool.Next(kStart, {false})->usable_at, kStart + kMaxPushback);
}

TEST(TargetPoolTest, PushbackIsNoFailureInARow) {
  TargetPool pool(1, TargetOrder::kListed, kBackoff);
  for (int i = 0; i < 5; ++i) pool.Failed(0, kStart, kStart, absl::ZeroDuration());
  pool.Failed(0, kStart, kStart, std::nullopt);
  EXPECT_EQ(pool.Next(kStart, {false})->usable_at, kStart + 100 * kMs);
}

}  // namespace
}  // namespace fixpoint::client
