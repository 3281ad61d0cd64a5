// The messages of a call, put together.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "fixpoint/v1/generation.pb.h"

namespace fixpoint::client {

// One choice. Complete once `finished` was added.
struct Answer {
  v1::Started started;
  v1::Finished finished;
  std::string text;
  std::vector<uint32_t> token_ids;  // without resume_token_ids
  std::vector<v1::Logprobs> logprobs;
};

struct PromptReport {
  std::string text;
  std::vector<uint32_t> token_ids;  // from the prompt's second on
  std::vector<v1::Logprobs> logprobs;
};

// Not thread-safe.
class AnswerCollector {
 public:
  void Add(const v1::GenerateResponse& message);

  // By number; only those that a message was about.
  const std::map<uint32_t, Answer>& answers() const { return answers_; }
  const std::map<uint32_t, PromptReport>& prompts() const { return prompts_; }

 private:
  std::map<uint32_t, Answer> answers_;
  std::map<uint32_t, PromptReport> prompts_;
};

// "stop" or "length".
std::string FinishReasonName(v1::FinishReason reason);

}  // namespace fixpoint::client
