#include "server/metrics.h"

#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/build_id.h"
#include "prometheus/text_serializer.h"
#include "server/status_mapping.h"
#include "server/version.h"

namespace fixpoint {
namespace {

using Buckets = prometheus::Histogram::BucketBoundaries;

// A decode step of a small model takes well under a millisecond on a good device: the field's usual
// 10 ms floor would put all of them into one bucket.
const Buckets kTokenSeconds = {0.0002, 0.0005, 0.001, 0.0015, 0.002,  0.003, 0.004,
                               0.005,  0.0065, 0.008, 0.01,   0.0125, 0.015, 0.02,
                               0.025,  0.03,   0.04,  0.05,   0.075,  0.1,   0.15,
                               0.2,    0.3,    0.5,   1,      2.5,    5,     10};
const Buckets kFirstTokenSeconds = {0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08,
                                    0.1,   0.25,   0.5,   0.75, 1,    2.5,  5,    7.5,
                                    10,    20,     40,    80,   160,  640};
const Buckets kRequestSeconds = {0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1,   1.5, 2,   2.5,
                                 5,    10,    15,   20,  30,  40,  50,  60,  120, 240, 480, 960};
const Buckets kOverheadSeconds = {0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005,
                                  0.001,   0.0025,   0.005,   0.01,   0.1};
const Buckets kSequences = {1, 2, 4, 8, 16, 32, 64, 128, 256};
const Buckets kTokens = {1,   2,    5,    10,   20,    50,    100,   200,
                         500, 1000, 2000, 5000, 10000, 20000, 50000, 100000};

const char* ReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kDeadline:
      return "deadline";
    case FinishReason::kError:
      return "error";
  }
  return "error";
}

constexpr RefusalReason kRefusalReasons[] = {RefusalReason::kLoading,     RefusalReason::kDraining,
                                             RefusalReason::kDeviceLost,  RefusalReason::kStuck,
                                             RefusalReason::kIntakeFull,  RefusalReason::kQueueFull,
                                             RefusalReason::kQueueTimeout};

const char* RefusalName(RefusalReason reason) {
  switch (reason) {
    case RefusalReason::kLoading:
      return "loading";
    case RefusalReason::kDraining:
      return "draining";
    case RefusalReason::kDeviceLost:
      return "device_lost";
    case RefusalReason::kStuck:
      return "stuck";
    case RefusalReason::kIntakeFull:
      return "intake_full";
    case RefusalReason::kQueueFull:
      return "queue_full";
    case RefusalReason::kQueueTimeout:
      return "queue_timeout";
  }
  return "unknown";
}

}  // namespace

double KvUsage(const EngineLoad& load) {
  if (load.total_blocks <= 0) return 0;
  return 1.0 - static_cast<double>(load.free_blocks) / load.total_blocks;
}

template <typename Kind>
prometheus::Family<Kind>& Metrics::Add(const char* name, const char* help) {
  if constexpr (std::is_same_v<Kind, prometheus::Counter>) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry_);
  } else {
    return prometheus::BuildGauge().Name(name).Help(help).Register(registry_);
  }
}

prometheus::Histogram& Metrics::AddHistogram(const char* name, const char* help,
                                             const Buckets& buckets) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(registry_).Add({}, buckets);
}

Metrics::Metrics()
    : calls_(Add<prometheus::Counter>("fixpoint_calls_total",
                                      "Calls that ended, by method and status code")),
      answers_(Add<prometheus::Counter>("fixpoint_requests_finished_total",
                                        "Generation requests that ended, by finish reason")),
      refused_(Add<prometheus::Counter>("fixpoint_calls_refused_total",
                                        "Calls refused before they ran, by reason")),
      slow_readers_(Add<prometheus::Counter>("fixpoint_slow_readers_total",
                                             "Calls ended because their caller took nothing")
                        .Add({})),
      preemptions_(Add<prometheus::Counter>("fixpoint_preemptions_total",
                                            "Running requests that lost their key/value blocks")
                       .Add({})),
      cache_query_tokens_(Add<prometheus::Counter>("fixpoint_prefix_cache_query_tokens_total",
                                                   "Prompt tokens looked up in the prefix cache")
                              .Add({})),
      cache_hit_tokens_(Add<prometheus::Counter>("fixpoint_prefix_cache_hit_tokens_total",
                                                 "Prompt tokens found in the prefix cache")
                            .Add({})),
      drafts_(Add<prometheus::Counter>("fixpoint_drafts_total",
                                       "Steps of requests in which prompt lookup proposed tokens")
                  .Add({})),
      draft_tokens_(Add<prometheus::Counter>("fixpoint_draft_tokens_total",
                                             "Tokens that prompt lookup proposed")
                        .Add({})),
      accepted_draft_tokens_(Add<prometheus::Counter>("fixpoint_draft_tokens_accepted_total",
                                                      "Proposed tokens that the model chose")
                                 .Add({})),
      prompt_tokens_(
          Add<prometheus::Counter>("fixpoint_prompt_tokens_total", "Prompt tokens admitted")
              .Add({})),
      cached_tokens_(
          Add<prometheus::Counter>("fixpoint_prompt_tokens_cached_total",
                                   "Prompt tokens whose keys and values were already there")
              .Add({})),
      generation_tokens_(
          Add<prometheus::Counter>("fixpoint_generation_tokens_total", "Tokens generated").Add({})),
      time_to_first_token_(AddHistogram("fixpoint_time_to_first_token_seconds",
                                        "From submission to the first token", kFirstTokenSeconds)),
      inter_token_latency_(AddHistogram("fixpoint_inter_token_latency_seconds",
                                        "Between two tokens of a request", kTokenSeconds)),
      request_duration_(AddHistogram("fixpoint_request_duration_seconds",
                                     "From submission to the end of a request", kRequestSeconds)),
      queue_time_(AddHistogram("fixpoint_request_queue_time_seconds",
                               "From submission to a place in the batch", kFirstTokenSeconds)),
      step_forward_(
          AddHistogram("fixpoint_step_forward_seconds", "Forward pass of one step", kTokenSeconds)),
      step_other_(AddHistogram("fixpoint_step_other_seconds",
                               "Rest of one step: scheduling, sampling, delivery",
                               kOverheadSeconds)),
      step_sequences_(AddHistogram("fixpoint_step_sequences", "Sequences in one step", kSequences)),
      step_tokens_(AddHistogram("fixpoint_step_tokens", "Tokens in one step", kTokens)),
      request_prompt_tokens_(
          AddHistogram("fixpoint_request_prompt_tokens", "Prompt tokens of a request", kTokens)),
      request_generation_tokens_(AddHistogram("fixpoint_request_generation_tokens",
                                              "Tokens generated for a request", kTokens)),
      running_(
          Add<prometheus::Gauge>("fixpoint_requests_running", "Requests in the batch").Add({})),
      waiting_(
          Add<prometheus::Gauge>("fixpoint_requests_waiting", "Requests in the queue").Add({})),
      waiting_tokens_(Add<prometheus::Gauge>("fixpoint_waiting_tokens",
                                             "Prompt tokens of the requests in the queue")
                          .Add({})),
      kv_usage_(Add<prometheus::Gauge>("fixpoint_kv_cache_usage_ratio",
                                       "Used share of the key/value blocks")
                    .Add({})),
      kv_free_(
          Add<prometheus::Gauge>("fixpoint_kv_cache_free_blocks", "Free key/value blocks").Add({})),
      kv_total_(
          Add<prometheus::Gauge>("fixpoint_kv_cache_blocks", "Key/value blocks, free and used")
              .Add({})),
      ready_(
          Add<prometheus::Gauge>("fixpoint_ready", "1 when a new request would be served").Add({})),
      draining_(Add<prometheus::Gauge>("fixpoint_draining", "1 from SIGTERM on").Add({})),
      stuck_(Add<prometheus::Gauge>("fixpoint_engine_stuck",
                                    "1 while a step takes longer than the watchdog allows")
                 .Add({})) {
  Add<prometheus::Gauge>("fixpoint_build_info", "The running program; always 1")
      .Add({{"version", kServerVersion}, {"build_id", BuildId()}})
      .Set(1);
  // Counters that exist from the start make rates right from the first event.
  for (const FinishReason reason :
       {FinishReason::kStop, FinishReason::kLength, FinishReason::kCancelled,
        FinishReason::kDeadline, FinishReason::kError}) {
    answers_.Add({{"reason", ReasonName(reason)}});
  }
  for (const RefusalReason reason : kRefusalReasons) {
    refused_.Add({{"reason", RefusalName(reason)}});
  }
  for (const char* method : {"Generate", "GenerateOnce"}) {
    for (const absl::StatusCode code :
         {absl::StatusCode::kOk, absl::StatusCode::kResourceExhausted,
          absl::StatusCode::kUnavailable, absl::StatusCode::kInternal}) {
      calls_.Add({{"method", method}, {"code", CodeName(code)}});
    }
  }
}

void Metrics::OnFirstToken(absl::Duration since_submit) {
  time_to_first_token_.Observe(absl::ToDoubleSeconds(since_submit));
}

void Metrics::OnToken(absl::Duration since_previous) {
  inter_token_latency_.Observe(absl::ToDoubleSeconds(since_previous));
}

void Metrics::OnAdmitted(absl::Duration queued, int32_t prompt_tokens, int32_t cached_tokens) {
  queue_time_.Observe(absl::ToDoubleSeconds(queued));
  prompt_tokens_.Increment(prompt_tokens);
  cached_tokens_.Increment(cached_tokens);
}

void Metrics::OnFinished(FinishReason, int32_t prompt_tokens, int32_t generated,
                         absl::Duration since_submit) {
  request_duration_.Observe(absl::ToDoubleSeconds(since_submit));
  request_prompt_tokens_.Observe(prompt_tokens);
  request_generation_tokens_.Observe(generated);
  generation_tokens_.Increment(generated);
}

void Metrics::OnStep(int32_t sequences, int32_t tokens, absl::Duration forward,
                     absl::Duration other) {
  ++steps_;
  step_sequences_.Observe(sequences);
  step_tokens_.Observe(tokens);
  step_forward_.Observe(absl::ToDoubleSeconds(forward));
  step_other_.Observe(absl::ToDoubleSeconds(other));
}

void Metrics::OnCacheLookup(int32_t query_tokens, int32_t hit_tokens) {
  cache_query_tokens_.Increment(query_tokens);
  cache_hit_tokens_.Increment(hit_tokens);
}

void Metrics::OnPreempted() { preemptions_.Increment(); }

void Metrics::OnDraft(int32_t drafted, int32_t accepted) {
  drafts_.Increment();
  draft_tokens_.Increment(drafted);
  accepted_draft_tokens_.Increment(accepted);
}

uint64_t Metrics::cache_query_tokens() const {
  return static_cast<uint64_t>(cache_query_tokens_.Value());
}

uint64_t Metrics::cache_hit_tokens() const {
  return static_cast<uint64_t>(cache_hit_tokens_.Value());
}

void Metrics::Refused(RefusalReason reason) {
  refused_.Add({{"reason", RefusalName(reason)}}).Increment();
}

void Metrics::SlowReaderEnded() { slow_readers_.Increment(); }

void Metrics::CallEnded(absl::string_view method, absl::StatusCode code) {
  calls_.Add({{"method", std::string(method)}, {"code", CodeName(code)}}).Increment();
}

void Metrics::AnswerEnded(FinishReason reason) {
  answers_.Add({{"reason", ReasonName(reason)}}).Increment();
}

void Metrics::SetModel(const ModelIdentity& identity, const EngineLimits& limits,
                       std::function<EngineLoad()> load) {
  Add<prometheus::Gauge>("fixpoint_bundle_info", "The served bundle; always 1")
      .Add({{"model", identity.name},
            {"digest", identity.bundle_digest},
            {"numerics", absl::StrCat(identity.numerics_version)},
            {"device", identity.device}})
      .Set(1);
  // Constants that routers need beside the gauges.
  Add<prometheus::Gauge>("fixpoint_kv_cache_block_tokens", "Tokens in a key/value block")
      .Add({})
      .Set(limits.block_tokens);
  Add<prometheus::Gauge>("fixpoint_max_running", "Requests that the batch can hold")
      .Add({})
      .Set(limits.max_running);
  Add<prometheus::Gauge>("fixpoint_max_waiting", "Requests that the queue can hold")
      .Add({})
      .Set(limits.max_queue_requests);
  absl::MutexLock lock(&mutex_);
  load_ = std::move(load);
}

void Metrics::SetReady(bool ready) { ready_.Set(ready ? 1 : 0); }

void Metrics::SetDraining() { draining_.Set(1); }

void Metrics::SetStuck(bool stuck) { stuck_.Set(stuck ? 1 : 0); }

std::string Metrics::Render() {
  {
    absl::MutexLock lock(&mutex_);
    if (load_ != nullptr) {
      const EngineLoad load = load_();
      running_.Set(load.running);
      waiting_.Set(load.waiting);
      waiting_tokens_.Set(static_cast<double>(load.waiting_tokens));
      kv_free_.Set(load.free_blocks);
      kv_total_.Set(load.total_blocks);
      kv_usage_.Set(KvUsage(load));
    }
  }
  std::ostringstream out;
  prometheus::TextSerializer().Serialize(out, registry_.Collect());
  return std::move(out).str();
}

}  // namespace fixpoint
