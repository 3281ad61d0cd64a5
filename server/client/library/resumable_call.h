// One call that survives its servers: breaks, stalls, full queues. See client.h for what a caller
// gets.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/random/random.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/client/library/call_progress.h"
#include "server/client/library/cancellation.h"
#include "server/client/library/clock.h"
#include "server/client/library/target_pool.h"
#include "server/client/library/transport.h"

namespace fixpoint::client {

struct RetryOptions {
  // A target that fails more often than this in a row, without anything new in between, is not
  // asked again by this call. The call gives up when no target is left.
  int retries = 5;
  // No message for this long is a break: before the first message (a request may wait in a queue)
  // and after it.
  absl::Duration first_message_timeout = absl::InfiniteDuration();
  absl::Duration stall_timeout = absl::Seconds(60);
};

// An attempt that ended before the answer did and is tried again.
struct Break {
  std::string target;
  absl::Status status;
  int64_t tokens = 0;  // received so far, all choices together
};

struct CallOptions {
  // Of the whole call, all attempts together; servers are told.
  absl::Time deadline = absl::InfiniteFuture();
  // If set, answers of another system_fingerprint are refused (FAILED_PRECONDITION).
  std::string expected_fingerprint;
  // If set: cancels the call from any thread; must outlive it.
  Cancellation* cancellation = nullptr;
  // If set: told about each break. Called like on_message, never at the same time.
  std::function<void(const Break&)> on_break;
};

struct CallReport {
  int attempts = 0;
  int breaks = 0;
  std::string target;  // of the attempt that began last
};

// Called with each message, one at a time, but not always from the same thread. False: the caller
// leaves, the call ends with CANCELLED.
using OnMessage = std::function<bool(const v1::GenerateResponse&)>;

// Break, and try again: these codes say nothing about the request. UNKNOWN, INTERNAL and CANCELLED
// (not by us) are what transports and proxies make of a lost connection.
bool IsBreak(absl::StatusCode code);

// Run it once. The pointers must outlive it.
class ResumableCall {
 public:
  ResumableCall(Transport* transport, TargetPool* targets, Clock* clock, RetryOptions retry,
                v1::GenerateRequest request, CallOptions options, OnMessage on_message);

  absl::Status Run();
  const CallReport& report() const ABSL_NO_THREAD_SAFETY_ANALYSIS { return report_; }  // after Run

 private:
  // A sequence of attempts for the same choices.
  struct Leg {
    int choice = CallProgress::kAllChoices;
    int attempts = 0;
    std::vector<int> failures;             // of each target, in a row
    std::vector<bool> wrong_fingerprint;   // of each target
    std::vector<absl::Status> last_error;  // of each target
    int last_target = -1;
  };
  enum class After { kDone, kAgain, kOtherTarget, kFatal };
  struct AttemptEnd {
    After after = After::kFatal;
    absl::Status status;
    std::optional<absl::Duration> pushback;
  };

  // Sets *split when a call for several choices broke and has to go on choice by choice.
  absl::Status RunLeg(int choice, bool* split);
  absl::Status RunChoicesApart();
  // Waits until the target may be used.
  absl::StatusOr<int> PickTarget(const Leg& leg);
  AttemptEnd RunAttempt(int choice, int target);
  AttemptEnd ReadToTheEnd(int choice, int target, absl::Time began, StreamCall* call);
  AttemptEnd Broken(const StreamEnd& end) const;
  void NoteFailure(const AttemptEnd& end, int target, absl::Time began, bool progress, Leg* leg);
  absl::Status Deliver(int choice, v1::GenerateResponse message);
  // The last failure of each target, in one line.
  std::string Reasons(const Leg& leg) const;
  absl::Status GivenUp(const Leg& leg);
  absl::Status Explained(const Leg& leg, const absl::Status& status, int target);

  Transport* const transport_;
  TargetPool* const targets_;
  Clock* const clock_;
  const RetryOptions retry_;
  const CallOptions options_;
  const OnMessage on_message_;
  Cancellation cancellation_;  // of all attempts

  absl::Mutex mutex_;
  CallProgress progress_ ABSL_GUARDED_BY(mutex_);
  CallReport report_ ABSL_GUARDED_BY(mutex_);
  absl::BitGen random_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace fixpoint::client
