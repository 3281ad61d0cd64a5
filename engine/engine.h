// The serving engine: one thread owns scheduler, KV blocks and sampler and drives an Executor.
// Callers on any thread submit requests and read events. No network here.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/executor.h"
#include "engine/request.h"

namespace fixpoint {

struct EngineOptions {
  std::vector<int32_t> prefix_token_ids;  // absorbed when a prompt starts with them
  std::vector<int32_t> eos_ids;
  int32_t logit_fraction_bits = 16;
  int32_t max_queue_requests = 256;    // waiting, beyond the running ones
  int64_t max_queue_tokens = 1 << 20;  // prompt tokens waiting
  absl::Duration max_queue_time = absl::InfiniteDuration();
  int32_t max_running = 64;            // sequences in one step
  int32_t prefill_chunk_tokens = 256;  // prompt tokens of a step at most
  int32_t mixed_prefill_tokens = 32;   // the same beside a sequence that decodes: it waits for them
  bool prefix_cache = true;            // false: no request takes or leaves shared blocks
  int32_t stream_capacity_events =
      8192;  // a stream that nobody reads is cancelled when this many events wait
};

// Reader's side of a request. Thread-safe. Dropping the last reference cancels the request.
class Stream {
 public:
  virtual ~Stream() = default;
  // Takes the next event if there is one. After the end event it returns false forever.
  virtual bool TryNext(Event* event) = 0;
  // Blocks until an event can be taken, or the timeout passes (false).
  virtual bool Next(Event* event, absl::Duration timeout) = 0;
  // Called by the engine thread whenever events became available, and once at once if some already
  // wait. Must be quick and must not call back into the engine. Set at most once; ClearListener
  // waits until a running call has returned.
  virtual void SetListener(std::function<void()> listener) = 0;
  virtual void ClearListener() = 0;
  // Ends the request with kCancelled within two steps. Idempotent.
  virtual void Cancel() = 0;
};

// Told by the engine thread; implementations (the server's metrics) must be quick and thread-safe.
class EngineObserver {
 public:
  virtual ~EngineObserver() = default;
  virtual void OnFirstToken(absl::Duration /*since_submit*/) {}
  virtual void OnToken(absl::Duration /*since_previous*/) {}
  virtual void OnAdmitted(absl::Duration /*queued*/, int32_t /*prompt_tokens*/,
                          int32_t /*cached_tokens*/) {}
  virtual void OnFinished(FinishReason, int32_t /*prompt_tokens*/, int32_t /*generated*/,
                          absl::Duration /*since_submit*/) {}
  // At the end of each step. The server's watchdog takes it as the sign of life. `forward`: in the
  // executor; `other`: the engine's own work, also that beside a device which computes meanwhile.
  virtual void OnStep(int32_t /*sequences*/, int32_t /*tokens*/, absl::Duration /*forward*/,
                      absl::Duration /*other*/) {}
  // A prompt was looked up in the prefix cache: tokens asked for, and of them found.
  virtual void OnCacheLookup(int32_t /*query_tokens*/, int32_t /*hit_tokens*/) {}
  // A running request lost its blocks to another one and will be computed anew.
  virtual void OnPreempted() {}
  // Prompt lookup proposed `drafted` >= 1 tokens in a step of one request; the model chose the
  // first `accepted` of them.
  virtual void OnDraft(int32_t /*drafted*/, int32_t /*accepted*/) {}
};

struct EngineLoad {
  int32_t running = 0;
  int32_t waiting = 0;
  int64_t waiting_tokens = 0;
  int32_t free_blocks = 0;
  int32_t total_blocks = 0;
};

struct EngineLimits {
  int32_t max_prompt_tokens = 0;   // with room for one generated token
  int32_t max_context_tokens = 0;  // prompt + generated
  int32_t vocab_size = 0;
  // What load balancers are told; 0: not known.
  int32_t block_tokens = 0;
  int32_t max_running = 0;
  int32_t max_queue_requests = 0;
  int64_t max_queue_tokens = 0;
};

class Engine {
 public:
  // The executor must outlive the engine; observer may be null.
  static std::unique_ptr<Engine> Create(Executor* executor, const EngineOptions& options,
                                        EngineObserver* observer);
  virtual ~Engine() = default;

  virtual EngineLimits limits() const = 0;
  // INVALID_ARGUMENT (field, limit, value), RESOURCE_EXHAUSTED (queue full), UNAVAILABLE (draining
  // or device lost).
  virtual absl::StatusOr<std::shared_ptr<Stream>> Submit(Request request) = 0;
  virtual EngineLoad load() const = 0;
  // False once the device is lost.
  virtual bool healthy() const = 0;
  // Refuses new requests; returns when all have ended or the timeout passed, then cancels the rest.
  // The engine stays stopped.
  virtual void Drain(absl::Duration timeout) = 0;
};

}  // namespace fixpoint
