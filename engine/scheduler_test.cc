#include "engine/scheduler.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/scheduler_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

std::string Text(const std::vector<Admission>& admitted) {
  std::string text;
  for (const Admission& a : admitted) absl::StrAppend(&text, a.id, a.again ? "again " : " ");
  return text;
}

// Runs a plan as an executor and sampler would: one token for each sampling chunk, and its drafts
// are right.
void Complete(Scheduler& scheduler, const StepPlan& plan) {
  for (const PlannedChunk& chunk : plan.chunks) {
    scheduler.Advance(chunk.id, chunk.tokens, chunk.sample_rows);
  }
}

TEST(SchedulerTest, PrefillsInChunksBesideDecoding) {
  Scheduler scheduler({.num_blocks = 20, .prefill_chunk_tokens = 100});
  StepPlan plan;
  ASSERT_TRUE(scheduler.Enqueue({.id = 1, .prompt_tokens = 30, .max_tokens = 5}).ok());
  scheduler.PlanStep(&plan);
  ASSERT_EQ(plan.chunks.size(), 1u);
  EXPECT_EQ(plan.chunks[0].sample_rows, 1);
  Complete(scheduler, plan);
  ASSERT_TRUE(scheduler.Enqueue({.id = 2, .prompt_tokens = 150, .max_tokens = 5}).ok());
  ASSERT_TRUE(scheduler.Enqueue({.id = 3, .prompt_tokens = 80, .max_tokens = 5}).ok());
  const auto step = [&] {
    scheduler.PlanStep(&plan);
    Complete(scheduler, plan);
    return Text(plan);
  };
  EXPECT_EQ(step(), "1@30+1! 2@0+100");
  EXPECT_EQ(step(), "1@31+1! 2@100+50! 3@0+50");
  EXPECT_EQ(step(), "1@32+1! 2@150+1! 3@50+30!");
  EXPECT_EQ(step(), "1@33+1! 2@151+1! 3@80+1!");
}

TEST(SchedulerTest, PromptsComeInSmallPiecesBesideDecoding) {
  Scheduler scheduler({.num_blocks = 20, .prefill_chunk_tokens = 100, .mixed_prefill_tokens = 10});
  StepPlan plan;
  const auto step = [&] {
    scheduler.PlanStep(&plan);
    Complete(scheduler, plan);
    return Text(plan);
  };
  ASSERT_TRUE(scheduler.Enqueue({.id = 1, .prompt_tokens = 150, .max_tokens = 3}).ok());
  EXPECT_EQ(step(), "1@0+100");
  EXPECT_EQ(step(), "1@100+50!");
  ASSERT_TRUE(scheduler.Enqueue({.id = 2, .prompt_tokens = 150, .max_tokens = 5}).ok());
  EXPECT_EQ(step(), "1@150+1! 2@0+10");
  EXPECT_EQ(step(), "1@151+1! 2@10+10");
  scheduler.Remove(1);
  EXPECT_EQ(step(), "2@20+100");
}

TEST(SchedulerTest, AdmitsWhenThePromptFitsAndAllCanGrow) {
  Scheduler scheduler({.num_blocks = 5});
  StepPlan plan;
  // 64 + 65 - 1 tokens are run: two blocks exactly. One more token needs a third.
  EXPECT_EQ(scheduler.BlocksNeeded(64, 65), 2);
  EXPECT_EQ(scheduler.BlocksNeeded(64, 66), 3);
  ASSERT_TRUE(scheduler.Enqueue({.id = 1, .prompt_tokens = 128, .max_tokens = 66}).ok());
  ASSERT_TRUE(scheduler.Enqueue({.id = 2, .prompt_tokens = 65, .max_tokens = 66}).ok());
  ASSERT_TRUE(scheduler.Enqueue({.id = 3, .prompt_tokens = 1, .max_tokens = 1}).ok());
  scheduler.PlanStep(&plan);
  // 1 holds two blocks and may need two more. 2 would take two and might need a third: beside them
  // one block must be left for each. 3 would fit and does not slip past.
  EXPECT_EQ(Text(plan.admitted), "1 ");
  EXPECT_EQ(scheduler.BlockTable(1).size(), 2u);
  EXPECT_EQ(scheduler.blocks().free_count(), 3);
  EXPECT_TRUE(scheduler.Remove(1));
  EXPECT_FALSE(scheduler.Remove(1));
  scheduler.PlanStep(&plan);
  EXPECT_EQ(Text(plan.admitted), "2 3 ");  // 3 never grows, so it needs no reserve
  EXPECT_EQ(scheduler.blocks().free_count(), 2);
}

TEST(SchedulerTest, RefusesWhatTheQueueOrTheCacheCannotHold) {
  Scheduler scheduler({.num_blocks = 4, .max_queue_requests = 2, .max_queue_tokens = 100});
  const auto impossible = scheduler.Enqueue({.id = 1, .prompt_tokens = 64, .max_tokens = 300});
  EXPECT_EQ(impossible.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(impossible.message()),
              testing::HasSubstr("need 6 KV blocks, the cache has 4"));
  EXPECT_TRUE(scheduler.Enqueue({.id = 1, .prompt_tokens = 64, .max_tokens = 1}).ok());
  EXPECT_EQ(scheduler.Enqueue({.id = 2, .prompt_tokens = 37, .max_tokens = 1}).code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(scheduler.Enqueue({.id = 2, .prompt_tokens = 36, .max_tokens = 1}).ok());
  EXPECT_EQ(scheduler.Enqueue({.id = 3, .prompt_tokens = 1, .max_tokens = 1}).code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(scheduler.waiting_tokens(), 100);
  EXPECT_TRUE(scheduler.Remove(2));
  EXPECT_EQ(scheduler.waiting_tokens(), 64);
}

TEST(SchedulerTest, HigherPriorityFirstThenArrival) {
  Scheduler scheduler({.num_blocks = 10, .max_running = 1});
  for (const auto& [id, priority] :
       std::vector<std::pair<int, int>>{{1, 0}, {2, 5}, {3, 0}, {4, 5}, {5, -1}}) {
    ASSERT_TRUE(
        scheduler.Enqueue({.id = id, .prompt_tokens = 1, .max_tokens = 1, .priority = priority})
            .ok());
  }
  std::vector<SequenceId> order;
  StepPlan plan;
  while (scheduler.waiting() > 0) {
    scheduler.PlanStep(&plan);
    for (const Admission& admission : plan.admitted) order.push_back(admission.id);
    for (const Admission& admission : plan.admitted) scheduler.Remove(admission.id);
  }
  EXPECT_THAT(order, testing::ElementsAre(2, 4, 1, 3, 5));
}

TEST(SchedulerTest, IsOvertakenAtMostSoOften) {
  Scheduler scheduler({.num_blocks = 10, .max_running = 1, .max_overtakes = 3});
  ASSERT_TRUE(
      scheduler.Enqueue({.id = 1, .prompt_tokens = 1, .max_tokens = 1, .priority = 0}).ok());
  std::vector<SequenceId> order;
  StepPlan plan;
  for (SequenceId id = 2; id < 8; ++id) {  // a stream of important ones
    ASSERT_TRUE(
        scheduler.Enqueue({.id = id, .prompt_tokens = 1, .max_tokens = 1, .priority = 9}).ok());
    scheduler.PlanStep(&plan);
    for (const Admission& admission : plan.admitted) order.push_back(admission.id);
    for (const Admission& admission : plan.admitted) scheduler.Remove(admission.id);
  }
  EXPECT_THAT(order, testing::ElementsAre(2, 3, 4, 1, 5, 6));
}

TEST(SchedulerTest, ExpiresInQueueAndWhileRunning) {
  Scheduler scheduler({.num_blocks = 10, .max_running = 2});
  StepPlan plan;
  ASSERT_TRUE(scheduler
                  .Enqueue({.id = 1,
                            .prompt_tokens = 9,
                            .max_tokens = 9,
                            .deadline_ns = 100,
                            .queue_deadline_ns = 20})
                  .ok());
  ASSERT_TRUE(scheduler.Enqueue({.id = 2, .prompt_tokens = 9, .max_tokens = 9}).ok());
  scheduler.PlanStep(&plan);
  ASSERT_TRUE(
      scheduler.Enqueue({.id = 3, .prompt_tokens = 9, .max_tokens = 9, .deadline_ns = 30}).ok());
  ASSERT_TRUE(
      scheduler.Enqueue({.id = 4, .prompt_tokens = 9, .max_tokens = 9, .queue_deadline_ns = 40})
          .ok());
  const auto expired = [&](int64_t now) {
    std::vector<ExpiredSequence> list;
    scheduler.TakeExpired(now, &list);
    std::string text;
    for (const auto& e : list) {
      absl::StrAppend(&text, e.id, e.reason == ExpiryReason::kDeadline ? "d" : "q");
    }
    return text;
  };
  EXPECT_EQ(expired(29), "");
  EXPECT_EQ(expired(30), "3d");
  EXPECT_EQ(expired(99), "4q");
  EXPECT_EQ(expired(100), "1d");
  EXPECT_EQ(scheduler.running(), 1);
  EXPECT_EQ(scheduler.waiting(), 0);
  EXPECT_EQ(scheduler.blocks().used_count(), 1);
}

TEST(SchedulerTest, AStepHasRoomForPromptTokensBesideAllRunning) {
  Scheduler scheduler(
      {.num_blocks = 50, .max_step_tokens = 8, .max_step_logits = 8, .max_running = 64});
  EXPECT_EQ(scheduler.max_running(), 7);
  StepPlan plan;
  for (SequenceId id = 1; id <= 7; ++id) {
    ASSERT_TRUE(scheduler.Enqueue({.id = id, .prompt_tokens = 3, .max_tokens = 40}).ok());
  }
  for (int step = 0; step < 20; ++step) {
    scheduler.PlanStep(&plan);
    ASSERT_LE(plan.tokens, 8);
    Complete(scheduler, plan);
  }
  EXPECT_EQ(plan.chunks.size(), 7u);  // all prompts got through
}

TEST(SchedulerTest, DraftsGetWhatIsLeftInEqualShares) {
  Scheduler scheduler({.num_blocks = 50, .max_step_tokens = 16, .prefill_chunk_tokens = 8});
  StepPlan plan;
  for (SequenceId id = 1; id <= 3; ++id) {
    ASSERT_TRUE(scheduler.Enqueue({.id = id, .prompt_tokens = 2, .max_tokens = 40}).ok());
  }
  scheduler.PlanStep(&plan);
  scheduler.SetDraft(1, 9);  // still in its prompt: no effect
  Complete(scheduler, plan);
  scheduler.PlanStep(&plan);
  EXPECT_EQ(Text(plan), "1@2+1! 2@2+1! 3@2+1!");
  scheduler.SetDraft(1, 20);
  scheduler.SetDraft(2, 1);
  scheduler.SetDraft(3, 20);
  scheduler.PlanStep(&plan);  // 13 tokens are left: 5, then half of 8, then the rest
  EXPECT_EQ(Text(plan), "1@2+6^5! 2@2+2^1! 3@2+8^7!");
  EXPECT_EQ(plan.tokens, 16);
  EXPECT_EQ(plan.logit_rows, 16);
  EXPECT_EQ(plan.chunks[0].sample_rows, 6);
  scheduler.Advance(1, 4, 4);  // three drafts were right
  scheduler.Advance(2, 1, 1);
  scheduler.Advance(3, 8, 8);
  ASSERT_TRUE(scheduler.Enqueue({.id = 4, .prompt_tokens = 30, .max_tokens = 5}).ok());
  scheduler.SetDraft(2, 9);
  scheduler.PlanStep(&plan);  // the wishes of the others have ended; the prompt goes first
  EXPECT_EQ(Text(plan), "1@6+1! 2@3+6^5! 3@10+1! 4@0+8");
}

TEST(SchedulerTest, DraftsStopAtMaxTokensAndRows) {
  Scheduler scheduler({.num_blocks = 4, .block_tokens = 4, .max_step_logits = 5});
  StepPlan plan;
  ASSERT_TRUE(scheduler.Enqueue({.id = 1, .prompt_tokens = 2, .max_tokens = 4}).ok());
  ASSERT_TRUE(scheduler.Enqueue({.id = 2, .prompt_tokens = 1, .max_tokens = 8}).ok());
  scheduler.PlanStep(&plan);
  Complete(scheduler, plan);
  scheduler.SetDraft(1, 9);
  scheduler.PlanStep(&plan);  // 3 known, 6 at most, the last one is never run
  EXPECT_EQ(Text(plan), "1@2+3^2! 2@1+1!");
  EXPECT_EQ(scheduler.BlockTable(1).size(), 2u);
  scheduler.SetDraft(1, 0);
  scheduler.SetDraft(2, 9);
  scheduler.PlanStep(&plan);  // five rows; what 1 does not want any more is given back
  EXPECT_EQ(Text(plan), "1@2+1! 2@1+4^3!");
  EXPECT_EQ(scheduler.BlockTable(1).size(), 1u);
  scheduler.SetDraft(1, 9);
  scheduler.PlanStep(&plan);
  EXPECT_EQ(Text(plan), "1@2+3^2! 2@1+2^1!");
}

TEST(SchedulerTest, DraftsStopAtAvailableBlocks) {
  Scheduler scheduler({.num_blocks = 4, .block_tokens = 2});
  StepPlan plan;
  ASSERT_TRUE(scheduler.Enqueue({.id = 1, .prompt_tokens = 1, .max_tokens = 8}).ok());
  scheduler.PlanStep(&plan);
  Complete(scheduler, plan);
  ASSERT_TRUE(scheduler.Enqueue({.id = 2, .prompt_tokens = 4, .max_tokens = 1}).ok());
  scheduler.SetDraft(1, 9);
  scheduler.PlanStep(&plan);  // three blocks are in use, the fourth takes drafts up to its end
  EXPECT_EQ(Text(plan), "1@1+3^2! 2@0+4!");
  ASSERT_TRUE(scheduler.Remove(2));
  scheduler.PlanStep(&plan);
  EXPECT_EQ(Text(plan), "1@1+7^6!");
}

TEST(SchedulerTest, DraftsDisplaceNobody) {
  Scheduler scheduler({.num_blocks = 4, .block_tokens = 4});
  StepPlan plan;
  ASSERT_TRUE(scheduler.Enqueue({.id = 1, .prompt_tokens = 2, .max_tokens = 9}).ok());
  ASSERT_TRUE(scheduler.Enqueue({.id = 2, .prompt_tokens = 3, .max_tokens = 5}).ok());
  scheduler.PlanStep(&plan);
  Complete(scheduler, plan);
  scheduler.SetDraft(1, 9);
  scheduler.PlanStep(&plan);
  EXPECT_EQ(Text(plan), "1@2+8^7! 2@3+1!");
  EXPECT_EQ(scheduler.blocks().available_count(), 0);
  scheduler.Advance(1, 1, 1);  // all of them were wrong
  scheduler.Advance(2, 1, 1);
  scheduler.PlanStep(&plan);  // 2 needs its second block, which is one of those
  EXPECT_EQ(Text(plan), "1@3+1! 2@4+1!");
  EXPECT_THAT(plan.preempted, testing::IsEmpty());
  EXPECT_EQ(scheduler.BlockTable(1).size(), 1u);
}

TEST(SchedulerTest, PromptLogitsComeOnceAndAsRowsAllow) {
  Scheduler scheduler({.num_blocks = 50, .max_step_logits = 8});
  StepPlan plan;
  ASSERT_TRUE(scheduler.Enqueue({.id = 1, .prompt_tokens = 2, .max_tokens = 40}).ok());
  scheduler.PlanStep(&plan);
  Complete(scheduler, plan);
  ASSERT_TRUE(
      scheduler.Enqueue({.id = 2, .prompt_tokens = 25, .max_tokens = 5, .prompt_logits = 14}).ok());
  ASSERT_TRUE(scheduler.Enqueue({.id = 3, .prompt_tokens = 5, .max_tokens = 5}).ok());
  const auto step = [&] {
    scheduler.PlanStep(&plan);
    Complete(scheduler, plan);
    return Text(plan);
  };
  // No row is left for 3, so it goes on up to the token before its last.
  EXPECT_EQ(step(), "1@2+1! 2@0+7?0+7 3@0+4");
  EXPECT_EQ(step(), "1@3+1! 3@4+1! 2@7+6?0+6");
  EXPECT_EQ(plan.logit_rows, 8);
  EXPECT_EQ(step(), "1@4+1! 3@5+1! 2@13+12?0+1!");
  EXPECT_EQ(plan.chunks[2].sample_rows, 1);
  EXPECT_EQ(plan.logit_rows, 4);
}

// Two blocks of four tokens for each; the pool has five, so that one of them must give way.
TEST(SchedulerTest, PreemptedOnesWaitOutsideTheQueueBounds) {
  Scheduler scheduler(
      {.num_blocks = 5, .block_tokens = 4, .max_queue_requests = 1, .max_queue_tokens = 3});
  StepPlan plan;
  ASSERT_TRUE(scheduler.Enqueue({.id = 1, .prompt_tokens = 3, .max_tokens = 16}).ok());
  scheduler.PlanStep(&plan);
  ASSERT_TRUE(
      scheduler.Enqueue({.id = 2, .prompt_tokens = 3, .max_tokens = 16, .queue_deadline_ns = 50})
          .ok());
  while (plan.preempted.empty()) {
    scheduler.PlanStep(&plan);
    Complete(scheduler, plan);
  }
  EXPECT_THAT(plan.preempted, testing::ElementsAre(2));
  EXPECT_EQ(scheduler.preempted(), 1);
  EXPECT_EQ(scheduler.waiting_tokens(), 0);
  EXPECT_TRUE(scheduler.Enqueue({.id = 3, .prompt_tokens = 3, .max_tokens = 1}).ok());
  EXPECT_EQ(scheduler.waiting(), 2);
  EXPECT_EQ(scheduler.Enqueue({.id = 4, .prompt_tokens = 1, .max_tokens = 1}).code(),
            absl::StatusCode::kResourceExhausted);
  std::vector<ExpiredSequence> expired;
  scheduler.TakeExpired(100, &expired);  // it has waited, and not in the queue
  EXPECT_THAT(expired, testing::IsEmpty());
  EXPECT_TRUE(scheduler.Remove(2));
  EXPECT_EQ(scheduler.preempted(), 0);
  EXPECT_EQ(scheduler.waiting(), 1);
}

TEST(SchedulerTest, PlansAgainWithTheSameChunks) {
  Scheduler scheduler({.num_blocks = 20, .prefill_chunk_tokens = 100});
  StepPlan plan;
  ASSERT_TRUE(scheduler.Enqueue({.id = 1, .prompt_tokens = 150, .max_tokens = 5}).ok());
  scheduler.PlanStep(&plan);
  EXPECT_EQ(Text(plan.admitted), "1 ");
  const std::string first = Text(plan);
  scheduler.PlanStep(&plan);
  EXPECT_EQ(Text(plan.admitted), "");
  EXPECT_EQ(Text(plan), first);
}

TEST(SchedulerDeathTest, MisuseStopsTheProgram) {
  Scheduler scheduler({.num_blocks = 20});
  StepPlan plan;
  ASSERT_TRUE(scheduler.Enqueue({.id = 1, .prompt_tokens = 150, .max_tokens = 5}).ok());
  EXPECT_DEATH(scheduler.Enqueue({.id = 1, .prompt_tokens = 1, .max_tokens = 5}).IgnoreError(),
               "sequence 1 was queued twice");
  EXPECT_DEATH(scheduler.Advance(1, 1, 0), "1 of 0 planned tokens");
  scheduler.PlanStep(&plan);
  EXPECT_DEATH(scheduler.Advance(1, 151, 1), "151 of 150 planned tokens");
  EXPECT_DEATH(scheduler.Advance(1, 150, 2), "CHECK failed");
  EXPECT_DEATH(scheduler.Advance(1, 150, 0), "CHECK failed");
}

}  // namespace
}  // namespace fixpoint
