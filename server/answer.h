// A running answer: takes the engine's events and gives text, ids and the end, free of any wire
// format.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "engine/engine.h"
#include "server/text_stream.h"

namespace fixpoint {

struct PositionLogprobs {
  TokenLogprob chosen;
  std::vector<TokenLogprob> top;
};

// The first event of the engine has come: the request is being run.
struct AnswerStart {
  int32_t cached_tokens = 0;
};

// What the model thought of tokens of the prompt, rising by index.
struct PromptLogprobs {
  std::vector<int32_t> token_ids;
  std::vector<PositionLogprobs> logprobs;  // as long as token_ids
  int32_t index = 0;                       // in the prompt, of the first id
};

struct AnswerDelta {
  std::string text;  // whole code points, possibly empty
  std::vector<int32_t> token_ids;
  std::vector<PositionLogprobs> logprobs;  // as long as token_ids, or empty
  int32_t index = 0;                       // in the answer, of the first id
};

struct AnswerEnd {
  FinishReason reason = FinishReason::kStop;
  absl::Status error;          // for kError: what the engine said; for logs, not for callers
  int32_t stop_token_id = -1;  // for kStop: the id that ended it, or
  std::string stop_string;     // the string that did
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;
  int32_t completion_tokens = 0;
};

using AnswerItem = std::variant<AnswerStart, PromptLogprobs, AnswerDelta, AnswerEnd>;

// Not thread-safe, except that the listener is called by the engine thread.
class Answer {
 public:
  // `text` has taken the `resumed` ids that an earlier stream gave; what it stands on must outlive
  // this. with_logprobs: the request asked for them.
  Answer(std::shared_ptr<Stream> stream, TextStream text, int32_t resumed, bool with_logprobs);
  ~Answer();

  // `listener` is called whenever Next may have more; see Stream::SetListener.
  void Listen(std::function<void()> listener);

  // The next item, if there is one now: one AnswerStart, the prompt's log-probabilities, deltas,
  // one AnswerEnd, then nothing. Several waiting tokens come as one delta (at most
  // kMaxDeltaTokens). Text that was held back to the end comes as a last delta without tokens: so
  // the text of all deltas with tokens depends on the ids alone, and a stream can be resumed behind
  // any of them. An answer that failed has no such delta, as it may go on elsewhere, and perhaps no
  // start.
  std::optional<AnswerItem> Next();

  // Stops listening (a running call of the listener has returned then) and cancels the request if
  // it still runs. Idempotent.
  void Close();

  static constexpr size_t kMaxDeltaTokens = 256;

 private:
  std::optional<AnswerItem> TakeWaiting();
  bool NextEvent(Event* event);
  PromptLogprobs TakePrompt(Event event);
  void AddToken(const Event& event, AnswerDelta* delta);
  AnswerEnd End(const Event& event) const;

  std::shared_ptr<Stream> stream_;
  TextStream text_;
  const bool with_logprobs_;
  int32_t num_tokens_ = 0;  // given out, by earlier streams too
  bool started_ = false;
  std::optional<Event> ahead_;    // taken from the stream, not used yet
  std::string held_;              // text that waits for a last delta of its own
  std::optional<AnswerEnd> end_;  // waits behind it
  bool ended_ = false;
};

}  // namespace fixpoint
