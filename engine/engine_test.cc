#include "engine/engine.h"

#include <ctime>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "engine/fake_executor.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(60);

struct Answer {
  std::vector<int32_t> tokens;
  std::vector<Event> events;  // of tokens
  Event end;
};

Answer Read(Stream& stream) {
  Answer answer;
  Event event;
  while (stream.Next(&event, kPatience)) {
    if (event.finished) {
      answer.end = event;
      EXPECT_FALSE(stream.TryNext(&event)) << "an event behind the end";
      return answer;
    }
    EXPECT_EQ(event.index, static_cast<int32_t>(answer.tokens.size()));
    answer.tokens.push_back(event.token_id);
    answer.events.push_back(event);
  }
  ADD_FAILURE() << "no end";
  return answer;
}

Request Greedy(std::vector<int32_t> prompt, int32_t max_tokens) {
  Request request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  return request;
}

class CountingObserver final : public EngineObserver {
 public:
  void OnFirstToken(absl::Duration) override { ++first_tokens; }
  void OnToken(absl::Duration) override { ++later_tokens; }
  void OnAdmitted(absl::Duration, int32_t prompt, int32_t cached) override {
    ++admitted, prompt_tokens += prompt, cached_tokens += cached;
  }
  void OnFinished(FinishReason reason, int32_t, int32_t, absl::Duration) override {
    finished[static_cast<size_t>(reason)]++;
  }
  void OnStep(int32_t, int32_t tokens, absl::Duration, absl::Duration) override {
    ++steps, step_tokens += tokens;
  }
  int first_tokens = 0, later_tokens = 0, admitted = 0, prompt_tokens = 0, cached_tokens = 0;
  int steps = 0, step_tokens = 0;
  int finished[5] = {};
};

// Parameter: whether the executor copies its chunks, so that the engine plans ahead.
class EngineTest : public testing::TestWithParam<bool> {
 protected:
  EngineTest() {
    if (GetParam()) executor_.CopyChunks();
  }
  // The engine under test; options may be changed before the first call.
  Engine& engine() {
    if (engine_ == nullptr) engine_ = Engine::Create(&executor_, options_, &observer_);
    return *engine_;
  }
  std::shared_ptr<Stream> Submit(Request request) {
    auto stream = engine().Submit(std::move(request));
    EXPECT_TRUE(stream.ok()) << stream.status();
    return stream.ok() ? *std::move(stream) : nullptr;
  }
  Answer Generate(Request request) { return Read(*Submit(std::move(request))); }
  std::string Refusal(const Request& request,
                      absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
    const auto stream = engine().Submit(request);
    EXPECT_EQ(stream.status().code(), code);
    return std::string(stream.status().message());
  }
  void ExpectAllFree() {
    const EngineLoad load = engine().load();
    EXPECT_EQ(load.running, 0);
    EXPECT_EQ(load.waiting, 0);
    EXPECT_EQ(load.waiting_tokens, 0);
    EXPECT_EQ(load.free_blocks, 32);
    EXPECT_EQ(load.total_blocks, 32);
  }

  FakeExecutor executor_;
  EngineOptions options_ = {.prefix_token_ids = {1, 2}, .eos_ids = {50, 99}};
  CountingObserver observer_;
  std::unique_ptr<Engine> engine_;
};

TEST_P(EngineTest, GeneratesUpToMaxTokens) {
  const Answer answer = Generate(Greedy({10, 20}, 5));
  EXPECT_THAT(answer.tokens, testing::ElementsAre(21, 22, 23, 24, 25));
  EXPECT_EQ(answer.end.reason, FinishReason::kLength);
  EXPECT_EQ(answer.end.prompt_tokens, 2);
  EXPECT_EQ(answer.end.cached_tokens, 0);
  EXPECT_EQ(answer.end.generated_tokens, 5);
  EXPECT_EQ(answer.end.stop_token_id, -1);
  ExpectAllFree();
  engine().Drain(kPatience);
  EXPECT_EQ(observer_.first_tokens, 1);
  EXPECT_EQ(observer_.later_tokens, 4);
  EXPECT_EQ(observer_.admitted, 1);
  EXPECT_EQ(observer_.finished[static_cast<size_t>(FinishReason::kLength)], 1);
  EXPECT_EQ(observer_.steps, 5);
  EXPECT_EQ(observer_.step_tokens, 6);
}

TEST_P(EngineTest, StopsAtEndOfSequenceAndStopIds) {
  Answer answer = Generate(Greedy({47}, 20));
  EXPECT_THAT(answer.tokens, testing::ElementsAre(48, 49));
  EXPECT_EQ(answer.end.reason, FinishReason::kStop);
  EXPECT_EQ(answer.end.stop_token_id, 50);
  EXPECT_EQ(answer.end.generated_tokens, 3);
  Request request = Greedy({47}, 5);
  request.ignore_eos = true;
  EXPECT_THAT(Generate(request).tokens, testing::ElementsAre(48, 49, 50, 51, 52));
  request.stop_ids = {52, 7};
  answer = Generate(request);
  EXPECT_THAT(answer.tokens, testing::ElementsAre(48, 49, 50, 51));
  EXPECT_EQ(answer.end.stop_token_id, 52);
  EXPECT_THAT(Generate(Greedy({49}, 3)).tokens, testing::IsEmpty());  // the first token ends it
}

TEST_P(EngineTest, AbsorbsThePrefixOrItsBeginning) {
  Answer answer = Generate(Greedy({1, 2, 30}, 2));
  EXPECT_THAT(answer.tokens, testing::ElementsAre(31, 32));
  EXPECT_EQ(answer.end.prompt_tokens, 3);
  EXPECT_EQ(answer.end.cached_tokens, 2);
  answer = Generate(Greedy({1, 30}, 1));
  EXPECT_EQ(answer.end.cached_tokens, 1);
  answer = Generate(Greedy({2, 30}, 1));
  EXPECT_EQ(answer.end.cached_tokens, 0);
  EXPECT_THAT(Refusal(Greedy({1, 2}, 5)),
              testing::HasSubstr("prompt holds nothing behind the model's own prefix (2 tokens"));
  EXPECT_THAT(Refusal(Greedy({1}, 5)), testing::HasSubstr("prefix (1 tokens"));
}

TEST_P(EngineTest, RefusesBadRequestsNamingFieldLimitAndValue) {
  EXPECT_THAT(Refusal(Greedy({}, 5)), testing::HasSubstr("prompt is empty"));
  EXPECT_THAT(Refusal(Greedy({5, 100}, 5)),
              testing::HasSubstr("prompt[1] is 100, must be in [0, 99]"));
  EXPECT_THAT(Refusal(Greedy({-1}, 5)), testing::HasSubstr("prompt[0] is -1"));
  EXPECT_THAT(Refusal(Greedy({5}, 0)), testing::HasSubstr("max_tokens is 0, must be in [1, 199]"));
  EXPECT_THAT(Refusal(Greedy({5}, 200)), testing::HasSubstr("max_tokens is 200"));
  EXPECT_EQ(engine().limits().max_prompt_tokens, 199);
  EXPECT_EQ(engine().limits().max_context_tokens, 200);
  EXPECT_EQ(engine().limits().block_tokens, 16);
  EXPECT_EQ(engine().limits().max_running, 16);  // the executor's logit rows
  EXPECT_THAT(Refusal(Greedy(std::vector<int32_t>(200, 5), 1)),
              testing::HasSubstr("prompt has 200 tokens, the limit is 199"));
  const auto with = [&](const std::function<void(Request&)>& change) {
    Request request = Greedy({5}, 1);
    change(request);
    return Refusal(request);
  };
  EXPECT_THAT(with([](Request& r) { r.sampling.top_k = -1; }), testing::HasSubstr("top_k is -1"));
  EXPECT_THAT(with([](Request& r) { r.sampling.top_k = 101; }), testing::HasSubstr("top_k is 101"));
  EXPECT_THAT(with([](Request& r) { r.sampling.top_p_q16 = 0; }),
              testing::HasSubstr("top_p_q16 is 0"));
  EXPECT_THAT(with([](Request& r) { r.sampling.top_p_q16 = 65537; }),
              testing::HasSubstr("top_p_q16"));
  EXPECT_THAT(with([](Request& r) { r.sampling.min_p_q16 = 65537; }),
              testing::HasSubstr("min_p_q16"));
  EXPECT_THAT(with([](Request& r) { r.stop_ids.assign(33, 1); }),
              testing::HasSubstr("stop_ids is 33"));
  EXPECT_THAT(with([](Request& r) { r.stop_ids = {100}; }),
              testing::HasSubstr("stop_ids[0] is 100"));
  EXPECT_THAT(with([](Request& r) { r.top_logprobs = 21; }),
              testing::HasSubstr("top_logprobs is 21"));
  EXPECT_THAT(with([](Request& r) { r.prompt_logprobs = 21; }),
              testing::HasSubstr("prompt_logprobs is 21"));
  EXPECT_THAT(with([](Request& r) { r.resume = {5}; }),
              testing::HasSubstr("number of resumed tokens is 1, must be in [0, 0]"));
  EXPECT_THAT(with([](Request& r) { r.min_tokens = 2; }), testing::HasSubstr("min_tokens is 2"));
  EXPECT_THAT(with([](Request& r) { r.cache_salt.assign(65, 's'); }),
              testing::HasSubstr("cache_salt is 65"));
  EXPECT_THAT(with([](Request& r) {
                r.adjust.bias_q16 = {{7, 1}, {7, 2}};
              }),
              testing::HasSubstr("token of logit bias 1 is 7, must be in [8, 99]"));
  EXPECT_THAT(with([](Request& r) {
                r.adjust.bias_q16 = {{7, 1 << 30}};
              }),
              testing::HasSubstr("logit bias of token 7"));
  EXPECT_THAT(with([](Request& r) { r.adjust.repetition_q16 = 1; }),
              testing::HasSubstr("repetition_q16 is 1"));
  EXPECT_THAT(with([](Request& r) { r.adjust.presence_q16 = 200000; }),
              testing::HasSubstr("presence_q16 is 200000"));
}

// Tokens that a constraint does not allow cannot be resumed.
class NothingAllowed final : public TokenConstraint {
 public:
  void FillMask(absl::Span<uint32_t> mask) override { mask[0] = 1; }
  bool Accept(int32_t) override { return false; }
};

TEST_P(EngineTest, RefusesResumedTokensThatTheConstraintForbids) {
  Request request = Greedy({5}, 3);
  request.resume = {7};
  request.constraint = std::make_shared<NothingAllowed>();
  EXPECT_THAT(Refusal(request), testing::HasSubstr("resume[0] is token 7"));
}

TEST_P(EngineTest, ReportsLogprobs) {
  Request request = Greedy({5}, 1);
  request.top_logprobs = 3;
  const Answer answer = Generate(request);
  ASSERT_EQ(answer.events.size(), 1u);
  const Event& event = answer.events[0];
  EXPECT_EQ(event.chosen.token_id, 6);
  EXPECT_EQ(event.chosen.logprob_q16, 0);  // 99 * exp(-20) = 2.0e-7 rounds to nothing
  ASSERT_EQ(event.top.size(), 3u);
  EXPECT_EQ(event.top[0].token_id, 6);
  EXPECT_EQ(event.top[1].token_id, 0);
  EXPECT_EQ(event.top[1].logprob_q16, -20 * 65536);
  EXPECT_EQ(event.top[2].token_id, 1);
}

TEST_P(EngineTest, RefusesWhatTheQueueCannotHold) {
  options_.max_running = 1;
  options_.max_queue_requests = 2;
  options_.max_queue_tokens = 10;
  executor_.Allow(0);
  const auto running = Submit(Greedy({5}, 1));
  executor_.AwaitSteps(1);
  const auto first = Submit(Greedy(std::vector<int32_t>(9, 5), 1));
  EXPECT_THAT(Refusal(Greedy({5, 5}, 1), absl::StatusCode::kResourceExhausted),
              testing::HasSubstr("the queue holds 9 prompt tokens, the limit is 10"));
  const auto second = Submit(Greedy({5}, 1));
  EXPECT_THAT(Refusal(Greedy({5}, 1), absl::StatusCode::kResourceExhausted),
              testing::HasSubstr("the queue holds 2 requests, the limit is 2"));
  EXPECT_EQ(engine().load().waiting, 2);
  EXPECT_EQ(engine().load().waiting_tokens, 10);
  EXPECT_EQ(engine().load().running, 1);
  executor_.Allow(-1);
  for (const auto& stream : {running, first, second}) {
    EXPECT_EQ(Read(*stream).end.reason, FinishReason::kLength);
  }
  ExpectAllFree();
}

TEST_P(EngineTest, DeadlineEndsWaitingAndRunningRequests) {
  options_.max_running = 1;
  executor_.Allow(0);
  Request request = Greedy({5}, 100);
  request.deadline = absl::Now() + absl::Milliseconds(500);
  const auto running = Submit(request);
  executor_.AwaitSteps(1);
  const auto waiting = Submit(request);
  absl::SleepFor(absl::Milliseconds(520));
  executor_.Allow(-1);
  const Answer answer = Read(*running);
  EXPECT_EQ(answer.end.reason, FinishReason::kDeadline);
  EXPECT_EQ(answer.tokens.size(), 1u);  // of the step that was running
  EXPECT_EQ(Read(*waiting).end.reason, FinishReason::kDeadline);
  request.deadline = absl::InfinitePast();
  EXPECT_EQ(Generate(request).end.reason, FinishReason::kDeadline);
  ExpectAllFree();
}

TEST_P(EngineTest, LeavesTheQueueAfterItsTimeThere) {
  options_.max_running = 1;
  options_.max_queue_time = absl::Milliseconds(500);
  executor_.Allow(0);
  const auto running = Submit(Greedy({5}, 3));
  executor_.AwaitSteps(1);
  const auto waiting = Submit(Greedy({5}, 3));
  absl::SleepFor(absl::Milliseconds(520));
  executor_.Allow(-1);
  EXPECT_EQ(Read(*running).end.reason, FinishReason::kLength);
  const Answer answer = Read(*waiting);
  EXPECT_EQ(answer.end.reason, FinishReason::kError);
  EXPECT_EQ(answer.end.error.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(answer.end.error.message()), testing::HasSubstr("500ms"));
}

TEST_P(EngineTest, CancelEndsWithinTwoSteps) {
  executor_.Allow(0);
  const auto stream = Submit(Greedy({5}, 150));
  const auto other = Submit(Greedy({5}, 150));
  executor_.AwaitSteps(1);
  executor_.Allow(9);
  executor_.AwaitSteps(10);
  stream->Cancel();
  stream->Cancel();
  executor_.Allow(2);
  const Answer answer = Read(*stream);  // while no further step can end
  EXPECT_EQ(answer.end.reason, FinishReason::kCancelled);
  EXPECT_LE(answer.tokens.size(), 12u);
  executor_.Allow(-1);
  EXPECT_EQ(Read(*other).tokens.size(), 44u);  // 6 .. 49, then the end of sequence
  ExpectAllFree();
}

TEST_P(EngineTest, DroppingTheStreamCancels) {
  executor_.Allow(0);
  auto stream = Submit(Greedy({5}, 150));
  executor_.AwaitSteps(1);
  stream.reset();
  executor_.Allow(-1);
  for (int i = 0; i < 1000 && engine().load().running > 0; ++i)
    absl::SleepFor(absl::Milliseconds(1));
  ExpectAllFree();
  engine().Drain(kPatience);
  EXPECT_EQ(observer_.finished[static_cast<size_t>(FinishReason::kCancelled)], 1);
}

TEST_P(EngineTest, ALostDeviceEndsAllWithUnavailable) {
  options_.max_running = 1;
  executor_.Allow(0);
  const auto running = Submit(Greedy({5}, 150));
  executor_.AwaitSteps(1);
  const auto waiting = Submit(Greedy({5}, 150));
  EXPECT_TRUE(engine().healthy());
  executor_.Fail();
  executor_.Allow(-1);
  for (const auto& stream : {running, waiting}) {
    const Answer answer = Read(*stream);
    EXPECT_EQ(answer.end.reason, FinishReason::kError);
    EXPECT_EQ(answer.end.error.code(), absl::StatusCode::kUnavailable);
  }
  EXPECT_FALSE(engine().healthy());
  Refusal(Greedy({5}, 1), absl::StatusCode::kUnavailable);
  ExpectAllFree();
}

TEST_P(EngineTest, AStreamThatNobodyReadsIsCancelled) {
  options_.stream_capacity_events = 7;
  const auto unread = Submit(Greedy({5}, 40));
  const auto other = Submit(Greedy({5}, 7));
  EXPECT_EQ(Read(*other).end.reason, FinishReason::kLength);
  for (int i = 0; i < 10000 && engine().load().running > 0; ++i)
    absl::SleepFor(absl::Milliseconds(1));
  const Answer answer = Read(*unread);
  EXPECT_EQ(answer.tokens.size(), 7u);
  EXPECT_EQ(answer.end.reason, FinishReason::kCancelled);
  ExpectAllFree();
}

// Looks around when a step is submitted and when it is waited for.
class WatchedExecutor final : public FakeExecutor {
 public:
  explicit WatchedExecutor(std::function<int()> look) : look_(std::move(look)) {}
  absl::Status Submit(absl::Span<const SequenceChunk> chunks, int32_t* logits,
                      int32_t* tokens) override {
    at_submit.push_back(look_());
    return FakeExecutor::Submit(chunks, logits, tokens);
  }
  absl::Status Wait() override {
    at_wait.push_back(look_());
    return FakeExecutor::Wait();
  }
  std::vector<int> at_submit, at_wait;

 private:
  const std::function<int()> look_;
};

// A device computes meanwhile.
TEST_P(EngineTest, TokensOfAStepAreDeliveredBesideTheNextOne) {
  std::mutex mutex;
  std::shared_ptr<Stream> stream;
  int events = 0;
  WatchedExecutor executor([&] {
    std::lock_guard<std::mutex> lock(mutex);
    Event event;
    while (stream->TryNext(&event)) ++events;
    return events;
  });
  if (GetParam()) executor.CopyChunks();
  const auto engine = Engine::Create(&executor, options_, &observer_);
  {
    std::lock_guard<std::mutex> lock(mutex);  // the first step is submitted behind it
    auto submitted = engine->Submit(Greedy({5, 6}, 4));
    ASSERT_TRUE(submitted.ok()) << submitted.status();
    stream = *std::move(submitted);
  }
  engine->Drain(kPatience);
  EXPECT_THAT(executor.at_submit, testing::ElementsAre(0, 0, 1, 2));
  EXPECT_THAT(executor.at_wait, testing::ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(observer_.first_tokens, 1);
  EXPECT_EQ(observer_.later_tokens, 3);
  Event event;
  ASSERT_TRUE(stream->TryNext(&event));
  EXPECT_EQ(event.token_id, 10);
  ASSERT_TRUE(stream->TryNext(&event));
  EXPECT_EQ(event.reason, FinishReason::kLength);
}

// One at a time: the second is admitted while the first one's last token is computed, where the
// executor does not need the first one's chunk any more.
TEST_P(EngineTest, TheNextStepIsPlannedBesideTheRunningOne) {
  std::mutex mutex;
  WatchedExecutor executor([&] {
    std::lock_guard<std::mutex> lock(mutex);
    return observer_.admitted;
  });
  if (GetParam()) executor.CopyChunks();
  options_.max_running = 1;
  const auto engine = Engine::Create(&executor, options_, &observer_);
  std::vector<std::shared_ptr<Stream>> streams;
  {
    std::lock_guard<std::mutex> lock(mutex);
    for (const int32_t token : {5, 8}) {
      auto submitted = engine->Submit(Greedy({token}, 3));
      ASSERT_TRUE(submitted.ok()) << submitted.status();
      streams.push_back(*std::move(submitted));
    }
  }
  EXPECT_THAT(Read(*streams[0]).tokens, testing::ElementsAre(6, 7, 8));
  EXPECT_THAT(Read(*streams[1]).tokens, testing::ElementsAre(9, 10, 11));
  engine->Drain(kPatience);
  EXPECT_THAT(executor.at_submit, testing::ElementsAre(1, 1, 1, 2, 2, 2));
  EXPECT_THAT(executor.at_wait, GetParam() ? testing::ElementsAre(1, 1, 2, 2, 2, 2)
                                           : testing::ElementsAre(1, 1, 1, 2, 2, 2));
}

// The step that was planned behind a token which ends the answer does not run it.
TEST_P(EngineTest, AnAnswerThatEndsLeavesThePlanThatHasIt) {
  const Answer answer = Generate(Greedy({47}, 10));
  EXPECT_THAT(answer.tokens, testing::ElementsAre(48, 49));
  EXPECT_EQ(answer.end.stop_token_id, 50);
  ExpectAllFree();
  engine().Drain(kPatience);
  EXPECT_EQ(observer_.steps, 3);
  EXPECT_EQ(observer_.step_tokens, 3);
}

TEST_P(EngineTest, WhoArrivesBesideAStepIsInTheNextOne) {
  executor_.Allow(0);
  const auto first = Submit(Greedy({5}, 3));
  executor_.AwaitSteps(1);  // and the second is planned, where that is done ahead
  const auto second = Submit(Greedy({8}, 2));
  executor_.Allow(-1);
  EXPECT_EQ(Read(*first).tokens.size(), 3u);
  EXPECT_EQ(Read(*second).tokens.size(), 2u);
  engine().Drain(kPatience);
  EXPECT_EQ(observer_.steps, 3);
}

TEST_P(EngineTest, WhoExpiresBesideAStepIsNotInTheNextOne) {
  executor_.Allow(0);
  Request late = Greedy({5}, 30);
  late.deadline = absl::Now() + absl::Milliseconds(300);
  const absl::Time deadline = late.deadline;
  const auto first = Submit(std::move(late));
  const auto second = Submit(Greedy({8}, 5));
  executor_.AwaitSteps(1);
  absl::SleepFor(deadline + absl::Milliseconds(20) - absl::Now());
  executor_.Allow(-1);
  EXPECT_EQ(Read(*first).end.reason, FinishReason::kDeadline);
  EXPECT_THAT(Read(*second).tokens, testing::ElementsAre(9, 10, 11, 12, 13));
}

// 12, which the first step chooses, has been seen behind 10 and 11.
TEST_P(EngineTest, DraftsAreInTheStepBehindTheTokenThatAllowsThem) {
  Request request = Greedy({10, 11, 12, 13, 14, 15, 16, 17, 10, 11}, 7);
  request.speculation = Speculation::kOn;
  EXPECT_THAT(Generate(std::move(request)).tokens,
              testing::ElementsAre(12, 13, 14, 15, 16, 17, 18));
  engine().Drain(kPatience);
  EXPECT_EQ(observer_.steps, 2);
}

// Where the last token finds no room, the answer has not reached its length.
TEST_P(EngineTest, AnAnswerThatLosesItsLastTokenIsCancelled) {
  options_.stream_capacity_events = 3;
  for (const int max_tokens : {3, 4}) {
    const auto stream = Submit(Greedy({5}, max_tokens));
    for (int i = 0; i < 10000 && engine().load().running > 0; ++i)
      absl::SleepFor(absl::Milliseconds(1));
    engine().Drain(kPatience);
    const Answer answer = Read(*stream);
    EXPECT_THAT(answer.tokens, testing::ElementsAre(6, 7, 8));
    EXPECT_EQ(answer.end.reason,
              max_tokens == 3 ? FinishReason::kLength : FinishReason::kCancelled);
    engine_.reset();
  }
}

TEST_P(EngineTest, DrainLetsRequestsFinishAndRefusesNewOnes) {
  executor_.Allow(0);
  const auto stream = Submit(Greedy({5}, 30));
  executor_.AwaitSteps(1);
  std::thread drain([&] { engine().Drain(kPatience); });
  absl::Status refused;
  for (int i = 0; i < 10000 && refused.code() != absl::StatusCode::kUnavailable; ++i) {
    absl::SleepFor(absl::Milliseconds(1));  // until the other thread has begun to drain
    refused = engine().Submit(Greedy({5}, 1)).status();
  }
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  executor_.Allow(-1);
  EXPECT_EQ(Read(*stream).tokens.size(), 30u);
  drain.join();
  engine().Drain(kPatience);  // again, harmless
}

TEST_P(EngineTest, DrainCancelsWhatIsLeftAfterTheTimeout) {
  executor_.Allow(3);
  const auto stream = Submit(Greedy({5}, 40));
  executor_.AwaitSteps(4);
  std::thread drain([&] { engine().Drain(absl::Milliseconds(20)); });
  absl::SleepFor(absl::Milliseconds(60));
  executor_.Allow(1);  // the step that the drain waits for
  drain.join();
  const Answer answer = Read(*stream);
  EXPECT_EQ(answer.end.reason, FinishReason::kCancelled);
  EXPECT_EQ(answer.tokens.size(), 4u);
  EXPECT_EQ(executor_.steps(), 4);
}

TEST_P(EngineTest, AStreamOutlivesTheEngine) {
  executor_.Allow(2);
  const auto stream = Submit(Greedy({5}, 40));
  executor_.AwaitSteps(3);
  executor_.Allow(-1);
  engine_.reset();
  EXPECT_EQ(Read(*stream).end.reason == FinishReason::kCancelled ||
                observer_.finished[static_cast<size_t>(FinishReason::kLength)] == 1,
            true);
  stream->Cancel();
}

TEST_P(EngineTest, IdleEngineDoesNotSpin) {
  EXPECT_EQ(Generate(Greedy({5}, 3)).tokens.size(), 3u);
  const std::clock_t before = std::clock();
  absl::SleepFor(absl::Milliseconds(200));
  const double cpu_seconds = static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
  EXPECT_LT(cpu_seconds, 0.1);  // half of what one spinning thread would burn
  EXPECT_EQ(executor_.steps(), 3);
}

TEST_P(EngineTest, ManyThreadsSubmitReadCancelAndDrop) {
  options_.max_queue_requests = 1000;
  engine();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        auto stream = Submit(Greedy({5 + t}, 1 + i % 30));
        if (stream == nullptr) continue;
        if (i % 5 == 3) continue;  // dropped
        if (i % 5 == 4) stream->Cancel();
        const Answer answer = Read(*stream);
        for (size_t n = 0; n < answer.tokens.size(); ++n) {
          ASSERT_EQ(answer.tokens[n], 6 + t + static_cast<int32_t>(n));
        }
        if (i % 5 < 3) {
          ASSERT_EQ(answer.end.reason, FinishReason::kLength);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  engine().Drain(kPatience);
  ExpectAllFree();
  int ends = 0;
  for (const int count : observer_.finished) ends += count;
  EXPECT_EQ(ends, 200);
}

INSTANTIATE_TEST_SUITE_P(Chunks, EngineTest, testing::Bool(),
                         [](const auto& test) { return test.param ? "copied" : "kept"; });

}  // namespace
}  // namespace fixpoint
