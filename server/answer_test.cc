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
    event.cached_tokens = 3;
    event.chosen = {id, 0};  // probability one: zero is a value, not "none"
    events.push_back(event);
  }
  void PromptToken(int32_t id, int32_t index) {
    Event event;
    event.of_prompt = true;
    event.token_id = id;
    event.index = index;
    event.cached_tokens = 3;
    event.chosen = {id, -65536};
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
  std::unique_ptr<Answer> Make(std::vector<std::string> stop_strings = {},
                               bool with_logprobs = false) {
    return std::make_unique<Answer>(stream_, TextStream(tokenizer_.get(), std::move(stop_strings)),
                                    0, with_logprobs);
  }
  static AnswerStart Start(Answer* answer) {
    auto item = answer->Next();
    EXPECT_TRUE(item.has_value() && std::holds_alternative<AnswerStart>(*item));
    return std::get<AnswerStart>(*item);
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
  auto answer = Make();
  EXPECT_FALSE(answer->Next().has_value());
  stream_->Text("ab");
  EXPECT_EQ(Start(answer.get()).cached_tokens, 3);
  AnswerDelta delta = Delta(answer.get());
  EXPECT_EQ(delta.text, "ab");
  EXPECT_EQ(delta.index, 0);
  stream_->Text("c");
  stream_->End(FinishReason::kStop, 4);
  delta = Delta(answer.get());
  EXPECT_EQ(delta.text, "c");
  EXPECT_EQ(delta.index, 2);
  EXPECT_TRUE(delta.logprobs.empty());
  const AnswerEnd end = End(answer.get());
  EXPECT_EQ(end.reason, FinishReason::kStop);
  EXPECT_EQ(end.stop_token_id, kFakeEos);
  EXPECT_EQ(end.prompt_tokens, 5);
  EXPECT_EQ(end.cached_tokens, 3);
  EXPECT_EQ(end.completion_tokens, 4);
}

TEST_F(AnswerTest, DeltasAreBounded) {
  auto answer = Make();
  stream_->Text(std::string(Answer::kMaxDeltaTokens + 1, 'x'));
  Start(answer.get());
  EXPECT_EQ(Delta(answer.get()).token_ids.size(), Answer::kMaxDeltaTokens);
  EXPECT_EQ(Delta(answer.get()).token_ids.size(), 1u);
}

TEST_F(AnswerTest, StopStringCancelsAndCountsOnlyItsOwnTokens) {
  auto answer = Make({"STOP"});
  stream_->Text("xSTOPyz");
  Start(answer.get());
  const AnswerDelta delta = Delta(answer.get());
  EXPECT_EQ(delta.text, "x");
  EXPECT_EQ(delta.token_ids.size(), 5u);
  EXPECT_EQ(stream_->cancels, 1);
  EXPECT_FALSE(answer->Next().has_value());  // the tokens behind it are dropped
  stream_->End(FinishReason::kCancelled, 7);
  const AnswerEnd end = End(answer.get());
  EXPECT_EQ(end.reason, FinishReason::kStop);
  EXPECT_EQ(end.stop_string, "STOP");
  EXPECT_EQ(end.stop_token_id, -1);
  EXPECT_EQ(end.completion_tokens, 5);
  EXPECT_EQ(end.cached_tokens, 3);
}

TEST_F(AnswerTest, HeldBackTextComesInFrontOfTheEnd) {
  auto answer = Make({"STOP"});
  stream_->Text("aST");
  Start(answer.get());
  EXPECT_EQ(Delta(answer.get()).text, "a");
  stream_->End(FinishReason::kLength, 3);
  const AnswerDelta delta = Delta(answer.get());
  EXPECT_EQ(delta.text, "ST");
  EXPECT_TRUE(delta.token_ids.empty());
  EXPECT_EQ(End(answer.get()).reason, FinishReason::kLength);
}

TEST_F(AnswerTest, EveryTokenHasItsLogprobEvenWhenItIsZero) {
  auto answer = Make({}, /*with_logprobs=*/true);
  stream_->Text("ab");
  Start(answer.get());
  EXPECT_EQ(Delta(answer.get()).logprobs.size(), 2u);
}

TEST_F(AnswerTest, CloseStopsListeningAndCancels) {
  auto answer = Make();
  answer->Listen([] {});
  EXPECT_NE(stream_->listener, nullptr);
  answer->Close();
  answer->Close();
  EXPECT_EQ(stream_->listener, nullptr);
  EXPECT_EQ(stream_->cancels, 1);
  EXPECT_FALSE(answer->Next().has_value());
}

// The text of deltas with tokens must depend on the ids alone: so it may not matter whether the end
// was there already when they were taken.
TEST_F(AnswerTest, HeldBackTextIsADeltaOfItsOwnEvenWhenTheEndWaits) {
  auto answer = Make({"STOP"});
  stream_->Text("aST");
  stream_->End(FinishReason::kLength, 3);
  Start(answer.get());
  AnswerDelta delta = Delta(answer.get());
  EXPECT_EQ(delta.text, "a");
  EXPECT_EQ(delta.token_ids.size(), 3u);
  delta = Delta(answer.get());
  EXPECT_EQ(delta.text, "ST");
  EXPECT_TRUE(delta.token_ids.empty());
  EXPECT_EQ(delta.index, 3);
  EXPECT_EQ(End(answer.get()).reason, FinishReason::kLength);
}

// The client goes on behind the last token elsewhere, where the same text is held back again.
TEST_F(AnswerTest, FailedAnswersKeepWhatWasHeldBack) {
  for (const FinishReason reason :
       {FinishReason::kCancelled, FinishReason::kDeadline, FinishReason::kError}) {
    auto answer = Make({"STOP"});
    stream_->Text("aST");
    stream_->End(reason, 3);
    Start(answer.get());
    EXPECT_EQ(Delta(answer.get()).text, "a");
    EXPECT_EQ(End(answer.get()).reason, reason);
  }
}

TEST_F(AnswerTest, AnEndAloneIsStartedTooUnlessItIsAFailure) {
  auto stopped = Make();
  stream_->End(FinishReason::kStop, 1);
  EXPECT_EQ(Start(stopped.get()).cached_tokens, 3);
  EXPECT_EQ(End(stopped.get()).reason, FinishReason::kStop);
  for (const FinishReason reason :
       {FinishReason::kCancelled, FinishReason::kDeadline, FinishReason::kError}) {
    auto failed = Make();
    stream_->End(reason, 0);
    EXPECT_EQ(End(failed.get()).reason, reason);
  }
}

TEST_F(AnswerTest, LogprobsOfThePromptComeBetweenStartAndDeltas) {
  auto answer = Make();
  stream_->PromptToken(7, 1);
  stream_->PromptToken(8, 2);
  stream_->Text("a");
  EXPECT_EQ(Start(answer.get()).cached_tokens, 3);
  auto item = answer->Next();
  ASSERT_TRUE(item.has_value() && std::holds_alternative<PromptLogprobs>(*item));
  const PromptLogprobs& part = std::get<PromptLogprobs>(*item);
  EXPECT_EQ(part.token_ids, (std::vector<int32_t>{7, 8}));
  EXPECT_EQ(part.index, 1);
  ASSERT_EQ(part.logprobs.size(), 2u);
  EXPECT_EQ(part.logprobs[1].chosen.token_id, 8);
  const AnswerDelta delta = Delta(answer.get());
  EXPECT_EQ(delta.text, "a");
  EXPECT_EQ(delta.index, 0);
}

TEST_F(AnswerTest, PartsOfThePromptAreBounded) {
  auto answer = Make();
  const auto most = static_cast<int32_t>(Answer::kMaxDeltaTokens);
  for (int32_t i = 0; i < most + 1; ++i) stream_->PromptToken(i % 200, i + 1);
  Start(answer.get());
  auto item = answer->Next();
  EXPECT_EQ(std::get<PromptLogprobs>(*item).token_ids.size(), Answer::kMaxDeltaTokens);
  item = answer->Next();
  EXPECT_EQ(std::get<PromptLogprobs>(*item).token_ids.size(), 1u);
  EXPECT_EQ(std::get<PromptLogprobs>(*item).index, most + 1);
}

// What a resumed stream says is what the first one would have gone on with, wherever it broke.
TEST_F(AnswerTest, ResumedAnswersGoOnWhereTheFirstOneBroke) {
  const std::string bytes = "ab\xE2\x82\xACST\xC3\xA4STO-x";
  const std::vector<std::string> stop_strings = {"STOP"};
  for (size_t broke_at = 0; broke_at <= bytes.size(); ++broke_at) {
    TextStream first(tokenizer_.get(), stop_strings);
    std::string text;
    std::vector<int32_t> ids;
    for (size_t i = 0; i < broke_at; ++i) {
      ids.push_back(static_cast<uint8_t>(bytes[i]));
      text += first.Push(ids.back());
    }
    TextStream resumed(tokenizer_.get(), stop_strings);
    size_t taken = 0;
    ASSERT_TRUE(resumed.Resume(ids, &taken));
    const auto stream = std::make_shared<ScriptedStream>();
    stream->Text(bytes.substr(broke_at));
    stream->End(FinishReason::kLength, static_cast<int32_t>(bytes.size()));
    Answer answer(stream, std::move(resumed), static_cast<int32_t>(ids.size()), false);
    Start(&answer);
    while (auto item = answer.Next()) {
      const auto* delta = std::get_if<AnswerDelta>(&*item);
      if (delta == nullptr) break;
      EXPECT_EQ(delta->index, static_cast<int32_t>(ids.size()));
      ids.insert(ids.end(), delta->token_ids.begin(), delta->token_ids.end());
      text += delta->text;
    }
    EXPECT_EQ(text, "ab\xE2\x82\xACST\xC3\xA4STO-x") << broke_at;
    EXPECT_EQ(ids.size(), bytes.size()) << broke_at;
  }
}

TEST_F(AnswerTest, ResumedIdsBehindAStopStringAreRefused) {
  const auto resume = [&](const std::string& text, size_t* taken) {
    TextStream stream(tokenizer_.get(), {"STOP"});
    return stream.Resume(std::vector<int32_t>(text.begin(), text.end()), taken);
  };
  size_t taken = 0;
  EXPECT_TRUE(resume("xSTOP", &taken));
  EXPECT_EQ(taken, 5u);
  EXPECT_FALSE(resume("xSTOPy", &taken));
  EXPECT_EQ(taken, 5u);
}

}  // namespace
}  // namespace fixpoint
