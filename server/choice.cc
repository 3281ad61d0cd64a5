#include "server/choice.h"

#include <utility>

#include "base/status_macros.h"

namespace fixpoint {
namespace {

// The stream of an answer that was complete before the call: only its end.
class EndedStream final : public Stream {
 public:
  explicit EndedStream(Event end) : end_(std::move(end)) {}

  bool TryNext(Event* event) override {
    if (!end_.has_value()) return false;
    *event = *std::move(end_);
    end_.reset();
    return true;
  }
  bool Next(Event* event, absl::Duration) override { return TryNext(event); }
  void SetListener(std::function<void()> listener) override { listener(); }
  void ClearListener() override {}
  void Cancel() override {}

 private:
  std::optional<Event> end_;
};

// Its tokens are all that max_tokens allows, unless the answer's text says that it was stopped.
std::shared_ptr<Stream> EndOfComplete(const Request& request) {
  Event end;
  end.finished = true;
  end.reason = FinishReason::kLength;
  end.prompt_tokens = static_cast<int32_t>(request.prompt.size());
  end.generated_tokens = static_cast<int32_t>(request.resume.size());
  return std::make_shared<EndedStream>(std::move(end));
}

}  // namespace

Choice::Choice(ChoicePlan* plan)
    : prompt_(plan->prompt),
      prompt_tokens_(static_cast<int32_t>(plan->request.prompt.size())),
      max_tokens_(plan->request.max_tokens),
      seed_(plan->request.sampling.seed),
      echo_(std::move(plan->echo)),
      output_(plan->request.resume),
      receipt_(std::move(plan->receipt)) {}

absl::StatusOr<std::unique_ptr<Choice>> Choice::Start(ChoicePlan plan, Engine& engine) {
  std::unique_ptr<Choice> choice(new Choice(&plan));
  const bool with_logprobs = plan.request.top_logprobs >= 0;
  std::shared_ptr<Stream> stream;
  if (plan.complete) {
    stream = EndOfComplete(plan.request);
  } else {
    ASSIGN_OR_RETURN(stream, engine.Submit(std::move(plan.request)));
  }
  choice->answer_.emplace(std::move(stream), std::move(plan.text),
                          static_cast<int32_t>(choice->output_.size()), with_logprobs);
  return choice;
}

std::optional<ChoiceItem> Choice::Next() {
  if (started_ && echo_.has_value()) {
    PromptPart part{.prompt = prompt_, .text = *std::move(echo_)};
    echo_.reset();
    return ChoiceItem(std::move(part));
  }
  std::optional<AnswerItem> item = answer_->Next();
  if (!item.has_value()) return std::nullopt;
  if (const auto* start = std::get_if<AnswerStart>(&*item)) {
    started_ = true;
    return ChoiceItem(*start);
  }
  if (auto* logprobs = std::get_if<PromptLogprobs>(&*item)) {
    return ChoiceItem(PromptPart{.prompt = prompt_, .logprobs = std::move(*logprobs)});
  }
  if (auto* delta = std::get_if<AnswerDelta>(&*item)) {
    output_.insert(output_.end(), delta->token_ids.begin(), delta->token_ids.end());
    return ChoiceItem(std::move(*delta));
  }
  return ChoiceItem(End(std::move(std::get<AnswerEnd>(*item))));
}

ChoiceEnd Choice::End(AnswerEnd answer) {
  ended_ = true;
  ChoiceEnd end{.answer = std::move(answer), .max_tokens = max_tokens_, .seed = seed_};
  const FinishReason reason = end.answer.reason;
  if (reason != FinishReason::kStop && reason != FinishReason::kLength) return end;
  end.receipt = receipt_.Finish(
      output_,
      {.reason = reason == FinishReason::kStop ? ReceiptReason::kStop : ReceiptReason::kLength,
       .stop_token_id = end.answer.stop_token_id,
       .stop_string = end.answer.stop_string});
  return end;
}

}  // namespace fixpoint
