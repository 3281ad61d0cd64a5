// Flags about servers, which all verbs share.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/client/library/client.h"

namespace fixpoint::client {

struct TargetFlags {
  std::vector<std::string> targets = {"127.0.0.1:50051"};
  double connect_timeout = 5;        // seconds
  double stall_timeout = 60;         // seconds
  double first_message_timeout = 0;  // seconds; 0: any time
  double deadline = 0;               // seconds; 0: none
  int retries = 5;
  bool verbose = false;

  ClientOptions ToOptions() const;
  // The deadline from now on, and breaks on stderr with --verbose.
  CallOptions ToCallOptions() const;
};

// --target and --connect-timeout.
void AddTargetFlags(CLI::App* command, TargetFlags* flags);
// And how a call survives its servers. `retries`: the default.
void AddCallFlags(CLI::App* command, TargetFlags* flags);

}  // namespace fixpoint::client
