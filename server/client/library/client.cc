#include "server/client/library/client.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"

namespace fixpoint::client {
namespace {

// Tokenizing the longest prompt takes a fraction of this.
constexpr absl::Duration kUnaryTimeout = absl::Seconds(30);

}  // namespace

absl::StatusOr<std::unique_ptr<Client>> Client::Create(ClientOptions options) {
  if (options.targets.empty() || options.targets.size() > kMaxTargets) {
    return absl::InvalidArgumentError(
        absl::StrCat("targets: ", options.targets.size(), " given, 1 to ", kMaxTargets, " needed"));
  }
  for (const std::string& target : options.targets) {
    if (target.empty()) return absl::InvalidArgumentError("targets: one of them is empty");
  }
  if (options.connections < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("connections: ", options.connections, ", must be at least 1"));
  }
  if (options.retry.retries < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("retries: ", options.retry.retries, ", must be at least 0"));
  }
  return std::unique_ptr<Client>(new Client(std::move(options)));
}

Client::Client(ClientOptions options)
    : options_(std::move(options)),
      transport_(options_.targets, options_.connections, options_.connect_timeout),
      targets_(transport_.num_targets(), options_.order, options_.backoff) {}

absl::Status Client::Generate(const v1::GenerateRequest& request, const CallOptions& options,
                              const OnMessage& on_message, CallReport* report) {
  ResumableCall call(&transport_, &targets_, Clock::Real(), options_.retry, request, options,
                     on_message);
  absl::Status status = call.Run();
  if (report != nullptr) *report = call.report();
  return status;
}

template <typename Request, typename Response>
absl::StatusOr<Response> Client::Unary(UnaryMethod<Request, Response> method,
                                       const Request& request, std::string* target) {
  std::vector<std::string> failures;
  for (int t = 0; t < transport_.num_targets(); ++t) {
    const std::shared_ptr<grpc::Channel> channel = transport_.ChannelOf(t);
    absl::Status status = transport_.AwaitConnection(channel.get(), absl::InfiniteFuture());
    Response response;
    if (status.ok()) {
      grpc::ClientContext context;
      context.set_deadline(absl::ToChronoTime(absl::Now() + kUnaryTimeout));
      const auto stub = v1::Generation::NewStub(channel);
      status = FromGrpc((stub.get()->*method)(&context, request, &response));
    }
    if (status.ok()) {
      if (target != nullptr) *target = transport_.TargetName(t);
      return response;
    }
    if (!IsBreak(status.code()) && !absl::IsDeadlineExceeded(status)) return status;
    failures.push_back(absl::StrCat(transport_.TargetName(t), ": ", status.message()));
  }
  return absl::UnavailableError(absl::StrJoin(failures, "; "));
}

absl::StatusOr<v1::GetModelResponse> Client::GetModel(std::string* target) {
  return Unary<v1::GetModelRequest, v1::GetModelResponse>(&v1::Generation::Stub::GetModel,
                                                          v1::GetModelRequest(), target);
}

absl::StatusOr<v1::TokenizeResponse> Client::Tokenize(const v1::TokenizeRequest& request) {
  return Unary<v1::TokenizeRequest, v1::TokenizeResponse>(&v1::Generation::Stub::Tokenize, request,
                                                          nullptr);
}

}  // namespace fixpoint::client
