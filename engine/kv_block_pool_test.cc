#include "engine/kv_block_pool.h"

#include <map>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

TEST(KvBlockPoolTest, AllocatesAllOrNothing) {
  KvBlockPool pool(3);
  std::vector<int32_t> blocks = {77};
  EXPECT_TRUE(pool.Allocate(2, &blocks));
  EXPECT_THAT(blocks, testing::ElementsAre(77, 0, 1));
  EXPECT_FALSE(pool.Allocate(2, &blocks));
  EXPECT_EQ(blocks.size(), 3u);
  EXPECT_EQ(pool.free_count(), 1);
  EXPECT_TRUE(pool.Allocate(1, &blocks));
  EXPECT_TRUE(pool.Allocate(0, &blocks));
  EXPECT_EQ(pool.used_count(), 3);
}

TEST(KvBlockPoolTest, ASharedBlockIsFreeAfterTheLastRelease) {
  KvBlockPool pool(2);
  std::vector<int32_t> blocks;
  ASSERT_TRUE(pool.Allocate(1, &blocks));
  pool.Retain(blocks[0]);
  EXPECT_EQ(pool.references(blocks[0]), 2);
  EXPECT_FALSE(pool.Release(blocks[0]));
  EXPECT_EQ(pool.free_count(), 1);
  EXPECT_FALSE(pool.Release(blocks[0]));
  EXPECT_EQ(pool.free_count(), 2);
}

TEST(KvBlockPoolTest, AKeptBlockIsIdleUntilItIsDropped) {
  KvBlockPool pool(3);
  std::vector<int32_t> blocks;
  ASSERT_TRUE(pool.Allocate(2, &blocks));
  pool.Keep(blocks[0]);
  EXPECT_TRUE(pool.Release(blocks[0]));
  EXPECT_FALSE(pool.Release(blocks[1]));
  EXPECT_TRUE(pool.idle(blocks[0]));
  EXPECT_FALSE(pool.idle(blocks[1]));
  EXPECT_EQ(pool.idle_count(), 1);
  EXPECT_EQ(pool.free_count(), 2);
  EXPECT_EQ(pool.used_count(), 0);
  EXPECT_EQ(pool.available_count(), 3);
  EXPECT_FALSE(pool.Allocate(3, &blocks));  // an idle block is not handed out
  pool.Retain(blocks[0]);
  EXPECT_EQ(pool.idle_count(), 0);
  EXPECT_EQ(pool.used_count(), 1);
  EXPECT_TRUE(pool.Release(blocks[0]));  // still kept
  pool.Drop(blocks[0]);
  EXPECT_EQ(pool.free_count(), 3);
  EXPECT_TRUE(pool.Allocate(3, &blocks));
  EXPECT_FALSE(pool.Release(blocks[0]));  // kept no longer
}

TEST(KvBlockPoolTest, RandomUseAgreesWithAMapOfCounts) {
  KvBlockPool pool(50);
  std::map<int32_t, int32_t> counts;
  std::mt19937 random(1);
  for (int step = 0; step < 20000; ++step) {
    std::vector<int32_t> blocks;
    const int32_t count = static_cast<int32_t>(random() % 6);
    if (random() % 3 == 0) {
      const bool fits = count <= 50 - static_cast<int32_t>(counts.size());
      ASSERT_EQ(pool.Allocate(count, &blocks), fits);
      for (const int32_t block : blocks) ASSERT_EQ(counts[block]++, 0) << "handed out twice";
    } else if (!counts.empty()) {
      auto any = std::next(counts.begin(), static_cast<std::ptrdiff_t>(random() % counts.size()));
      if (random() % 3 == 0) {
        pool.Retain(any->first);
        ++any->second;
      } else {
        pool.Release(any->first);
        if (--any->second == 0) counts.erase(any);
      }
    }
    ASSERT_EQ(pool.used_count(), static_cast<int32_t>(counts.size()));
    ASSERT_EQ(pool.free_count() + pool.used_count(), pool.total());
  }
}

TEST(KvBlockPoolDeathTest, MisuseStopsTheProgram) {
  KvBlockPool pool(2);
  EXPECT_DEATH(pool.Release(0), "block 0 is not used");
  EXPECT_DEATH(pool.Retain(1), "block 1 is free");
  EXPECT_DEATH(pool.Keep(1), "block 1 is not used");
  EXPECT_DEATH(pool.Drop(1), "block 1 is not idle");
  EXPECT_DEATH(pool.Release(2), "block 2 of 2");
}

}  // namespace
}  // namespace fixpoint
