// Test only: a real gRPC server on a free port, over a fake engine.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/check.h"
#include "grpcpp/create_channel.h"
#include "server/fake_engine/fake_engine.h"
#include "server/generation_service.h"
#include "server/grpc_host.h"

namespace fixpoint {

class ServiceFixture : public testing::Test {
 protected:
  void Start(FakeEngineOptions options, ServingOptions serving = {}) {
    core_ = std::make_unique<ServingCore>(serving, &metrics_);
    service_ = std::make_unique<GenerationService>(core_.get());
    host_ = std::make_unique<GrpcHost>();
    CHECK(host_->Start({"127.0.0.1", 0}, service_.get()).ok());
    channel_ = grpc::CreateChannel(absl::StrCat("127.0.0.1:", host_->port()),
                                   grpc::InsecureChannelCredentials());
    stub_ = v1::Generation::NewStub(channel_);
    auto engine = std::make_unique<FakeEngine>(std::move(options));
    engine_ = engine.get();
    // Renders "role:content;" and refuses the role "bad".
    ChatRenderer chat = [](const ParsedChat& given) -> absl::StatusOr<std::vector<TextSegment>> {
      std::vector<TextSegment> segments;
      for (const ParsedMessage& message : given.messages) {
        if (message.role == "bad")
          return absl::InvalidArgumentError("the template refuses this role");
        segments.push_back({message.role + ":", true});
        segments.push_back({message.content, false});
      }
      return segments;
    };
    model_ = std::make_shared<ServedModel>(ModelIdentity{.name = "fake",
                                                         .bundle_digest = std::string(64, 'd'),
                                                         .numerics_version = 1,
                                                         .device = "cpu"},
                                           FakeTokenizer(), std::move(chat), nullptr,
                                           std::move(engine), constraints_);
  }
  void SetModel() { core_->SetModel(model_); }
  void StartReady(FakeEngineOptions options = {}, ServingOptions serving = {}) {
    Start(std::move(options), serving);
    SetModel();
  }
  void TearDown() override {
    host_->Shutdown(absl::Now() + absl::Seconds(5));
    core_ = nullptr;
  }

  static v1::GenerateRequest Ask(const std::string& text, uint32_t max_tokens = 10) {
    v1::GenerateRequest request;
    request.mutable_prompt()->set_text(text);
    request.mutable_stopping()->set_max_tokens(max_tokens);
    return request;
  }

  struct Result {
    std::vector<v1::GenerateResponse> messages;
    std::string text;
    std::vector<uint32_t> ids;
    grpc::Status status;
  };
  Result Generate(const v1::GenerateRequest& request, absl::Duration deadline = absl::Seconds(30)) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + deadline));
    auto reader = stub_->Generate(&context, request);
    Result result;
    v1::GenerateResponse message;
    while (reader->Read(&message)) {
      result.text += message.delta().text();
      for (const uint32_t id : message.delta().token_ids()) result.ids.push_back(id);
      result.messages.push_back(message);
    }
    result.status = reader->Finish();
    return result;
  }

  bool Eventually(const std::function<bool()>& condition) {
    for (int i = 0; i < 1000; ++i) {
      if (condition()) return true;
      absl::SleepFor(absl::Milliseconds(5));
    }
    return false;
  }

  ConstraintMaker constraints_;  // set it before Start
  Metrics metrics_;
  std::unique_ptr<ServingCore> core_;
  std::unique_ptr<GenerationService> service_;
  std::unique_ptr<GrpcHost> host_;
  std::shared_ptr<ServedModel> model_;
  FakeEngine* engine_ = nullptr;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Generation::Stub> stub_;
};

}  // namespace fixpoint
