#include "calibrator/cuda/weight_cache.h"

#include <cstdint>

#include "gtest/gtest.h"

namespace fixpoint {
namespace {

// Hands out numbers as addresses.
class CountingMemory : public DeviceMemory {
 public:
  explicit CountingMemory(int64_t capacity) : left_(capacity) {}
  absl::StatusOr<void*> Allocate(int64_t bytes) override {
    if (bytes > left_) return absl::ResourceExhaustedError("full");
    left_ -= bytes;
    void* memory = reinterpret_cast<void*>(next_ += 256);
    sizes_[memory] = bytes;
    return memory;
  }
  void Free(void* memory) override {
    const auto found = sizes_.find(memory);
    ASSERT_NE(found, sizes_.end()) << "freed twice or never allocated";
    left_ += found->second;
    sizes_.erase(found);
  }
  size_t allocations() const { return sizes_.size(); }

 private:
  int64_t left_;
  uintptr_t next_ = 0;
  absl::flat_hash_map<void*, int64_t> sizes_;
};

const int kWeights[8] = {};

WeightKey Key(int i) { return {.w = &kWeights[i], .outputs = 2, .depth = 3, .stride = 3}; }

TEST(WeightCacheTest, CopiesAreFoundByAddressShapeAndType) {
  CountingMemory memory(1000);
  WeightCache cache(1000, memory);
  EXPECT_EQ(cache.Find(Key(0)), nullptr);
  void* const copy = *cache.Insert(Key(0), 100);
  EXPECT_EQ(cache.Find(Key(0)), copy);
  for (const WeightKey& other :
       {Key(1), WeightKey{.w = &kWeights[0], .outputs = 3, .depth = 3, .stride = 3},
        WeightKey{.w = &kWeights[0], .outputs = 2, .depth = 2, .stride = 3},
        WeightKey{.w = &kWeights[0], .outputs = 2, .depth = 3, .stride = 4},
        WeightKey{.w = &kWeights[0], .outputs = 2, .depth = 3, .stride = 3, .device_stride = 4},
        WeightKey{
            .w = &kWeights[0], .type = GemmType::kBf16, .outputs = 2, .depth = 3, .stride = 3},
        WeightKey{.w = &kWeights[0], .outputs = 2, .depth = 3, .stride = 3, .by_depth = true}}) {
    EXPECT_EQ(cache.Find(other), nullptr);
  }
}

TEST(WeightCacheTest, WhatWasUsedLongestAgoMakesRoom) {
  CountingMemory memory(1000);
  WeightCache cache(300, memory);
  ASSERT_TRUE(cache.Insert(Key(0), 100).ok());
  ASSERT_TRUE(cache.Insert(Key(1), 100).ok());
  ASSERT_TRUE(cache.Insert(Key(2), 100).ok());
  EXPECT_NE(cache.Find(Key(0)), nullptr);
  ASSERT_TRUE(cache.Insert(Key(3), 50).ok());
  EXPECT_EQ(cache.Find(Key(1)), nullptr);
  EXPECT_NE(cache.Find(Key(0)), nullptr);
  EXPECT_NE(cache.Find(Key(2)), nullptr);
  EXPECT_EQ(cache.size_bytes(), 250);
  ASSERT_TRUE(cache.Insert(Key(4), 300).ok());
  EXPECT_EQ(cache.count(), 1u);
  EXPECT_EQ(memory.allocations(), 1u);
  EXPECT_FALSE(cache.Fits(301));
}

TEST(WeightCacheTest, CopiesMakeRoomWhenTheDeviceIsFullBeforeTheBudget) {
  CountingMemory memory(250);
  WeightCache cache(1000, memory);
  ASSERT_TRUE(cache.Insert(Key(0), 100).ok());
  ASSERT_TRUE(cache.Insert(Key(1), 100).ok());
  ASSERT_TRUE(cache.Insert(Key(2), 140).ok());
  EXPECT_EQ(cache.Find(Key(0)), nullptr);
  EXPECT_NE(cache.Find(Key(1)), nullptr);
  EXPECT_TRUE(absl::IsResourceExhausted(cache.Insert(Key(3), 251).status()));
  EXPECT_EQ(cache.count(), 0u);
  EXPECT_EQ(cache.size_bytes(), 0);
  ASSERT_TRUE(cache.Insert(Key(4), 250).ok());
}

TEST(WeightCacheTest, ClearAndEndFreeEverything) {
  CountingMemory memory(1000);
  {
    WeightCache cache(1000, memory);
    ASSERT_TRUE(cache.Insert(Key(0), 100).ok());
    ASSERT_TRUE(cache.Insert(Key(1), 100).ok());
    cache.Erase(Key(0));
    EXPECT_EQ(memory.allocations(), 1u);
    cache.Clear();
    EXPECT_EQ(memory.allocations(), 0u);
    EXPECT_EQ(cache.Find(Key(1)), nullptr);
    ASSERT_TRUE(cache.Insert(Key(1), 100).ok());
  }
  EXPECT_EQ(memory.allocations(), 0u);
}

}  // namespace
}  // namespace fixpoint
