#include "base/thread_pool.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace fixpoint {
namespace {

class ThreadPoolTest : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, ::testing::Values(1, 2, 3, 8));

TEST_P(ThreadPoolTest, RunReachesEachThreadOnceAndJoins) {
  ThreadPool pool(GetParam());
  ASSERT_EQ(pool.thread_count(), GetParam());
  std::vector<int> calls(GetParam());  // plain ints: Run itself must order the accesses
  for (int round = 0; round < 2000; ++round) {
    pool.Run([&](int index, int count) {
      ASSERT_EQ(count, GetParam());
      ++calls[index];
    });
    for (int index = 0; index < GetParam(); ++index) ASSERT_EQ(calls[index], round + 1);
  }
}

TEST_P(ThreadPoolTest, RunWakesSleepingWorkers) {
  ThreadPool pool(GetParam());
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // far beyond the spinning time
    std::atomic<int> calls{0};
    pool.Run([&](int, int) { ++calls; });
    EXPECT_EQ(calls, GetParam());
  }
}

TEST_P(ThreadPoolTest, RunWaitsForSlowWorkers) {
  ThreadPool pool(GetParam());
  std::vector<int> done(GetParam());
  pool.Run([&](int index, int) {
    std::this_thread::sleep_for(std::chrono::milliseconds(index == 0 ? 0 : 5 * index));
    done[index] = 1;
  });
  EXPECT_EQ(done, std::vector<int>(GetParam(), 1));
}

TEST_P(ThreadPoolTest, ParallelForCoversEachItemOnce) {
  ThreadPool pool(GetParam());
  for (int64_t items : {0, 1, 7, 64, 1001}) {
    for (int64_t grain : {0, 1, 5, 64, 5000}) {
      std::vector<int> hits(items);
      pool.ParallelFor(items, grain, [&](int64_t begin, int64_t end, int thread_index) {
        EXPECT_LT(begin, end);
        EXPECT_EQ(begin % std::max<int64_t>(grain, 1), 0);
        EXPECT_LE(end - begin, std::max<int64_t>(grain, 1));
        EXPECT_LT(thread_index, GetParam());
        for (int64_t i = begin; i < end; ++i) ++hits[i];
      });
      EXPECT_EQ(hits, std::vector<int>(items, 1)) << items << " by " << grain;
    }
  }
}

TEST(ThreadPoolDetailTest, ASlowThreadDoesNotHoldTheOthersPieces) {
  ThreadPool pool(2);
  std::atomic<bool> release{false};
  std::atomic<int> done{0};
  // The thread that takes piece 0 waits until the other has finished all the rest: only possible
  // with dynamic sharing.
  pool.ParallelFor(100, 1, [&](int64_t begin, int64_t, int) {
    if (begin == 0) {
      while (!release) std::this_thread::yield();
    } else if (++done == 99) {
      release = true;
    }
  });
  EXPECT_EQ(done, 99);
}

TEST(ThreadPoolDetailTest, PinnedWorkersCompute) {
  ThreadPool pool(2, {.pin_threads = true});
  std::atomic<int> calls{0};
  pool.Run([&](int, int) { ++calls; });
  EXPECT_EQ(calls, 2);
}

TEST(ThreadPoolDetailTest, PoolsMayEndWithoutARun) {
  for (int i = 0; i < 50; ++i) ThreadPool pool(4);
}

TEST(ThreadPoolDeathTest, NestingIsRefused) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        ThreadPool pool(1);
        pool.Run([&](int, int) { pool.Run([](int, int) {}); });
      },
      "is running");
}

}  // namespace
}  // namespace fixpoint
