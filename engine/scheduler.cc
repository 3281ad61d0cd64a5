#include "engine/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace fixpoint {

Scheduler::Scheduler(const SchedulerOptions& options, const TokenSource* tokens)
    : options_(options),
      has_cache_(tokens != nullptr),
      cache_(options.num_blocks, options.block_tokens, tokens) {
  CHECK_GE(options_.max_step_tokens, 1);
  CHECK_GE(options_.max_step_logits, 1);
  CHECK_GE(options_.max_running, 1);
  CHECK_GE(options_.prefill_chunk_tokens, 1);
  CHECK_GE(options_.mixed_prefill_tokens, 1);
  CHECK_GE(options_.max_overtakes, 0);
  options_.max_running = std::max(
      1, std::min({options_.max_running, options_.max_step_logits, options_.max_step_tokens - 1}));
}

int64_t Scheduler::BlocksFor(int64_t tokens) const {
  return (tokens + options_.block_tokens - 1) / options_.block_tokens;
}

int64_t Scheduler::BlocksNeeded(int64_t prompt_tokens, int64_t max_tokens) const {
  return BlocksFor(prompt_tokens + max_tokens - 1);
}

absl::Status Scheduler::Enqueue(const SequenceSpec& spec) {
  CHECK_GE(spec.prompt_tokens, 1);
  CHECK_GE(spec.max_tokens, 1);
  CHECK(spec.prompt_logits >= 0 && spec.prompt_logits < spec.prompt_tokens) << spec.prompt_logits;
  const int64_t needed = BlocksNeeded(spec.prompt_tokens, spec.max_tokens);
  if (needed > blocks().total()) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt of ", spec.prompt_tokens, " and max_tokens of ", spec.max_tokens,
                     " need ", needed, " KV blocks, the cache has ", blocks().total()));
  }
  const int32_t queued = waiting() - preempted_;
  if (queued >= options_.max_queue_requests) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue holds ", queued, " requests, its limit"));
  }
  if (waiting_tokens_ + spec.prompt_tokens > options_.max_queue_tokens) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue holds ", waiting_tokens_, " prompt tokens, ", spec.prompt_tokens,
                     " more would pass its limit of ", options_.max_queue_tokens));
  }
  const auto [place, is_new] = sequences_.try_emplace(spec.id);
  CHECK(is_new) << "sequence " << spec.id << " was queued twice";
  Sequence& sequence = place->second;
  sequence.spec = spec;
  sequence.arrival = arrivals_++;
  sequence.known = spec.prompt_tokens;
  waiting_.push_back(&sequence);
  waiting_tokens_ += spec.prompt_tokens;
  return absl::OkStatus();
}

void Scheduler::TakeExpired(int64_t now_ns, std::vector<ExpiredSequence>* expired) {
  std::vector<std::pair<int64_t, ExpiredSequence>> found;  // by arrival
  for (const std::vector<Sequence*>* list : {&running_, &waiting_}) {
    for (const Sequence* sequence : *list) {
      const SequenceSpec& spec = sequence->spec;
      if (now_ns >= spec.deadline_ns) {
        found.push_back({sequence->arrival, {spec.id, ExpiryReason::kDeadline}});
      } else if (!sequence->admitted && now_ns >= spec.queue_deadline_ns) {
        found.push_back({sequence->arrival, {spec.id, ExpiryReason::kQueueTimeout}});
      }
    }
  }
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  for (const auto& [arrival, item] : found) {
    Remove(item.id);
    expired->push_back(item);
  }
}

bool Scheduler::Overdue(const Sequence& sequence) const {
  return sequence.overtaken >= options_.max_overtakes;
}

bool Scheduler::Outranks(const Sequence& a, const Sequence& b) const {
  if (Overdue(a) != Overdue(b)) return Overdue(a);
  if (!Overdue(a) && a.spec.priority != b.spec.priority) return a.spec.priority > b.spec.priority;
  return a.arrival < b.arrival;
}

size_t Scheduler::NextInLine() const {
  size_t best = 0;
  for (size_t i = 1; i < waiting_.size(); ++i) {
    if (Outranks(*waiting_[i], *waiting_[best])) best = i;
  }
  return best;
}

// Whoever is picked while an overdue one waits is overdue and older, or that one itself: so nobody
// is overtaken more than max_overtakes times.
void Scheduler::Admit(StepPlan* plan) {
  while (!waiting_.empty() && running() < options_.max_running) {
    const size_t next = NextInLine();
    Sequence& sequence = *waiting_[next];
    if (!TakeBlocks(sequence, plan)) return;
    for (size_t i = 0; i < next; ++i) ++waiting_[i]->overtaken;
    waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(next));
    running_.push_back(&sequence);
    plan->admitted.push_back({.id = sequence.spec.id, .again = sequence.admitted});
    if (sequence.admitted) {
      --preempted_;
      ++stats_.readmissions;
    } else {
      waiting_tokens_ -= sequence.spec.prompt_tokens;
      ++stats_.admissions;
      if (UsesCache(sequence) && sequence.spec.prompt_logits == 0) {
        stats_.cache_query_tokens += sequence.spec.prompt_tokens;
      }
    }
    sequence.running = sequence.admitted = true;
  }
}

// Blocks that must stay available beside those of the known tokens of all who run: see the header.
int64_t Scheduler::GrowthReserve(const Sequence& candidate) const {
  int32_t preemptions = candidate.preemptions;
  for (const Sequence* sequence : running_) {
    preemptions = std::max(preemptions, sequence->preemptions);
  }
  // Whoever was preempted as often as 2^k has bits finds enough for all that anybody can need.
  const int64_t growth = int64_t{1} << std::min(preemptions, 31);
  const auto most = [&](const Sequence& sequence) {
    return std::min<int64_t>(growth, BlocksAtMost(sequence) - BlocksFor(sequence.known));
  };
  int64_t reserve = most(candidate);
  for (const Sequence* sequence : running_) reserve += most(*sequence);
  return reserve;
}

bool Scheduler::TakeBlocks(Sequence& sequence, StepPlan* plan) {
  found_.clear();
  if (LooksUp(sequence)) cache_.Find(sequence.spec.id, {}, CacheLimit(sequence), &found_);
  const auto fresh =
      static_cast<int32_t>(BlocksFor(sequence.known) - static_cast<int64_t>(found_.size()));
  const auto idle =
      std::count_if(found_.begin(), found_.end(), [&](int32_t b) { return blocks().idle(b); });
  if (fresh + idle + GrowthReserve(sequence) > blocks().available_count()) return false;
  cache_.Retain(found_);  // first, so that the allocation does not evict them
  sequence.block_table.assign(found_.begin(), found_.end());
  CHECK(cache_.Allocate(fresh, &sequence.block_table)) << fresh;
  if (!found_.empty()) TakeHit(sequence, plan);
  return true;
}

int64_t Scheduler::BlocksAtMost(const Sequence& sequence) const {
  return BlocksNeeded(sequence.spec.prompt_tokens, sequence.spec.max_tokens);
}

bool Scheduler::LooksUp(const Sequence& sequence) const {
  return UsesCache(sequence) && CacheLimit(sequence) > sequence.chain_blocks;
}

// Blocks at the front that may come from the cache: a token must be left to compute, and prompt
// tokens whose logits have not come yet must be computed too.
int32_t Scheduler::CacheLimit(const Sequence& sequence) const {
  int32_t tokens = sequence.known - 1;
  const int32_t done = sequence.prompt_logits_done();
  if (done < sequence.spec.prompt_logits) tokens = std::min(tokens, done);
  return tokens / options_.block_tokens;
}

// The first blocks of the table have become those of found_, behind the chain so far.
void Scheduler::TakeHit(Sequence& sequence, StepPlan* plan) {
  sequence.chain_blocks += static_cast<int32_t>(found_.size());
  const int32_t computed = sequence.chain_blocks * options_.block_tokens;
  const int32_t tokens = computed - sequence.computed;
  const bool again = sequence.preemptions > 0;
  sequence.computed = computed;
  sequence.most_computed = std::max(sequence.most_computed, computed);
  (again ? stats_.cache_rehit_tokens : stats_.cache_hit_tokens) += tokens;
  plan->cache_hits.push_back({.id = sequence.spec.id, .tokens = tokens, .again = again});
}

void Scheduler::Preempt(Sequence& sequence, StepPlan* plan) {
  cache_.Release(sequence.block_table);
  sequence.block_table.clear();
  sequence.chain_blocks = sequence.computed = sequence.planned = sequence.draft = 0;
  sequence.running = false;
  ++sequence.preemptions;
  ++preempted_;
  ++stats_.preemptions;
  running_.erase(std::find(running_.begin(), running_.end(), &sequence));
  const auto place = std::find_if(waiting_.begin(), waiting_.end(), [&](const Sequence* other) {
    return other->arrival > sequence.arrival;
  });
  waiting_.insert(place, &sequence);
  plan->preempted.push_back(sequence.spec.id);
}

void Scheduler::SetDraft(SequenceId id, int32_t count) {
  CHECK_GE(count, 0);
  Sequence& sequence = sequences_.at(id);
  if (sequence.running && sequence.missing() == 1) sequence.draft = count;
}

void Scheduler::Advance(SequenceId id, int32_t computed, int32_t appended) {
  Sequence& sequence = sequences_.at(id);
  CHECK(computed >= 1 && computed <= sequence.planned)
      << computed << " of " << sequence.planned << " planned tokens";
  const int32_t reached = sequence.computed + computed;
  if (appended == 0) {
    CHECK_LT(reached, sequence.known);
  } else {
    CHECK_EQ(reached + 1, sequence.known + appended);
  }
  stats_.recomputed_tokens +=
      std::max(0, std::min(reached, sequence.most_computed) - sequence.computed);
  sequence.computed = reached;
  sequence.most_computed = std::max(sequence.most_computed, reached);
  sequence.known += appended;
  sequence.planned = sequence.draft = 0;
  CHECK_LE(sequence.known, sequence.spec.prompt_tokens + sequence.spec.max_tokens);
  StoreFilled(sequence);
}

void Scheduler::StoreFilled(Sequence& sequence) {
  if (!UsesCache(sequence)) return;
  while (sequence.chain_blocks < sequence.computed / options_.block_tokens) {
    const size_t filled = static_cast<size_t>(sequence.chain_blocks++);
    sequence.block_table[filled] =
        cache_.Store(sequence.spec.id, absl::MakeConstSpan(sequence.block_table).first(filled),
                     sequence.block_table[filled]);
  }
}

bool Scheduler::Remove(SequenceId id) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return false;
  Sequence& sequence = found->second;
  cache_.Release(sequence.block_table);
  std::vector<Sequence*>& list = sequence.running ? running_ : waiting_;
  list.erase(std::find(list.begin(), list.end(), &sequence));
  if (!sequence.admitted) waiting_tokens_ -= sequence.spec.prompt_tokens;
  if (sequence.admitted && !sequence.running) --preempted_;
  sequences_.erase(found);
  return true;
}

absl::Span<const int32_t> Scheduler::BlockTable(SequenceId id) const {
  return sequences_.at(id).block_table;
}

}  // namespace fixpoint
