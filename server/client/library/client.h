// The client library. One Client talks to the replicas of one model and hides their failures: an
// answer that breaks goes on at the next target, exactly where it broke.
//
//   ASSIGN_OR_RETURN(auto client, Client::Create({.targets = {"a:50051", "b:50051"}}));
//   AnswerCollector answers;
//   RETURN_IF_ERROR(client->Generate(request, {}, [&](const v1::GenerateResponse& message) {
//     std::cout << message.delta().text();
//     answers.Add(message);
//     return true;
//   }));
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "fixpoint/v1/generation.grpc.pb.h"
#include "server/client/library/grpc_transport.h"
#include "server/client/library/resumable_call.h"
#include "server/client/library/target_pool.h"

namespace fixpoint::client {

struct ClientOptions {
  std::vector<std::string> targets;  // "HOST:PORT", 1 to kMaxTargets
  TargetOrder order = TargetOrder::kListed;
  int connections = 1;  // to each target
  absl::Duration connect_timeout = absl::Seconds(5);
  RetryOptions retry;
  BackoffOptions backoff;
};
inline constexpr size_t kMaxTargets = 1024;

// Thread-safe. Calls block; any number may run at the same time, each in its caller's thread.
class Client {
 public:
  // INVALID_ARGUMENT when there is no target, or one is empty. Does not connect.
  static absl::StatusOr<std::unique_ptr<Client>> Create(ClientOptions options);

  // Runs one call of Generate over as many attempts as it takes and calls `on_message` with the
  // messages of one undisturbed call: each token, each byte of text, each `started`, `finished` and
  // prompt part once. Only how tokens are grouped into deltas may differ. OK: the last `finished`
  // of all choices was delivered.
  //
  // Breaks (UNAVAILABLE, ABORTED, RESOURCE_EXHAUSTED, a lost connection, no message for too long)
  // are tried again by the rules of RetryOptions and BackoffOptions. Any other code, or the last
  // break when no target is left, is the result. A server with another system_fingerprint than the
  // answer began on never continues it; when no other is left: FAILED_PRECONDITION with both.
  //
  // A call with several choices or prompts that breaks behind its first token goes on as one call
  // for each choice that is not finished, side by side (at most 32 threads), since a server
  // continues single choices only; so `usage.cached_tokens` is that of the last attempt.
  absl::Status Generate(const v1::GenerateRequest& request, const CallOptions& options,
                        const OnMessage& on_message, CallReport* report = nullptr);

  // Unary calls: asks the targets in order, each once, and returns the first answer, or
  // UNAVAILABLE with each target's reason. Codes that are no break are returned at once. `target`,
  // if not null, gets the name of the target that answered.
  absl::StatusOr<v1::GetModelResponse> GetModel(std::string* target = nullptr);
  absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request);

 private:
  template <typename Request, typename Response>
  using UnaryMethod = grpc::Status (v1::Generation::Stub::*)(grpc::ClientContext*, const Request&,
                                                             Response*);
  template <typename Request, typename Response>
  absl::StatusOr<Response> Unary(UnaryMethod<Request, Response> method, const Request& request,
                                 std::string* target);

  explicit Client(ClientOptions options);

  const ClientOptions options_;
  GrpcTransport transport_;
  TargetPool targets_;
};

}  // namespace fixpoint::client
