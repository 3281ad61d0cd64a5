#include "server/grpc_host.h"

#include <grpc/support/log.h>

#include <atomic>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpc/health/v1/health.pb.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/server_builder.h"
#include "server/log.h"
#include "server/served_model.h"

namespace fixpoint {
namespace {

constexpr char kServiceName[] = "fixpoint.v1.Generation";
constexpr int kMaxStreamsPerConnection = 100;
constexpr int kMaxMetadataBytes = 16 << 10;
// A silent client is found and its calls are cancelled within the sum of both.
constexpr int kKeepaliveTimeMs = 20'000;
constexpr int kKeepaliveTimeoutMs = 10'000;
constexpr int kMinPingIntervalMs = 10'000;  // clients that ping faster are sent away
constexpr int kMaxPingStrikes = 2;
// A connection without calls costs a descriptor; clients open a new one when they need it.
constexpr int kMaxConnectionIdleMs = 30 * 60'000;

// While a port is tried the library's own complaint is dropped: Start reports it once, and better.
std::atomic<bool> quiet{false};

void LogFromGrpc(gpr_log_func_args* args) {
  if (quiet || args->severity != GPR_LOG_SEVERITY_ERROR) return;
  LogLine(LogLevel::kWarning, "grpc").Add("message", absl::string_view(args->message)).Write();
}

}  // namespace

GrpcHost::GrpcHost() {
  gpr_set_log_function(LogFromGrpc);
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  // The library serves the health service but does not bring its descriptor; reflection needs it
  // linked in.
  grpc::health::v1::HealthCheckRequest::descriptor();
}

GrpcHost::~GrpcHost() { Shutdown(absl::Now()); }

absl::Status GrpcHost::Start(const ListenAddress& address, grpc::Service* service) {
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address.ToString(), grpc::InsecureServerCredentials(), &port_);
  builder.RegisterService(service);
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinPingIntervalMs);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, kMaxPingStrikes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, kMaxConnectionIdleMs);
  quiet = true;
  server_ = builder.BuildAndStart();
  quiet = false;
  if (server_ == nullptr || port_ == 0) {
    const absl::Status reason = DiagnoseListen(address);
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", address.ToString(),
                     " for gRPC: ", reason.ok() ? "the gRPC library refused" : reason.message()));
  }
  SetServing(false);
  return absl::OkStatus();
}

void GrpcHost::SetServing(bool serving) {
  grpc::HealthCheckServiceInterface* health = server_->GetHealthCheckService();
  health->SetServingStatus("", serving);
  health->SetServingStatus(kServiceName, serving);
}

void GrpcHost::Shutdown(absl::Time deadline) {
  if (server_ == nullptr) return;
  server_->Shutdown(absl::ToChronoTime(deadline));
  server_->Wait();
  server_ = nullptr;
}

}  // namespace fixpoint
