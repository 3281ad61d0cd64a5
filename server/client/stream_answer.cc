#include "server/client/stream_answer.h"

#include "base/status_macros.h"
#include "server/status_mapping.h"

namespace fixpoint::client {

absl::StatusOr<StreamedAnswer> StreamAnswer(v1::Generation::Stub* stub,
                                            const v1::GenerateRequest& request,
                                            const std::function<void(absl::string_view)>& on_text) {
  grpc::ClientContext context;
  auto reader = stub->Generate(&context, request);
  StreamedAnswer answer;
  bool finished = false;
  v1::GenerateResponse message;
  while (reader->Read(&message)) {
    switch (message.event_case()) {
      case v1::GenerateResponse::kStarted:
        answer.started = message.started();
        break;
      case v1::GenerateResponse::kDelta:
        answer.text += message.delta().text();
        for (const uint32_t id : message.delta().token_ids()) answer.token_ids.push_back(id);
        on_text(message.delta().text());
        break;
      case v1::GenerateResponse::kFinished:
        answer.finished = message.finished();
        finished = true;
        break;
      case v1::GenerateResponse::EVENT_NOT_SET:
        break;  // of a newer server
    }
  }
  RETURN_IF_ERROR(FromGrpcStatus(reader->Finish()));
  if (!finished) return absl::DataLossError("the stream ended without its last message");
  return answer;
}

std::string FinishReasonName(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    default:
      return "unknown";
  }
}

}  // namespace fixpoint::client
