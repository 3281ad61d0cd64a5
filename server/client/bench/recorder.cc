#include "server/client/bench/recorder.h"

#include <algorithm>

namespace fixpoint::client {

void Slice::Merge(const Slice& other) {
  first_token.Merge(other.first_token);
  inter_token.Merge(other.inter_token);
  tokens += other.tokens;
  finished += other.finished;
  failed += other.failed;
  open_max = std::max(open_max, other.open_max);
}

int64_t Totals::failures() const {
  int64_t sum = 0;
  for (const auto& [code, count] : failed) sum += count;
  return sum;
}

// Slices become twice as wide when there would be too many, so a long run costs no more memory.
Slice& Recorder::SliceAt(int64_t now) {
  while (now / slice_nanos_ >= static_cast<int64_t>(kMaxSlices)) {
    for (size_t i = 0; 2 * i < slices_.size(); ++i) {
      Slice merged = slices_[2 * i];
      if (2 * i + 1 < slices_.size()) merged.Merge(slices_[2 * i + 1]);
      slices_[i] = std::move(merged);
    }
    slices_.resize((slices_.size() + 1) / 2);
    slice_nanos_ *= 2;
  }
  const size_t index = static_cast<size_t>(std::max<int64_t>(now, 0) / slice_nanos_);
  while (slices_.size() <= index) slices_.emplace_back().open_max = open_;
  return slices_[index];
}

void Recorder::Begin(int64_t now) {
  absl::MutexLock lock(&mutex_);
  ++open_;
  Slice& slice = SliceAt(now);
  slice.open_max = std::max(slice.open_max, open_);
  totals_.open_max = std::max(totals_.open_max, open_);
}

void Recorder::Tokens(int64_t scheduled, int64_t now, int64_t gap, int64_t tokens, bool first) {
  absl::MutexLock lock(&mutex_);
  Slice& slice = SliceAt(now);
  slice.tokens += tokens;
  (first ? slice.first_token : slice.inter_token).Add(gap);
  if (Measured(now)) totals_.tokens += tokens;
  if (Measured(scheduled)) (first ? totals_.first_token : totals_.inter_token).Add(gap);
}

void Recorder::End(const RequestOutcome& outcome) {
  absl::MutexLock lock(&mutex_);
  --open_;
  Slice& slice = SliceAt(outcome.ended);
  if (outcome.end == RequestOutcome::End::kFinished) ++slice.finished;
  if (outcome.end == RequestOutcome::End::kFailed) ++slice.failed;
  if (outcome.end == RequestOutcome::End::kFinished && Measured(outcome.ended)) {
    ++totals_.ended;
    totals_.prompt_tokens += outcome.prompt_tokens;
  }
  if (Measured(outcome.scheduled)) CountEnd(outcome);
}

void Recorder::CountEnd(const RequestOutcome& outcome) {
  ++totals_.requests;
  totals_.breaks += outcome.breaks;
  switch (outcome.end) {
    case RequestOutcome::End::kFinished:
      ++totals_.finished;
      totals_.end_to_end.Add(outcome.ended - outcome.scheduled);
      if (outcome.tokens >= 2) {
        totals_.time_per_token.Add((outcome.ended - outcome.first_token) / (outcome.tokens - 1));
      }
      break;
    case RequestOutcome::End::kLeft:
      ++totals_.left;
      break;
    case RequestOutcome::End::kCut:
      ++totals_.cut;
      break;
    case RequestOutcome::End::kFailed:
      ++totals_.failed[outcome.code];
      break;
  }
}

void Recorder::NotSent(int64_t scheduled) {
  absl::MutexLock lock(&mutex_);
  if (!Measured(scheduled)) return;
  ++totals_.requests;
  ++totals_.not_sent;
}

}  // namespace fixpoint::client
