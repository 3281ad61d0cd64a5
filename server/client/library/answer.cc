#include "server/client/library/answer.h"

namespace fixpoint::client {

void AnswerCollector::Add(const v1::GenerateResponse& message) {
  switch (message.event_case()) {
    case v1::GenerateResponse::kStarted:
      answers_[message.started().choice()].started = message.started();
      break;
    case v1::GenerateResponse::kDelta: {
      const v1::Delta& delta = message.delta();
      Answer& answer = answers_[delta.choice()];
      answer.text += delta.text();
      answer.token_ids.insert(answer.token_ids.end(), delta.token_ids().begin(),
                              delta.token_ids().end());
      answer.logprobs.insert(answer.logprobs.end(), delta.logprobs().begin(),
                             delta.logprobs().end());
      break;
    }
    case v1::GenerateResponse::kFinished:
      answers_[message.finished().choice()].finished = message.finished();
      break;
    case v1::GenerateResponse::kPromptPart: {
      const v1::PromptPart& part = message.prompt_part();
      PromptReport& prompt = prompts_[part.prompt()];
      prompt.text += part.text();
      prompt.token_ids.insert(prompt.token_ids.end(), part.token_ids().begin(),
                              part.token_ids().end());
      prompt.logprobs.insert(prompt.logprobs.end(), part.logprobs().begin(), part.logprobs().end());
      break;
    }
    case v1::GenerateResponse::EVENT_NOT_SET:
      break;  // of a newer server
  }
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
