#include "engine/prefix_cache.h"

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/scheduler_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using Blocks = std::vector<int32_t>;

// A cache with blocks of two tokens, used as the scheduler does.
class PrefixCacheTest : public testing::Test {
 protected:
  // Lets a sequence with these tokens compute all its blocks that are full.
  Blocks Fill(SequenceId id, std::vector<int32_t> tokens, const std::string& salt = "") {
    source_[id] = {std::move(tokens), salt};
    Blocks table = Find(id);
    cache_.Retain(table);
    while ((table.size() + 1) * 2 <= source_[id].tokens.size()) {
      Blocks one;
      EXPECT_TRUE(cache_.Allocate(1, &one));
      const int32_t node = cache_.Store(id, table, one[0]);
      table.push_back(node);
    }
    return table;
  }
  Blocks Find(SequenceId id) {
    Blocks found;
    cache_.Find(id, {}, static_cast<int32_t>(source_[id].tokens.size() / 2), &found);
    return found;
  }
  Blocks FindTokens(std::vector<int32_t> tokens, const std::string& salt = "") {
    source_[999] = {std::move(tokens), salt};
    return Find(999);
  }

  FakeTokens source_;
  PrefixCache cache_{6, 2, &source_};
};

TEST_F(PrefixCacheTest, FindsTheLongestChainOfEqualTokens) {
  const Blocks table = Fill(1, {5, 6, 7, 8, 9, 10, 11});
  ASSERT_EQ(table.size(), 3u);  // the last token fills no block
  EXPECT_EQ(FindTokens({5, 6, 7, 8, 9, 10}), table);
  EXPECT_THAT(FindTokens({5, 6, 7, 8, 9}), ElementsAre(table[0], table[1]));
  EXPECT_THAT(FindTokens({5, 6, 7, 9, 9, 10}), ElementsAre(table[0]));
  EXPECT_THAT(FindTokens({5, 7, 7, 8}), IsEmpty());
  EXPECT_THAT(FindTokens({7, 8, 9, 10}), IsEmpty());  // in the cache, but not at the beginning
  EXPECT_THAT(FindTokens({5, 6, 9, 10}), ElementsAre(table[0]));
  Blocks found;
  source_[999].tokens = {5, 6, 7, 8, 9, 10};
  cache_.Find(999, {}, 2, &found);
  EXPECT_THAT(found, ElementsAre(table[0], table[1]));
  found.clear();
  cache_.Find(999, absl::MakeConstSpan(table).first(1), 5 - 3, &found);
  EXPECT_THAT(found, ElementsAre(table[1], table[2]));
}

TEST_F(PrefixCacheTest, SaltsNeverMeet) {
  const Blocks plain = Fill(1, {5, 6, 7, 8});
  EXPECT_THAT(FindTokens({5, 6, 7, 8}, "a"), IsEmpty());
  const Blocks salted = Fill(2, {5, 6}, std::string("a\0b", 3));
  EXPECT_NE(salted[0], plain[0]);
  EXPECT_THAT(FindTokens({5, 6}, "a"), IsEmpty());
  EXPECT_EQ(FindTokens({5, 6}, std::string("a\0b", 3)), salted);
  EXPECT_EQ(FindTokens({5, 6, 7, 8}), plain);
}

TEST_F(PrefixCacheTest, TheSecondOfTwoEqualBlocksIsExchangedForTheFirst) {
  source_[1].tokens = source_[2].tokens = {5, 6, 7, 8};
  Blocks one, two;
  ASSERT_TRUE(cache_.Allocate(2, &one));
  ASSERT_TRUE(cache_.Allocate(2, &two));
  EXPECT_EQ(cache_.Store(1, {}, one[0]), one[0]);
  EXPECT_EQ(cache_.Store(2, {}, two[0]), one[0]);
  EXPECT_EQ(cache_.pool().references(one[0]), 2);
  EXPECT_EQ(cache_.pool().references(two[0]), 0);
  EXPECT_FALSE(cache_.cached(two[0]));
  // Now the second is faster: its block becomes the node, below the common one.
  EXPECT_EQ(cache_.Store(2, {one[0]}, two[1]), two[1]);
  EXPECT_EQ(cache_.Store(1, {one[0]}, one[1]), two[1]);
  EXPECT_EQ(cache_.pool().used_count(), 2);
  EXPECT_EQ(cache_.pool().free_count(), 4);
}

TEST_F(PrefixCacheTest, EvictsLeavesFirstAndTheLongestUnusedFirst) {
  const Blocks a = Fill(1, {1, 1, 2, 2, 3, 3});
  const Blocks b = Fill(2, {1, 1, 4, 4});
  const Blocks c = Fill(3, {9, 9});
  cache_.Release(a);
  cache_.Release(c);
  cache_.Release(b);
  ASSERT_EQ(cache_.pool().idle_count(), 5);
  Blocks taken;
  ASSERT_TRUE(cache_.Allocate(1, &taken));  // one was free
  EXPECT_EQ(cache_.evicted_count(), 0);
  const auto evict = [&] { ASSERT_TRUE(cache_.Allocate(1, &taken)); };
  evict();
  EXPECT_THAT(FindTokens({1, 1, 2, 2, 3, 3}), ElementsAre(a[0], a[1]));
  evict();
  EXPECT_THAT(FindTokens({1, 1, 2, 2, 3, 3}), ElementsAre(a[0]));
  EXPECT_EQ(FindTokens({1, 1, 4, 4}), b);
  evict();  // a[0] left earlier than c and has a child
  EXPECT_THAT(FindTokens({9, 9}), IsEmpty());
  EXPECT_EQ(FindTokens({1, 1, 4, 4}), b);
  evict();
  EXPECT_THAT(FindTokens({1, 1, 4, 4}), ElementsAre(a[0]));
  evict();
  EXPECT_EQ(cache_.cached_count(), 0);
  EXPECT_FALSE(cache_.Allocate(1, &taken));
  EXPECT_EQ(taken.size(), 6u);
}

TEST_F(PrefixCacheTest, WhatIsUsedAgainIsNotEvicted) {
  const Blocks a = Fill(1, {1, 1, 2, 2});
  const Blocks b = Fill(2, {3, 3, 4, 4});
  cache_.Release(a);
  cache_.Release(b);
  cache_.Retain({a[0]});
  Blocks taken;
  EXPECT_FALSE(cache_.Allocate(6, &taken));
  ASSERT_TRUE(cache_.Allocate(5, &taken));
  EXPECT_THAT(FindTokens({1, 1, 2, 2}), ElementsAre(a[0]));
  EXPECT_EQ(cache_.evicted_count(), 3);
  cache_.Release({a[0]});
  cache_.Release(taken);  // were not stored, so nothing is kept of them
  EXPECT_EQ(cache_.pool().free_count(), 5);
  EXPECT_EQ(cache_.pool().idle_count(), 1);
}

TEST_F(PrefixCacheTest, MisuseStopsTheProgram) {
  source_[1].tokens = {1, 1, 2};
  Blocks blocks;
  ASSERT_TRUE(cache_.Allocate(2, &blocks));
  EXPECT_DEATH(cache_.Store(1, {blocks[0]}, blocks[1]), "CHECK failed");  // no such parent
  cache_.Store(1, {}, blocks[0]);
  EXPECT_DEATH(cache_.Store(1, {}, blocks[0]), "CHECK failed");  // in the cache already
  EXPECT_DEATH(cache_.Store(1, {blocks[0]}, blocks[1]), "tokens of sequence 1");
}

// A model without structure: each cached chain by its salt and all its tokens.
class ModelCache {
 public:
  using Key = std::pair<std::string, std::vector<int32_t>>;
  struct Entry {
    int32_t block = 0, users = 0;
    int64_t left_at = 0;
  };

  void Use(const Key& key, int32_t block) {
    Entry& entry = entries_[key];
    entry.block = block;
    ++entry.users;
  }
  void Leave(const Key& key) {
    Entry& entry = entries_.at(key);
    if (--entry.users == 0) entry.left_at = ++clock_;
  }
  void EvictOne() {
    auto oldest = entries_.end();
    for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
      if (entry->second.users > 0 || HasChild(entry->first)) continue;
      if (oldest == entries_.end() || entry->second.left_at < oldest->second.left_at)
        oldest = entry;
    }
    ASSERT_NE(oldest, entries_.end());
    entries_.erase(oldest);
  }
  const std::map<Key, Entry>& entries() const { return entries_; }

 private:
  bool HasChild(const Key& key) const {
    return std::any_of(entries_.begin(), entries_.end(), [&](const auto& other) {
      return other.first.first == key.first && other.first.second.size() == key.second.size() + 2 &&
             std::equal(key.second.begin(), key.second.end(), other.first.second.begin());
    });
  }
  std::map<Key, Entry> entries_;
  int64_t clock_ = 0;
};

TEST(PrefixCacheRandomTest, AgreesWithAModelOfAllChains) {
  std::mt19937 random(3);
  const auto below = [&](uint32_t bound) { return static_cast<uint32_t>(random()) % bound; };
  for (int run = 0; run < 100; ++run) {
    FakeTokens source;
    PrefixCache cache(static_cast<int32_t>(4 + below(20)), 2, &source);
    ModelCache model;
    std::map<SequenceId, Blocks> tables;
    const auto key = [&](SequenceId id, size_t blocks) {
      const auto& content = source[id];
      return ModelCache::Key(content.salt,
                             {content.tokens.begin(),
                              content.tokens.begin() + static_cast<std::ptrdiff_t>(2 * blocks)});
    };
    for (SequenceId id = 1; id <= 60; ++id) {
      if (!tables.empty() && below(2) == 0) {
        auto any = std::next(tables.begin(), below(static_cast<uint32_t>(tables.size())));
        for (size_t i = any->second.size(); i > 0; --i) model.Leave(key(any->first, i));
        cache.Release(any->second);
        tables.erase(any);
      }
      source[id].salt = below(3) == 0 ? "s" : "";
      source[id].tokens.resize(2 * (1 + below(5)));
      for (int32_t& token : source[id].tokens) token = static_cast<int32_t>(below(2));
      const size_t blocks = source[id].tokens.size() / 2;
      Blocks& table = tables[id];
      cache.Find(id, {}, static_cast<int32_t>(blocks), &table);
      cache.Retain(table);
      for (size_t i = 1; i <= blocks; ++i) {
        const auto entry = model.entries().find(key(id, i));
        ASSERT_EQ(entry != model.entries().end(), i <= table.size());
        if (i > table.size()) break;
        ASSERT_EQ(entry->second.block, table[i - 1]);
      }
      for (size_t i = 1; i <= table.size(); ++i) model.Use(key(id, i), table[i - 1]);
      while (table.size() < blocks) {
        const bool must_evict = cache.pool().free_count() == 0;
        Blocks one;
        ASSERT_EQ(cache.Allocate(1, &one),
                  !must_evict || cache.pool().idle_count() > 0 || !one.empty());
        if (one.empty()) break;
        if (must_evict) model.EvictOne();
        table.push_back(cache.Store(id, table, one[0]));
        model.Use(key(id, table.size()), table.back());
      }
      ASSERT_EQ(cache.cached_count(), static_cast<int32_t>(model.entries().size()));
      for (const auto& [content, entry] : model.entries()) {
        ASSERT_TRUE(cache.cached(entry.block));
        ASSERT_EQ(cache.pool().references(entry.block), entry.users);
      }
    }
  }
}

}  // namespace
}  // namespace fixpoint
