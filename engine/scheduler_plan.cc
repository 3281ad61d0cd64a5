// Scheduler::PlanStep: growth of the running sequences, then chunks and drafts.
#include <algorithm>

#include "base/check.h"
#include "engine/scheduler.h"

namespace fixpoint {

void Scheduler::PlanStep(StepPlan* plan) {
  plan->preempted.clear();
  plan->admitted.clear();
  plan->cache_hits.clear();
  plan->chunks.clear();
  plan->tokens = plan->logit_rows = 0;
  GiveBackDraftBlocks();
  Grow(plan);
  SkipCached(plan);
  Admit(plan);
  for (Sequence* sequence : running_) {
    if (sequence->missing() == 1) AddChunk(*sequence, 1, plan);
  }
  int32_t budget = PrefillBudget();
  for (Sequence* sequence : running_) {
    if (sequence->missing() <= 1) continue;
    if (AddChunk(*sequence, budget, plan)) budget -= plan->chunks.back().tokens;
  }
  AddDrafts(plan);
}

// A decoding sequence waits for the whole step: prompts beside it come in small pieces.
int32_t Scheduler::PrefillBudget() const {
  const bool decodes = std::any_of(running_.begin(), running_.end(),
                                   [](const Sequence* s) { return s->missing() == 1; });
  return decodes ? std::min(options_.mixed_prefill_tokens, options_.prefill_chunk_tokens)
                 : options_.prefill_chunk_tokens;
}

void Scheduler::GiveBackDraftBlocks() {
  for (Sequence* sequence : running_) {
    sequence->planned = 0;
    const size_t needed = static_cast<size_t>(BlocksFor(sequence->known));
    if (sequence->block_table.size() <= needed) continue;
    cache_.Release(absl::MakeConstSpan(sequence->block_table).subspan(needed));
    sequence->block_table.resize(needed);
  }
}

// Who comes last in rank gives way. The sequence that needs a block may be that one itself.
void Scheduler::Grow(StepPlan* plan) {
  by_rank_.clear();
  for (Sequence* sequence : running_) {
    if (sequence->blocks() < BlocksFor(sequence->known)) by_rank_.push_back(sequence);
  }
  if (by_rank_.empty()) return;
  if (static_cast<int32_t>(by_rank_.size()) > blocks().available_count()) by_rank_ = running_;
  std::sort(by_rank_.begin(), by_rank_.end(),
            [this](const Sequence* a, const Sequence* b) { return Outranks(*a, *b); });
  for (size_t i = 0; i < by_rank_.size(); ++i) {
    Sequence& sequence = *by_rank_[i];
    // At most one block is missing: a chunk with its drafts had blocks for all but the token that
    // was chosen last.
    if (sequence.blocks() == BlocksFor(sequence.known)) continue;
    while (i < by_rank_.size() && !cache_.Allocate(1, &sequence.block_table)) {
      Preempt(*by_rank_.back(), plan);
      by_rank_.pop_back();
    }
  }
}

// Of the sequences whose turn to prefill it is, takes what others have computed meanwhile. Before
// the admissions, because shared blocks leave room for more of them.
void Scheduler::SkipCached(StepPlan* plan) {
  int32_t budget = PrefillBudget();
  for (Sequence* sequence : running_) {
    if (sequence->missing() <= 1) continue;
    if (budget <= 0) return;
    SkipCachedBlocks(*sequence, plan);
    if (sequence->missing() > 1) budget -= sequence->missing();
  }
}

void Scheduler::SkipCachedBlocks(Sequence& sequence, StepPlan* plan) {
  if (!LooksUp(sequence)) return;
  const size_t first = static_cast<size_t>(sequence.chain_blocks);
  const absl::Span<int32_t> table = absl::MakeSpan(sequence.block_table);
  found_.clear();
  cache_.Find(sequence.spec.id, table.first(first), CacheLimit(sequence) - sequence.chain_blocks,
              &found_);
  if (found_.empty()) return;
  cache_.Retain(found_);
  cache_.Release(table.subspan(first, found_.size()));
  std::copy(found_.begin(), found_.end(), table.begin() + static_cast<std::ptrdiff_t>(first));
  TakeHit(sequence, plan);
}

bool Scheduler::AddChunk(Sequence& sequence, int32_t limit, StepPlan* plan) {
  const int32_t rows = options_.max_step_logits - plan->logit_rows;
  int32_t tokens = std::min({sequence.missing(), limit, options_.max_step_tokens - plan->tokens});
  // Prompt tokens from first_row on are wanted. Those beyond the rows of this step must wait.
  const int32_t first_row =
      std::max(sequence.prompt_logits_done(), sequence.computed) - sequence.computed;
  const int32_t wanted = std::max(0, sequence.spec.prompt_logits - sequence.computed - first_row);
  int32_t prompt_rows = std::clamp(tokens - first_row, 0, wanted);
  if (prompt_rows > rows) {
    prompt_rows = rows;
    tokens = first_row + rows;
  }
  int32_t sample_rows = tokens == sequence.missing() ? 1 : 0;
  if (prompt_rows + sample_rows > rows) {
    sample_rows = 0;
    --tokens;
  }
  if (tokens <= 0) return false;
  plan->chunks.push_back({.id = sequence.spec.id,
                          .position = sequence.computed,
                          .tokens = tokens,
                          .prompt_row = prompt_rows > 0 ? first_row : 0,
                          .prompt_rows = prompt_rows,
                          .sample_rows = sample_rows});
  plan->tokens += tokens;
  plan->logit_rows += prompt_rows + sample_rows;
  sequence.planned = tokens;
  return true;
}

// Equal shares of what is left; what one does not want goes to those behind it.
void Scheduler::AddDrafts(StepPlan* plan) {
  const auto wants = [&](const PlannedChunk& chunk) {
    return chunk.tokens == 1 && chunk.sample_rows == 1 && sequences_.at(chunk.id).draft > 0;
  };
  auto left = static_cast<int32_t>(std::count_if(plan->chunks.begin(), plan->chunks.end(), wants));
  for (PlannedChunk& chunk : plan->chunks) {
    if (left == 0) return;
    if (!wants(chunk)) continue;
    Sequence& sequence = sequences_.at(chunk.id);
    const int32_t room = std::min(options_.max_step_tokens - plan->tokens,
                                  options_.max_step_logits - plan->logit_rows);
    const int32_t useful =
        sequence.spec.max_tokens - (sequence.known - sequence.spec.prompt_tokens) - 1;
    int32_t drafts = std::min({sequence.draft, useful, (room + left - 1) / left});
    --left;
    while (sequence.blocks() < BlocksFor(int64_t{sequence.known} + drafts)) {
      if (cache_.Allocate(1, &sequence.block_table)) continue;
      drafts = static_cast<int32_t>(sequence.blocks() * options_.block_tokens - sequence.known);
    }
    chunk.tokens += drafts;
    chunk.drafts = drafts;
    chunk.sample_rows += drafts;
    plan->tokens += drafts;
    plan->logit_rows += drafts;
    sequence.planned += drafts;
  }
}

}  // namespace fixpoint
