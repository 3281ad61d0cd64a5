#include "server/generation_call.h"

#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "server/log.h"
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

GenerationCall::GenerationCall(ServingCore* core, const char* method, std::string peer)
    : core_(core),
      method_(method),
      peer_(std::move(peer)),
      request_id_(NewRequestId()),
      start_(absl::Now()) {}

void GenerationCall::Start(Parser parse, absl::Time deadline) {
  auto begin = [self = shared_from_this(), parse = std::move(parse), deadline] {
    self->begin_status_ = self->Begin(parse, deadline);
    self->begun_.store(true, std::memory_order_release);
    self->Signal();
  };
  if (core_->intake().TryPost(std::move(begin))) return;
  begin_status_ = absl::ResourceExhaustedError(
      "the queue of requests that wait to be tokenized is full; try again later");
  begun_.store(true, std::memory_order_release);
  Signal();
}

absl::Status GenerationCall::Begin(const Parser& parse, absl::Time deadline) {
  if (caller_left_) return absl::CancelledError("the caller left");
  if (deadline <= absl::Now())
    return absl::DeadlineExceededError("the deadline passed before the prompt was read");
  ASSIGN_OR_RETURN(model_, core_->ModelForNewCall());
  ASSIGN_OR_RETURN(ParsedRequest parsed, parse(model_->limits()));
  ASSIGN_OR_RETURN(std::vector<int32_t> prompt, model_->EncodePrompt(parsed.prompt));
  ASSIGN_OR_RETURN(Request request,
                   BuildEngineRequest(parsed, std::move(prompt), model_->limits()));
  request.id = request_id_;
  request.deadline = deadline;
  prompt_tokens_ = static_cast<int32_t>(request.prompt.size());
  ASSIGN_OR_RETURN(std::shared_ptr<Stream> stream, model_->engine().Submit(std::move(request)));
  answer_ = std::make_unique<Answer>(std::move(stream), &model_->tokenizer(),
                                     std::move(parsed.stop_strings), parsed.top_logprobs >= 0);
  // The answer stops listening before this call can end, so the plain pointer holds.
  answer_->Listen([this] { Signal(); });
  return absl::OkStatus();
}

void GenerationCall::CallerLeft() {
  caller_left_ = true;
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
  if (ended_ || !begun_.load(std::memory_order_acquire)) return;
  if (caller_left_ && answer_ != nullptr)
    answer_->Close();  // the sequence goes now, whatever the wire still does
  if (!ReadyForOutput()) return;
  if (caller_left_) return Fail(absl::CancelledError("the caller left"));
  if (!begin_status_.ok()) return Fail(begin_status_);
  if (!started_) {
    started_ = true;
    Started(prompt_tokens_);
  }
  while (!ended_ && ReadyForOutput()) {
    std::optional<AnswerItem> item = answer_->Next();
    if (!item.has_value()) return;
    if (auto* delta = std::get_if<AnswerDelta>(&*item)) {
      if (delta->index == 0 && !delta->token_ids.empty()) first_token_ = absl::Now();
      delta_tokens_ += static_cast<int32_t>(delta->token_ids.size());
      Delta(std::move(*delta));
    } else {
      End(std::get<AnswerEnd>(*item));
    }
  }
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
  if (delta_tokens_ > 0)
    return absl::AbortedError("the device failed after tokens were sent; start again");
  return absl::UnavailableError("the device failed; try another replica");
}

void GenerationCall::End(const AnswerEnd& end) {
  if (!end.error.ok()) {
    LogLine(LogLevel::kError, "request_failed")
        .Add("request_id", request_id_)
        .Add("error", end.error.message())
        .Write();
  }
  core_->metrics().AnswerEnded(end.reason);
  const absl::Status failure = FailureOf(end);
  // Before the protocol hears of the end: it may release this call at once.
  ended_ = true;
  answer_->Close();
  delta_tokens_ = end.completion_tokens;
  Report(failure.code());
  failure.ok() ? Done(end) : Failed(failure);
}

void GenerationCall::Fail(const absl::Status& status) {
  ended_ = true;
  if (answer_ != nullptr) {
    answer_->Close();
    core_->metrics().AnswerEnded(FinishReason::kCancelled);
  }
  Report(status.code());
  Failed(status);
}

void GenerationCall::Report(absl::StatusCode code) {
  core_->metrics().CallEnded(method_, code);
  LogLine line(LogLevel::kInfo, "request");
  line.Add("request_id", request_id_)
      .Add("method", method_)
      .Add("peer", peer_)
      .Add("code", CodeName(code));
  line.Add("prompt_tokens", prompt_tokens_).Add("completion_tokens", delta_tokens_);
  if (first_token_ != absl::InfiniteFuture()) {
    line.Add("first_token_seconds", absl::ToDoubleSeconds(first_token_ - start_));
  }
  line.Add("seconds", absl::ToDoubleSeconds(absl::Now() - start_)).Write();
}

}  // namespace fixpoint
