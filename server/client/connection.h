// Finding a server that answers.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "fixpoint/v1/generation.grpc.pb.h"
#include "grpcpp/channel.h"

namespace fixpoint::client {

struct Connection {
  std::string target;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Generation::Stub> stub;
  v1::GetModelResponse model;
};

// Tries the targets in order and returns the first whose server is serving a model. UNAVAILABLE
// with each target's reason when there is none. Each target gets at most `patience`.
absl::StatusOr<Connection> Connect(const std::vector<std::string>& targets,
                                   absl::Duration patience);

// "SERVING", "NOT_SERVING" or another name of grpc.health.v1, or why the target did not answer.
absl::StatusOr<std::string> CheckHealth(const std::string& target, absl::Duration patience);

}  // namespace fixpoint::client
