// The verbs of `fixpoint`. Each Add... registers a subcommand; its callback stores the exit status
// in *exit_code: 0, or 1 with one line on stderr. `replay` has its own (replay_command.cc).
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace fixpoint::client {

void AddGenerateCommand(CLI::App* app, int* exit_code);
void AddChatCommand(CLI::App* app, int* exit_code);
void AddReplayCommand(CLI::App* app, int* exit_code);
void AddBenchCommand(CLI::App* app, int* exit_code);
void AddHealthCommand(CLI::App* app, int* exit_code);
void AddTokenizeCommand(CLI::App* app, int* exit_code);
void AddModelCommand(CLI::App* app, int* exit_code);

// Prints "fixpoint: CODE: message" unless the status is OK; returns the exit status.
int Report(const absl::Status& status);

// `text`, or all of stdin for "-".
std::string TextOrStdin(const std::string& text);

}  // namespace fixpoint::client
