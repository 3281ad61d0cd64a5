// Sends requests in a closed or open loop and records what happens.
#pragma once

#include <cstdint>
#include <functional>

#include "absl/status/statusor.h"
#include "server/client/bench/recorder.h"
#include "server/client/bench/workload.h"
#include "server/client/library/resumable_call.h"

namespace fixpoint::client {

struct LoadOptions {
  // Closed loop: so many streams, each begins the next request when one ends. 0: open loop.
  int concurrency = 0;
  // Open loop: requests begin as a Poisson process of so many a second, whatever becomes of them.
  double rate = 0;
  // Seconds from the start, in which concurrency or rate rises evenly from nothing.
  double ramp = 0;
  // Requests scheduled in the first so many seconds are not measured.
  double warmup = 0;
  // The run ends after so many seconds behind the warm-up, or (0) after `requests` measured ones.
  double duration = 0;
  int64_t requests = 0;
  // Seconds that open streams then still get.
  double drain = 60;
  // Open loop: streams at a time at most. Requests beyond wait here, and their latency counts.
  int max_streams = 4096;
  uint64_t seed = 0;
};

// One call, blocking, with the library's meaning of callback, cancellation and report.
using AskFunction = std::function<absl::Status(const RequestSpec& spec, Cancellation* cancellation,
                                               const OnMessage& on_message, CallReport* report)>;

struct LoadResult {
  Totals totals;
  std::vector<Slice> slices;
  double slice_seconds = 0;
  double measured_seconds = 0;
};

// Latencies count from the time when a request should have begun: in an open loop its arrival, so a
// server (or this process) that falls behind is not flattered; in a closed loop when the stream
// became free. One thread for each open stream. RESOURCE_EXHAUSTED when a thread cannot be started.
absl::StatusOr<LoadResult> RunLoad(const LoadOptions& options, const Workload& workload,
                                   const AskFunction& ask);

}  // namespace fixpoint::client
