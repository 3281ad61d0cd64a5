// fixpoint: the client. Exit status: 0, 1 when the server refused or could not be reached, 2 for
// wrong arguments. `replay`: 0 equal, 1 different, 2 error.
#include <grpc/support/log.h>

#include <CLI/CLI.hpp>
#include <csignal>

#include "server/client/commands.h"
#include "server/version.h"

int main(int argc, char** argv) {
  constexpr int kUsageError = 2;
  // Every failure comes back as a status and is reported once; the library's own lines would only
  // repeat it.
  gpr_set_log_function([](gpr_log_func_args*) {});
  std::signal(SIGPIPE, SIG_IGN);  // a reader of stdout that leaves ends the call, not the process
  CLI::App app("Client of fixpoint-server.", "fixpoint");
  app.set_version_flag("--version", fixpoint::kServerVersion);
  app.require_subcommand(1);
  int exit_code = 0;
  fixpoint::client::AddGenerateCommand(&app, &exit_code);
  fixpoint::client::AddChatCommand(&app, &exit_code);
  fixpoint::client::AddReplayCommand(&app, &exit_code);
  fixpoint::client::AddBenchCommand(&app, &exit_code);
  fixpoint::client::AddHealthCommand(&app, &exit_code);
  fixpoint::client::AddTokenizeCommand(&app, &exit_code);
  fixpoint::client::AddModelCommand(&app, &exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kUsageError;
  }
  return exit_code;
}
