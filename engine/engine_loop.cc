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
          .mixed_prefill_tokens = options.mixed_prefill_tokens,
          .max_queue_requests = options.max_queue_requests,
          .max_queue_tokens = options.max_queue_tokens};
}

// Rows of a step up to which drafts of Speculation::kAuto are nearly free: the weights are read
// once, and a tile has 16 rows.
constexpr int32_t kCheapRows = 16;

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
      scheduler_(MakeSchedulerOptions(executor->limits(), options),
                 options.prefix_cache ? this : nullptr),
      choosers_(static_cast<size_t>(executor->workers()),
                TokenChooser(vocab_size_, options.logit_fraction_bits, options.eos_ids)) {
  logits_.resize(static_cast<size_t>(executor->limits().max_step_logits) *
                 static_cast<size_t>(vocab_size_));
  chosen_.resize(static_cast<size_t>(executor->limits().max_step_logits));
  PublishLoad(0);
}

absl::Span<const int32_t> EngineLoop::Tokens(SequenceId id) const { return open_.at(id)->tokens; }

absl::string_view EngineLoop::Salt(SequenceId id) const { return open_.at(id)->request.cache_salt; }

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
  if (std::exchange(m.wake, false)) look_for_cancelled_ = true;
  return !m.stop;
}

void EngineLoop::TakeInbox() {
  for (std::unique_ptr<OpenRequest>& arrived : arrived_) {
    OpenRequest& request = *arrived;
    const SequenceSpec spec = {
        .id = request.id,
        .prompt_tokens = request.to_prefill(),
        .max_tokens = request.request.max_tokens - request.resumed,
        .priority = request.request.priority,
        .deadline_ns = request.deadline_ns,
        .queue_deadline_ns = request.queue_deadline_ns,
        .prompt_logits = request.request.prompt_logprobs >= 0 ? request.run_prompt - 1 : 0,
        .use_cache = request.request.use_cache};
    open_.emplace(spec.id, std::move(arrived));
    if (lost_) {
      End(request, {FinishReason::kError, absl::UnavailableError("the device was lost")});
      continue;
    }
    const absl::Status queued = scheduler_.Enqueue(spec);
    CHECK(queued.ok()) << queued.ToString();  // Submit has made the same checks
    planned_ahead_ = false;
  }
  arrived_.clear();
}

void EngineLoop::EndCancelled() {
  look_for_cancelled_ = false;
  for (auto next = open_.begin(); next != open_.end();) {
    OpenRequest& request = *next->second;
    ++next;  // End erases the request
    if (request.stream->cancelled() || request.overrun) End(request, {FinishReason::kCancelled});
  }
}

void EngineLoop::EndExpired() {
  expired_.clear();
  scheduler_.TakeExpired(SteadyNowNs(), &expired_);
  if (!expired_.empty()) planned_ahead_ = false;
  for (const ExpiredSequence& expired : expired_) {
    OpenRequest& request = *open_.at(expired.id);
    if (expired.reason == ExpiryReason::kDeadline) {
      End(request, {FinishReason::kDeadline});
    } else {
      End(request, {FinishReason::kError, absl::ResourceExhaustedError(absl::StrCat(
                                              "waited in the queue longer than ",
                                              absl::FormatDuration(options_.max_queue_time)))});
    }
  }
}

void EngineLoop::Step() {
  const int64_t start_ns = SteadyNowNs();
  Plan();
  BuildChunks();
  int64_t executor_ns = 0;
  const auto timed = [&](auto call) {
    const int64_t begin_ns = SteadyNowNs();
    absl::Status status = call();
    executor_ns += SteadyNowNs() - begin_ns;
    return status;
  };
  absl::Status status =
      timed([&] { return executor_->Submit(chunks_, logits_.data(), chosen_.data()); });
  if (status.ok()) {
    WorkBesideStep();
    status = timed([&] { return executor_->Wait(); });
  }
  if (!status.ok()) {
    LoseDevice(status);
    return;
  }
  ChooseTokens();
  for (Outcome& outcome : outcomes_) Settle(outcome);
  observer_->OnStep(static_cast<int32_t>(plan_.chunks.size()), plan_.tokens,
                    absl::Nanoseconds(executor_ns),
                    absl::Nanoseconds(SteadyNowNs() - start_ns - executor_ns));
}

void EngineLoop::WorkBesideStep() {
  for (const auto& [id, open] : open_) {
    OpenRequest& request = *open;
    if (!Deliver(request)) look_for_cancelled_ = true;
    // No drafts are among the tokens of an answer that has not begun.
    if (request.generated() == request.resumed) request.lookup.Learn(request.tokens);
  }
  if (executor_->copies_chunks()) PlanAhead();
}

// What a step without drafts does to the scheduler's counts is known before its tokens are.
void EngineLoop::PlanAhead() {
  // Blocks for all that grow: nobody is preempted for an answer that may just be ending.
  if (scheduler_.blocks().available_count() < scheduler_.running()) return;
  for (const PlannedChunk& chunk : plan_.chunks) {
    if (chunk.drafts > 0) return;
  }
  for (const PlannedChunk& chunk : plan_.chunks) {
    const OpenRequest& request = *open_.at(chunk.id);
    scheduler_.Advance(chunk.id, chunk.tokens, chunk.sample_rows);
    // Whatever its last token is. Who gets its blocks writes to them behind this step.
    if (request.generated() + chunk.sample_rows == request.request.max_tokens) {
      scheduler_.Remove(chunk.id);
    }
  }
  advanced_ = true;
  scheduler_.PlanStep(&next_plan_);
  NoteChanges(next_plan_);
  planned_ahead_ = !next_plan_.chunks.empty();
}

void EngineLoop::Plan() {
  advanced_ = false;
  const bool drafts = ProposeDrafts();
  if (std::exchange(planned_ahead_, false) && !drafts) {
    std::swap(plan_, next_plan_);
    return;
  }
  scheduler_.PlanStep(&plan_);
  CHECK(!plan_.chunks.empty()) << open_.size() << " open requests and nothing to run";
  NoteChanges(plan_);
}

bool EngineLoop::Deliver(OpenRequest& request) {
  ReportTokens(request);
  for (Event& event : request.undelivered) {
    if (!request.overrun) request.overrun = !request.stream->PushToken(std::move(event));
  }
  request.undelivered.clear();
  return !request.overrun;
}

// Answers that have begun, in order of arrival.
bool EngineLoop::ProposeDrafts() {
  bool any = false;
  int32_t cheap = kCheapRows - scheduler_.running();
  for (const auto& [id, open] : open_) {
    OpenRequest& request = *open;
    request.proposal.clear();
    const int32_t left = request.request.max_tokens - request.generated() - 1;
    if (request.generated() == request.resumed || left <= 0) continue;
    const bool always = request.request.speculation == Speculation::kOn;
    request.lookup.Propose(request.tokens, always ? left : std::min(left, cheap),
                           &request.proposal);
    if (request.proposal.empty()) continue;
    const int32_t proposed = static_cast<int32_t>(request.proposal.size());
    cheap -= proposed;
    scheduler_.SetDraft(id, proposed);
    any = true;
  }
  return any;
}

// What the plan has decided, told to requests and the observer.
void EngineLoop::NoteChanges(const StepPlan& plan) {
  for (const CacheHit& hit : plan.cache_hits) {
    if (!hit.again) open_.at(hit.id)->cached += hit.tokens;
  }
  for (size_t i = 0; i < plan.preempted.size(); ++i) observer_->OnPreempted();
  const SchedulerStats& stats = scheduler_.stats();
  if (stats.cache_query_tokens != cache_queries_ || stats.cache_hit_tokens != cache_hits_) {
    observer_->OnCacheLookup(static_cast<int32_t>(stats.cache_query_tokens - cache_queries_),
                             static_cast<int32_t>(stats.cache_hit_tokens - cache_hits_));
    cache_queries_ = stats.cache_query_tokens;
    cache_hits_ = stats.cache_hit_tokens;
  }
  const int64_t now_ns = SteadyNowNs();
  for (const Admission& admission : plan.admitted) {
    if (admission.again) continue;
    const OpenRequest& request = *open_.at(admission.id);
    observer_->OnAdmitted(absl::Nanoseconds(now_ns - request.submitted_ns), request.prompt_tokens(),
                          request.cached_tokens());
  }
  if (!plan.admitted.empty() || !plan.preempted.empty()) PublishLoad(0);
}

void EngineLoop::BuildChunks() {
  chunks_.clear();
  rows_.clear();
  choices_.clear();
  rows_.reserve(static_cast<size_t>(plan_.logit_rows));  // the spans below point into them
  choices_.reserve(static_cast<size_t>(plan_.logit_rows));
  for (const PlannedChunk& planned : plan_.chunks) {
    OpenRequest& request = *open_.at(planned.id);
    request.drafts = planned.drafts;
    request.tokens.insert(request.tokens.end(), request.proposal.begin(),
                          request.proposal.begin() + planned.drafts);
    const size_t first_row = rows_.size();
    AddRows(planned, request);
    chunks_.push_back({.token_ids = absl::MakeConstSpan(request.tokens)
                                        .subspan(static_cast<size_t>(planned.position),
                                                 static_cast<size_t>(planned.tokens)),
                       .position = planned.position,
                       .block_table = scheduler_.BlockTable(planned.id),
                       .logit_indices = absl::MakeConstSpan(rows_).subspan(first_row),
                       .choices = absl::MakeConstSpan(choices_).subspan(first_row)});
  }
}

void EngineLoop::AddRows(const PlannedChunk& planned, const OpenRequest& request) {
  for (int32_t i = 0; i < planned.prompt_rows; ++i) {
    rows_.push_back(planned.prompt_row + i);
    choices_.push_back({});
  }
  // The first sampled row is that of the token in front of the drafts.
  const size_t known = request.tokens.size() - static_cast<size_t>(planned.drafts);
  for (int32_t i = 0; i < planned.sample_rows; ++i) {
    rows_.push_back(planned.tokens - planned.sample_rows + i);
    const bool follows =
        executor_->chooses_tokens() &&
        TokenChooser::FollowsFromSampling(request.request, request.generated() + i);
    choices_.push_back({.sampling = follows ? &request.request.sampling : nullptr,
                        .position = PositionOf(known + static_cast<size_t>(i))});
  }
}

namespace {

void AddPromptEvents(OpenRequest& request, const PlannedChunk& chunk, const int32_t* logits,
                     int64_t vocab_size, const TokenChooser& chooser) {
  for (int32_t row = 0; row < chunk.prompt_rows; ++row) {
    const int32_t next = chunk.position + chunk.prompt_row + row + 1;
    Event event;
    event.of_prompt = true;
    event.token_id = request.tokens[static_cast<size_t>(next)];
    event.index = request.absorbed + next;
    event.cached_tokens = request.cached_tokens();
    chooser.Describe(logits + row * vocab_size, event.token_id, request.request.prompt_logprobs,
                     &event);
    request.undelivered.push_back(std::move(event));
  }
}

void AddTokenEvent(OpenRequest& request, int32_t token, const int32_t* logits,
                   const TokenChooser& chooser) {
  Event event;
  event.token_id = token;
  event.index = request.generated() - 1;
  event.cached_tokens = request.cached_tokens();
  if (request.request.top_logprobs >= 0)
    chooser.Describe(logits, token, request.request.top_logprobs, &event);
  request.undelivered.push_back(std::move(event));
}

}  // namespace

void EngineLoop::ChooseTokens() {
  outcomes_.clear();
  size_t row = 0;
  for (const PlannedChunk& chunk : plan_.chunks) {
    outcomes_.push_back({&chunk, row, open_.at(chunk.id).get()});
    row += static_cast<size_t>(chunk.prompt_rows + chunk.sample_rows);
  }
  executor_->Parallel(static_cast<int32_t>(outcomes_.size()), [&](int32_t index, int32_t worker) {
    ChooseTokens(outcomes_[static_cast<size_t>(index)], choosers_[static_cast<size_t>(worker)]);
  });
}

// From the rows of one chunk: of a draft's row only if all drafts before it were the tokens that
// the model chose.
void EngineLoop::ChooseTokens(Outcome& outcome, TokenChooser& chooser) {
  const PlannedChunk& chunk = *outcome.chunk;
  OpenRequest& request = *outcome.request;
  request.tokens.resize(request.tokens.size() - static_cast<size_t>(chunk.drafts));
  request.drafts = 0;
  AddPromptEvents(request, chunk, Logits(outcome.row), vocab_size_, chooser);
  const size_t first = outcome.row + static_cast<size_t>(chunk.prompt_rows);
  while (!outcome.ending && outcome.chosen < chunk.sample_rows) {
    const int32_t row = outcome.chosen++;
    const size_t step_row = first + static_cast<size_t>(row);
    const int32_t token =
        choices_[step_row].sampling != nullptr
            ? chosen_[step_row]
            : chooser.Choose(request, Logits(step_row), PositionOf(request.tokens.size()));
    request.tokens.push_back(token);
    if (chooser.Ends(request.request, token)) {
      outcome.ending = Ending{.reason = FinishReason::kStop, .stop_token_id = token};
      return;
    }
    TokenChooser::Note(request, token);
    AddTokenEvent(request, token, Logits(step_row), chooser);
    if (request.generated() == request.request.max_tokens) {
      outcome.ending = Ending{FinishReason::kLength};
    }
    if (row < chunk.drafts && request.proposal[static_cast<size_t>(row)] != token) return;
  }
}

// Tells the scheduler and the observer.
void EngineLoop::Settle(Outcome& outcome) {
  const PlannedChunk& chunk = *outcome.chunk;
  OpenRequest& request = *outcome.request;
  request.unreported = outcome.chosen;
  if (chunk.drafts > 0) {
    request.lookup.Report(chunk.drafts, outcome.chosen - 1);
    observer_->OnDraft(chunk.drafts, outcome.chosen - 1);
  }
  if (!advanced_) {
    const int32_t right = std::max(0, outcome.chosen - 1);
    scheduler_.Advance(chunk.id, chunk.tokens - chunk.drafts + right, outcome.chosen);
  }
  if (outcome.ending) End(request, *std::move(outcome.ending));
}

void EngineLoop::ReportTokens(OpenRequest& request) {
  if (request.unreported == 0) return;
  const int64_t now_ns = SteadyNowNs();
  for (int32_t i = std::exchange(request.unreported, 0); i > 0; --i) {
    if (request.generated() - i == request.resumed) {
      observer_->OnFirstToken(absl::Nanoseconds(now_ns - request.submitted_ns));
    } else {
      observer_->OnToken(absl::Nanoseconds(now_ns - request.last_token_ns));
    }
    request.last_token_ns = now_ns;
  }
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
    End(*open_.begin()->second,
        {reason,
         reason == FinishReason::kError ? absl::UnavailableError(error) : absl::OkStatus()});
  }
}

void EngineLoop::End(OpenRequest& request, Ending ending) {
  const auto node = open_.extract(request.id);
  if (scheduler_.Remove(request.id)) planned_ahead_ = false;
  // An answer with a hole in it is not whole, whatever ended it.
  if (!Deliver(request) && ending.reason != FinishReason::kError) {
    ending = Ending{FinishReason::kCancelled};
  }
  Event event;
  event.finished = true;
  event.reason = ending.reason;
  event.error = std::move(ending.error);
  event.stop_token_id = ending.stop_token_id;
  event.prompt_tokens = request.prompt_tokens();
  event.cached_tokens = request.cached_tokens();
  event.generated_tokens = request.generated();
  observer_->OnFinished(event.reason, event.prompt_tokens, event.generated_tokens,
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
      inbox_tokens += request->to_prefill();
    }
    EngineLoad& load = mailbox_->load;
    load.running = scheduler_.running();
    load.waiting = inbox_requests + scheduler_.waiting();
    load.waiting_tokens = inbox_tokens + scheduler_.waiting_tokens();
    load.free_blocks = scheduler_.blocks().available_count();
    load.total_blocks = scheduler_.blocks().total();
    mailbox_->open -= ended;
    if (mailbox_->open > 0) return;
  }
  mailbox_->idle.notify_all();
}

}  // namespace fixpoint
