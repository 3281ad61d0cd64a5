// What a load run measured.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "server/client/bench/histogram.h"

namespace fixpoint::client {

// All times are nanoseconds since the run began.
struct RequestOutcome {
  enum class End {
    kFinished,
    kLeft,    // left on purpose (cancel_share)
    kCut,     // not finished when the run gave up waiting
    kFailed,  // `code`
  };
  End end = End::kFinished;
  absl::StatusCode code = absl::StatusCode::kOk;
  int64_t scheduled = 0;  // when it should begin: latencies count from here
  int64_t ended = 0;
  int64_t first_token = -1;  // -1: none came
  int64_t tokens = 0;
  int64_t prompt_tokens = 0;
  int breaks = 0;
};

// A piece of the run, for plots: what happened in it, warm-up included.
struct Slice {
  LatencyHistogram first_token;
  LatencyHistogram inter_token;
  int64_t tokens = 0;
  int64_t finished = 0;
  int64_t failed = 0;
  int64_t open_max = 0;

  void Merge(const Slice& other);
};

// Requests scheduled behind the warm-up, and what came behind it.
struct Totals {
  int64_t requests = 0;
  int64_t finished = 0;
  int64_t left = 0;
  int64_t cut = 0;
  int64_t not_sent = 0;  // the generator itself could not begin them
  std::map<absl::StatusCode, int64_t> failed;
  int64_t breaks = 0;               // streams that broke and went on
  int64_t tokens = 0;               // that came between warm-up and end of the run
  int64_t prompt_tokens = 0;        // of requests that ended between them
  int64_t ended = 0;                // finished requests that ended between them
  int64_t open_max = 0;             // streams open at the same time, warm-up included
  LatencyHistogram first_token;     // scheduled to first token
  LatencyHistogram inter_token;     // between messages that bring tokens
  LatencyHistogram time_per_token;  // of a finished request: (end - first token) / (tokens - 1)
  LatencyHistogram end_to_end;      // scheduled to the end, of finished requests

  int64_t failures() const;
};

// Thread-safe.
class Recorder {
 public:
  // The run is measured from `warmup` to `stop`, both nanoseconds from its start.
  Recorder(int64_t warmup, int64_t stop) : warmup_(warmup), stop_(stop) {}

  void Begin(int64_t now);  // a stream is opened; End closes it
  // `tokens` came; `gap`: since the message before, or since `scheduled` for the first one.
  void Tokens(int64_t scheduled, int64_t now, int64_t gap, int64_t tokens, bool first);
  void End(const RequestOutcome& outcome);
  void NotSent(int64_t scheduled);

  // Call these when nothing records any more.
  const Totals& totals() const ABSL_NO_THREAD_SAFETY_ANALYSIS { return totals_; }
  const std::vector<Slice>& slices() const ABSL_NO_THREAD_SAFETY_ANALYSIS { return slices_; }
  int64_t slice_nanos() const ABSL_NO_THREAD_SAFETY_ANALYSIS { return slice_nanos_; }

 private:
  static constexpr size_t kMaxSlices = 240;

  bool Measured(int64_t time) const { return time >= warmup_ && time < stop_; }
  Slice& SliceAt(int64_t now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CountEnd(const RequestOutcome& outcome) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int64_t warmup_;
  const int64_t stop_;
  absl::Mutex mutex_;
  Totals totals_ ABSL_GUARDED_BY(mutex_);
  std::vector<Slice> slices_ ABSL_GUARDED_BY(mutex_);
  int64_t slice_nanos_ ABSL_GUARDED_BY(mutex_) = 250'000'000;
  int64_t open_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace fixpoint::client
