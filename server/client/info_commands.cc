#include <algorithm>
#include <iostream>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "base/json_writer.h"
#include "base/status_macros.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "server/client/commands.h"
#include "server/client/target_flags.h"

namespace fixpoint::client {
namespace {

struct InfoFlags {
  TargetFlags target;
  std::string text;
  bool json = false;
};

// "SERVING", "NOT_SERVING" or another name of grpc.health.v1, or why the target did not answer.
absl::StatusOr<std::string> CheckHealth(GrpcTransport* transport, int target,
                                        absl::Duration patience) {
  const auto channel = transport->ChannelOf(target);
  RETURN_IF_ERROR(transport->AwaitConnection(channel.get(), absl::InfiniteFuture()));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + patience));
  grpc::health::v1::HealthCheckResponse response;
  RETURN_IF_ERROR(FromGrpc(grpc::health::v1::Health::NewStub(channel)->Check(
      &context, grpc::health::v1::HealthCheckRequest(), &response)));
  return grpc::health::v1::HealthCheckResponse::ServingStatus_Name(response.status());
}

// One line a target. Healthy only when all of them serve.
absl::Status RunHealth(const InfoFlags& flags) {
  const ClientOptions options = flags.target.ToOptions();
  RETURN_IF_ERROR(Client::Create(options).status());
  GrpcTransport transport(options.targets, 1, options.connect_timeout);
  absl::Status worst;
  for (int t = 0; t < transport.num_targets(); ++t) {
    const std::string& target = transport.TargetName(t);
    const absl::StatusOr<std::string> health = CheckHealth(&transport, t, options.connect_timeout);
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
  ASSIGN_OR_RETURN(const auto client, Client::Create(flags.target.ToOptions()));
  v1::TokenizeRequest request;
  request.mutable_prompt()->set_text(TextOrStdin(flags.text));
  ASSIGN_OR_RETURN(const v1::TokenizeResponse response, client->Tokenize(request));
  std::cout << (flags.json ? absl::StrCat("[", absl::StrJoin(response.token_ids(), ", "), "]")
                           : absl::StrJoin(response.token_ids(), " "))
            << std::endl;
  return absl::OkStatus();
}

absl::Status RunModel(const InfoFlags& flags) {
  ASSIGN_OR_RETURN(const auto client, Client::Create(flags.target.ToOptions()));
  std::string target;
  ASSIGN_OR_RETURN(const v1::GetModelResponse model, client->GetModel(&target));
  JsonWriter json;
  json.BeginObject();
  json.Field("target", target);
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
  json.Field("has_constraints", model.has_constraints());
  json.EndObject();
  std::cout << json.Take() << std::endl;
  return absl::OkStatus();
}

}  // namespace

// One line, whatever a server wrote.
int Report(const absl::Status& status) {
  if (status.ok()) return 0;
  std::string message(status.message());
  std::replace(message.begin(), message.end(), '\n', ' ');
  std::cerr << "fixpoint: " << absl::StatusCodeToString(status.code()) << ": " << message
            << std::endl;
  return 1;
}

void AddHealthCommand(CLI::App* app, int* exit_code) {
  auto flags = std::make_shared<InfoFlags>();
  CLI::App* command = app->add_subcommand("health", "Exit status 0 when every target is serving");
  AddTargetFlags(command, &flags->target);
  command->callback([flags, exit_code] { *exit_code = Report(RunHealth(*flags)); });
}

void AddTokenizeCommand(CLI::App* app, int* exit_code) {
  auto flags = std::make_shared<InfoFlags>();
  CLI::App* command = app->add_subcommand("tokenize", "Token ids of a text, as the server sees it");
  AddTargetFlags(command, &flags->target);
  command->add_option("--prompt", flags->text, "The text, or - for stdin")->required();
  command->add_flag("--json", flags->json, "A JSON array");
  command->callback([flags, exit_code] { *exit_code = Report(RunTokenize(*flags)); });
}

void AddModelCommand(CLI::App* app, int* exit_code) {
  auto flags = std::make_shared<InfoFlags>();
  CLI::App* command = app->add_subcommand("model", "What a server serves, as a JSON object");
  AddTargetFlags(command, &flags->target);
  command->callback([flags, exit_code] { *exit_code = Report(RunModel(*flags)); });
}

}  // namespace fixpoint::client
