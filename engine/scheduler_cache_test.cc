// The scheduler with a prefix cache, and preemption.
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/scheduler.h"
#include "engine/scheduler_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

// Blocks of four tokens. A sequence's tokens count up from 100 unless told otherwise.
class SchedulerCacheTest : public testing::Test {
 protected:
  void Make(SchedulerOptions options) {
    options.block_tokens = 4;
    scheduler_ = std::make_unique<Scheduler>(options, &tokens_);
  }

  void Enqueue(SequenceSpec spec, const std::string& salt = "", int32_t first_token = 100) {
    std::vector<int32_t>& tokens = tokens_[spec.id].tokens;
    tokens.resize(static_cast<size_t>(spec.prompt_tokens));
    std::iota(tokens.begin(), tokens.end(), first_token);
    tokens_[spec.id].salt = salt;
    at_most_[spec.id] = static_cast<size_t>(spec.prompt_tokens + spec.max_tokens);
    ASSERT_TRUE(scheduler_->Enqueue(spec).ok());
  }

  // Plans and runs a step, news first: "-2" preempted, "+2" admitted, "2:8" tokens of the cache.
  // Chosen tokens go on counting; who has them all is removed.
  std::string Step() {
    scheduler_->PlanStep(&plan_);
    std::string text;
    for (const SequenceId id : plan_.preempted) absl::StrAppend(&text, "-", id, " ");
    for (const Admission& a : plan_.admitted) absl::StrAppend(&text, "+", a.id, " ");
    for (const CacheHit& hit : plan_.cache_hits) {
      absl::StrAppend(&text, hit.id, ":", hit.tokens, hit.again ? "again " : " ");
    }
    for (const PlannedChunk& chunk : plan_.chunks) {
      std::vector<int32_t>& tokens = tokens_[chunk.id].tokens;
      for (int32_t i = 0; i < chunk.sample_rows; ++i) tokens.push_back(tokens.back() + 1);
      scheduler_->Advance(chunk.id, chunk.tokens, chunk.sample_rows);
      if (tokens.size() == at_most_[chunk.id]) scheduler_->Remove(chunk.id);
    }
    return text + Text(plan_);
  }
  std::vector<int32_t> Table(SequenceId id) {
    const auto table = scheduler_->BlockTable(id);
    return {table.begin(), table.end()};
  }

  FakeTokens tokens_;
  std::map<SequenceId, size_t> at_most_;  // tokens
  std::unique_ptr<Scheduler> scheduler_;
  StepPlan plan_;
};

TEST_F(SchedulerCacheTest, SharesFullBlocksOfTheBeginning) {
  Make({.num_blocks = 20});
  Enqueue({.id = 1, .prompt_tokens = 11, .max_tokens = 9});
  EXPECT_EQ(Step(), "+1 1@0+11!");
  Enqueue({.id = 2, .prompt_tokens = 13, .max_tokens = 9});
  EXPECT_EQ(Step(), "+2 2:8 1@11+1! 2@8+5!");  // the third block was not full
  EXPECT_THAT(Table(2), ElementsAre(Table(1)[0], Table(1)[1], testing::_, testing::_));
  EXPECT_EQ(scheduler_->stats().cache_query_tokens, 24);
  EXPECT_EQ(scheduler_->stats().cache_hit_tokens, 8);
}

TEST_F(SchedulerCacheTest, TheLastTokenIsAlwaysComputedInABlockOfItsOwn) {
  Make({.num_blocks = 20});
  Enqueue({.id = 1, .prompt_tokens = 8, .max_tokens = 9});
  EXPECT_EQ(Step(), "+1 1@0+8!");
  Enqueue({.id = 2, .prompt_tokens = 8, .max_tokens = 9});
  scheduler_->PlanStep(&plan_);
  EXPECT_EQ(Text(plan_), "1@8+1! 2@4+4!");
  EXPECT_NE(Table(2)[1], Table(1)[1]);  // while it is written
  tokens_[2].tokens.push_back(7);
  scheduler_->Advance(2, 4, 1);
  EXPECT_EQ(Table(2)[1], Table(1)[1]);  // and shared as soon as it is full
  scheduler_->Remove(1);
  scheduler_->Remove(2);
  Enqueue({.id = 3, .prompt_tokens = 9, .max_tokens = 1});
  EXPECT_EQ(Step(), "+3 3:8 3@8+1!");
}

TEST_F(SchedulerCacheTest, AnswersAreCachedToo) {
  Make({.num_blocks = 20});
  Enqueue({.id = 1, .prompt_tokens = 6, .max_tokens = 8});
  for (int step = 0; step < 7; ++step) Step();
  scheduler_->Remove(1);  // 12 tokens computed
  Enqueue({.id = 2, .prompt_tokens = 30, .max_tokens = 1});
  EXPECT_EQ(Step(), "+2 2:12 2@12+18!");
}

TEST_F(SchedulerCacheTest, WrongDraftsDoNotFillABlock) {
  Make({.num_blocks = 20});
  Enqueue({.id = 1, .prompt_tokens = 6, .max_tokens = 20});
  Step();
  scheduler_->SetDraft(1, 5);
  scheduler_->PlanStep(&plan_);
  EXPECT_EQ(Text(plan_), "1@6+6^5!");  // up to the end of the third block
  tokens_[1].tokens.push_back(tokens_[1].tokens.back() + 1);
  scheduler_->Advance(1, 1, 1);
  EXPECT_EQ(scheduler_->cache().cached_count(), 1);
  scheduler_->SetDraft(1, 5);
  EXPECT_EQ(Step(), "1@7+6^5!");  // all right: the second and the third
  EXPECT_EQ(scheduler_->cache().cached_count(), 3);
}

TEST_F(SchedulerCacheTest, SaltsAndRefusalsKeepBlocksApart) {
  Make({.num_blocks = 40});
  Enqueue({.id = 1, .prompt_tokens = 9, .max_tokens = 9, .use_cache = false});
  EXPECT_EQ(Step(), "+1 1@0+9!");
  EXPECT_EQ(scheduler_->cache().cached_count(), 0);
  Enqueue({.id = 2, .prompt_tokens = 9, .max_tokens = 9});
  EXPECT_EQ(Step(), "+2 1@9+1! 2@0+9!");
  Enqueue({.id = 3, .prompt_tokens = 9, .max_tokens = 9}, "salt");
  Enqueue({.id = 4, .prompt_tokens = 9, .max_tokens = 9, .use_cache = false});
  EXPECT_EQ(Step(), "+3 +4 1@10+1! 2@9+1! 3@0+9! 4@0+9!");
  EXPECT_EQ(scheduler_->cache().cached_count(), 4);
  EXPECT_EQ(scheduler_->stats().cache_query_tokens, 18);
}

// What the choices of one prompt do: they arrive together, and only the first computes it.
TEST_F(SchedulerCacheTest, LaterOnesTakeWhatTheFirstHasComputedMeanwhile) {
  Make({.num_blocks = 60, .prefill_chunk_tokens = 10});
  for (SequenceId id = 1; id <= 3; ++id) Enqueue({.id = id, .prompt_tokens = 25, .max_tokens = 9});
  EXPECT_EQ(Step(), "+1 +2 +3 1@0+10");
  EXPECT_EQ(scheduler_->blocks().used_count(), 21);
  EXPECT_EQ(Step(), "1@10+10");
  EXPECT_EQ(Step(), "2:20 1@20+5! 2@20+5!");  // not before it is its turn
  EXPECT_EQ(Step(), "3:24 1@25+1! 2@25+1! 3@24+1!");
  EXPECT_EQ(scheduler_->blocks().used_count(), 6 + 3);
  EXPECT_EQ(scheduler_->stats().cache_hit_tokens, 44);
  EXPECT_EQ(scheduler_->stats().cache_query_tokens, 75);
}

TEST_F(SchedulerCacheTest, ABlockThatWasBegunIsGivenUpForAFullOne) {
  Make({.num_blocks = 60, .prefill_chunk_tokens = 10});
  Enqueue({.id = 1, .prompt_tokens = 8, .max_tokens = 9});
  Enqueue({.id = 2, .prompt_tokens = 9, .max_tokens = 9});
  EXPECT_EQ(Step(), "+1 +2 1@0+8! 2@0+2");
  EXPECT_EQ(Step(), "2:6 1@8+1! 2@8+1!");
  EXPECT_EQ(Table(2)[0], Table(1)[0]);
}

TEST_F(SchedulerCacheTest, PromptLogitsAreNotTakenFromTheCache) {
  Make({.num_blocks = 60});
  Enqueue({.id = 1, .prompt_tokens = 13, .max_tokens = 9});
  EXPECT_EQ(Step(), "+1 1@0+13!");
  Enqueue({.id = 2, .prompt_tokens = 13, .max_tokens = 9, .prompt_logits = 12});
  EXPECT_EQ(Step(), "+2 1@13+1! 2@0+13?0+12!");
  EXPECT_EQ(scheduler_->stats().cache_query_tokens, 13);
  EXPECT_THAT(Table(2)[2], Table(1)[2]);  // but it shares what it has computed
}

// Four sequences of 22 tokens in the end, six blocks each; the pool has eight.
TEST_F(SchedulerCacheTest, PreemptsTheLatestOfTheLowestPriority) {
  Make({.num_blocks = 8});
  Enqueue({.id = 1, .prompt_tokens = 3, .max_tokens = 20, .priority = 1}, "a");
  Enqueue({.id = 2, .prompt_tokens = 3, .max_tokens = 20}, "b");
  Enqueue({.id = 3, .prompt_tokens = 3, .max_tokens = 20, .use_cache = false});
  Enqueue({.id = 4, .prompt_tokens = 3, .max_tokens = 20, .priority = 1}, "d");
  EXPECT_EQ(Step(), "+1 +4 +2 +3 1@0+3! 4@0+3! 2@0+3! 3@0+3!");
  EXPECT_EQ(Step(), "1@3+1! 4@3+1! 2@3+1! 3@3+1!");
  for (int i = 0; i < 4; ++i) EXPECT_EQ(Step().substr(0, 1), "1");
  // All eight blocks are full. 3 gives two, 2 needs a third one and is the last in rank itself.
  EXPECT_EQ(Step(), "-3 -2 1@8+1! 4@8+1!");
  EXPECT_EQ(scheduler_->preempted(), 2);
  for (int i = 0; i < 7; ++i) EXPECT_EQ(Step().substr(0, 1), "1");
  EXPECT_EQ(Step(), "-4 1@16+1!");  // of equal priority: the later one
  for (int i = 0; i < 5; ++i) EXPECT_EQ(Step().substr(0, 1), "1");
  // 1 has ended. 4 had four full blocks; two of them were evicted for 1. The answer goes on behind
  // its 17 tokens.
  EXPECT_EQ(Step(), "+4 4:8again 4@8+9!");
  EXPECT_EQ(scheduler_->stats().recomputed_tokens, 8);
  EXPECT_EQ(scheduler_->stats().cache_rehit_tokens, 8);
}

// Whoever was preempted comes back in its place by arrival, when there is room for all its tokens
// and for two blocks more for everybody.
TEST_F(SchedulerCacheTest, APreemptedOneComesBackInItsPlaceWithMoreRoom) {
  Make({.num_blocks = 7, .max_running = 2});
  Enqueue({.id = 1, .prompt_tokens = 4, .max_tokens = 13, .use_cache = false});
  Enqueue({.id = 2, .prompt_tokens = 4, .max_tokens = 17, .use_cache = false});
  EXPECT_EQ(Step(), "+1 +2 1@0+4! 2@0+4!");
  Enqueue({.id = 3, .prompt_tokens = 1, .max_tokens = 1, .use_cache = false});
  std::string step;
  while (plan_.preempted.empty()) step = Step();
  EXPECT_EQ(step, "-2 1@12+1!");  // three blocks are free and would do for 3, but 2 is before it
  EXPECT_EQ(Step(), "1@13+1!");
  EXPECT_EQ(Step(), "1@14+1!");
  EXPECT_EQ(Step(), "1@15+1!");
  EXPECT_EQ(Step(), "+2 +3 3@0+1! 2@0+13!");
  EXPECT_EQ(scheduler_->stats().recomputed_tokens, 12);
  EXPECT_EQ(scheduler_->stats().readmissions, 1);
}

TEST_F(SchedulerCacheTest, AnOverdueOneIsNotPreemptedForImportantOnes) {
  Make({.num_blocks = 6, .max_running = 2, .max_overtakes = 1});
  Enqueue({.id = 1, .prompt_tokens = 1, .max_tokens = 20});
  Enqueue({.id = 2, .prompt_tokens = 1, .max_tokens = 1, .priority = 9});
  Enqueue({.id = 3, .prompt_tokens = 3, .max_tokens = 20, .priority = 9});
  EXPECT_EQ(Step(), "+2 +1 2@0+1! 1@0+1!");  // 1 was overtaken once
  EXPECT_EQ(Step(), "+3 1@1+1! 3@0+3!");
  std::string step;
  while (plan_.preempted.empty()) step = Step();
  EXPECT_EQ(step.substr(0, 3), "-3 ");
}

}  // namespace
}  // namespace fixpoint
