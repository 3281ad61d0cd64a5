#include "server/generation_service.h"

#include <atomic>
#include <functional>
#include <iterator>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/status_macros.h"
#include "server/generation_call.h"
#include "server/status_mapping.h"
#include "server/trace_context.h"
#include "server/unary_answer.h"
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

constexpr char kRequestIdKey[] = "fixpoint-request-id";
constexpr char kTraceparentKey[] = "traceparent";

CallOrigin OriginOf(const grpc::CallbackServerContext& context, const char* method) {
  CallOrigin origin{.method = method, .peer = context.peer()};
  const auto& metadata = context.client_metadata();
  const auto [first, last] = metadata.equal_range(kTraceparentKey);
  if (first != last && std::next(first) == last) {  // two of them say nothing
    origin.trace = ParseTraceparent({first->second.data(), first->second.size()});
  }
  return origin;
}

// gRPC tells by OnDone that it will not touch a reactor again; jobs of ours may still hold the call
// then.
class StreamedCall final : public grpc::ServerWriteReactor<v1::GenerateResponse>,
                           public GenerationCall {
 public:
  StreamedCall(ServingCore* core, grpc::CallbackServerContext* context)
      : GenerationCall(core, OriginOf(*context, "Generate")), context_(context) {}

  void Keep(std::shared_ptr<StreamedCall> self) { self_ = std::move(self); }

  void OnSendInitialMetadataDone(bool ok) override { OnWriteDone(ok); }
  void OnWriteDone(bool ok) override {
    waiting_since_ns_ = kNotWaiting;
    ok ? Signal() : CallerLeft();
  }
  void OnCancel() override { CallerLeft(); }
  void OnDone() override {
    waiting_since_ns_ = kNotWaiting;
    {
      std::lock_guard<std::recursive_mutex> lock(context_mutex_);
      context_ = nullptr;
    }
    self_.reset();
  }

  absl::Duration waiting_since() const override {
    const int64_t since_ns = waiting_since_ns_;
    return since_ns == kNotWaiting ? absl::InfiniteDuration() : absl::Nanoseconds(since_ns);
  }

 private:
  static constexpr int64_t kNotWaiting = -1;

  bool ReadyForOutput() const override { return waiting_since_ns_ == kNotWaiting; }

  void Accepted(const ParsedRequest&) override {
    context_->AddInitialMetadata(kRequestIdKey, request_id());
    MarkWaiting();
    StartSendInitialMetadata();
  }

  void Started(int32_t choice, int32_t prompt_tokens, const AnswerStart& start) override {
    message_.Clear();
    v1::Started* started = message_.mutable_started();
    started->set_request_id(request_id());
    started->set_system_fingerprint(model().fingerprint());
    started->set_prompt_tokens(static_cast<uint32_t>(prompt_tokens));
    started->set_cached_tokens(static_cast<uint32_t>(start.cached_tokens));
    started->set_choice(static_cast<uint32_t>(choice));
    Write();
  }

  absl::Status Prompt(PromptPart part) override {
    message_.Clear();
    FillPromptPart(std::move(part), model().tokenizer(), message_.mutable_prompt_part());
    Write();
    return absl::OkStatus();
  }

  absl::Status Delta(int32_t choice, AnswerDelta delta) override {
    message_.Clear();
    FillDelta(choice, std::move(delta), model().tokenizer(), message_.mutable_delta());
    Write();
    return absl::OkStatus();
  }

  void Finished(int32_t choice, const ChoiceEnd& end, bool last) override {
    message_.Clear();
    FillFinished(choice, end, message_.mutable_finished());
    if (!last) return Write();
    MarkWaiting();
    StartWriteAndFinish(&message_, grpc::WriteOptions(), grpc::Status::OK);
  }

  void Failed(const absl::Status& status) override { Finish(FinishWith(context_, status)); }

  // Cancelling may run OnCancel, OnWriteDone and OnDone on this very thread, so the mutex that
  // keeps the context alive meanwhile has to be recursive.
  void BreakOff() override {
    std::lock_guard<std::recursive_mutex> lock(context_mutex_);
    if (context_ != nullptr) context_->TryCancel();
  }

  void MarkWaiting() { waiting_since_ns_ = absl::ToInt64Nanoseconds(SteadyNow()); }
  void Write() {
    MarkWaiting();
    StartWrite(&message_);
  }

  std::recursive_mutex context_mutex_;
  grpc::CallbackServerContext* context_;  // null once gRPC is done with it
  std::shared_ptr<StreamedCall> self_;
  std::atomic<int64_t> waiting_since_ns_{kNotWaiting};
  v1::GenerateResponse message_;  // belongs to gRPC while it waits
};

class UnaryCall final : public grpc::ServerUnaryReactor, public GenerationCall {
 public:
  UnaryCall(ServingCore* core, grpc::CallbackServerContext* context,
            v1::GenerateOnceResponse* response)
      : GenerationCall(core, OriginOf(*context, "GenerateOnce")),
        context_(context),
        response_(response) {}

  void Keep(std::shared_ptr<UnaryCall> self) { self_ = std::move(self); }

  void OnCancel() override { CallerLeft(); }
  void OnDone() override { self_.reset(); }
  // The answer is complete when it is written: a caller that does not take it holds nothing of the
  // engine.
  absl::Duration waiting_since() const override { return absl::InfiniteDuration(); }

 private:
  bool ReadyForOutput() const override { return true; }

  void Accepted(const ParsedRequest& request) override {
    context_->AddInitialMetadata(kRequestIdKey, request_id());
    answer_.emplace(request, &model().tokenizer(), response_);
    response_->set_request_id(request_id());
    response_->set_system_fingerprint(model().fingerprint());
  }
  void Started(int32_t, int32_t, const AnswerStart&) override {}
  absl::Status Prompt(PromptPart part) override { return answer_->Add(std::move(part)); }
  absl::Status Delta(int32_t choice, AnswerDelta delta) override {
    return answer_->Add(choice, std::move(delta));
  }
  void Finished(int32_t choice, const ChoiceEnd& end, bool last) override {
    answer_->End(choice, end);
    if (last) Finish(grpc::Status::OK);
  }
  void Failed(const absl::Status& status) override { Finish(FinishWith(context_, status)); }
  void BreakOff() override {}

  grpc::CallbackServerContext* const context_;
  v1::GenerateOnceResponse* const response_;
  std::optional<UnaryAnswer> answer_;
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
    core->metrics().Refused(RefusalReason::kIntakeFull);
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
      FillLoad(model->engine().load(), model->limits().engine, response);
      response->set_draining(core_->draining());
      response->set_ready(core_->IsReady());
      response->set_cache_query_tokens(core_->metrics().cache_query_tokens());
      response->set_cache_hit_tokens(core_->metrics().cache_hit_tokens());
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
