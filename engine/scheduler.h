// What the next step runs. Pure decisions: ids, counts and times come in, a plan goes out. It never
// sees a token's value, a clock or an executor, so that random runs can test it in microseconds.
//
// Rules
// - A waiting sequence is admitted when all KV blocks that it can ever need are free; they are
// reserved at once. A running
//   sequence therefore always ends; nothing has to be preempted.
// - Order of admission: higher priority first, first come first served inside one priority, nobody
// slips past a sequence that
//   does not fit yet. A sequence is overtaken by later ones at most max_overtakes times; then it
//   goes first.
// - A step holds one token of each sequence that decodes, then prompt chunks in order of admission,
// together at most
//   prefill_chunk_tokens prompt tokens. So the first sequence that still has prompt makes progress
//   in each step, and the time between two tokens of a decoding sequence is bounded.
// One thread at a time.
#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/kv_block_pool.h"

namespace fixpoint {

using SequenceId = int64_t;

struct SchedulerOptions {
  int32_t num_blocks = 0;
  int32_t block_tokens = 64;
  int32_t max_step_tokens = 512;
  int32_t max_step_logits = 64;
  int32_t max_running = 64;
  int32_t prefill_chunk_tokens = 256;
  int32_t max_queue_requests = 256;
  int64_t max_queue_tokens = 1 << 20;
  int32_t max_overtakes = 64;
};

// A request as the scheduler sees it. Times are on any clock of the caller, in nanoseconds.
struct SequenceSpec {
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
  SequenceId id = 0;
  int32_t prompt_tokens = 0;  // to be run: absorbed prefix tokens are not counted
  int32_t max_tokens = 0;     // generated at most
  int32_t priority = 0;
  int64_t deadline_ns = kNever;        // ends it wherever it is
  int64_t queue_deadline_ns = kNever;  // ends it if it still waits
};

enum class ExpiryReason { kDeadline, kQueueTimeout };
struct ExpiredSequence {
  SequenceId id = 0;
  ExpiryReason reason = ExpiryReason::kDeadline;
};

// Tokens [position, position + tokens) of a sequence. `samples`: the chunk reaches the last known
// token, so the logits of its last row choose the next one.
struct PlannedChunk {
  SequenceId id = 0;
  int32_t position = 0;
  int32_t tokens = 0;
  bool samples = false;
};

struct StepPlan {
  std::vector<SequenceId> admitted;  // since the last plan
  std::vector<PlannedChunk> chunks;  // at most one a sequence
  int32_t tokens = 0;
};

class Scheduler {
 public:
  // Options that contradict each other are brought down: max_running to max_step_logits and to
  // max_step_tokens - 1 (at least 1), so that a step always has room for prompt tokens beside all
  // running sequences.
  explicit Scheduler(const SchedulerOptions& options);

  // RESOURCE_EXHAUSTED when the queue is full (requests or tokens). INVALID_ARGUMENT for a sequence
  // that could never be admitted. Requires a new id and positive counts.
  absl::Status Enqueue(const SequenceSpec& spec);

  // Removes what has expired at now_ns and appends it in order of arrival.
  void TakeExpired(int64_t now_ns, std::vector<ExpiredSequence>* expired);

  // Admits and plans. The plan's memory is reused. Calling it again without Advance gives the same
  // chunks.
  void PlanStep(StepPlan* plan);

  // The executor has run `computed` more tokens of the sequence, and `appended` tokens were chosen
  // behind the known ones.
  void Advance(SequenceId id, int32_t computed, int32_t appended);

  // Takes a sequence out, waiting or running, and frees its blocks. False if it is not here.
  bool Remove(SequenceId id);

  // KV blocks of a running sequence, valid until it is removed.
  absl::Span<const int32_t> BlockTable(SequenceId id) const;

  int32_t running() const { return static_cast<int32_t>(running_.size()); }
  int32_t waiting() const { return static_cast<int32_t>(waiting_.size()); }
  int64_t waiting_tokens() const { return waiting_tokens_; }
  int32_t max_running() const { return options_.max_running; }
  const KvBlockPool& blocks() const { return blocks_; }
  // Blocks for all tokens whose K and V are ever written: the last generated one is never run.
  int32_t BlocksNeeded(int32_t prompt_tokens, int32_t max_tokens) const;

 private:
  struct Waiting {
    SequenceSpec spec;
    int32_t overtaken = 0;
  };
  struct Running {
    SequenceSpec spec;
    int32_t known = 0;     // prompt + chosen tokens
    int32_t computed = 0;  // tokens whose K and V are in the cache
    std::vector<int32_t> block_table;
  };

  size_t NextInLine() const;
  void Admit(std::vector<SequenceId>* admitted);
  bool AddChunk(const Running& sequence, int32_t limit, StepPlan* plan) const;

  SchedulerOptions options_;
  KvBlockPool blocks_;
  std::deque<Waiting> waiting_;  // in order of arrival
  int64_t waiting_tokens_ = 0;
  std::vector<SequenceId> running_;  // in order of admission
  std::unordered_map<SequenceId, Running> sequences_;
};

}  // namespace fixpoint
