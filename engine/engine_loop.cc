#include "engine/engine_loop.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace fixpoint {
namespace {

EngineObserver* OrSilent(EngineObserver* observer) {
  static EngineObserver silent;
  return observer != nullptr ? observer : &silent;
}

SchedulerOptions MakeSchedulerOptions(const ExecutorLimits& limits, const EngineOptions& options) {
  return {.num_blocks = limits.num_blocks,
          .block_tokens = limits.block_tokens,
          .max_step_tokens = limits.max_step_tokens,
          .max_step_logits = limits.max_step_logits,
          .max_running = options.max_running,
          .prefill_chunk_tokens = options.prefill_chunk_tokens,
          .max_queue_requests = options.max_queue_requests,
          .max_queue_tokens = options.max_queue_tokens};
}

bool Contains(const std::vector<int32_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

int64_t SteadyNowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

EngineLoop::EngineLoop(Executor* executor, const EngineOptions& options, EngineObserver* observer,
                       std::shared_ptr<EngineMailbox> mailbox)
    : executor_(executor),
      options_(options),
      observer_(OrSilent(observer)),
      mailbox_(std::move(mailbox)),
      vocab_size_(executor->limits().vocab_size),
      scheduler_(MakeSchedulerOptions(executor->limits(), options)) {
  const size_t rows = static_cast<size_t>(executor->limits().max_step_logits);
  const size_t vocab = static_cast<size_t>(vocab_size_);
  logits_.resize(rows * vocab);
  weights_.resize(vocab);
  candidates_.resize(vocab);
  PublishLoad(0);
}

void EngineLoop::Run() {
  while (WaitForWork()) {
    TakeInbox();
    if (look_for_cancelled_) EndCancelled();
    EndExpired();
    if (!open_.empty()) Step();
  }
  TakeInbox();
  EndAll(FinishReason::kCancelled, "");
}

bool EngineLoop::WaitForWork() {
  std::unique_lock<std::mutex> lock(mailbox_->mutex);
  EngineMailbox& m = *mailbox_;
  m.work.wait(lock, [&] { return m.stop || m.wake || !m.inbox.empty() || !open_.empty(); });
  std::swap(arrived_, m.inbox);
  look_for_cancelled_ = std::exchange(m.wake, false);
  return !m.stop;
}

void EngineLoop::TakeInbox() {
  for (std::unique_ptr<OpenRequest>& arrived : arrived_) {
    OpenRequest& request = *arrived;
    const SequenceSpec spec = {.id = request.id,
                               .prompt_tokens = request.run_prompt,
                               .max_tokens = request.request.max_tokens,
                               .priority = request.request.priority,
                               .deadline_ns = request.deadline_ns,
                               .queue_deadline_ns = request.queue_deadline_ns};
    open_.emplace(spec.id, std::move(arrived));
    if (lost_) {
      End(request, FinishReason::kError, absl::UnavailableError("the device was lost"), -1);
      continue;
    }
    const absl::Status queued = scheduler_.Enqueue(spec);
    CHECK(queued.ok()) << queued.ToString();  // Submit has made the same checks
  }
  arrived_.clear();
}

void EngineLoop::EndCancelled() {
  for (auto next = open_.begin(); next != open_.end();) {
    OpenRequest& request = *next->second;
    ++next;  // End erases the request
    if (request.stream->cancelled()) {
      End(request, FinishReason::kCancelled, absl::OkStatus(), -1);
    }
  }
}

void EngineLoop::EndExpired() {
  expired_.clear();
  scheduler_.TakeExpired(SteadyNowNs(), &expired_);
  for (const ExpiredSequence& expired : expired_) {
    OpenRequest& request = *open_.at(expired.id);
    if (expired.reason == ExpiryReason::kDeadline) {
      End(request, FinishReason::kDeadline, absl::OkStatus(), -1);
    } else {
      End(request, FinishReason::kError,
          absl::ResourceExhaustedError(absl::StrCat("waited in the queue longer than ",
                                                    absl::FormatDuration(options_.max_queue_time))),
          -1);
    }
  }
}

void EngineLoop::Step() {
  const int64_t start_ns = SteadyNowNs();
  scheduler_.PlanStep(&plan_);
  CHECK(!plan_.chunks.empty()) << open_.size() << " open requests and nothing to run";
  MarkAdmitted();
  BuildChunks();
  const int64_t forward_ns = SteadyNowNs();
  const absl::Status status = executor_->Forward(chunks_, logits_.data());
  const int64_t forward_end_ns = SteadyNowNs();
  if (!status.ok()) {
    LoseDevice(status);
    return;
  }
  const int32_t* logits = logits_.data();
  for (const PlannedChunk& chunk : plan_.chunks) {
    scheduler_.Advance(chunk.id, chunk.tokens, chunk.samples ? 1 : 0);
    if (!chunk.samples) continue;
    TakeToken(*open_.at(chunk.id), chunk, logits);
    logits += vocab_size_;
  }
  observer_->OnStep(static_cast<int32_t>(plan_.chunks.size()), plan_.tokens,
                    absl::Nanoseconds(forward_end_ns - forward_ns),
                    absl::Nanoseconds(forward_ns - start_ns + SteadyNowNs() - forward_end_ns));
}

void EngineLoop::MarkAdmitted() {
  if (plan_.admitted.empty()) return;
  const int64_t now_ns = SteadyNowNs();
  for (const SequenceId id : plan_.admitted) {
    const OpenRequest& request = *open_.at(id);
    observer_->OnAdmitted(absl::Nanoseconds(now_ns - request.submitted_ns), request.prompt_tokens(),
                          request.absorbed);
  }
  PublishLoad(0);
}

void EngineLoop::BuildChunks() {
  chunks_.clear();
  last_rows_.clear();
  last_rows_.reserve(plan_.chunks.size());  // the spans below point into it
  for (const PlannedChunk& planned : plan_.chunks) {
    const OpenRequest& request = *open_.at(planned.id);
    last_rows_.push_back(planned.tokens - 1);
    chunks_.push_back(
        {.token_ids = absl::MakeConstSpan(request.tokens)
                          .subspan(static_cast<size_t>(planned.position),
                                   static_cast<size_t>(planned.tokens)),
         .position = planned.position,
         .block_table = scheduler_.BlockTable(planned.id),
         .logit_indices = absl::MakeConstSpan(&last_rows_.back(), planned.samples ? 1 : 0)});
  }
}

void EngineLoop::TakeToken(OpenRequest& request, const PlannedChunk& chunk, const int32_t* logits) {
  const uint64_t position =
      options_.prefix_token_ids.size() + static_cast<uint64_t>(chunk.position + chunk.tokens);
  const int32_t token =
      SampleToken(logits, vocab_size_, options_.logit_fraction_bits, request.request.sampling,
                  position, {weights_.data(), candidates_.data()});
  request.tokens.push_back(token);
  ReportToken(request);
  if (Stops(request, token)) {
    End(request, FinishReason::kStop, absl::OkStatus(), token);
    return;
  }
  if (!request.stream->PushToken(TokenEvent(request, token, logits))) {
    End(request, FinishReason::kCancelled, absl::OkStatus(), -1);
  } else if (request.generated() == request.request.max_tokens) {
    End(request, FinishReason::kLength, absl::OkStatus(), -1);
  }
}

bool EngineLoop::Stops(const OpenRequest& request, int32_t token) const {
  return (!request.request.ignore_eos && Contains(options_.eos_ids, token)) ||
         Contains(request.request.stop_ids, token);
}

Event EngineLoop::TokenEvent(const OpenRequest& request, int32_t token,
                             const int32_t* logits) const {
  Event event;
  event.token_id = token;
  event.index = request.generated() - 1;
  const int32_t count = request.request.top_logprobs;
  if (count < 0) return event;
  const LogNormalizer normalizer =
      ComputeLogNormalizer(logits, vocab_size_, options_.logit_fraction_bits);
  event.chosen = {token, LogprobQ16(normalizer, logits[token])};
  SampleCandidate top[kMaxTopLogprobs];
  const int32_t found = TopTokens(logits, vocab_size_, count, top);
  for (int32_t i = 0; i < found; ++i) {
    event.top.push_back({top[i].id, LogprobQ16(normalizer, top[i].logit)});
  }
  return event;
}

void EngineLoop::ReportToken(OpenRequest& request) {
  const int64_t now_ns = SteadyNowNs();
  if (request.generated() == 1) {
    observer_->OnFirstToken(absl::Nanoseconds(now_ns - request.submitted_ns));
  } else {
    observer_->OnToken(absl::Nanoseconds(now_ns - request.last_token_ns));
  }
  request.last_token_ns = now_ns;
}

void EngineLoop::LoseDevice(const absl::Status& status) {
  lost_ = true;
  {
    std::lock_guard<std::mutex> lock(mailbox_->mutex);
    mailbox_->lost = true;
  }
  EndAll(FinishReason::kError, absl::StrCat("the device was lost: ", status.message()));
}

void EngineLoop::EndAll(FinishReason reason, absl::string_view error) {
  while (!open_.empty()) {
    // A status of its own for each stream: its text then has one owner at a time.
    End(*open_.begin()->second, reason,
        reason == FinishReason::kError ? absl::UnavailableError(error) : absl::OkStatus(), -1);
  }
}

void EngineLoop::End(OpenRequest& request, FinishReason reason, absl::Status error,
                     int32_t stop_token_id) {
  const auto node = open_.extract(request.id);
  scheduler_.Remove(request.id);
  Event event;
  event.finished = true;
  event.reason = reason;
  event.error = std::move(error);
  event.stop_token_id = stop_token_id;
  event.prompt_tokens = request.prompt_tokens();
  event.cached_tokens = request.absorbed;
  event.generated_tokens = request.generated();
  observer_->OnFinished(reason, event.prompt_tokens, event.generated_tokens,
                        absl::Nanoseconds(SteadyNowNs() - request.submitted_ns));
  PublishLoad(1);  // first: a reader who has seen the end finds the blocks free
  request.stream->PushEnd(std::move(event));
}

void EngineLoop::PublishLoad(int32_t ended) {
  int32_t inbox_requests = 0;
  int64_t inbox_tokens = 0;
  {
    std::lock_guard<std::mutex> lock(mailbox_->mutex);
    for (const auto& request : mailbox_->inbox) {
      ++inbox_requests;
      inbox_tokens += request->run_prompt;
    }
    EngineLoad& load = mailbox_->load;
    load.running = scheduler_.running();
    load.waiting = inbox_requests + scheduler_.waiting();
    load.waiting_tokens = inbox_tokens + scheduler_.waiting_tokens();
    load.free_blocks = scheduler_.blocks().free_count();
    load.total_blocks = scheduler_.blocks().total();
    mailbox_->open -= ended;
    if (mailbox_->open > 0) return;
  }
  mailbox_->idle.notify_all();
}

}  // namespace fixpoint
