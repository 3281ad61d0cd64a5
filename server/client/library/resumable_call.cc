#include "server/client/library/resumable_call.h"

#include <memory>
#include <thread>
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace fixpoint::client {
namespace {

// How long the end of the call may take behind its last message, before it is cut off.
constexpr absl::Duration kGoodbye = absl::Seconds(1);

// Rests are stretched by up to this share, so that calls that broke together do not come together.
constexpr double kJitter = 0.25;

absl::Status CallerLeft() { return absl::CancelledError("the caller left"); }

}  // namespace

bool IsBreak(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kCancelled:
      return true;
    default:
      return false;
  }
}

ResumableCall::ResumableCall(Transport* transport, TargetPool* targets, Clock* clock,
                             RetryOptions retry, v1::GenerateRequest request, CallOptions options,
                             OnMessage on_message)
    : transport_(transport),
      targets_(targets),
      clock_(clock),
      retry_(retry),
      options_(std::move(options)),
      on_message_(std::move(on_message)),
      progress_(std::move(request), options_.expected_fingerprint) {
  CHECK_EQ(transport->num_targets(), targets->size());
}

absl::Status ResumableCall::Run() {
  const Cancellation::Scope outer(options_.cancellation, [this] { cancellation_.Cancel(); });
  int choices = 0;
  {
    absl::MutexLock lock(&mutex_);
    choices = progress_.num_choices();
  }
  if (choices == 1) return RunLeg(0, nullptr);
  bool split = false;
  RETURN_IF_ERROR(RunLeg(CallProgress::kAllChoices, &split));
  return split ? RunChoicesApart() : absl::OkStatus();
}

absl::Status ResumableCall::RunChoicesApart() {
  std::vector<int> open;
  {
    absl::MutexLock lock(&mutex_);
    for (int c = 0; c < progress_.num_choices(); ++c) {
      if (!progress_.Finished(c)) open.push_back(c);
    }
  }
  absl::Mutex first_error_mutex;
  absl::Status first_error;
  std::vector<std::thread> threads;
  for (const int choice : open) {
    threads.emplace_back([this, choice, &first_error_mutex, &first_error] {
      const absl::Status status = RunLeg(choice, nullptr);
      if (status.ok()) return;
      {
        absl::MutexLock lock(&first_error_mutex);
        if (first_error.ok()) first_error = status;
      }
      cancellation_.Cancel();  // as on the wire: one choice's failure ends the call
    });
  }
  for (std::thread& thread : threads) thread.join();
  return first_error;
}

absl::Status ResumableCall::RunLeg(int choice, bool* split) {
  const size_t num_targets = static_cast<size_t>(targets_->size());
  Leg leg{.choice = choice,
          .failures = std::vector<int>(num_targets),
          .wrong_fingerprint = std::vector<bool>(num_targets),
          .last_error = std::vector<absl::Status>(num_targets)};
  while (true) {
    ASSIGN_OR_RETURN(const int target, PickTarget(leg));
    ++leg.attempts;
    leg.last_target = target;
    int64_t given = 0;
    {
      absl::MutexLock lock(&mutex_);
      given = progress_.Given(choice);
    }
    const absl::Time began = clock_->Now();
    const AttemptEnd end = RunAttempt(choice, target);
    if (end.after == After::kDone) return absl::OkStatus();
    if (cancellation_.cancelled()) return CallerLeft();
    if (end.after == After::kFatal) return Explained(leg, end.status, target);
    {
      absl::MutexLock lock(&mutex_);
      ++report_.breaks;
      const bool progress = progress_.Given(choice) > given;
      NoteFailure(end, target, began, progress, &leg);
      if (options_.on_break) {
        options_.on_break({transport_->TargetName(target), end.status,
                           progress_.TokensReceived(CallProgress::kAllChoices)});
      }
      if (choice == CallProgress::kAllChoices && progress_.Given(choice) > 0) {
        *split = true;
        return absl::OkStatus();
      }
    }
  }
}

absl::StatusOr<int> ResumableCall::PickTarget(const Leg& leg) {
  if (cancellation_.cancelled()) return CallerLeft();
  std::vector<bool> excluded = leg.wrong_fingerprint;
  for (size_t t = 0; t < excluded.size(); ++t) {
    if (leg.failures[t] > retry_.retries) excluded[t] = true;
  }
  const absl::Time now = clock_->Now();
  const std::optional<TargetPool::Pick> pick = targets_->Next(now, excluded);
  if (!pick.has_value()) return GivenUp(leg);
  absl::Time start = pick->usable_at;
  {
    absl::MutexLock lock(&mutex_);
    // A new call gets an answer of its own, even where all targets rest from failures of others.
    if (report_.attempts == 0) return pick->target;
    start += (start - now) * absl::Uniform(random_, 0.0, kJitter);
  }
  if (start >= options_.deadline) {
    return absl::DeadlineExceededError(
        absl::StrCat("the deadline passes before a target can be tried again; ", Reasons(leg)));
  }
  if (start > now) clock_->WaitUntil(start, cancellation_);
  if (cancellation_.cancelled()) return CallerLeft();
  return pick->target;
}

ResumableCall::AttemptEnd ResumableCall::RunAttempt(int choice, int target) {
  v1::GenerateRequest request;
  {
    absl::MutexLock lock(&mutex_);
    request = progress_.Request(choice);
    progress_.BeginAttempt(choice);
    ++report_.attempts;
    report_.target = transport_->TargetName(target);
  }
  const absl::Time began = clock_->Now();
  const std::unique_ptr<StreamCall> call = transport_->Start(target, request, options_.deadline);
  const Cancellation::Scope scope(&cancellation_, [&call] { call->Cancel(); });
  return ReadToTheEnd(choice, target, began, call.get());
}

ResumableCall::AttemptEnd ResumableCall::ReadToTheEnd(int choice, int target, absl::Time began,
                                                      StreamCall* call) {
  bool heard = false;
  v1::GenerateResponse message;
  while (true) {
    const absl::Duration patience = heard ? retry_.stall_timeout : retry_.first_message_timeout;
    switch (call->Next(clock_->Now() + patience, &message)) {
      case StreamCall::Read::kTimeout:
        return {After::kAgain, absl::UnavailableError(absl::StrCat(
                                   "no message for ", absl::ToDoubleSeconds(patience), " s"))};
      case StreamCall::Read::kEnd:
        return Broken(call->end());
      case StreamCall::Read::kMessage:
        break;
    }
    if (!heard) targets_->Worked(target, began);
    heard = true;
    const absl::Status status = Deliver(choice, std::move(message));
    if (absl::IsFailedPrecondition(status)) return {After::kOtherTarget, status};
    if (!status.ok()) return {After::kFatal, status};
    absl::MutexLock lock(&mutex_);
    if (progress_.Finished(choice)) break;
  }
  // The answer is complete, whatever the rest of the call says.
  call->Next(clock_->Now() + kGoodbye, &message);
  return {After::kDone, absl::OkStatus()};
}

ResumableCall::AttemptEnd ResumableCall::Broken(const StreamEnd& end) const {
  if (end.status.ok()) {
    return {After::kAgain, absl::UnavailableError("the stream ended without its last message")};
  }
  const bool again = IsBreak(end.status.code()) && !end.no_retry;
  return {again ? After::kAgain : After::kFatal, end.status, end.pushback};
}

void ResumableCall::NoteFailure(const AttemptEnd& end, int target, absl::Time began, bool progress,
                                Leg* leg) {
  const size_t t = static_cast<size_t>(target);
  leg->last_error[t] = end.status;
  if (end.after == After::kOtherTarget) {
    leg->wrong_fingerprint[t] = true;
    return;
  }
  if (progress) leg->failures.assign(leg->failures.size(), 0);
  ++leg->failures[t];
  targets_->Failed(target, began, clock_->Now(), end.pushback);
}

absl::Status ResumableCall::Deliver(int choice, v1::GenerateResponse message) {
  absl::MutexLock lock(&mutex_);
  std::vector<v1::GenerateResponse> news;
  RETURN_IF_ERROR(progress_.Accept(choice, std::move(message), &news));
  for (const v1::GenerateResponse& news_message : news) {
    if (cancellation_.cancelled()) return CallerLeft();
    if (on_message_(news_message)) continue;
    cancellation_.Cancel();
    return CallerLeft();
  }
  return absl::OkStatus();
}

std::string ResumableCall::Reasons(const Leg& leg) const {
  std::vector<std::string> reasons;
  for (size_t t = 0; t < leg.last_error.size(); ++t) {
    const absl::Status& error = leg.last_error[t];
    if (error.ok()) continue;
    reasons.push_back(absl::StrCat(transport_->TargetName(static_cast<int>(t)), ": ",
                                   absl::StatusCodeToString(error.code()), ": ", error.message()));
  }
  return absl::StrJoin(reasons, "; ");
}

// The code is that of the target that was tried last, so a full queue stays RESOURCE_EXHAUSTED.
absl::Status ResumableCall::GivenUp(const Leg& leg) {
  absl::MutexLock lock(&mutex_);
  const int64_t tokens = progress_.TokensReceived(CallProgress::kAllChoices);
  const std::string lost =
      tokens > 0 ? absl::StrCat("the answer broke behind ", tokens, " tokens; ") : "";
  return absl::Status(
      leg.last_error[static_cast<size_t>(leg.last_target)].code(),
      absl::StrCat(lost, "no target goes on after ", report_.attempts,
                   report_.attempts == 1 ? " attempt; " : " attempts; ", Reasons(leg)));
}

// A refusal of the first attempt is the server's own sentence; later ones need their place.
absl::Status ResumableCall::Explained(const Leg& leg, const absl::Status& status, int target) {
  absl::MutexLock lock(&mutex_);
  if (report_.attempts == 1) return status;
  return Annotate(status, absl::StrCat("going on behind ", progress_.TokensReceived(leg.choice),
                                       " tokens at ", transport_->TargetName(target)));
}

}  // namespace fixpoint::client
