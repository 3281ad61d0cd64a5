// The client over real connections, against a service that a test scripts.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"
#include "server/client/library/answer.h"
#include "server/client/library/client.h"

namespace fixpoint::client {
namespace {

using testing::HasSubstr;
using Writer = grpc::ServerWriter<v1::GenerateResponse>;
using Handler =
    std::function<grpc::Status(grpc::ServerContext*, const v1::GenerateRequest&, Writer*)>;

class ScriptedServer final : public v1::Generation::Service {
 public:
  explicit ScriptedServer(Handler handler) : handler_(std::move(handler)) {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    address_ = absl::StrCat("127.0.0.1:", port);
  }
  ~ScriptedServer() override { server_->Shutdown(absl::ToChronoTime(absl::Now())); }

  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        Writer* writer) override {
    return handler_(context, *request, writer);
  }
  grpc::Status GetModel(grpc::ServerContext*, const v1::GetModelRequest*,
                        v1::GetModelResponse* response) override {
    response->set_model("scripted");
    return grpc::Status::OK;
  }
  const std::string& address() const { return address_; }

 private:
  const Handler handler_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

// Tokens `index` to 9 of an answer whose text is 0123456789.
void Write(Writer* writer, uint32_t first, uint32_t end, bool finish) {
  v1::GenerateResponse message;
  message.mutable_started()->set_system_fingerprint("fp");
  writer->Write(message);
  for (uint32_t i = first; i < end; ++i) {
    v1::Delta* delta = message.mutable_delta();
    delta->Clear();
    delta->set_index(i);
    delta->add_token_ids(i);
    delta->set_text(absl::StrCat(i));
    writer->Write(message);
  }
  if (!finish) return;
  message.mutable_finished()->set_reason(v1::FINISH_REASON_LENGTH);
  writer->Write(message);
}

grpc::Status GoOn(grpc::ServerContext*, const v1::GenerateRequest& request, Writer* writer) {
  Write(writer, static_cast<uint32_t>(request.resume_token_ids_size()), 10, true);
  return grpc::Status::OK;
}

struct Result {
  absl::Status status;
  std::string text;
  CallReport report;
};

Result Generate(ClientOptions options, CallOptions call = {}) {
  Result result;
  auto client = Client::Create(std::move(options));
  EXPECT_TRUE(client.ok()) << client.status();
  v1::GenerateRequest request;
  request.mutable_prompt()->set_text("x");
  result.status = (*client)->Generate(
      request, call,
      [&](const v1::GenerateResponse& message) {
        result.text += message.delta().text();
        return true;
      },
      &result.report);
  return result;
}

TEST(GrpcTransportTest, GoesOnAtTheNextTarget) {
  for (const auto code : {grpc::UNAVAILABLE, grpc::ABORTED, grpc::OK, grpc::UNKNOWN}) {
    ScriptedServer breaks([&](grpc::ServerContext*, const v1::GenerateRequest&, Writer* writer) {
      Write(writer, 0, 4, false);
      return grpc::Status(code, "gone");
    });
    ScriptedServer goes_on(GoOn);
    const Result result = Generate({.targets = {breaks.address(), goes_on.address()}});
    EXPECT_TRUE(result.status.ok()) << result.status;
    EXPECT_EQ(result.text, "0123456789");
    EXPECT_EQ(result.report.breaks, 1);
    EXPECT_EQ(result.report.target, goes_on.address());
  }
}

TEST(GrpcTransportTest, StalledStreamIsLeft) {
  std::atomic<bool> cancelled{false};
  ScriptedServer stalls([&](grpc::ServerContext* context, const v1::GenerateRequest&, Writer* w) {
    Write(w, 0, 4, false);
    while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(5));
    cancelled = true;
    return grpc::Status::CANCELLED;
  });
  ScriptedServer goes_on(GoOn);
  const Result result = Generate({.targets = {stalls.address(), goes_on.address()},
                                  .retry = {.stall_timeout = absl::Milliseconds(300)}});
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.text, "0123456789");
  for (int i = 0; i < 1000 && !cancelled; ++i) absl::SleepFor(absl::Milliseconds(5));
  EXPECT_TRUE(cancelled);
}

TEST(GrpcTransportTest, PushbackOfTheTrailersIsHonoured) {
  std::atomic<int> calls{0};
  ScriptedServer full(
      [&](grpc::ServerContext* context, const v1::GenerateRequest& request, Writer* writer) {
        if (calls++ > 0) return GoOn(context, request, writer);
        context->AddTrailingMetadata("grpc-retry-pushback-ms", "600");
        return grpc::Status(grpc::RESOURCE_EXHAUSTED, "full");
      });
  const absl::Time start = absl::Now();
  const Result result = Generate({.targets = {full.address()}});
  EXPECT_EQ(result.text, "0123456789");
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(600));
}

TEST(GrpcTransportTest, NegativePushbackForbidsTheRetry) {
  std::atomic<int> calls{0};
  ScriptedServer full([&](grpc::ServerContext* context, const v1::GenerateRequest&, Writer*) {
    ++calls;
    context->AddTrailingMetadata("grpc-retry-pushback-ms", "-1");
    return grpc::Status(grpc::RESOURCE_EXHAUSTED, "full");
  });
  const Result result = Generate({.targets = {full.address()}});
  EXPECT_EQ(result.status, absl::ResourceExhaustedError("full"));
  EXPECT_EQ(calls, 1);
}

TEST(GrpcTransportTest, NobodyListensIsUnavailableWithTheAddress) {
  const Result result = Generate({.targets = {"127.0.0.1:1"}, .retry = {.retries = 1}});
  EXPECT_EQ(result.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(result.status.message()), HasSubstr("127.0.0.1:1"));
  EXPECT_EQ(result.report.attempts, 2);
}

TEST(GrpcTransportTest, DeadlineHoldsOverAllAttempts) {
  ScriptedServer stalls([](grpc::ServerContext* context, const v1::GenerateRequest&, Writer* w) {
    Write(w, 0, 4, false);
    while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(5));
    return grpc::Status::CANCELLED;
  });
  const Result result = Generate({.targets = {stalls.address()}},
                                 {.deadline = absl::Now() + absl::Milliseconds(300)});
  EXPECT_EQ(result.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(result.text, "0123");
}

TEST(GrpcTransportTest, CancellationFromAnotherThread) {
  ScriptedServer stalls([](grpc::ServerContext* context, const v1::GenerateRequest&, Writer* w) {
    Write(w, 0, 4, false);
    while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(5));
    return grpc::Status::CANCELLED;
  });
  Cancellation cancellation;
  std::thread thread([&] {
    absl::SleepFor(absl::Milliseconds(200));
    cancellation.Cancel();
  });
  const Result result = Generate({.targets = {stalls.address()}}, {.cancellation = &cancellation});
  thread.join();
  EXPECT_EQ(result.status.code(), absl::StatusCode::kCancelled);
}

TEST(GrpcTransportTest, UnaryCallsTakeTheFirstThatAnswers) {
  ScriptedServer server(GoOn);
  auto client = Client::Create({.targets = {"127.0.0.1:1", server.address()}});
  std::string target;
  const auto model = (*client)->GetModel(&target);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->model(), "scripted");
  EXPECT_EQ(target, server.address());
  EXPECT_EQ((*client)->Tokenize({}).status().code(), absl::StatusCode::kUnimplemented);
}

TEST(ClientTest, WrongOptionsAreNamed) {
  EXPECT_THAT(std::string(Client::Create({}).status().message()), HasSubstr("targets: 0"));
  EXPECT_THAT(std::string(Client::Create({.targets = {"a", ""}}).status().message()),
              HasSubstr("empty"));
  EXPECT_FALSE(Client::Create({.targets = {"a"}, .connections = 0}).ok());
  EXPECT_FALSE(Client::Create({.targets = {"a"}, .retry = {.retries = -1}}).ok());
}

}  // namespace
}  // namespace fixpoint::client
