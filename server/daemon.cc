#include "server/daemon.h"

#include <signal.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "server/calibration_cache.h"
#include "server/generation_service.h"
#include "server/grpc_host.h"
#include "server/http_server.h"
#include "server/log.h"
#include "server/metrics.h"
#include "server/serving_core.h"
#include "server/ticker.h"
#include "server/version.h"
#include "server/watchdog.h"

namespace fixpoint {
namespace {

// How often the engine's health is looked at while serving.
constexpr absl::Duration kHealthPoll = absl::Seconds(1);
// How often the watchdog and the slow readers are looked at: often enough for the shortest of their
// limits, at most four times a second.
absl::Duration TickPeriod(const DaemonOptions& options) {
  const absl::Duration shortest = std::min(options.watchdog, options.slow_reader_timeout) / 4;
  return std::clamp(shortest, absl::Milliseconds(1), absl::Milliseconds(250));
}
// For the last messages of calls that the end of the drain cancelled.
constexpr absl::Duration kFlushTime = absl::Seconds(1);

class Daemon {
 public:
  Daemon(const DaemonOptions& options, const StopSignal& stop)
      : options_(options),
        stop_(stop),
        core_(ServingOptions{}, &metrics_),
        service_(&core_),
        watchdog_(options.watchdog) {}

  absl::Status Run() {
    const absl::Time start = absl::Now();
    ASSIGN_OR_RETURN(const ModelKind kind, ClassifyModel(options_.model));
    Bundle bundle;
    if (kind == ModelKind::kBundle) {
      ASSIGN_OR_RETURN(bundle, ReadBundle(options_.model));
    }
    RETURN_IF_ERROR(Listen());
    if (kind == ModelKind::kCheckpoint) {
      ASSIGN_OR_RETURN(bundle, CalibratedBundle());
    }
    if (stop_.signal() == 0) {
      RETURN_IF_ERROR(Load(std::move(bundle), start));
    }
    const Ticker ticker(TickPeriod(options_), [this] { Tick(); });
    if (core_.model() != nullptr) {
      RETURN_IF_ERROR(Serve());
    }
    Drain();
    return absl::OkStatus();
  }

 private:
  absl::Status Listen() {
    RETURN_IF_ERROR(grpc_.Start(options_.listen, &service_));
    LogLine line(LogLevel::kInfo, "listening");
    line.Add("grpc",
             ListenAddress{options_.listen.host, static_cast<uint16_t>(grpc_.port())}.ToString());
    if (options_.http.has_value()) {
      AddRoutes();
      RETURN_IF_ERROR(http_.Start({.host = options_.http->host, .port = options_.http->port}));
      line.Add("http", ListenAddress{options_.http->host, http_.port()}.ToString());
    }
    line.Write();
    return absl::OkStatus();
  }

  void AddRoutes() {
    http_.Route("GET", "/metrics", [this](const HttpRequest&) {
      return HttpResponse{.content_type = "text/plain; version=0.0.4; charset=utf-8",
                          .body = metrics_.Render()};
    });
    // Liveness: a restart is what a stuck engine needs.
    http_.Route("GET", "/healthz", [this](const HttpRequest&) {
      if (core_.stuck()) return HttpResponse{.status = 503, .body = "engine stuck\n"};
      return HttpResponse{.body = "alive\n"};
    });
    http_.Route("GET", "/readyz", [this](const HttpRequest&) {
      if (core_.IsReady()) return HttpResponse{.body = "ready\n"};
      return HttpResponse{.status = 503, .body = core_.draining() ? "draining\n" : "not ready\n"};
    });
  }

  // Every way of telling readiness, from the one state that decides it. Whoever changes the state
  // calls this behind the change, so the last caller tells the last state.
  void PublishReadiness() {
    absl::MutexLock lock(&readiness_mutex_);
    const bool ready = core_.IsReady();
    grpc_.SetServing(ready);
    metrics_.SetReady(ready);
  }

  // On the ticker's thread.
  void Tick() {
    const absl::Duration now = SteadyNow();
    core_.open_calls().EndStuckReaders(now, options_.slow_reader_timeout);
    const std::shared_ptr<ServedModel> model = core_.model();
    if (model == nullptr) return;
    const EngineLoad load = model->engine().load();
    const bool stuck = watchdog_.Look(now, load.running + load.waiting > 0, metrics_.steps());
    if (stuck == core_.stuck()) return;
    if (stuck) {
      LogLine(LogLevel::kError, "engine_stuck")
          .Add("seconds_without_step", absl::ToDoubleSeconds(watchdog_.stalled()))
          .Add("running", load.running)
          .Add("waiting", load.waiting)
          .Write();
    } else {
      LogLine(LogLevel::kWarning, "engine_recovered").Write();
    }
    core_.SetStuck(stuck);
    metrics_.SetStuck(stuck);
    PublishReadiness();
  }

  // A bundle in the cache that cannot be read any more is made anew, once.
  absl::StatusOr<Bundle> CalibratedBundle() {
    const CalibrationRequest request{.checkpoint = options_.model,
                                     .progress = options_.progress,
                                     .threads = options_.load.threads};
    ASSIGN_OR_RETURN(std::string path, BundleOfCheckpoint(request, /*ignore_cached=*/false, stop_));
    absl::StatusOr<Bundle> bundle = ReadBundle(path);
    if (bundle.ok()) return bundle;
    LogLine(LogLevel::kWarning, "calibration_cache_damaged")
        .Add("error", bundle.status().message())
        .Write();
    ASSIGN_OR_RETURN(path, BundleOfCheckpoint(request, /*ignore_cached=*/true, stop_));
    return ReadBundle(path);
  }

  absl::Status Load(Bundle bundle, absl::Time start) {
    ASSIGN_OR_RETURN(
        std::shared_ptr<ServedModel> model,
        LoadModel(std::move(bundle), ModelName(options_.model), options_.load, &metrics_));
    LogLine line(LogLevel::kInfo, "ready");
    line.Add("version", kServerVersion).Add("model", model->identity().name);
    line.Add("system_fingerprint", model->fingerprint());
    line.Add("context_tokens", model->limits().engine.max_context_tokens);
    line.Add("kv_blocks", model->engine().load().total_blocks);
    core_.SetModel(std::move(model));
    PublishReadiness();
    line.Add("seconds", absl::ToDoubleSeconds(absl::Now() - start)).Write();
    return absl::OkStatus();
  }

  // A lost device cannot come back inside this process: its supervisor starts a new one.
  absl::Status Serve() {
    while (!stop_.Wait(kHealthPoll)) {
      if (core_.model()->engine().healthy()) continue;
      PublishReadiness();
      grpc_.Shutdown(absl::Now() + kFlushTime);
      http_.Stop();
      return absl::InternalError("the device was lost");
    }
    return absl::OkStatus();
  }

  void Drain() {
    core_.BeginDrain();
    PublishReadiness();
    // Load balancers learn of the drain from the probes and need a moment to turn away. SIGINT is a
    // person at a terminal.
    const absl::Duration notice =
        stop_.signal() == SIGTERM ? options_.drain_notice : absl::ZeroDuration();
    LogLine(LogLevel::kInfo, "draining")
        .Add("notice_seconds", absl::ToDoubleSeconds(notice))
        .Write();
    const std::shared_ptr<ServedModel> model = core_.model();
    if (model != nullptr) absl::SleepFor(notice);
    core_.RefuseNewCalls();
    const absl::Time deadline = absl::Now() + options_.drain_timeout;
    if (model != nullptr) model->engine().Drain(options_.drain_timeout);
    grpc_.Shutdown(deadline + kFlushTime);
    http_.Stop();
    LogLine(LogLevel::kInfo, "stopped").Write();
  }

  const DaemonOptions& options_;
  const StopSignal& stop_;
  // In the order in which each may use the ones before it.
  Metrics metrics_;
  ServingCore core_;
  GenerationService service_;
  HttpServer http_;
  GrpcHost grpc_;
  Watchdog watchdog_;  // the ticker's thread only
  absl::Mutex readiness_mutex_;
};

}  // namespace

absl::Status RunDaemon(const DaemonOptions& options, const StopSignal& stop) {
  absl::Status status = Daemon(options, stop).Run();
  // A calibration that the signal ended is a clean stop.
  return absl::IsCancelled(status) && stop.signal() != 0 ? absl::OkStatus() : status;
}

}  // namespace fixpoint
