// What the next step runs. Pure decisions: ids, counts and times come in, a plan goes out. It never
// sees a token's value, a clock or an executor, so that random runs can test it in microseconds.
// Token values are read by the prefix cache alone (engine/prefix_cache.h), through a TokenSource.
//
// Admission
// - A waiting sequence is admitted when the KV blocks of its known tokens are available, beside a
//   growth reserve (below). Blocks that the prefix cache has are shared; at least one token is left
//   to compute, because its logits are wanted.
// - Higher priority first, first come first served inside one priority, nobody slips past a
//   sequence that does not fit yet. A sequence is overtaken by later ones at most max_overtakes
//   times; then it is overdue and goes first, the oldest before the others.
// Growth and preemption
// - A running sequence takes blocks as its tokens need them. When none is available, the last in
//   rank is preempted: its blocks are given back (full ones stay in the prefix cache) and it waits
//   again, in its place by arrival, to be prefilled with prompt and chosen tokens.
// - Rank: overdue sequences by arrival, then higher priority, then by arrival. The first in rank is
//   never preempted and always fits alone, so everything ends.
// - The reserve keeps preemption rare: each running sequence, the new one included, must be able to
//   grow by 2^k blocks (or by all that it can still need), k being how often the most preempted one
//   among them was preempted. So from an admission to the next preemption some sequence gets more
//   than block_tokens * 2^k tokens of its answer, and a sequence is preempted at most
//   ceil(log2(num_blocks)) times.
// A step
// - One token of each sequence that decodes, then prompt chunks in order of admission, together at
//   most prefill_chunk_tokens prompt tokens, mixed_prefill_tokens where a sequence decodes. So the
//   first sequence that still has prompt makes progress in each step, and the time between two
//   tokens of a decoding sequence is bounded.
// - Draft tokens (SetDraft) get what is left of tokens, logit rows and available blocks. Blocks
//   that only drafts needed are given back before the next plan, so that they displace nobody.
// One thread at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/kv_block_pool.h"
#include "engine/prefix_cache.h"

namespace fixpoint {

struct SchedulerOptions {
  int32_t num_blocks = 0;
  int32_t block_tokens = 64;
  int32_t max_step_tokens = 512;
  int32_t max_step_logits = 64;
  int32_t max_running = 64;
  int32_t prefill_chunk_tokens = 256;
  int32_t mixed_prefill_tokens = 256;  // instead of it in steps with a decoding sequence
  int32_t max_queue_requests = 256;
  int64_t max_queue_tokens = 1 << 20;
  int32_t max_overtakes = 64;
};

// A request as the scheduler sees it. Times are on any clock of the caller, in nanoseconds.
struct SequenceSpec {
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
  SequenceId id = 0;
  int32_t prompt_tokens = 0;  // to be run: resumed ones included, absorbed prefix tokens not
  int32_t max_tokens = 0;     // still to be generated at most
  int32_t priority = 0;
  int64_t deadline_ns = kNever;        // ends it wherever it is
  int64_t queue_deadline_ns = kNever;  // ends it if it was never admitted
  // Logits of the first so many prompt tokens are wanted, fewer than prompt_tokens. Those whose
  // logits did not come yet are not taken from the cache.
  int32_t prompt_logits = 0;
  bool use_cache = true;  // false: neither takes nor leaves cached blocks
};

enum class ExpiryReason { kDeadline, kQueueTimeout };
struct ExpiredSequence {
  SequenceId id = 0;
  ExpiryReason reason = ExpiryReason::kDeadline;
};

struct Admission {
  SequenceId id = 0;
  bool again = false;  // it had been preempted
};

// Tokens that need not be computed because the cache had them: at admission, or later when another
// sequence has computed them meanwhile. `again`: after a preemption, so that they are not news to
// the client.
struct CacheHit {
  SequenceId id = 0;
  int32_t tokens = 0;
  bool again = false;
};

// Tokens [position, position + tokens) of a sequence, the last `drafts` of them drafts. Wanted
// logits, in this order: of rows [prompt_row, prompt_row + prompt_rows) of the chunk, each to be
// had once; and of its last sample_rows rows, which choose tokens (1 + drafts of them if the chunk
// reaches the last known token, else 0). The two never overlap.
struct PlannedChunk {
  SequenceId id = 0;
  int32_t position = 0;
  int32_t tokens = 0;
  int32_t drafts = 0;
  int32_t prompt_row = 0;
  int32_t prompt_rows = 0;
  int32_t sample_rows = 0;
};

struct StepPlan {
  std::vector<SequenceId> preempted;  // since the last plan; none of them is in `admitted`
  std::vector<Admission> admitted;    // since the last plan
  std::vector<CacheHit> cache_hits;   // since the last plan, more than one a sequence possible
  std::vector<PlannedChunk> chunks;   // at most one a sequence
  int32_t tokens = 0;
  int32_t logit_rows = 0;
};

// Sums since the start.
struct SchedulerStats {
  int64_t admissions = 0;    // first ones
  int64_t readmissions = 0;  // after a preemption
  int64_t preemptions = 0;
  int64_t recomputed_tokens = 0;   // computed once more because of preemptions
  int64_t cache_query_tokens = 0;  // prompt tokens of first admissions that looked into the cache
  int64_t cache_hit_tokens = 0;    // of these, taken from it
  int64_t cache_rehit_tokens = 0;  // taken from it after preemptions
};

class Scheduler {
 public:
  // Options that contradict each other are brought down: max_running to max_step_logits and to
  // max_step_tokens - 1 (at least 1), so that a step always has room for prompt tokens beside all
  // running sequences. `tokens` must outlive the scheduler; null: no prefix cache.
  explicit Scheduler(const SchedulerOptions& options, const TokenSource* tokens = nullptr);
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // RESOURCE_EXHAUSTED when the queue is full (requests or tokens; preempted ones do not count).
  // INVALID_ARGUMENT for a sequence that could never be admitted. Requires a new id, positive
  // counts and prompt_logits in [0, prompt_tokens).
  absl::Status Enqueue(const SequenceSpec& spec);

  // Removes what has expired at now_ns and appends it in order of arrival.
  void TakeExpired(int64_t now_ns, std::vector<ExpiredSequence>* expired);

  // The next plan may add `count` draft tokens to the one token of a running sequence that decodes;
  // in other states there is no effect. Ends with Advance or a preemption. Requires a queued id.
  void SetDraft(SequenceId id, int32_t count);

  // Preempts, admits and plans. The plan's memory is reused. Calling it again without Advance gives
  // the same chunks.
  void PlanStep(StepPlan* plan);

  // The executor has run the sequence's planned chunk; its first `computed` tokens (at least one)
  // count, and `appended` tokens were chosen behind the known ones. With drafts, a of them being
  // right: computed = appended = 1 + a; what was written behind is overwritten later. Otherwise all
  // tokens of the chunk count, and one is appended if it samples. The TokenSource must already show
  // the tokens that count. A sequence that has max_tokens must be removed before the next plan.
  void Advance(SequenceId id, int32_t computed, int32_t appended);

  // Takes a sequence out, waiting or running, and gives its blocks back. False if it is not here.
  bool Remove(SequenceId id);

  // KV blocks of a running sequence, for all planned tokens. Valid until the next PlanStep, Advance
  // or Remove.
  absl::Span<const int32_t> BlockTable(SequenceId id) const;

  int32_t running() const { return static_cast<int32_t>(running_.size()); }
  int32_t waiting() const { return static_cast<int32_t>(waiting_.size()); }  // preempted included
  int32_t preempted() const { return preempted_; }  // of the waiting ones, were running before
  int64_t waiting_tokens() const { return waiting_tokens_; }  // prompts of those never admitted
  int32_t max_running() const { return options_.max_running; }
  const KvBlockPool& blocks() const { return cache_.pool(); }
  const PrefixCache& cache() const { return cache_; }
  const SchedulerStats& stats() const { return stats_; }
  // Blocks for all tokens whose K and V are ever written: the last generated one is never run.
  int64_t BlocksNeeded(int64_t prompt_tokens, int64_t max_tokens) const;

 private:
  struct Sequence {
    SequenceSpec spec;
    int64_t arrival = 0;  // numbered from 0
    int32_t overtaken = 0;
    int32_t preemptions = 0;
    bool running = false;
    bool admitted = false;  // ever
    int32_t known = 0;      // prompt + chosen tokens
    int32_t computed = 0;   // tokens whose K and V are in the block table
    int32_t most_computed = 0;
    int32_t planned = 0;       // tokens of its chunk in the last plan
    int32_t draft = 0;         // wished for
    int32_t chain_blocks = 0;  // first blocks of the table that are nodes of the cache
    std::vector<int32_t> block_table;

    int32_t missing() const { return known - computed; }
    int64_t blocks() const { return static_cast<int64_t>(block_table.size()); }
    int32_t prompt_logits_done() const { return std::min(most_computed, spec.prompt_logits); }
  };

  bool Overdue(const Sequence& sequence) const;
  bool Outranks(const Sequence& a, const Sequence& b) const;
  int64_t BlocksFor(int64_t tokens) const;
  int64_t BlocksAtMost(const Sequence& sequence) const;
  bool UsesCache(const Sequence& s) const { return has_cache_ && s.spec.use_cache; }
  int64_t GrowthReserve(const Sequence& candidate) const;
  int32_t CacheLimit(const Sequence& sequence) const;
  bool LooksUp(const Sequence& sequence) const;
  int32_t PrefillBudget() const;

  size_t NextInLine() const;
  void Admit(StepPlan* plan);
  bool TakeBlocks(Sequence& sequence, StepPlan* plan);
  void GiveBackDraftBlocks();
  void Grow(StepPlan* plan);
  void Preempt(Sequence& sequence, StepPlan* plan);
  void SkipCached(StepPlan* plan);
  void SkipCachedBlocks(Sequence& sequence, StepPlan* plan);
  void TakeHit(Sequence& sequence, StepPlan* plan);
  bool AddChunk(Sequence& sequence, int32_t limit, StepPlan* plan);
  void AddDrafts(StepPlan* plan);
  void StoreFilled(Sequence& sequence);

  SchedulerOptions options_;
  const bool has_cache_;
  PrefixCache cache_;
  std::unordered_map<SequenceId, Sequence> sequences_;  // looked up only, never walked
  std::vector<Sequence*> waiting_;                      // in order of arrival
  std::vector<Sequence*> running_;                      // in order of admission
  int64_t arrivals_ = 0;
  int32_t preempted_ = 0;
  int64_t waiting_tokens_ = 0;
  SchedulerStats stats_;
  // Kept for their memory.
  std::vector<int32_t> found_;
  std::vector<Sequence*> by_rank_;
};

}  // namespace fixpoint
