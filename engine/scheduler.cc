#include "engine/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace fixpoint {

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(options), blocks_(options.num_blocks) {
  CHECK_GE(options_.block_tokens, 1);
  CHECK_GE(options_.max_step_tokens, 1);
  CHECK_GE(options_.max_step_logits, 1);
  CHECK_GE(options_.max_running, 1);
  CHECK_GE(options_.prefill_chunk_tokens, 1);
  CHECK_GE(options_.max_overtakes, 0);
  options_.max_running = std::max(
      1, std::min({options_.max_running, options_.max_step_logits, options_.max_step_tokens - 1}));
}

int32_t Scheduler::BlocksNeeded(int32_t prompt_tokens, int32_t max_tokens) const {
  const int64_t tokens = int64_t{prompt_tokens} + max_tokens - 1;
  return static_cast<int32_t>((tokens + options_.block_tokens - 1) / options_.block_tokens);
}

absl::Status Scheduler::Enqueue(const SequenceSpec& spec) {
  CHECK_GE(spec.prompt_tokens, 1);
  CHECK_GE(spec.max_tokens, 1);
  const int32_t needed = BlocksNeeded(spec.prompt_tokens, spec.max_tokens);
  if (needed > blocks_.total()) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt of ", spec.prompt_tokens, " and max_tokens of ", spec.max_tokens,
                     " need ", needed, " KV blocks, the cache has ", blocks_.total()));
  }
  if (waiting() >= options_.max_queue_requests) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue holds ", waiting(), " requests, its limit"));
  }
  if (waiting_tokens_ + spec.prompt_tokens > options_.max_queue_tokens) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue holds ", waiting_tokens_, " prompt tokens, ", spec.prompt_tokens,
                     " more would pass its limit of ", options_.max_queue_tokens));
  }
  waiting_.push_back({spec, 0});
  waiting_tokens_ += spec.prompt_tokens;
  return absl::OkStatus();
}

void Scheduler::TakeExpired(int64_t now_ns, std::vector<ExpiredSequence>* expired) {
  const size_t first = expired->size();
  for (const SequenceId id : running_) {
    if (now_ns >= sequences_.at(id).spec.deadline_ns) {
      expired->push_back({id, ExpiryReason::kDeadline});
    }
  }
  for (const Waiting& waiting : waiting_) {
    if (now_ns >= waiting.spec.deadline_ns) {
      expired->push_back({waiting.spec.id, ExpiryReason::kDeadline});
    } else if (now_ns >= waiting.spec.queue_deadline_ns) {
      expired->push_back({waiting.spec.id, ExpiryReason::kQueueTimeout});
    }
  }
  for (size_t i = first; i < expired->size(); ++i) Remove((*expired)[i].id);
}

// The oldest sequence has been overtaken most often: whoever overtook a younger one overtook it
// too. So looking at those that reached the bound, oldest first, keeps it for all.
size_t Scheduler::NextInLine() const {
  size_t best = 0;
  for (size_t i = 0; i < waiting_.size(); ++i) {
    if (waiting_[i].overtaken >= options_.max_overtakes) return i;
    if (waiting_[i].spec.priority > waiting_[best].spec.priority) best = i;
  }
  return best;
}

void Scheduler::Admit(std::vector<SequenceId>* admitted) {
  while (!waiting_.empty() && running() < options_.max_running) {
    const size_t next = NextInLine();
    const SequenceSpec spec = waiting_[next].spec;
    Running sequence = {.spec = spec, .known = spec.prompt_tokens};
    if (!blocks_.Allocate(BlocksNeeded(spec.prompt_tokens, spec.max_tokens),
                          &sequence.block_table)) {
      return;
    }
    for (size_t i = 0; i < next; ++i) ++waiting_[i].overtaken;
    waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(next));
    waiting_tokens_ -= spec.prompt_tokens;
    running_.push_back(spec.id);
    const bool is_new = sequences_.emplace(spec.id, std::move(sequence)).second;
    CHECK(is_new) << "sequence " << spec.id << " was queued twice";
    admitted->push_back(spec.id);
  }
}

bool Scheduler::AddChunk(const Running& sequence, int32_t limit, StepPlan* plan) const {
  const int32_t missing = sequence.known - sequence.computed;
  const int32_t tokens = std::min({missing, limit, options_.max_step_tokens - plan->tokens});
  if (tokens <= 0) return false;
  plan->chunks.push_back({.id = sequence.spec.id,
                          .position = sequence.computed,
                          .tokens = tokens,
                          .samples = tokens == missing});
  plan->tokens += tokens;
  return true;
}

void Scheduler::PlanStep(StepPlan* plan) {
  plan->admitted.clear();
  plan->chunks.clear();
  plan->tokens = 0;
  Admit(&plan->admitted);
  for (const SequenceId id : running_) {
    const Running& sequence = sequences_.at(id);
    if (sequence.known - sequence.computed == 1) AddChunk(sequence, 1, plan);
  }
  int32_t budget = options_.prefill_chunk_tokens;
  for (const SequenceId id : running_) {
    const Running& sequence = sequences_.at(id);
    if (sequence.known - sequence.computed <= 1) continue;
    if (!AddChunk(sequence, budget, plan)) break;
    budget -= plan->chunks.back().tokens;
  }
}

void Scheduler::Advance(SequenceId id, int32_t computed, int32_t appended) {
  Running& sequence = sequences_.at(id);
  sequence.computed += computed;
  sequence.known += appended;
  CHECK(computed >= 1 && appended >= 0);
  CHECK_LE(sequence.computed, sequence.known);
  CHECK_LE(sequence.known, sequence.spec.prompt_tokens + sequence.spec.max_tokens);
}

bool Scheduler::Remove(SequenceId id) {
  if (const auto found = sequences_.find(id); found != sequences_.end()) {
    blocks_.Release(found->second.block_table);
    sequences_.erase(found);
    running_.erase(std::find(running_.begin(), running_.end(), id));
    return true;
  }
  const auto found = std::find_if(waiting_.begin(), waiting_.end(),
                                  [&](const Waiting& w) { return w.spec.id == id; });
  if (found == waiting_.end()) return false;
  waiting_tokens_ -= found->spec.prompt_tokens;
  waiting_.erase(found);
  return true;
}

absl::Span<const int32_t> Scheduler::BlockTable(SequenceId id) const {
  return sequences_.at(id).block_table;
}

}  // namespace fixpoint
