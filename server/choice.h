// One choice of a call: an engine request, its answer, and what the answer's receipt needs.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "server/answer.h"
#include "server/receipt.h"
#include "server/text_stream.h"

namespace fixpoint {

// About a prompt: its text, or log-probabilities of some of its tokens.
struct PromptPart {
  int32_t prompt = 0;  // its number in the call
  std::string text;
  PromptLogprobs logprobs;
};

struct ChoiceEnd {
  AnswerEnd answer;
  std::string receipt;  // empty when the answer failed
  int32_t max_tokens = 0;
  uint64_t seed = 0;
};

using ChoiceItem = std::variant<AnswerStart, PromptPart, AnswerDelta, ChoiceEnd>;

// What is known of a choice before it is submitted.
struct ChoicePlan {
  Request request;
  TextStream text;  // has taken request.resume
  ReceiptHasher receipt;
  int32_t prompt = 0;               // number of its prompt
  std::optional<std::string> echo;  // the prompt's text, where this choice has to tell it
  // The resumed tokens are the whole answer already: nothing is left to run.
  bool complete = false;
};

// Not thread-safe, except that the listener is called by the engine thread.
class Choice {
 public:
  // Submits the plan's request, or ends the answer at once when it is complete. Errors of the
  // engine are passed on.
  static absl::StatusOr<std::unique_ptr<Choice>> Start(ChoicePlan plan, Engine& engine);

  void Listen(std::function<void()> listener) { answer_->Listen(std::move(listener)); }
  // The next item, if there is one now: start, parts of the prompt, deltas, end.
  std::optional<ChoiceItem> Next();
  // As Answer::Close.
  void Close() { answer_->Close(); }

  int32_t prompt_tokens() const { return prompt_tokens_; }
  bool ended() const { return ended_; }

 private:
  explicit Choice(ChoicePlan* plan);
  ChoiceEnd End(AnswerEnd answer);

  const int32_t prompt_;
  const int32_t prompt_tokens_;
  const int32_t max_tokens_;
  const uint64_t seed_;
  std::optional<std::string> echo_;  // still to be told
  std::vector<int32_t> output_;      // all ids, resumed ones included
  ReceiptHasher receipt_;
  std::optional<Answer> answer_;  // always there once started
  bool started_ = false;
  bool ended_ = false;
};

}  // namespace fixpoint
