#include "server/generation_call.h"

#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "server/status_mapping.h"

namespace fixpoint {
namespace {

// Unique among replicas and restarts: 64 random bits.
std::string NewRequestId() {
  thread_local std::mt19937_64 generator{std::random_device{}() * uint64_t{0x100000001} ^
                                         static_cast<uint64_t>(absl::GetCurrentTimeNanos())};
  return absl::StrFormat("%016x", generator());
}

}  // namespace

GenerationCall::GenerationCall(ServingCore* core, CallOrigin origin)
    : core_(core), origin_(std::move(origin)), request_id_(NewRequestId()), start_(absl::Now()) {}

void GenerationCall::Start(Parser parse, absl::Time deadline) {
  core_->open_calls().Add(shared_from_this());
  auto begin = [self = shared_from_this(), parse = std::move(parse), deadline] {
    self->begin_status_ = self->Begin(parse, deadline);
    self->begun_.store(true, std::memory_order_release);
    self->Signal();
  };
  if (core_->intake().TryPost(std::move(begin))) return;
  core_->metrics().Refused(RefusalReason::kIntakeFull);
  begin_status_ = absl::ResourceExhaustedError(
      "the queue of requests that wait to be tokenized is full; try again later");
  begun_.store(true, std::memory_order_release);
  Signal();
}

absl::Status GenerationCall::Begin(const Parser& parse, absl::Time deadline) {
  if (caller_left_) return GoneStatus();
  if (deadline <= absl::Now())
    return absl::DeadlineExceededError("the deadline passed before the prompt was read");
  ASSIGN_OR_RETURN(model_, core_->ModelForNewCall());
  ASSIGN_OR_RETURN(request_, parse(model_->limits()));
  ASSIGN_OR_RETURN(CallPlan plan, PlanCall(*request_, *model_));
  prompt_tokens_ = plan.prompt_tokens;
  for (size_t i = 0; i < plan.choices.size(); ++i) {
    ChoicePlan& choice = plan.choices[i];
    choice.request.id = plan.choices.size() == 1 ? request_id_ : absl::StrCat(request_id_, "/", i);
    choice.request.deadline = deadline;
    absl::StatusOr<std::unique_ptr<Choice>> started =
        Choice::Start(std::move(choice), model_->engine());
    if (!started.ok()) {
      if (absl::IsResourceExhausted(started.status()))
        core_->metrics().Refused(RefusalReason::kQueueFull);
      return started.status();
    }
    choices_.push_back(*std::move(started));
  }
  // All choices stop listening before this call can end, so the plain pointer holds.
  for (const auto& choice : choices_) choice->Listen([this] { Signal(); });
  return absl::OkStatus();
}

void GenerationCall::CallerLeft() {
  caller_left_ = true;
  Signal();
}

void GenerationCall::ReaderStuck() {
  reader_stuck_ = true;
  Signal();
}

void GenerationCall::Signal() {
  if (signals_.fetch_add(1, std::memory_order_acq_rel) > 0)
    return;  // a job is there and will see it
  core_->delivery().Post([self = shared_from_this()] { self->RunSteps(); });
}

void GenerationCall::RunSteps() {
  int seen = signals_.load(std::memory_order_acquire);
  while (true) {
    Step();
    const int before = signals_.fetch_sub(seen, std::memory_order_acq_rel);
    if (before == seen) return;
    seen = before - seen;
  }
}

void GenerationCall::Step() {
  if (!begun_.load(std::memory_order_acquire)) return;
  if (reader_stuck_ && !broken_off_) {  // also when the last message is what nobody takes
    broken_off_ = true;
    core_->metrics().SlowReaderEnded();
    BreakOff();
  }
  if (ended_) return;
  if (caller_left_ || reader_stuck_) CloseAll();  // at once, whatever the wire still does
  if (!ReadyForOutput()) return;
  if (caller_left_ || reader_stuck_) return Fail(GoneStatus());
  if (!begin_status_.ok()) return Fail(begin_status_);
  if (request_.has_value()) {
    Accepted(*request_);
    request_.reset();
  }
  while (!ended_ && ReadyForOutput()) {
    if (!WriteNext()) return;
  }
}

// Choices take turns, so that none of them starves the others. False: nothing waits.
bool GenerationCall::WriteNext() {
  for (size_t tried = 0; tried < choices_.size(); ++tried) {
    const size_t index = next_choice_;
    next_choice_ = (next_choice_ + 1) % choices_.size();
    std::optional<ChoiceItem> item = choices_[index]->Next();
    if (!item.has_value()) continue;
    Write(static_cast<int32_t>(index), *std::move(item));
    return true;
  }
  return false;
}

void GenerationCall::Write(int32_t index, ChoiceItem item) {
  absl::Status status;
  if (const auto* start = std::get_if<AnswerStart>(&item)) {
    Started(index, choices_[static_cast<size_t>(index)]->prompt_tokens(), *start);
  } else if (auto* part = std::get_if<PromptPart>(&item)) {
    status = Prompt(std::move(*part));
  } else if (auto* delta = std::get_if<AnswerDelta>(&item)) {
    if (!delta->token_ids.empty() && first_token_ == absl::InfiniteFuture())
      first_token_ = absl::Now();
    completion_tokens_ += static_cast<int64_t>(delta->token_ids.size());
    status = Delta(index, std::move(*delta));
  } else {
    EndChoice(index, std::get<ChoiceEnd>(item));
  }
  if (!status.ok()) Fail(status);
}

// What became of a call whose caller takes nothing more.
absl::Status GenerationCall::GoneStatus() const {
  return reader_stuck_ ? absl::CancelledError("the answer was read too slowly")
                       : absl::CancelledError("the caller left");
}

absl::Status GenerationCall::FailureOf(const AnswerEnd& end) const {
  switch (end.reason) {
    case FinishReason::kStop:
    case FinishReason::kLength:
      return absl::OkStatus();
    case FinishReason::kDeadline:
      return absl::DeadlineExceededError("the deadline of the call passed");
    case FinishReason::kCancelled:
      // The caller is still there, so the engine gave up by itself.
      if (core_->draining())
        return absl::UnavailableError("this server shut down before the answer was complete");
      return absl::CancelledError("the answer was read too slowly");
    case FinishReason::kError:
      break;
  }
  // What the engine says of the request itself; everything else is internal.
  if (absl::IsResourceExhausted(end.error) || absl::IsInvalidArgument(end.error)) return end.error;
  if (first_token_ != absl::InfiniteFuture())
    return absl::AbortedError("the device failed after tokens were sent; start again");
  return absl::UnavailableError("the device failed; try another replica");
}

void GenerationCall::EndChoice(int32_t index, const ChoiceEnd& end) {
  if (!end.answer.error.ok()) {
    LogLine(LogLevel::kError, "request_failed")
        .Add("request_id", request_id_)
        .Add("error", end.answer.error.message())
        .Write();
  }
  core_->metrics().AnswerEnded(end.answer.reason);
  if (const absl::Status failure = FailureOf(end.answer); !failure.ok()) {
    if (absl::IsResourceExhausted(failure)) core_->metrics().Refused(RefusalReason::kQueueTimeout);
    if (absl::IsCancelled(failure)) core_->metrics().SlowReaderEnded();
    return Fail(failure);
  }
  if (end.answer.stop_token_id >= 0) ++completion_tokens_;  // generated, but in no delta
  ++ended_choices_;
  const bool last = ended_choices_ == choices_.size();
  if (last) {
    // Before the protocol hears of the end: it may release this call at once.
    ended_ = true;
    CloseAll();
    Report(absl::OkStatus());
  }
  Finished(index, end, last);
}

void GenerationCall::CloseAll() {
  for (const auto& choice : choices_) choice->Close();
}

void GenerationCall::Fail(const absl::Status& status) {
  ended_ = true;
  CloseAll();
  for (const auto& choice : choices_) {
    if (!choice->ended()) core_->metrics().AnswerEnded(FinishReason::kCancelled);
  }
  Report(status);
  Failed(status);
}

void GenerationCall::Report(const absl::Status& status) {
  core_->metrics().CallEnded(origin_.method, status.code());
  LogLine line(LogLevel::kInfo, "request");
  line.Add("request_id", request_id_)
      .Add("method", origin_.method)
      .Add("peer", origin_.peer)
      .Add("code", CodeName(status.code()));
  if (origin_.trace.has_value()) {
    line.Add("trace_id", origin_.trace->trace_id).Add("parent_id", origin_.trace->parent_id);
  }
  if (reader_stuck_) line.Add("slow_reader", true);
  if (choices_.size() > 1) line.Add("choices", choices_.size());
  line.Add("prompt_tokens", prompt_tokens_).Add("completion_tokens", completion_tokens_);
  if (first_token_ != absl::InfiniteFuture()) {
    line.Add("first_token_seconds", absl::ToDoubleSeconds(first_token_ - start_));
  }
  line.Add("seconds", absl::ToDoubleSeconds(absl::Now() - start_)).Write();
}

}  // namespace fixpoint
