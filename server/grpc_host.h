// The gRPC server around our service: port, limits, health, reflection.
#pragma once

#include <memory>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "grpcpp/impl/service_type.h"
#include "grpcpp/server.h"
#include "server/listen_address.h"

namespace fixpoint {

// Health is NOT_SERVING until SetServing(true). Create one per process: the gRPC library keeps
// plug-ins and its log function process-wide.
class GrpcHost {
 public:
  GrpcHost();
  ~GrpcHost();  // Shutdown at once

  // Binds and serves. UNAVAILABLE naming address and reason when the port cannot be had: a port is
  // never shared.
  absl::Status Start(const ListenAddress& address, grpc::Service* service);
  int port() const { return port_; }

  // What grpc.health.v1 answers, for "" and for our service.
  void SetServing(bool serving);

  // Refuses connections and new calls (GOAWAY), waits for open calls until `deadline`, then cancels
  // them. Idempotent.
  void Shutdown(absl::Time deadline);

 private:
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
};

}  // namespace fixpoint
