// fixpoint-server: serves a bundle. Exit status: 0 after a drain, 1 when it could not start or lost
// its device, 2 for wrong arguments, 128 + signal when a second signal ended it.
#include <CLI/CLI.hpp>
#include <cmath>
#include <iostream>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/build_id.h"
#include "base/status_macros.h"
#include "bundle/bundle.h"
#include "bundle/format.h"
#include "server/daemon.h"
#include "server/stop_signal.h"
#include "server/version.h"

namespace {

constexpr int kUsageError = 2;
constexpr double kMaxSeconds = 86400;

struct Flags {
  bool version = false;
  std::string listen = "127.0.0.1:50051";
  std::string http = "127.0.0.1:8080";
  double drain_notice = 5;
  double drain_timeout = 30;
  double watchdog = 60;
  double slow_reader_timeout = 30;
  double queue_timeout = 0;
  double self_test_budget = 2;
};

void AddFlags(CLI::App* app, Flags* flags, fixpoint::DaemonOptions* options) {
  app->add_flag("--version", flags->version,
                "Print version and build id, and of a BUNDLE its digests, and exit");
  app->add_option("BUNDLE", options->model,
                  "Bundle; or a checkpoint (GGUF file, directory), calibrated first");
  app->add_option("--listen", flags->listen, "Address and port for gRPC; port 0: any free one")
      ->capture_default_str();
  app->add_option("--http", flags->http,
                  "Address and port for /metrics, /healthz and /readyz; 'none': no HTTP")
      ->capture_default_str();
  app->add_option("--threads", options->load.threads, "Compute threads; 0: all CPUs")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app->add_flag("--pin-threads", options->load.pin_threads,
                "Bind compute threads to a CPU each: for machines that run nothing else");
  app->add_option("--device", options->load.device, "Device to compute on")->capture_default_str();
  app->add_option("--tensor-parallel", options->load.tensor_parallel,
                  "GPUs, from the one that --device names on, that share the model: 1, 2, 4 or 8")
      ->capture_default_str();
  app->add_option(
      "--cuda-algorithm-cache", options->load.cuda_algorithm_cache,
      "File that keeps the timed choice of matrix products on a GPU for the next start");
  app->add_option("--kv-cache-bytes", options->load.kv_cache_bytes,
                  "Size of the key/value cache; 0: half of the free memory")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app->add_option("--max-queue", options->load.max_queue_requests,
                  "Requests that may wait; more are refused")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app->add_option("--max-queue-tokens", options->load.max_queue_tokens,
                  "Prompt tokens that may wait; more are refused")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->capture_default_str();
  app->add_option("--queue-timeout", flags->queue_timeout,
                  "Seconds that a request may wait for a place in the batch; 0: any time")
      ->check(CLI::Range(0.0, kMaxSeconds))
      ->capture_default_str();
  app->add_option("--max-running", options->load.max_running,
                  "Requests in the batch at most; beyond 64 each takes 8 bytes x vocabulary")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app->add_option("--self-test-seconds", flags->self_test_budget,
                  "The start compares the bundle's golden digest if that takes no longer")
      ->check(CLI::Range(0.0, kMaxSeconds))
      ->capture_default_str();
  app->add_option("--watchdog", flags->watchdog,
                  "Seconds that one step may take before the server counts as stuck")
      ->check(CLI::Range(0.001, kMaxSeconds))
      ->capture_default_str();
  app->add_option("--slow-reader-timeout", flags->slow_reader_timeout,
                  "Seconds that a caller may take nothing before its call is cancelled")
      ->check(CLI::Range(0.001, kMaxSeconds))
      ->capture_default_str();
  app->add_option("--drain-notice", flags->drain_notice,
                  "Seconds of serving on after SIGTERM, not ready")
      ->check(CLI::Range(0.0, kMaxSeconds))
      ->capture_default_str();
  app->add_option("--drain-timeout", flags->drain_timeout,
                  "Seconds that open streams may then still take")
      ->check(CLI::Range(0.0, kMaxSeconds))
      ->capture_default_str();
  app->add_option("--progress", options->progress, "Progress of a calibration on stderr")
      ->check(CLI::IsMember({"bar", "json", "none"}))
      ->capture_default_str();
}

int Fail(const absl::Status& status, int code) {
  std::cerr << "fixpoint-server: " << status.message() << std::endl;
  return code;
}

// What runs here and, with a bundle, what it would serve: enough to say whether two replicas are
// the same.
absl::Status PrintVersion(const std::string& model) {
  std::string text =
      absl::StrCat("fixpoint-server ", fixpoint::kServerVersion, "\nbuild ", fixpoint::BuildId(),
                   "\nnumerics ", fixpoint::kNumericsVersion, "\n");
  if (!model.empty()) {
    ASSIGN_OR_RETURN(const fixpoint::Bundle bundle, fixpoint::ReadBundle(model));
    absl::StrAppend(&text, "bundle ", bundle.digest, "\ngolden ", bundle.golden_digest, "\n");
  }
  std::cout << text << std::flush;
  return std::cout.good() ? absl::OkStatus() : absl::UnavailableError("stdout cannot be written");
}

}  // namespace

int main(int argc, char** argv) {
  Flags flags;
  fixpoint::DaemonOptions options;
  CLI::App app("Serves a language model with integer arithmetic over gRPC.", "fixpoint-server");
  AddFlags(&app, &flags, &options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kUsageError;
  }
  if (flags.version) {
    const absl::Status status = PrintVersion(options.model);
    return status.ok() ? 0 : Fail(status, 1);
  }
  if (options.model.empty()) {
    return Fail(absl::InvalidArgumentError("which BUNDLE? (see --help)"), kUsageError);
  }
  if (absl::Status status =
          fixpoint::CheckDevice(options.load.device, options.load.tensor_parallel);
      !status.ok()) {
    return Fail(status, kUsageError);
  }
  const auto listen = fixpoint::ParseListenAddress(flags.listen);
  if (!listen.ok()) return Fail(fixpoint::Annotate(listen.status(), "--listen"), kUsageError);
  options.listen = *listen;
  if (flags.http != "none") {
    const auto http = fixpoint::ParseListenAddress(flags.http);
    if (!http.ok()) return Fail(fixpoint::Annotate(http.status(), "--http"), kUsageError);
    options.http = *http;
  }
  if (flags.queue_timeout > 0) options.load.max_queue_time = absl::Seconds(flags.queue_timeout);
  options.load.self_test_budget = absl::Seconds(flags.self_test_budget);
  options.watchdog = absl::Seconds(flags.watchdog);
  options.slow_reader_timeout = absl::Seconds(flags.slow_reader_timeout);
  options.drain_notice = absl::Seconds(flags.drain_notice);
  options.drain_timeout = absl::Seconds(flags.drain_timeout);

  const fixpoint::StopSignal stop;
  const absl::Status status = fixpoint::RunDaemon(options, stop);
  return status.ok() ? 0 : Fail(status, 1);
}
