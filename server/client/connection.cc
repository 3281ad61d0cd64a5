#include "server/client/connection.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "server/status_mapping.h"

namespace fixpoint::client {
namespace {

void SetDeadline(grpc::ClientContext* context, absl::Duration patience) {
  context->set_deadline(absl::ToChronoTime(absl::Now() + patience));
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> OpenChannel(const std::string& target,
                                                           absl::Duration patience) {
  auto channel = grpc::CreateChannel(target, grpc::InsecureChannelCredentials());
  if (channel->WaitForConnected(absl::ToChronoTime(absl::Now() + patience))) return channel;
  return absl::UnavailableError(absl::StrCat("no connection within ",
                                             absl::ToDoubleSeconds(patience),
                                             " s; is fixpoint-server running there?"));
}

absl::Status TryTarget(const std::string& target, absl::Duration patience, Connection* connection) {
  ASSIGN_OR_RETURN(connection->channel, OpenChannel(target, patience));
  connection->target = target;
  connection->stub = v1::Generation::NewStub(connection->channel);
  grpc::ClientContext context;
  SetDeadline(&context, patience);
  return FromGrpcStatus(
      connection->stub->GetModel(&context, v1::GetModelRequest(), &connection->model));
}

}  // namespace

absl::StatusOr<Connection> Connect(const std::vector<std::string>& targets,
                                   absl::Duration patience) {
  std::vector<std::string> failures;
  for (const std::string& target : targets) {
    Connection connection;
    const absl::Status status = TryTarget(target, patience, &connection);
    if (status.ok()) return connection;
    failures.push_back(absl::StrCat(target, ": ", status.message()));
  }
  return absl::UnavailableError(absl::StrJoin(failures, "; "));
}

absl::StatusOr<std::string> CheckHealth(const std::string& target, absl::Duration patience) {
  ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel, OpenChannel(target, patience));
  grpc::ClientContext context;
  SetDeadline(&context, patience);
  grpc::health::v1::HealthCheckResponse response;
  RETURN_IF_ERROR(FromGrpcStatus(grpc::health::v1::Health::NewStub(channel)->Check(
      &context, grpc::health::v1::HealthCheckRequest(), &response)));
  return grpc::health::v1::HealthCheckResponse::ServingStatus_Name(response.status());
}

}  // namespace fixpoint::client
