#include "server/answer.h"

#include <gtest/gtest.h>

#include <deque>
#include <string>
#include <vector>

#include "server/fake_engine/fake_engine.h"

namespace fixpoint {
namespace {

// Events are there when the test puts them.
class ScriptedStream final : public Stream {
 public:
  bool TryNext(Event* event) override {
    if (events.empty()) return false;
    *event = events.front();
    events.pop_front();
    return true;
  }
  bool Next(Event* event, absl::Duration) override { return TryNext(event); }
  void SetListener(std::function<void()> given) override { listener = std::move(given); }
  void ClearListener() override { listener = nullptr; }
  void Cancel() override { ++cancels; }

  void Token(int32_t id) {
    Event event;
    event.token_id = id;
    event.chosen = {id, 0};  // probability one: zero is a value, not "none"
    events.push_back(event);
  }
  void Text(const std::string& text) {
    for (const char byte : text) Token(static_cast<uint8_t>(byte));
  }
  void End(FinishReason reason, int32_t generated) {
    Event event;
    event.finished = true;
    event.reason = reason;
    event.prompt_tokens = 5;
    event.cached_tokens = 3;
    event.generated_tokens = generated;
    if (reason == FinishReason::kStop) event.stop_token_id = kFakeEos;
    events.push_back(event);
  }

  std::deque<Event> events;
  std::function<void()> listener;
  int cancels = 0;
};

class AnswerTest : public testing::Test {
 protected:
  Answer Make(std::vector<std::string> stop_strings = {}, bool with_logprobs = false) {
    return Answer(stream_, tokenizer_.get(), std::move(stop_strings), with_logprobs);
  }
  static AnswerDelta Delta(Answer* answer) {
    auto item = answer->Next();
    EXPECT_TRUE(item.has_value() && std::holds_alternative<AnswerDelta>(*item));
    return std::get<AnswerDelta>(*item);
  }
  static AnswerEnd End(Answer* answer) {
    auto item = answer->Next();
    EXPECT_TRUE(item.has_value() && std::holds_alternative<AnswerEnd>(*item));
    EXPECT_FALSE(answer->Next().has_value());
    return std::get<AnswerEnd>(*item);
  }

  std::unique_ptr<Tokenizer> tokenizer_ = FakeTokenizer();
  std::shared_ptr<ScriptedStream> stream_ = std::make_shared<ScriptedStream>();
};

TEST_F(AnswerTest, WaitingTokensComeAsOneDelta) {
  Answer answer = Make();
  EXPECT_FALSE(answer.Next().has_value());
  stream_->Text("ab");
  AnswerDelta delta = Delta(&answer);
  EXPECT_EQ(delta.text, "ab");
  EXPECT_EQ(delta.index, 0);
  stream_->Text("c");
  stream_->End(FinishReason::kStop, 4);
  delta = Delta(&answer);
  EXPECT_EQ(delta.text, "c");
  EXPECT_EQ(delta.index, 2);
  EXPECT_TRUE(delta.logprobs.empty());
  const AnswerEnd end = End(&answer);
  EXPECT_EQ(end.reason, FinishReason::kStop);
  EXPECT_EQ(end.stop_token_id, kFakeEos);
  EXPECT_EQ(end.prompt_tokens, 5);
  EXPECT_EQ(end.cached_tokens, 3);
  EXPECT_EQ(end.completion_tokens, 4);
}

TEST_F(AnswerTest, DeltasAreBounded) {
  Answer answer = Make();
  stream_->Text(std::string(Answer::kMaxDeltaTokens + 1, 'x'));
  EXPECT_EQ(Delta(&answer).token_ids.size(), Answer::kMaxDeltaTokens);
  EXPECT_EQ(Delta(&answer).token_ids.size(), 1u);
}

TEST_F(AnswerTest, StopStringCancelsAndCountsOnlyItsOwnTokens) {
  Answer answer = Make({"STOP"});
  stream_->Text("xSTOPyz");
  const AnswerDelta delta = Delta(&answer);
  EXPECT_EQ(delta.text, "x");
  EXPECT_EQ(delta.token_ids.size(), 5u);
  EXPECT_EQ(stream_->cancels, 1);
  EXPECT_FALSE(answer.Next().has_value());  // the tokens behind it are dropped
  stream_->End(FinishReason::kCancelled, 7);
  const AnswerEnd end = End(&answer);
  EXPECT_EQ(end.reason, FinishReason::kStop);
  EXPECT_EQ(end.stop_string, "STOP");
  EXPECT_EQ(end.stop_token_id, -1);
  EXPECT_EQ(end.completion_tokens, 5);
  EXPECT_EQ(end.cached_tokens, 3);
}

TEST_F(AnswerTest, HeldBackTextComesInFrontOfTheEnd) {
  Answer answer = Make({"STOP"});
  stream_->Text("aST");
  EXPECT_EQ(Delta(&answer).text, "a");
  stream_->End(FinishReason::kLength, 3);
  const AnswerDelta delta = Delta(&answer);
  EXPECT_EQ(delta.text, "ST");
  EXPECT_TRUE(delta.token_ids.empty());
  EXPECT_EQ(End(&answer).reason, FinishReason::kLength);
}

TEST_F(AnswerTest, EveryTokenHasItsLogprobEvenWhenItIsZero) {
  Answer answer = Make({}, /*with_logprobs=*/true);
  stream_->Text("ab");
  EXPECT_EQ(Delta(&answer).logprobs.size(), 2u);
}

TEST_F(AnswerTest, CloseStopsListeningAndCancels) {
  Answer answer = Make();
  answer.Listen([] {});
  EXPECT_NE(stream_->listener, nullptr);
  answer.Close();
  answer.Close();
  EXPECT_EQ(stream_->listener, nullptr);
  EXPECT_EQ(stream_->cancels, 1);
  EXPECT_FALSE(answer.Next().has_value());
}

}  // namespace
}  // namespace fixpoint
