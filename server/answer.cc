#include "server/answer.h"

#include <utility>

namespace fixpoint {

Answer::Answer(std::shared_ptr<Stream> stream, TextStream text, int32_t resumed, bool with_logprobs)
    : stream_(std::move(stream)),
      text_(std::move(text)),
      with_logprobs_(with_logprobs),
      num_tokens_(resumed) {}

Answer::~Answer() { Close(); }

void Answer::Listen(std::function<void()> listener) { stream_->SetListener(std::move(listener)); }

void Answer::Close() {
  if (stream_ == nullptr) return;
  stream_->ClearListener();
  stream_->Cancel();
  stream_ = nullptr;
}

bool Answer::NextEvent(Event* event) {
  if (!ahead_.has_value()) return stream_->TryNext(event);
  *event = *std::move(ahead_);
  ahead_.reset();
  return true;
}

std::optional<AnswerItem> Answer::Next() {
  if (!held_.empty()) {
    AnswerDelta delta{.text = std::exchange(held_, ""), .index = num_tokens_};
    return AnswerItem(std::move(delta));
  }
  if (end_.has_value()) {
    AnswerEnd end = *std::move(end_);
    end_.reset();
    ended_ = true;
    return AnswerItem(std::move(end));
  }
  if (ended_ || stream_ == nullptr) return std::nullopt;
  if (started_) return TakeWaiting();
  Event event;
  if (!stream_->TryNext(&event)) return std::nullopt;
  started_ = true;
  const int32_t cached_tokens = event.cached_tokens;
  const bool failed = event.finished && event.reason != FinishReason::kStop &&
                      event.reason != FinishReason::kLength;
  ahead_ = std::move(event);
  if (failed && !text_.stopped()) return TakeWaiting();
  return AnswerItem(AnswerStart{cached_tokens});
}

// Everything that waits, as far as it is of one kind.
std::optional<AnswerItem> Answer::TakeWaiting() {
  AnswerDelta delta;
  delta.index = num_tokens_;
  Event event;
  while (delta.token_ids.size() < kMaxDeltaTokens && NextEvent(&event)) {
    if (event.of_prompt) return AnswerItem(TakePrompt(std::move(event)));
    if (event.finished) {
      end_ = End(event);
      // An answer that failed goes on elsewhere: its text is not at its end.
      if (end_->reason == FinishReason::kStop || end_->reason == FinishReason::kLength)
        held_ = text_.Finish();
      break;
    }
    if (text_.stopped()) continue;  // chosen before the engine heard of the stop string
    AddToken(event, &delta);
    if (!text_.stopped()) continue;
    // The end event still comes: it says how much of the prompt was cached, and that the sequence
    // is gone.
    stream_->Cancel();
    break;
  }
  if (!delta.token_ids.empty() || !delta.text.empty()) return AnswerItem(std::move(delta));
  return end_.has_value() ? Next() : std::nullopt;
}

PromptLogprobs Answer::TakePrompt(Event event) {
  PromptLogprobs part;
  part.index = event.index;
  do {
    part.token_ids.push_back(event.token_id);
    part.logprobs.push_back({event.chosen, std::move(event.top)});
    event = Event();
    if (part.token_ids.size() == kMaxDeltaTokens || !stream_->TryNext(&event)) return part;
  } while (event.of_prompt);
  ahead_ = std::move(event);
  return part;
}

void Answer::AddToken(const Event& event, AnswerDelta* delta) {
  delta->text += text_.Push(event.token_id);
  delta->token_ids.push_back(event.token_id);
  if (with_logprobs_) delta->logprobs.push_back({event.chosen, event.top});
  ++num_tokens_;
}

AnswerEnd Answer::End(const Event& event) const {
  AnswerEnd end;
  end.prompt_tokens = event.prompt_tokens;
  end.cached_tokens = event.cached_tokens;
  if (text_.stopped()) {
    // Tokens that the engine chose before it heard of the stop are not part of the answer: the
    // count depends on the ids alone.
    end.reason = FinishReason::kStop;
    end.stop_string = text_.stop_string();
    end.completion_tokens = num_tokens_;
    return end;
  }
  end.reason = event.reason;
  end.error = event.error;
  end.stop_token_id = event.reason == FinishReason::kStop ? event.stop_token_id : -1;
  end.completion_tokens = event.generated_tokens;
  return end;
}

}  // namespace fixpoint
