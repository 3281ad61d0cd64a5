#include "server/generation_service.h"

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/status_macros.h"
#include "server/generation_call.h"
#include "server/status_mapping.h"
#include "server/unknown_fields.h"
#include "server/wire_answer.h"

namespace fixpoint {
namespace {

absl::Time DeadlineOf(const grpc::CallbackServerContext& context) {
  const auto deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return absl::InfiniteFuture();
  return absl::FromChrono(deadline);
}

grpc::Status FinishWith(grpc::CallbackServerContext* context, const absl::Status& status) {
  if (const int pushback_ms = RetryPushbackMs(status.code()); pushback_ms > 0) {
    context->AddTrailingMetadata("grpc-retry-pushback-ms", absl::StrCat(pushback_ms));
  }
  return ToGrpcStatus(status);
}

template <typename WireRequest>
GenerationCall::Parser ParserOf(const WireRequest* request) {
  return [request](const RequestLimits& limits) -> absl::StatusOr<ParsedRequest> {
    RETURN_IF_ERROR(RefuseUnknownFields(*request));
    return ParseRequest(*request, limits);
  };
}

// gRPC tells by OnDone that it will not touch a reactor again; jobs of ours may still hold the call
// then.
class StreamedCall final : public grpc::ServerWriteReactor<v1::GenerateResponse>,
                           public GenerationCall {
 public:
  StreamedCall(ServingCore* core, grpc::CallbackServerContext* context)
      : GenerationCall(core, "Generate", context->peer()), context_(context) {}

  void Keep(std::shared_ptr<StreamedCall> self) { self_ = std::move(self); }

  void OnWriteDone(bool ok) override {
    writing_ = false;
    ok ? Signal() : CallerLeft();
  }
  void OnCancel() override { CallerLeft(); }
  void OnDone() override { self_.reset(); }

 private:
  bool ReadyForOutput() const override { return !writing_; }

  void Started(int32_t prompt_tokens) override {
    message_.Clear();
    v1::Started* started = message_.mutable_started();
    started->set_request_id(request_id());
    started->set_system_fingerprint(model().fingerprint());
    started->set_prompt_tokens(static_cast<uint32_t>(prompt_tokens));
    Write();
  }

  void Delta(AnswerDelta delta) override {
    message_.Clear();
    FillDelta(std::move(delta), model().tokenizer(), message_.mutable_delta());
    Write();
  }

  void Done(const AnswerEnd& end) override {
    message_.Clear();
    FillFinished(end, message_.mutable_finished());
    StartWriteAndFinish(&message_, grpc::WriteOptions(), grpc::Status::OK);
  }

  void Failed(const absl::Status& status) override { Finish(FinishWith(context_, status)); }

  void Write() {
    writing_ = true;
    StartWrite(&message_);
  }

  grpc::CallbackServerContext* const context_;
  std::shared_ptr<StreamedCall> self_;
  std::atomic<bool> writing_{false};
  v1::GenerateResponse message_;  // belongs to gRPC while writing_
};

class UnaryCall final : public grpc::ServerUnaryReactor, public GenerationCall {
 public:
  UnaryCall(ServingCore* core, grpc::CallbackServerContext* context,
            v1::GenerateOnceResponse* response)
      : GenerationCall(core, "GenerateOnce", context->peer()),
        context_(context),
        response_(response) {}

  void Keep(std::shared_ptr<UnaryCall> self) { self_ = std::move(self); }

  void OnCancel() override { CallerLeft(); }
  void OnDone() override { self_.reset(); }

 private:
  bool ReadyForOutput() const override { return true; }

  void Started(int32_t) override {
    response_->set_request_id(request_id());
    response_->set_system_fingerprint(model().fingerprint());
  }

  // Bounded by the context: one answer of ids, text and at most 21 log-probabilities a token.
  void Delta(AnswerDelta delta) override {
    response_->mutable_text()->append(delta.text);
    for (const int32_t id : delta.token_ids) response_->add_token_ids(static_cast<uint32_t>(id));
    for (const PositionLogprobs& logprobs : delta.logprobs) {
      FillLogprobs(logprobs, model().tokenizer(), response_->add_logprobs());
    }
  }

  void Done(const AnswerEnd& end) override {
    FillFinished(end, response_->mutable_finished());
    Finish(grpc::Status::OK);
  }

  void Failed(const absl::Status& status) override { Finish(FinishWith(context_, status)); }

  grpc::CallbackServerContext* const context_;
  v1::GenerateOnceResponse* const response_;
  std::shared_ptr<UnaryCall> self_;
};

// Runs `work` on an intake thread and ends the call with its status.
grpc::ServerUnaryReactor* RunOnIntake(ServingCore* core, grpc::CallbackServerContext* context,
                                      const char* method, std::function<absl::Status()> work) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  auto finish = [core, context, reactor, method](const absl::Status& status) {
    core->metrics().CallEnded(method, status.code());
    reactor->Finish(FinishWith(context, status));
  };
  if (!core->intake().TryPost([work = std::move(work), finish] { finish(work()); })) {
    finish(absl::ResourceExhaustedError("too many calls wait to be tokenized; try again later"));
  }
  return reactor;
}

}  // namespace

grpc::ServerWriteReactor<v1::GenerateResponse>* GenerationService::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* request) {
  auto call = std::make_shared<StreamedCall>(core_, context);
  call->Keep(call);
  call->Start(ParserOf(request), DeadlineOf(*context));
  return call.get();
}

grpc::ServerUnaryReactor* GenerationService::GenerateOnce(grpc::CallbackServerContext* context,
                                                          const v1::GenerateOnceRequest* request,
                                                          v1::GenerateOnceResponse* response) {
  auto call = std::make_shared<UnaryCall>(core_, context, response);
  call->Keep(call);
  call->Start(ParserOf(request), DeadlineOf(*context));
  return call.get();
}

grpc::ServerUnaryReactor* GenerationService::Tokenize(grpc::CallbackServerContext* context,
                                                      const v1::TokenizeRequest* request,
                                                      v1::TokenizeResponse* response) {
  return RunOnIntake(core_, context, "Tokenize", [this, request, response]() -> absl::Status {
    RETURN_IF_ERROR(RefuseUnknownFields(*request));
    ASSIGN_OR_RETURN(const std::shared_ptr<ServedModel> model, core_->ModelForNewCall());
    ASSIGN_OR_RETURN(const ParsedPrompt prompt, ParsePrompt(request->prompt(), model->limits()));
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids, model->EncodePrompt(prompt));
    for (const int32_t id : ids) response->add_token_ids(static_cast<uint32_t>(id));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* GenerationService::Detokenize(grpc::CallbackServerContext* context,
                                                        const v1::DetokenizeRequest* request,
                                                        v1::DetokenizeResponse* response) {
  return RunOnIntake(core_, context, "Detokenize", [this, request, response]() -> absl::Status {
    RETURN_IF_ERROR(RefuseUnknownFields(*request));
    ASSIGN_OR_RETURN(const std::shared_ptr<ServedModel> model, core_->ModelForNewCall());
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids, ParseDetokenize(*request, model->limits()));
    response->set_text(model->tokenizer().Decode(ids, /*skip_control=*/true));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* GenerationService::GetModel(grpc::CallbackServerContext* context,
                                                      const v1::GetModelRequest* request,
                                                      v1::GetModelResponse* response) {
  return RunOnIntake(core_, context, "GetModel", [this, request, response]() -> absl::Status {
    RETURN_IF_ERROR(RefuseUnknownFields(*request));
    ASSIGN_OR_RETURN(const std::shared_ptr<ServedModel> model, core_->ModelForNewCall());
    FillModel(*model, response);
    return absl::OkStatus();
  });
}

// Answered while draining too, and without a queue: a router must learn of overload when there is
// overload.
grpc::ServerUnaryReactor* GenerationService::GetLoad(grpc::CallbackServerContext* context,
                                                     const v1::GetLoadRequest* request,
                                                     v1::GetLoadResponse* response) {
  absl::Status status = RefuseUnknownFields(*request);
  if (status.ok()) {
    const std::shared_ptr<ServedModel> model = core_->model();
    if (model != nullptr) {
      FillLoad(model->engine().load(), core_->draining(), response);
    } else {
      status = absl::UnavailableError("the model is being loaded; try again later");
    }
  }
  core_->metrics().CallEnded("GetLoad", status.code());
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(FinishWith(context, status));
  return reactor;
}

}  // namespace fixpoint
