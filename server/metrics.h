// What /metrics shows. All names begin with fixpoint_; times are in seconds, sizes in bytes or
// tokens.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "engine/engine.h"
#include "prometheus/counter.h"
#include "prometheus/family.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "server/served_model.h"

namespace fixpoint {

// Why a call was refused before it ran.
enum class RefusalReason {
  kLoading,
  kDraining,
  kDeviceLost,
  kStuck,
  kIntakeFull,    // too many calls wait to be tokenized
  kQueueFull,     // the engine's queue
  kQueueTimeout,  // waited in it too long
};

// Used share of the key/value blocks, 0 to 1.
double KvUsage(const EngineLoad& load);

// Thread-safe. The engine thread calls the On... functions: each is a few uncontended locks.
class Metrics final : public EngineObserver {
 public:
  Metrics();

  void OnFirstToken(absl::Duration since_submit) override;
  void OnToken(absl::Duration since_previous) override;
  void OnAdmitted(absl::Duration queued, int32_t prompt_tokens, int32_t cached_tokens) override;
  void OnFinished(FinishReason reason, int32_t prompt_tokens, int32_t generated,
                  absl::Duration since_submit) override;
  void OnStep(int32_t sequences, int32_t tokens, absl::Duration forward,
              absl::Duration other) override;

  void OnCacheLookup(int32_t query_tokens, int32_t hit_tokens) override;
  void OnPreempted() override;
  void OnDraft(int32_t drafted, int32_t accepted) override;

  // Steps that have ended: the watchdog's sign of life.
  uint64_t steps() const { return steps_; }
  uint64_t cache_query_tokens() const;
  uint64_t cache_hit_tokens() const;

  // Every call of every method ends with one of these. `method` is one of a fixed few names: label
  // values stay bounded.
  void CallEnded(absl::string_view method, absl::StatusCode code);
  // An answer came to its own end. (An answer cut off at a stop string is cancelled inside the
  // engine, so the engine's own reason would be wrong here.)
  void AnswerEnded(FinishReason reason);

  void Refused(RefusalReason reason);
  // A call was ended because its caller took nothing for too long.
  void SlowReaderEnded();
  // The served model, from when it is loaded; gauges are read from `load` at each scrape.
  void SetModel(const ModelIdentity& identity, const EngineLimits& limits,
                std::function<EngineLoad()> load);
  void SetReady(bool ready);
  void SetDraining();
  void SetStuck(bool stuck);

  // Text exposition format 0.0.4.
  std::string Render();

 private:
  template <typename Kind>
  prometheus::Family<Kind>& Add(const char* name, const char* help);
  prometheus::Histogram& AddHistogram(const char* name, const char* help,
                                      const prometheus::Histogram::BucketBoundaries& buckets);

  prometheus::Registry registry_;
  std::atomic<uint64_t> steps_{0};
  prometheus::Family<prometheus::Counter>& calls_;
  prometheus::Family<prometheus::Counter>& answers_;
  prometheus::Family<prometheus::Counter>& refused_;
  prometheus::Counter& slow_readers_;
  prometheus::Counter& preemptions_;
  prometheus::Counter& cache_query_tokens_;
  prometheus::Counter& cache_hit_tokens_;
  prometheus::Counter& drafts_;
  prometheus::Counter& draft_tokens_;
  prometheus::Counter& accepted_draft_tokens_;
  prometheus::Counter& prompt_tokens_;
  prometheus::Counter& cached_tokens_;
  prometheus::Counter& generation_tokens_;
  prometheus::Histogram& time_to_first_token_;
  prometheus::Histogram& inter_token_latency_;
  prometheus::Histogram& request_duration_;
  prometheus::Histogram& queue_time_;
  prometheus::Histogram& step_forward_;
  prometheus::Histogram& step_other_;
  prometheus::Histogram& step_sequences_;
  prometheus::Histogram& step_tokens_;
  prometheus::Histogram& request_prompt_tokens_;
  prometheus::Histogram& request_generation_tokens_;
  prometheus::Gauge& running_;
  prometheus::Gauge& waiting_;
  prometheus::Gauge& waiting_tokens_;
  prometheus::Gauge& kv_usage_;
  prometheus::Gauge& kv_free_;
  prometheus::Gauge& kv_total_;
  prometheus::Gauge& ready_;
  prometheus::Gauge& draining_;
  prometheus::Gauge& stuck_;
  absl::Mutex mutex_;
  std::function<EngineLoad()> load_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace fixpoint
