#include "text/bpe.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <utility>

namespace fixpoint {
namespace {

using Merges = std::map<std::pair<int32_t, int32_t>, BpeJoin>;

std::vector<BpeSymbol> Symbols(const std::vector<int32_t>& ids) {
  std::vector<BpeSymbol> symbols;
  for (uint32_t i = 0; i < ids.size(); ++i) symbols.push_back({ids[i], i, i + 1});
  return symbols;
}

std::vector<int32_t> Merge(const Merges& merges, const std::vector<int32_t>& ids,
                           EncodeWork* work) {
  std::vector<BpeSymbol> symbols = Symbols(ids);
  MergePairs(
      [&](const BpeSymbol& left, const BpeSymbol& right, BpeJoin* join) {
        EXPECT_EQ(left.end, right.begin);
        const auto found = merges.find({left.id, right.id});
        if (found != merges.end()) *join = found->second;
        return found != merges.end();
      },
      &symbols, work);
  std::vector<int32_t> out;
  for (const BpeSymbol& symbol : symbols) out.push_back(symbol.id);
  return out;
}

// The definition: join the leftmost pair of lowest rank, again and again.
std::vector<int32_t> MergeNaively(const Merges& merges, std::vector<int32_t> ids) {
  while (true) {
    size_t best = ids.size();
    BpeJoin join{};
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto found = merges.find({ids[i], ids[i + 1]});
      if (found != merges.end() && (best == ids.size() || found->second.rank < join.rank)) {
        best = i;
        join = found->second;
      }
    }
    if (best == ids.size()) return ids;
    ids[best] = join.joined;
    ids.erase(ids.begin() + static_cast<int64_t>(best) + 1);
  }
}

TEST(BpeTest, TiesGoLeft) {
  const Merges merges = {{{0, 0}, {0, 1}}};
  EncodeWork work;
  EXPECT_EQ(Merge(merges, {0, 0, 0, 0, 0}, &work), (std::vector<int32_t>{1, 1, 0}));
}

TEST(BpeTest, EqualsTheDefinitionOnRandomMergesOfAnyOrder) {
  uint32_t random = 7;
  auto next = [&random](uint32_t below) {
    random = random * 1664525 + 1013904223;
    return (random >> 8) % below;
  };
  EncodeWork work;
  for (int round = 0; round < 400; ++round) {
    Merges merges;  // ranks in no order and shared: a join may open one of lower rank
    for (int32_t joined = 3; joined < 30; ++joined) {
      merges[{static_cast<int32_t>(next(joined)), static_cast<int32_t>(next(joined))}] = {
          static_cast<int32_t>(next(20)), joined};
    }
    std::vector<int32_t> ids(next(90));  // under and over the limit of the scan
    for (int32_t& id : ids) id = static_cast<int32_t>(next(3));
    EXPECT_EQ(Merge(merges, ids, &work), MergeNaively(merges, ids)) << round;
  }
}

TEST(BpeTest, WorkIsLinearInTheSymbols) {
  Merges merges;
  for (int32_t i = 0; i < 12; ++i) merges[{i, i}] = {i, i + 1};  // runs double
  for (const size_t size : {1000u, 10'000u, 100'000u}) {
    EncodeWork work;
    Merge(merges, std::vector<int32_t>(size, 0), &work);
    EXPECT_LE(work.pair_lookups, static_cast<int64_t>(3 * size));
    EXPECT_LE(work.heap_operations, static_cast<int64_t>(6 * size));
  }
}

}  // namespace
}  // namespace fixpoint
