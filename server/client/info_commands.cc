#include <iostream>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "base/json_writer.h"
#include "base/status_macros.h"
#include "server/client/commands.h"
#include "server/client/connection.h"
#include "server/client/generation_flags.h"
#include "server/status_mapping.h"

namespace fixpoint::client {
namespace {

struct InfoFlags {
  GenerationFlags generation;  // its targets
  std::string text;
  bool json = false;
};

absl::Duration Patience(const InfoFlags& flags) {
  return absl::Seconds(flags.generation.connect_timeout);
}

// One line a target. Healthy only when all of them serve.
absl::Status RunHealth(const InfoFlags& flags) {
  absl::Status worst;
  for (const std::string& target : flags.generation.targets) {
    const absl::StatusOr<std::string> health = CheckHealth(target, Patience(flags));
    if (!health.ok()) {
      worst = Annotate(health.status(), target);
      continue;
    }
    std::cout << target << ": " << *health << std::endl;
    if (*health != "SERVING") worst = absl::UnavailableError(absl::StrCat(target, ": ", *health));
  }
  return worst;
}

absl::Status RunTokenize(const InfoFlags& flags) {
  ASSIGN_OR_RETURN(const Connection connection, Connect(flags.generation.targets, Patience(flags)));
  v1::TokenizeRequest request;
  request.mutable_prompt()->set_text(TextOrStdin(flags.text));
  v1::TokenizeResponse response;
  grpc::ClientContext context;
  RETURN_IF_ERROR(FromGrpcStatus(connection.stub->Tokenize(&context, request, &response)));
  std::cout << (flags.json ? absl::StrCat("[", absl::StrJoin(response.token_ids(), ", "), "]")
                           : absl::StrJoin(response.token_ids(), " "))
            << std::endl;
  return absl::OkStatus();
}

absl::Status RunModel(const InfoFlags& flags) {
  ASSIGN_OR_RETURN(const Connection connection, Connect(flags.generation.targets, Patience(flags)));
  const v1::GetModelResponse& model = connection.model;
  JsonWriter json;
  json.BeginObject();
  json.Field("target", connection.target);
  json.Field("model", model.model());
  json.Field("system_fingerprint", model.system_fingerprint());
  json.Field("bundle_digest", model.bundle_digest());
  json.Field("numerics_version", model.numerics_version());
  json.Field("server_version", model.server_version());
  json.Field("device", model.device());
  json.Field("vocab_size", model.vocab_size());
  json.Field("max_context_tokens", model.max_context_tokens());
  json.Field("max_prompt_tokens", model.max_prompt_tokens());
  json.Field("max_prompt_bytes", model.max_prompt_bytes());
  json.Field("has_chat_template", model.has_chat_template());
  json.EndObject();
  std::cout << json.Take() << std::endl;
  return absl::OkStatus();
}

}  // namespace

int Report(const absl::Status& status) {
  if (status.ok()) return 0;
  std::cerr << "fixpoint: " << CodeName(status.code()) << ": " << status.message() << std::endl;
  return 1;
}

void AddHealthCommand(CLI::App* app, int* exit_code) {
  auto flags = std::make_shared<InfoFlags>();
  CLI::App* command = app->add_subcommand("health", "Exit status 0 when every target is serving");
  AddTargetFlags(command, &flags->generation);
  command->callback([flags, exit_code] { *exit_code = Report(RunHealth(*flags)); });
}

void AddTokenizeCommand(CLI::App* app, int* exit_code) {
  auto flags = std::make_shared<InfoFlags>();
  CLI::App* command = app->add_subcommand("tokenize", "Token ids of a text, as the server sees it");
  AddTargetFlags(command, &flags->generation);
  command->add_option("--prompt", flags->text, "The text, or - for stdin")->required();
  command->add_flag("--json", flags->json, "A JSON array");
  command->callback([flags, exit_code] { *exit_code = Report(RunTokenize(*flags)); });
}

void AddModelCommand(CLI::App* app, int* exit_code) {
  auto flags = std::make_shared<InfoFlags>();
  CLI::App* command = app->add_subcommand("model", "What a server serves, as a JSON object");
  AddTargetFlags(command, &flags->generation);
  command->callback([flags, exit_code] { *exit_code = Report(RunModel(*flags)); });
}

}  // namespace fixpoint::client
