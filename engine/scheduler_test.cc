#include "engine/scheduler.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

std::vector<SequenceId> Ids(const StepPlan& plan) {
  std::vector<SequenceId> ids;
  for (const PlannedChunk& chunk : plan.chunks) ids.push_back(chunk.id);
  return ids;
}

// Runs a plan as an executor and sampler would: one token for each sampling chunk.
void Complete(Scheduler& scheduler, const StepPlan& plan) {
  for (const PlannedChunk& chunk : plan.chunks) {
    scheduler.Advance(chunk.id, chunk.tokens, chunk.samples ? 1 : 0);
  }
}

TEST(SchedulerTest, PrefillsInChunksBesideDecoding) {
  Scheduler scheduler({.num_blocks = 20, .prefill_chunk_tokens = 100});
  StepPlan plan;
  ASSERT_TRUE(scheduler.Enqueue({.id = 1, .prompt_tokens = 30, .max_tokens = 5}).ok());
  scheduler.PlanStep(&plan);
  ASSERT_EQ(plan.chunks.size(), 1u);
  EXPECT_TRUE(plan.chunks[0].samples);
  Complete(scheduler, plan);
  ASSERT_TRUE(scheduler.Enqueue({.id = 2, .prompt_tokens = 150, .max_tokens = 5}).ok());
  ASSERT_TRUE(scheduler.Enqueue({.id = 3, .prompt_tokens = 80, .max_tokens = 5}).ok());
  const auto step = [&] {
    scheduler.PlanStep(&plan);
    std::string text;
    for (const PlannedChunk& c : plan.chunks) {
      absl::StrAppend(&text, c.id, "@", c.position, "+", c.tokens, c.samples ? "! " : " ");
    }
    Complete(scheduler, plan);
    return text;
  };
  EXPECT_EQ(step(), "1@30+1! 2@0+100 ");
  EXPECT_EQ(step(), "1@31+1! 2@100+50! 3@0+50 ");
  EXPECT_EQ(step(), "1@32+1! 2@150+1! 3@50+30! ");
  EXPECT_EQ(step(), "1@33+1! 2@151+1! 3@80+1! ");
}

TEST(SchedulerTest, ReservesAllBlocksAtAdmission) {
  Scheduler scheduler({.num_blocks = 4});
  StepPlan plan;
  // 64 + 65 - 1 tokens are run: two blocks exactly. One more token needs a third.
  EXPECT_EQ(scheduler.BlocksNeeded(64, 65), 2);
  EXPECT_EQ(scheduler.BlocksNeeded(64, 66), 3);
  ASSERT_TRUE(scheduler.Enqueue({.id = 1, .prompt_tokens = 64, .max_tokens = 66}).ok());
  ASSERT_TRUE(scheduler.Enqueue({.id = 2, .prompt_tokens = 64, .max_tokens = 65}).ok());
  ASSERT_TRUE(scheduler.Enqueue({.id = 3, .prompt_tokens = 1, .max_tokens = 1}).ok());
  scheduler.PlanStep(&plan);
  EXPECT_THAT(Ids(plan), testing::ElementsAre(1));  // 3 would fit and does not slip past 2
  EXPECT_EQ(scheduler.blocks().free_count(), 1);
  EXPECT_EQ(scheduler.BlockTable(1).size(), 3u);
  EXPECT_TRUE(scheduler.Remove(1));
  EXPECT_FALSE(scheduler.Remove(1));
  scheduler.PlanStep(&plan);
  EXPECT_THAT(plan.admitted, testing::ElementsAre(2, 3));
  EXPECT_EQ(scheduler.blocks().free_count(), 1);
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
    order.insert(order.end(), plan.admitted.begin(), plan.admitted.end());
    for (const SequenceId id : plan.admitted) scheduler.Remove(id);
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
    order.insert(order.end(), plan.admitted.begin(), plan.admitted.end());
    for (const SequenceId done : plan.admitted) scheduler.Remove(done);
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

// One random life of a scheduler under a fake clock and executor. Returns the trace.
class RandomRun {
 public:
  explicit RandomRun(uint32_t seed)
      : random_(seed), options_(RandomOptions()), scheduler_(options_) {}

  std::string Run() {
    for (int step = 0; step < 150; ++step) {
      now_ += 1 + Below(10);
      if (step < 100) Arrive();
      CancelSome();
      Expire();
      Plan();
      Execute();
      CheckBlocks();
      if (testing::Test::HasFatalFailure()) return trace_;
    }
    for (int step = 0; scheduler_.running() + scheduler_.waiting() > 0; ++step) {
      if (step > 200000) {
        ADD_FAILURE() << "does not end";
        break;
      }
      Plan();
      Execute();
    }
    EXPECT_EQ(scheduler_.blocks().free_count(), options_.num_blocks);
    EXPECT_EQ(scheduler_.waiting_tokens(), 0);
    for (const auto& [id, state] : states_) EXPECT_EQ(state.ends, 1) << "sequence " << id;
    return trace_;
  }

 private:
  struct State {
    SequenceSpec spec;
    int32_t computed = 0, generated = 0, stop_after = 0, ends = 0, overtaken = 0;
    bool admitted = false;
  };

  uint32_t Below(uint32_t bound) { return random_() % bound; }
  SchedulerOptions RandomOptions() {
    SchedulerOptions o;
    o.num_blocks = 1 + static_cast<int32_t>(Below(40));
    o.block_tokens = 1 << Below(7);
    o.max_step_tokens = 1 + static_cast<int32_t>(Below(100));
    o.max_step_logits = 1 + static_cast<int32_t>(Below(20));
    o.max_running = 1 + static_cast<int32_t>(Below(20));
    o.prefill_chunk_tokens = 1 + static_cast<int32_t>(Below(60));
    o.max_queue_requests = 1 + static_cast<int32_t>(Below(20));
    o.max_queue_tokens = 1 + Below(2000);
    o.max_overtakes = static_cast<int32_t>(Below(6));
    return o;
  }

  void Arrive() {
    for (uint32_t i = Below(4); i > 0; --i) {
      SequenceSpec spec;
      spec.id = ++last_id_;
      spec.prompt_tokens = 1 + static_cast<int32_t>(Below(Below(2) ? 10 : 200));
      spec.max_tokens = 1 + static_cast<int32_t>(Below(30));
      spec.priority = static_cast<int32_t>(Below(4)) - 1;
      if (Below(6) == 0) spec.deadline_ns = now_ + Below(200);
      if (Below(6) == 0) spec.queue_deadline_ns = now_ + Below(100);
      const bool possible =
          scheduler_.BlocksNeeded(spec.prompt_tokens, spec.max_tokens) <= options_.num_blocks;
      const bool room =
          scheduler_.waiting() < options_.max_queue_requests &&
          scheduler_.waiting_tokens() + spec.prompt_tokens <= options_.max_queue_tokens;
      const absl::Status status = scheduler_.Enqueue(spec);
      ASSERT_EQ(status.code(), !possible ? absl::StatusCode::kInvalidArgument
                               : !room   ? absl::StatusCode::kResourceExhausted
                                         : absl::StatusCode::kOk);
      absl::StrAppend(&trace_, "q", spec.id, ":", static_cast<int>(status.code()), " ");
      if (!status.ok()) continue;
      State state;
      state.spec = spec;
      state.stop_after = 1 + static_cast<int32_t>(Below(40));
      states_[spec.id] = state;
    }
  }

  void End(SequenceId id, const char* why) {
    absl::StrAppend(&trace_, why, id, " ");
    ++states_.at(id).ends;
  }

  void CancelSome() {
    if (states_.empty() || Below(5) != 0) return;
    const SequenceId id = 1 + Below(static_cast<uint32_t>(last_id_));
    const bool open = states_.count(id) > 0 && states_.at(id).ends == 0;
    ASSERT_EQ(scheduler_.Remove(id), open);
    if (open) End(id, "c");
  }

  void Expire() {
    std::vector<ExpiredSequence> expired;
    scheduler_.TakeExpired(now_, &expired);
    for (const ExpiredSequence& e : expired) {
      const State& state = states_.at(e.id);
      const bool deadline = e.reason == ExpiryReason::kDeadline;
      ASSERT_LE(deadline ? state.spec.deadline_ns : state.spec.queue_deadline_ns, now_);
      if (!deadline) {
        ASSERT_FALSE(state.admitted);
      }
      End(e.id, deadline ? "d" : "t");
    }
    for (const auto& [id, state] : states_) {
      if (state.ends == 0) {
        ASSERT_GT(state.spec.deadline_ns, now_);
      }
    }
  }

  void Plan() {
    scheduler_.PlanStep(&plan_);
    for (const SequenceId id : plan_.admitted) {
      State& state = states_.at(id);
      ASSERT_FALSE(state.admitted);
      state.admitted = true;
      for (auto& [other_id, other] : states_) {
        if (other_id >= id || other.admitted || other.ends > 0) continue;
        ++other.overtaken;
        ASSERT_LE(other.overtaken, options_.max_overtakes) << other_id;
      }
      absl::StrAppend(&trace_, "a", id, " ");
    }
    ASSERT_TRUE(!plan_.chunks.empty() || scheduler_.running() == 0);
    ASSERT_TRUE(scheduler_.running() > 0 || scheduler_.waiting() == 0)
        << "an idle device and a queue";
  }

  void Execute() {
    int32_t tokens = 0, samples = 0, prompt_tokens = 0;
    std::set<SequenceId> planned;
    for (const PlannedChunk& chunk : plan_.chunks) {
      State& state = states_.at(chunk.id);
      ASSERT_EQ(state.ends, 0);
      ASSERT_TRUE(planned.insert(chunk.id).second);
      ASSERT_EQ(chunk.position, state.computed);
      const int32_t known = state.spec.prompt_tokens + state.generated;
      ASSERT_EQ(chunk.samples, chunk.position + chunk.tokens == known);
      tokens += chunk.tokens;
      samples += chunk.samples;
      if (known - state.computed > 1) prompt_tokens += chunk.tokens;
    }
    ASSERT_EQ(tokens, plan_.tokens);
    ASSERT_LE(tokens, options_.max_step_tokens);
    ASSERT_LE(samples, options_.max_step_logits);
    ASSERT_LE(prompt_tokens, options_.prefill_chunk_tokens);
    for (auto& [id, state] : states_) {  // whoever decodes is in each step
      if (!state.admitted || state.ends > 0) continue;
      if (state.generated > 0) {
        ASSERT_EQ(planned.count(id), 1u);
      }
    }
    for (const PlannedChunk& chunk : plan_.chunks) {
      State& state = states_.at(chunk.id);
      absl::StrAppend(&trace_, chunk.id, "+", chunk.tokens, " ");
      state.computed += chunk.tokens;
      scheduler_.Advance(chunk.id, chunk.tokens, chunk.samples);
      if (!chunk.samples) continue;
      ++state.generated;
      if (state.generated == state.spec.max_tokens || state.generated == state.stop_after) {
        ASSERT_TRUE(scheduler_.Remove(chunk.id));
        End(chunk.id, "e");
      }
    }
  }

  void CheckBlocks() {
    const KvBlockPool& blocks = scheduler_.blocks();
    std::set<int32_t> used;
    for (const auto& [id, state] : states_) {
      if (!state.admitted || state.ends > 0) continue;
      for (const int32_t block : scheduler_.BlockTable(id)) {
        ASSERT_TRUE(used.insert(block).second) << "block " << block << " has two owners";
      }
      ASSERT_GE(static_cast<int32_t>(scheduler_.BlockTable(id).size()) * options_.block_tokens,
                state.computed);
    }
    ASSERT_EQ(static_cast<int32_t>(used.size()) + blocks.free_count(), options_.num_blocks);
    ASSERT_LE(scheduler_.waiting(), options_.max_queue_requests);
    ASSERT_LE(scheduler_.waiting_tokens(), options_.max_queue_tokens);
    ASSERT_LE(scheduler_.running(), scheduler_.max_running());
  }

  std::mt19937 random_;
  const SchedulerOptions options_;
  Scheduler scheduler_;
  StepPlan plan_;
  std::map<SequenceId, State> states_;
  SequenceId last_id_ = 0;
  int64_t now_ = 0;
  std::string trace_;
};

TEST(SchedulerRandomTest, KeepsItsPromisesInTwoThousandRuns) {
  std::set<std::string> traces;
  for (uint32_t seed = 1; seed <= 2000; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    traces.insert(RandomRun(seed).Run());
    if (HasFailure()) return;
  }
  EXPECT_GT(traces.size(), 1900u);
}

TEST(SchedulerRandomTest, SameSeedSameTrace) {
  for (uint32_t seed = 1; seed <= 50; ++seed) {
    const std::string trace = RandomRun(seed).Run();
    ASSERT_FALSE(trace.empty());
    ASSERT_EQ(RandomRun(seed).Run(), trace) << seed;
  }
}

}  // namespace
}  // namespace fixpoint
