// Flags that generate and chat share, and the request they make.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "fixpoint/v1/generation.pb.h"

namespace fixpoint::client {

// What is not given is not sent: the server's defaults hold, and the server checks the ranges.
struct GenerationFlags {
  std::vector<std::string> targets = {"127.0.0.1:50051"};
  double connect_timeout = 5;  // seconds for each target
  std::optional<uint32_t> max_tokens;
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<uint32_t> top_k;
  std::optional<double> min_p;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop_strings;

  // All but the prompt.
  v1::GenerateRequest ToRequest() const;
};

void AddTargetFlags(CLI::App* command, GenerationFlags* flags);
void AddGenerationFlags(CLI::App* command, GenerationFlags* flags);

}  // namespace fixpoint::client
