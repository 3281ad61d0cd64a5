// The life of the server process: listen, load, serve, drain.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/listen_address.h"
#include "server/model_loader.h"
#include "server/stop_signal.h"

namespace fixpoint {

struct DaemonOptions {
  std::string model;                  // bundle or checkpoint
  ListenAddress listen;               // gRPC
  std::optional<ListenAddress> http;  // metrics and probes; nullopt: no HTTP
  LoadOptions load;
  std::string progress = "json";  // of a calibration: bar, json or none
  absl::Duration drain_notice = absl::Seconds(5);
  absl::Duration drain_timeout = absl::Seconds(30);
  // A step that takes longer while work is open: the engine counts as stuck.
  absl::Duration watchdog = absl::Seconds(60);
  // A call whose caller takes nothing for so long is cancelled.
  absl::Duration slow_reader_timeout = absl::Seconds(30);
};

// Returns when a signal has stopped the server and all calls have ended (OK), or with what went
// wrong: one line that names the thing. A model that is a bundle is read before any port is opened;
// a checkpoint is calibrated while the ports are open and the probes say "not ready".
absl::Status RunDaemon(const DaemonOptions& options, const StopSignal& stop);

}  // namespace fixpoint
