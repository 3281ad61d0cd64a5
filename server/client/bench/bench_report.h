// A load run as text, JSON and plot. Pure.
#pragma once

#include <string>
#include <vector>

#include "server/client/bench/load_runner.h"
#include "server/client/bench/svg_plot.h"

namespace fixpoint::client {

// What was run, in words and for repeating it.
struct BenchSetup {
  std::vector<std::string> targets;
  std::string model;
  std::string system_fingerprint;
  std::string server_version;
  LoadOptions load;
  WorkloadOptions workload;
  std::string prompts;  // "random tokens", or the file that they are pieces of
  double temperature = 0;
  std::string started_at;  // RFC 3339
};

// "closed loop of 32 streams, 60 s behind 5 s of warm-up"
std::string LoadSentence(const LoadOptions& load);

std::string BenchText(const BenchSetup& setup, const LoadResult& result);
std::string BenchJson(const BenchSetup& setup, const LoadResult& result);
Plot BenchPlot(const BenchSetup& setup, const LoadResult& result);

}  // namespace fixpoint::client
