// Flags that generate and chat share, and the request they make.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "fixpoint/v1/generation.pb.h"

namespace fixpoint::client {

// What is not given is not sent: the server's defaults hold, and the server checks the ranges.
struct GenerationFlags {
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<uint32_t> top_k;
  std::optional<double> min_p;
  std::optional<uint64_t> seed;
  std::optional<double> presence_penalty;
  std::optional<double> frequency_penalty;
  std::optional<double> repetition_penalty;
  std::vector<std::string> logit_bias;  // "ID:BIAS"
  std::optional<uint32_t> max_tokens;
  std::optional<uint32_t> min_tokens;
  std::vector<std::string> stop_strings;
  std::vector<uint32_t> stop_ids;
  bool ignore_eos = false;
  std::optional<uint32_t> top_logprobs;
  std::optional<uint32_t> prompt_logprobs;
  std::string json_schema_file;
  std::optional<std::string> regex;
  bool json_object = false;
  std::string speculation;  // "auto", "on", "off"; empty: not sent
  std::optional<std::string> cache_salt;
  bool no_cache = false;
  std::optional<int32_t> priority;
  std::vector<uint32_t> resume_ids;

  // All but the prompt. INVALID_ARGUMENT names the flag; a file that cannot be read is named, too.
  absl::StatusOr<v1::GenerateRequest> ToRequest() const;
};

void AddGenerationFlags(CLI::App* command, GenerationFlags* flags);

}  // namespace fixpoint::client
