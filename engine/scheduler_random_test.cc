// Random lives of a scheduler under a fake clock and executor. What each sequence would read from
// the KV cache is compared with what it must be, entry by entry.
#include <algorithm>
#include <bit>
#include <cstdlib>
#include <map>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/scheduler.h"
#include "engine/scheduler_test_util.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

constexpr uint32_t kVocabulary = 3;  // few, so that texts meet by chance

// What happened, over all runs.
struct Totals {
  SchedulerStats stats;
  int64_t computed = 0, drafted = 0, kept_drafts = 0, prompt_rows = 0, late_hits = 0, ends = 0;
  int64_t expired = 0, cancelled = 0, most_preempted = 0, evicted = 0, shared_blocks = 0;
};

class RandomRun {
 public:
  RandomRun(uint32_t seed, Totals* totals)
      : totals_(totals),
        random_(seed),
        options_(RandomOptions()),
        scheduler_(options_, Below(8) == 0 ? nullptr : &tokens_),
        memory_(options_.num_blocks, options_.block_tokens) {
    for (std::vector<int32_t>& text : texts_) {
      for (int i = 0; i < 220; ++i) text.push_back(static_cast<int32_t>(Below(kVocabulary)));
    }
  }

  std::string Run() {
    for (int step = 0; step < 100 || scheduler_.running() + scheduler_.waiting() > 0; ++step) {
      now_ += 1 + Below(10);
      if (step < 70) Arrive();
      if (step < 100) CancelSome();
      Expire();
      Plan();
      Execute();
      CheckBlocks();
      if (testing::Test::HasFailure()) return trace_;
      // Each step computes a token, and nothing is computed more often than that.
      if (scheduler_.running() > 0 && ++busy_steps_ > work_ * (1 + PreemptionBound())) {
        ADD_FAILURE() << "does not end";
        return trace_;
      }
    }
    CheckEnd();
    return trace_;
  }

 private:
  struct State {
    SequenceSpec spec;
    std::vector<int64_t> beginnings;  // by position, what the KV cache must hold
    int64_t root = 0;
    uint32_t taste = 0;  // chooses tokens: sequences of one taste continue alike
    int32_t computed = 0, most_computed = 0, generated = 0, stop_after = 0;
    int32_t overtaken = 0, preemptions = 0, wish = 0;
    int64_t chosen = 0;  // tokens since anybody was admitted
    bool running = false, admitted = false;
    int32_t known() const { return static_cast<int32_t>(beginnings.size()); }
    bool waiting() const { return !running; }
    bool done() const { return generated == std::min(spec.max_tokens, stop_after); }
  };

  uint32_t Below(uint32_t bound) { return static_cast<uint32_t>(random_()) % bound; }
  int32_t PreemptionBound() const {
    return std::bit_width(static_cast<uint32_t>(options_.num_blocks - 1));  // ceil(log2)
  }

  SchedulerOptions RandomOptions() {
    SchedulerOptions o;
    o.num_blocks = 1 + static_cast<int32_t>(Below(3) == 0 ? Below(10) : 10 + Below(40));
    o.block_tokens = 1 << Below(5);
    o.max_step_tokens = 1 + static_cast<int32_t>(Below(100));
    o.max_step_logits = 1 + static_cast<int32_t>(Below(20));
    o.max_running = 1 + static_cast<int32_t>(Below(20));
    o.prefill_chunk_tokens = 1 + static_cast<int32_t>(Below(60));
    o.mixed_prefill_tokens = 1 + static_cast<int32_t>(Below(60));
    o.max_queue_requests = 1 + static_cast<int32_t>(Below(20));
    o.max_queue_tokens = 1 + Below(4000);
    o.max_overtakes = static_cast<int32_t>(Below(6));
    return o;
  }

  int64_t Append(SequenceId id, State& state, int32_t token) {
    tokens_[id].tokens.push_back(token);
    const int64_t before = state.beginnings.empty() ? state.root : state.beginnings.back();
    state.beginnings.push_back(memory_.Next(before, token));
    return state.beginnings.back();
  }

  // The token that the model would choose behind this beginning.
  int32_t Choice(const State& state, int64_t beginning) const {
    const uint64_t mixed =
        (static_cast<uint64_t>(beginning) * 4 + state.taste + 1) * uint64_t{0x9e3779b97f4a7c15};
    return static_cast<int32_t>((mixed >> 40) % kVocabulary);
  }

  void Arrive() {
    for (uint32_t i = Below(Below(3) ? 2 : 5); i > 0; --i) {
      State state;
      SequenceSpec& spec = state.spec;
      spec.id = ++last_id_;
      spec.prompt_tokens = 1 + static_cast<int32_t>(Below(Below(3) ? 30 : 200));
      spec.max_tokens = 1 + static_cast<int32_t>(Below(Below(2) ? 10 : 120));
      spec.priority = static_cast<int32_t>(Below(4)) - 1;
      spec.use_cache = Below(8) != 0;
      if (Below(6) == 0) spec.deadline_ns = now_ + Below(200);
      if (Below(6) == 0) spec.queue_deadline_ns = now_ + Below(100);
      if (Below(6) == 0) {
        spec.prompt_logits = static_cast<int32_t>(Below(static_cast<uint32_t>(spec.prompt_tokens)));
      }
      const bool possible =
          scheduler_.BlocksNeeded(spec.prompt_tokens, spec.max_tokens) <= options_.num_blocks;
      const bool room =
          scheduler_.waiting() - scheduler_.preempted() < options_.max_queue_requests &&
          scheduler_.waiting_tokens() + spec.prompt_tokens <= options_.max_queue_tokens;
      const absl::Status status = scheduler_.Enqueue(spec);
      ASSERT_EQ(status.code(), !possible ? absl::StatusCode::kInvalidArgument
                               : !room   ? absl::StatusCode::kResourceExhausted
                                         : absl::StatusCode::kOk);
      absl::StrAppend(&trace_, "q", spec.id, ":", static_cast<int>(status.code()), " ");
      if (!status.ok()) continue;
      state.stop_after = 1 + static_cast<int32_t>(Below(150));
      state.taste = Below(2);
      tokens_[spec.id].salt = Below(3) == 0 ? "salt" : "";
      state.root = memory_.Root(tokens_[spec.id].salt);
      const std::vector<int32_t>& text = texts_[Below(3)];
      const size_t common = Below(3) == 0 ? Below(200) : 200;
      for (size_t p = 0; p < static_cast<size_t>(spec.prompt_tokens); ++p) {
        Append(spec.id, state, p < common ? text[p] : static_cast<int32_t>(Below(kVocabulary)));
      }
      work_ += spec.prompt_tokens + spec.max_tokens;
      states_[spec.id] = state;
      ++queued_;
    }
  }

  void End(SequenceId id, const char* why) {
    absl::StrAppend(&trace_, why, id, " ");
    states_.erase(id);
    ASSERT_TRUE(ended_.insert(id).second);
    ++totals_->ends;
  }

  void CancelSome() {
    if (last_id_ == 0 || Below(5) != 0) return;
    const SequenceId id = 1 + Below(static_cast<uint32_t>(last_id_));
    const bool open = states_.count(id) > 0;
    ASSERT_EQ(scheduler_.Remove(id), open);
    if (open) ++totals_->cancelled, End(id, "c");
  }

  void Expire() {
    std::vector<ExpiredSequence> expired;
    scheduler_.TakeExpired(now_, &expired);
    SequenceId last = 0;
    for (const ExpiredSequence& e : expired) {
      ASSERT_LT(last, e.id) << "not in order of arrival";
      last = e.id;
      const State& state = states_.at(e.id);
      const bool deadline = e.reason == ExpiryReason::kDeadline;
      ASSERT_LE(deadline ? state.spec.deadline_ns : state.spec.queue_deadline_ns, now_);
      if (!deadline) {
        ASSERT_FALSE(state.admitted);
      }
      ++totals_->expired;
      End(e.id, deadline ? "d" : "t");
    }
    for (const auto& [id, state] : states_) {
      ASSERT_GT(state.spec.deadline_ns, now_);
      if (!state.admitted) {
        ASSERT_GT(state.spec.queue_deadline_ns, now_);
      }
    }
  }

  // With a second plan the drafts come on top of plain chunks that are known then.
  void Plan() {
    std::vector<PlannedChunk> plain;
    const bool twice = Below(2) == 0;
    if (!twice) WishDrafts();
    scheduler_.PlanStep(&plan_);
    TakeNews();
    if (testing::Test::HasFatalFailure()) return;
    if (!twice) return;
    plain = plan_.chunks;
    WishDrafts();
    scheduler_.PlanStep(&plan_);
    ASSERT_TRUE(plan_.admitted.empty() && plan_.preempted.empty() && plan_.cache_hits.empty());
    ASSERT_EQ(plan_.chunks.size(), plain.size());
    for (size_t i = 0; i < plain.size(); ++i) {
      ASSERT_EQ(plan_.chunks[i].id, plain[i].id);
      ASSERT_EQ(plan_.chunks[i].position, plain[i].position);
      ASSERT_EQ(plan_.chunks[i].tokens - plan_.chunks[i].drafts, plain[i].tokens);
      ASSERT_EQ(plan_.chunks[i].prompt_rows, plain[i].prompt_rows);
    }
  }

  void WishDrafts() {
    for (auto& [id, state] : states_) {
      state.wish = 0;
      if (Below(3) > 0) continue;
      const int32_t wish = static_cast<int32_t>(Below(9));
      scheduler_.SetDraft(id, wish);
      if (state.running && state.known() - state.computed == 1) state.wish = wish;
    }
  }

  bool Outranks(const State& a, const State& b) const {
    const bool a_overdue = a.overtaken >= options_.max_overtakes;
    const bool b_overdue = b.overtaken >= options_.max_overtakes;
    if (a_overdue != b_overdue) return a_overdue;
    if (!a_overdue && a.spec.priority != b.spec.priority) {
      return a.spec.priority > b.spec.priority;
    }
    return a.spec.id < b.spec.id;
  }

  void TakeNews() {
    for (const SequenceId id : plan_.preempted) TakePreemption(id);
    for (const Admission& admission : plan_.admitted) TakeAdmission(admission);
    for (const CacheHit& hit : plan_.cache_hits) TakeHit(hit);
    ASSERT_TRUE(!plan_.chunks.empty() || scheduler_.running() == 0);
    ASSERT_TRUE(scheduler_.running() > 0 || scheduler_.waiting() == 0)
        << "an idle device and a queue";
  }

  void TakePreemption(SequenceId id) {
    absl::StrAppend(&trace_, "p", id, " ");
    State& state = states_.at(id);
    ASSERT_TRUE(state.running);
    int64_t most_chosen = 0;
    for (const auto& [other_id, other] : states_) {
      most_chosen = std::max(most_chosen, other.chosen);
      if (other.running && other_id != id) {
        ASSERT_TRUE(Outranks(other, state)) << other_id << " should go before " << id;
      }
    }
    // No ping-pong: somebody got on since the last admission, the more the more often it happened.
    ASSERT_GT(most_chosen, int64_t{options_.block_tokens} << reserve_level_);
    ASSERT_LE(++state.preemptions, PreemptionBound());
    totals_->most_preempted = std::max<int64_t>(totals_->most_preempted, state.preemptions);
    state.running = false;
    state.computed = state.wish = 0;
  }

  void TakeAdmission(const Admission& admission) {
    absl::StrAppend(&trace_, "a", admission.id, " ");
    State& state = states_.at(admission.id);
    ASSERT_TRUE(state.waiting());
    ASSERT_EQ(admission.again, state.admitted);
    for (auto& [id, other] : states_) {
      if (!other.waiting() || id == admission.id) continue;
      ASSERT_TRUE(Outranks(state, other)) << id << " should go before " << admission.id;
    }
    for (auto& [id, other] : states_) {
      other.chosen = 0;
      if (id >= admission.id || !other.waiting()) continue;
      ASSERT_LE(++other.overtaken, options_.max_overtakes) << id;
    }
    state.running = state.admitted = true;
    reserve_level_ = 0;
    for (const auto& [id, other] : states_) {
      if (other.running) reserve_level_ = std::max(reserve_level_, other.preemptions);
    }
  }

  void TakeHit(const CacheHit& hit) {
    absl::StrAppend(&trace_, "h", hit.id, "+", hit.tokens, " ");
    State& state = states_.at(hit.id);
    ASSERT_TRUE(state.running && state.spec.use_cache);
    ASSERT_EQ(hit.again, state.preemptions > 0);
    ASSERT_GE(hit.tokens, 1);
    if (state.computed > 0) ++totals_->late_hits;
    const int32_t rows_done = std::min(state.most_computed, state.spec.prompt_logits);
    state.computed += hit.tokens;
    state.most_computed = std::max(state.most_computed, state.computed);
    ASSERT_EQ(state.computed % options_.block_tokens, 0);
    ASSERT_LT(state.computed, state.known());
    if (rows_done < state.spec.prompt_logits) {
      ASSERT_LE(state.computed, rows_done);
    }
  }

  void Execute() {
    CheckPlan();
    if (testing::Test::HasFatalFailure()) return;
    std::map<SequenceId, std::vector<int32_t>> drafts;
    std::set<int32_t> written;
    for (const PlannedChunk& chunk : plan_.chunks) {
      Write(chunk, &drafts[chunk.id], &written);
    }
    for (const PlannedChunk& chunk : plan_.chunks) {  // behind all writes of the step
      const State& state = states_.at(chunk.id);
      const absl::Span<const int32_t> table = scheduler_.BlockTable(chunk.id);
      for (int32_t p = 0; p < chunk.position; ++p) {
        if (memory_.Read(table, p) == state.beginnings[static_cast<size_t>(p)]) continue;
        FAIL() << "sequence " << chunk.id << " reads what is not its own at " << p;
      }
    }
    for (const PlannedChunk& chunk : plan_.chunks) Sample(chunk, drafts[chunk.id]);
  }

  void Write(const PlannedChunk& chunk, std::vector<int32_t>* drafts, std::set<int32_t>* written) {
    const State& state = states_.at(chunk.id);
    const absl::Span<const int32_t> table = scheduler_.BlockTable(chunk.id);
    int64_t beginning = 0;
    for (int32_t p = chunk.position; p < chunk.position + chunk.tokens; ++p) {
      if (p < state.known()) {
        beginning = state.beginnings[static_cast<size_t>(p)];
      } else {
        const int32_t right = Choice(state, beginning);
        drafts->push_back(Below(4) > 0 ? right : static_cast<int32_t>(Below(kVocabulary)));
        beginning = memory_.Next(beginning, drafts->back());
      }
      memory_.Write(table, p, beginning);
    }
    const int32_t last = (chunk.position + chunk.tokens - 1) / options_.block_tokens;
    for (int32_t i = chunk.position / options_.block_tokens; i <= last; ++i) {
      const int32_t block = table[static_cast<size_t>(i)];
      ASSERT_TRUE(written->insert(block).second) << "two sequences write block " << block;
      ASSERT_EQ(scheduler_.blocks().references(block), 1) << "block " << block << " is shared";
      ASSERT_FALSE(scheduler_.cache().cached(block)) << "block " << block << " is in the cache";
    }
  }

  void Sample(const PlannedChunk& chunk, const std::vector<int32_t>& drafts) {
    State& state = states_.at(chunk.id);
    int32_t kept = chunk.tokens - chunk.drafts, chosen = 0;
    if (chunk.sample_rows > 0) {
      for (size_t row = 0;; ++row) {
        Append(chunk.id, state, Choice(state, state.beginnings.back()));
        ++chosen;
        ++state.generated;
        if (state.done()) break;
        if (row == drafts.size() || drafts[row] != tokens_[chunk.id].tokens.back()) break;
        ++kept;
      }
    }
    absl::StrAppend(&trace_, chunk.id, "+", chunk.tokens, "^", chunk.drafts, "=", kept, " ");
    scheduler_.Advance(chunk.id, kept, chosen);
    state.computed += kept;
    state.most_computed = std::max(state.most_computed, state.computed);
    state.chosen += chosen;
    totals_->computed += kept;
    totals_->drafted += chunk.drafts;
    totals_->kept_drafts += kept - (chunk.tokens - chunk.drafts);
    totals_->prompt_rows += chunk.prompt_rows;
    if (state.done()) {
      ASSERT_TRUE(scheduler_.Remove(chunk.id));
      End(chunk.id, "e");
    }
  }

  void CheckPlan() {
    int32_t tokens = 0, rows = 0, prefill_tokens = 0;
    bool decodes = false;
    std::set<SequenceId> planned;
    for (const PlannedChunk& chunk : plan_.chunks) {
      const State& state = states_.at(chunk.id);
      const int32_t missing = state.known() - state.computed;
      const int32_t plain = chunk.tokens - chunk.drafts;
      ASSERT_TRUE(state.running && planned.insert(chunk.id).second);
      ASSERT_EQ(chunk.position, state.computed);
      ASSERT_TRUE(chunk.drafts >= 0 && plain >= 1 && plain <= missing);
      ASSERT_EQ(chunk.sample_rows, plain == missing ? 1 + chunk.drafts : 0);
      ASSERT_LE(chunk.drafts, state.wish);
      ASSERT_LE(state.known() + chunk.drafts, state.spec.prompt_tokens + state.spec.max_tokens - 1);
      const int32_t from =
          std::max(chunk.position, std::min(state.most_computed, state.spec.prompt_logits));
      const int32_t to = std::min(chunk.position + plain, state.spec.prompt_logits);
      ASSERT_EQ(chunk.prompt_rows, std::max(0, to - from));
      if (chunk.prompt_rows > 0) {
        ASSERT_EQ(chunk.position + chunk.prompt_row, from);
      }
      tokens += chunk.tokens;
      rows += chunk.prompt_rows + chunk.sample_rows;
      if (missing > 1) prefill_tokens += chunk.tokens;
      if (missing == 1) decodes = true;
    }
    ASSERT_EQ(tokens, plan_.tokens);
    ASSERT_EQ(rows, plan_.logit_rows);
    ASSERT_LE(tokens, options_.max_step_tokens);
    ASSERT_LE(rows, options_.max_step_logits);
    ASSERT_LE(prefill_tokens, options_.prefill_chunk_tokens);
    if (decodes) {
      ASSERT_LE(prefill_tokens, options_.mixed_prefill_tokens);
    }
    for (const auto& [id, state] : states_) {  // whoever decodes is in each step
      if (state.running && state.generated > 0 && state.known() - state.computed == 1) {
        ASSERT_EQ(planned.count(id), 1u) << id;
      }
    }
  }

  void CheckBlocks() {
    const KvBlockPool& blocks = scheduler_.blocks();
    std::map<int32_t, int32_t> references;
    int32_t running = 0;
    for (const auto& [id, state] : states_) {
      if (!state.running) continue;
      ++running;
      const absl::Span<const int32_t> table = scheduler_.BlockTable(id);
      ASSERT_EQ(std::set<int32_t>(table.begin(), table.end()).size(), table.size());
      ASSERT_GE(static_cast<int32_t>(table.size()) * options_.block_tokens, state.computed);
      ASSERT_LE(static_cast<int64_t>(table.size()),
                scheduler_.BlocksNeeded(state.spec.prompt_tokens, state.spec.max_tokens));
      for (const int32_t block : table) {
        ++references[block];
        if (!state.spec.use_cache) {
          ASSERT_FALSE(scheduler_.cache().cached(block));
        }
      }
    }
    int32_t cached = 0;
    for (int32_t block = 0; block < options_.num_blocks; ++block) {
      const auto found = references.find(block);
      ASSERT_EQ(blocks.references(block), found == references.end() ? 0 : found->second) << block;
      if (blocks.references(block) > 1) {
        ASSERT_TRUE(scheduler_.cache().cached(block));
        ++totals_->shared_blocks;
      }
      ASSERT_EQ(blocks.idle(block),
                blocks.references(block) == 0 && scheduler_.cache().cached(block));
      cached += scheduler_.cache().cached(block);
    }
    ASSERT_EQ(cached, scheduler_.cache().cached_count());
    ASSERT_EQ(static_cast<int32_t>(references.size()), blocks.used_count());
    ASSERT_EQ(blocks.used_count() + blocks.free_count() + blocks.idle_count(), blocks.total());
    ASSERT_EQ(running, scheduler_.running());
    ASSERT_LE(running, scheduler_.max_running());
    ASSERT_LE(scheduler_.waiting() - scheduler_.preempted(), options_.max_queue_requests);
    ASSERT_LE(scheduler_.waiting_tokens(), options_.max_queue_tokens);
  }

  void CheckEnd() {
    EXPECT_EQ(scheduler_.blocks().available_count(), options_.num_blocks);
    EXPECT_EQ(scheduler_.waiting_tokens(), 0);
    EXPECT_EQ(scheduler_.preempted(), 0);
    EXPECT_TRUE(states_.empty());
    EXPECT_EQ(ended_.size(), queued_);
    const SchedulerStats& stats = scheduler_.stats();
    EXPECT_EQ(stats.preemptions > 0, stats.readmissions + stats.preemptions > 0);
    totals_->stats.preemptions += stats.preemptions;
    totals_->stats.readmissions += stats.readmissions;
    totals_->stats.recomputed_tokens += stats.recomputed_tokens;
    totals_->stats.cache_query_tokens += stats.cache_query_tokens;
    totals_->stats.cache_hit_tokens += stats.cache_hit_tokens;
    totals_->stats.cache_rehit_tokens += stats.cache_rehit_tokens;
    // Every idle block can be had: one sequence takes them all.
    const int32_t tokens = static_cast<int32_t>(std::min<int64_t>(
        options_.max_queue_tokens, int64_t{options_.num_blocks} * options_.block_tokens));
    const SequenceId id = ++last_id_;
    tokens_[id].tokens.assign(static_cast<size_t>(tokens), 77);
    ASSERT_TRUE(scheduler_.Enqueue({.id = id, .prompt_tokens = tokens, .max_tokens = 1}).ok());
    scheduler_.PlanStep(&plan_);
    ASSERT_EQ(plan_.admitted.size(), 1u);
    ASSERT_EQ(static_cast<int64_t>(scheduler_.BlockTable(id).size()),
              scheduler_.BlocksNeeded(tokens, 1));
    totals_->evicted += scheduler_.cache().evicted_count();
  }

  Totals* const totals_;
  std::mt19937 random_;
  const SchedulerOptions options_;
  FakeTokens tokens_;
  Scheduler scheduler_;
  FakeKvMemory memory_;
  std::vector<int32_t> texts_[3];
  StepPlan plan_;
  std::map<SequenceId, State> states_;  // of the open ones
  std::set<SequenceId> ended_;
  size_t queued_ = 0;
  SequenceId last_id_ = 0;
  int64_t now_ = 0, work_ = 0, busy_steps_ = 0;
  int32_t reserve_level_ = 0;
  std::string trace_;
};

// FIXPOINT_SCHEDULER_RUNS sets another number for long runs.
TEST(SchedulerRandomTest, KeepsItsPromisesInTwoThousandRuns) {
  const char* text = std::getenv("FIXPOINT_SCHEDULER_RUNS");
  const int runs = text == nullptr ? 2000 : std::atoi(text);
  ASSERT_GE(runs, 1);
  std::set<std::string> traces;
  Totals totals;
  for (uint32_t seed = 1; seed <= static_cast<uint32_t>(runs); ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    std::string trace = RandomRun(seed, &totals).Run();
    if (seed <= 2000) traces.insert(std::move(trace));
    if (HasFailure()) return;
  }
  if (runs < 2000) return;
  EXPECT_GT(traces.size(), 1900u);
  // The runs held what they are meant to hold.
  EXPECT_GT(totals.ends, 20000);
  EXPECT_GT(totals.expired, 1000);
  EXPECT_GT(totals.cancelled, 1000);
  EXPECT_GT(totals.stats.preemptions, 2000);
  EXPECT_GT(totals.most_preempted, 1);
  EXPECT_GT(totals.stats.cache_hit_tokens, 100000);
  EXPECT_GT(totals.stats.cache_rehit_tokens, 1000);
  EXPECT_GT(totals.late_hits, 100);
  EXPECT_GT(totals.shared_blocks, 10000);
  EXPECT_GT(totals.evicted, 1000);
  EXPECT_GT(totals.drafted, 10000);
  EXPECT_GT(totals.kept_drafts, 1000);
  EXPECT_LT(totals.kept_drafts, totals.drafted);
  EXPECT_GT(totals.prompt_rows, 10000);
  // Preemption costs little even in these tiny caches.
  EXPECT_GT(totals.stats.recomputed_tokens, 1000);
  EXPECT_LT(totals.stats.recomputed_tokens, totals.computed / 10);
  RecordProperty("computed_tokens", absl::StrCat(totals.computed));
  RecordProperty("recomputed_tokens", absl::StrCat(totals.stats.recomputed_tokens));
  RecordProperty("preemptions", absl::StrCat(totals.stats.preemptions));
}

TEST(SchedulerRandomTest, SameSeedSameTrace) {
  Totals totals;
  for (uint32_t seed = 1; seed <= 50; ++seed) {
    const std::string trace = RandomRun(seed, &totals).Run();
    ASSERT_FALSE(trace.empty());
    ASSERT_EQ(RandomRun(seed, &totals).Run(), trace) << seed;
  }
}

}  // namespace
}  // namespace fixpoint
