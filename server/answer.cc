#include "server/answer.h"

#include <utility>

namespace fixpoint {

Answer::Answer(std::shared_ptr<Stream> stream, const Tokenizer* tokenizer,
               std::vector<std::string> stop_strings, bool with_logprobs)
    : stream_(std::move(stream)),
      text_(tokenizer, std::move(stop_strings)),
      with_logprobs_(with_logprobs) {}

Answer::~Answer() { Close(); }

void Answer::Listen(std::function<void()> listener) { stream_->SetListener(std::move(listener)); }

void Answer::Close() {
  if (stream_ == nullptr) return;
  stream_->ClearListener();
  stream_->Cancel();
  stream_ = nullptr;
}

std::optional<AnswerItem> Answer::Next() {
  if (end_.has_value()) {
    AnswerEnd end = *std::move(end_);
    end_.reset();
    ended_ = true;
    return AnswerItem(std::move(end));
  }
  if (ended_ || stream_ == nullptr) return std::nullopt;
  AnswerDelta delta;
  delta.index = num_tokens_;
  Event event;
  while (delta.token_ids.size() < kMaxDeltaTokens && stream_->TryNext(&event)) {
    if (event.finished) {
      delta.text += text_.Finish();
      end_ = End(event);
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
