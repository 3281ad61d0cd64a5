// What all handlers share: the model once it is loaded, the life-cycle state, worker threads and
// metrics.
#pragma once

#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/metrics.h"
#include "server/open_calls.h"
#include "server/served_model.h"
#include "server/worker_pool.h"

namespace fixpoint {

struct ServingOptions {
  int intake_threads = 2;        // parse, render and tokenize prompts
  size_t max_intake_jobs = 256;  // calls that wait for that
  int delivery_threads = 2;      // detokenize and write
};

// Thread-safe. Destroy it after all calls have ended (the gRPC and HTTP servers are shut down).
class ServingCore {
 public:
  ServingCore(const ServingOptions& options, Metrics* metrics);

  // The model, or UNAVAILABLE: still loading, refusing (draining), the device lost or the engine
  // stuck. A refusal is counted.
  absl::StatusOr<std::shared_ptr<ServedModel>> ModelForNewCall() const;
  // True when ModelForNewCall would succeed and no drain has begun: what readiness probes ask.
  bool IsReady() const;

  void SetModel(std::shared_ptr<ServedModel> model);
  // Null while loading.
  std::shared_ptr<ServedModel> model() const;
  // SIGTERM: not ready any more, but calls are still served.
  void BeginDrain();
  bool draining() const;
  // From now on new calls are refused.
  void RefuseNewCalls();
  // What the watchdog says of the engine.
  void SetStuck(bool stuck);
  bool stuck() const;

  // Bounded: use TryPost.
  WorkerPool& intake() { return intake_; }
  // Each open call has at most one job in it: use Post.
  WorkerPool& delivery() { return delivery_; }
  Metrics& metrics() const { return *metrics_; }
  OpenCalls& open_calls() { return open_calls_; }

 private:
  // Null and the reason when a new call cannot be taken.
  std::shared_ptr<ServedModel> Available(RefusalReason* refusal) const;

  Metrics* const metrics_;
  mutable absl::Mutex mutex_;
  std::shared_ptr<ServedModel> model_ ABSL_GUARDED_BY(mutex_);
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool refusing_ ABSL_GUARDED_BY(mutex_) = false;
  bool stuck_ ABSL_GUARDED_BY(mutex_) = false;
  OpenCalls open_calls_;
  // Destroyed first: their jobs use everything above.
  WorkerPool delivery_;
  WorkerPool intake_;
};

}  // namespace fixpoint
