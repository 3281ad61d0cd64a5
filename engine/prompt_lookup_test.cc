#include "engine/prompt_lookup.h"

#include <map>
#include <random>

#include "gtest/gtest.h"

namespace fixpoint {
namespace {

std::vector<int32_t> Proposal(PromptLookup& lookup, const std::vector<int32_t>& tokens,
                              int32_t most = PromptLookup::kMaxDrafts) {
  std::vector<int32_t> drafts;
  lookup.Propose(tokens, most, &drafts);
  return drafts;
}

TEST(PromptLookupTest, ProposesWhatFollowedTheSameThreeTokens) {
  PromptLookup lookup(Speculation::kOn);
  EXPECT_EQ(Proposal(lookup, {1, 2, 3, 4, 5, 6, 9, 1, 2, 3}, 3), (std::vector<int32_t>{4, 5, 6}));
}

TEST(PromptLookupTest, ProposesNothingForNewTokens) {
  PromptLookup lookup(Speculation::kOn);
  EXPECT_TRUE(Proposal(lookup, {1, 2, 3, 4, 5, 6, 7}).empty());
  EXPECT_TRUE(Proposal(lookup, {1, 2, 3, 4, 5, 6, 7, 2, 3}).empty());
}

TEST(PromptLookupTest, TakesTheLastPlace) {
  PromptLookup lookup(Speculation::kOn);
  EXPECT_EQ(Proposal(lookup, {1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3}, 1), (std::vector<int32_t>{5}));
}

TEST(PromptLookupTest, ARepetitionGoesOn) {
  PromptLookup lookup(Speculation::kOn);
  EXPECT_EQ(Proposal(lookup, {7, 8, 7, 8, 7, 8}, 5), (std::vector<int32_t>{7, 8, 7, 8, 7}));
}

TEST(PromptLookupTest, ShortOnesAndOffGiveNothing) {
  PromptLookup on(Speculation::kOn), off(Speculation::kOff);
  EXPECT_TRUE(Proposal(on, {}).empty());
  EXPECT_TRUE(Proposal(on, {1, 1, 1}).empty());
  EXPECT_TRUE(Proposal(off, {1, 1, 1, 1, 1, 1}).empty());
  EXPECT_TRUE(Proposal(on, {1, 1, 1, 1, 1, 1}, 0).empty());
}

// Against a plain map, token by token.
TEST(PromptLookupTest, EqualsAMapOnRandomTokens) {
  std::mt19937 random(5);
  for (int run = 0; run < 20; ++run) {
    PromptLookup lookup(Speculation::kOn);
    std::map<std::vector<int32_t>, size_t> last;
    std::vector<int32_t> tokens;
    for (int step = 0; step < 400; ++step) {
      tokens.push_back(static_cast<int32_t>(random() % 4));
      if (random() % 4 == 0) lookup.Learn(tokens);  // changes nothing
      if (tokens.size() < 4) continue;
      const std::vector<int32_t> before(tokens.end() - 4, tokens.end() - 1);
      last[before] = tokens.size() - 1;
      const auto found = last.find({tokens.end() - 3, tokens.end()});
      const std::vector<int32_t> drafts = Proposal(lookup, tokens, 1);
      if (found == last.end()) {
        EXPECT_TRUE(drafts.empty());
      } else {
        ASSERT_EQ(drafts, (std::vector<int32_t>{tokens[found->second]}));
      }
    }
  }
}

TEST(PromptLookupTest, AutoGrowsWithHitsAndRestsAfterMisses) {
  const std::vector<int32_t> tokens(40, 1);
  PromptLookup lookup(Speculation::kAuto);
  const size_t first = Proposal(lookup, tokens).size();
  lookup.Report(static_cast<int32_t>(first), static_cast<int32_t>(first));
  EXPECT_EQ(Proposal(lookup, tokens).size(), 2 * first);
  lookup.Report(8, 0);
  EXPECT_TRUE(Proposal(lookup, tokens).empty());  // one rest
  EXPECT_FALSE(Proposal(lookup, tokens).empty());
  for (int i = 0; i < 100; ++i) lookup.Report(2, 0);
  int rests = 0;
  while (Proposal(lookup, tokens).empty()) ++rests;
  EXPECT_EQ(rests, 63);  // bounded: it tries again
  lookup.Report(2, 2);
  EXPECT_FALSE(Proposal(lookup, tokens).empty());
}

}  // namespace
}  // namespace fixpoint
