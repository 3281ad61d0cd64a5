// Callers that are slow or gone, refusals, traces: a real gRPC server over a fake engine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "server/fake_engine/service_fixture.h"
#include "server/generation_call.h"

namespace fixpoint {
namespace {

using ::testing::HasSubstr;

class CallLifecycleTest : public ServiceFixture {
 protected:
  bool Counted(const std::string& sample) {
    return metrics_.Render().find(sample) != std::string::npos;
  }
  // What the server's ticker does.
  size_t EndStuckReaders(absl::Duration timeout) {
    return core_->open_calls().EndStuckReaders(SteadyNow(), timeout);
  }
};

TEST_F(CallLifecycleTest, HeadersComeBeforeTheFirstToken) {
  StartReady({.time_per_token = absl::Seconds(3)});
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, Ask("hi"));
  const absl::Time start = absl::Now();
  reader->WaitForInitialMetadata();
  EXPECT_LT(absl::Now() - start, absl::Seconds(2));
  EXPECT_EQ(context.GetServerInitialMetadata().count("fixpoint-request-id"), 1u);
  context.TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(CallLifecycleTest, ReaderWithoutProgressIsCancelledAndOthersAreNot) {
  StartReady({.max_context_tokens = 1000000, .token = [](const Request& request, int32_t) {
                if (request.priority == 1) absl::SleepFor(absl::Milliseconds(2));
                return int{'a'};
              }});
  v1::GenerateRequest request = Ask("never read", 40000);
  request.mutable_output()->set_top_logprobs(20);  // big messages: the window is full soon
  grpc::ClientContext context;
  auto stuck = stub_->Generate(&context, request);
  v1::GenerateResponse message;
  ASSERT_TRUE(stuck->Read(&message));
  v1::GenerateRequest slow = Ask("slow, but read", 500000);
  slow.set_priority(1);
  grpc::ClientContext other_context;
  auto other = stub_->Generate(&other_context, slow);
  size_t ended = 0;
  ASSERT_TRUE(Eventually([&] {
    EXPECT_TRUE(other->Read(&message));
    ended += EndStuckReaders(absl::Seconds(1));
    return ended > 0;
  }));
  EXPECT_TRUE(Eventually([&] { return Counted("fixpoint_slow_readers_total 1"); }));
  EXPECT_TRUE(other->Read(&message));
  while (stuck->Read(&message)) {
  }
  EXPECT_EQ(stuck->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(engine_->running(), 1);
  EXPECT_TRUE(Counted("fixpoint_calls_total{code=\"CANCELLED\",method=\"Generate\"} 1"));
  other_context.TryCancel();
  other->Finish();
}

// The engine is done, what is left only waits to be taken.
TEST_F(CallLifecycleTest, CallsWhoseEngineIsDoneAreBrokenOffToo) {
  StartReady({.max_context_tokens = 1000000});
  v1::GenerateRequest request = Ask("slow", 30000);
  request.mutable_output()->set_top_logprobs(20);
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>>> readers;
  for (int i = 0; i < 4; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(stub_->Generate(contexts.back().get(), request));
  }
  ASSERT_TRUE(Eventually([&] { return engine_->running() == 0 && engine_->submitted() == 4; }));
  EXPECT_TRUE(Eventually([&] {
    EndStuckReaders(absl::Milliseconds(300));
    return Counted("fixpoint_slow_readers_total 4");
  }));
  // Every call is gone from the server: looking again finds none.
  EXPECT_TRUE(Eventually([&] {
    EndStuckReaders(absl::Hours(1));
    return core_->open_calls().size() == 0;
  }));
  v1::GenerateResponse message;
  for (const auto& reader : readers) {
    while (reader->Read(&message)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
}

// A call without a wire: what is taken from it is up to the test.
class ScriptedCall final : public GenerationCall {
 public:
  explicit ScriptedCall(ServingCore* core) : GenerationCall(core, {.method = "Generate"}) {}
  absl::Duration waiting_since() const override { return absl::InfiniteDuration(); }

  std::atomic<bool> ready{true};
  std::atomic<bool> finished{false};
  std::atomic<int> breaks{0};

 private:
  bool ReadyForOutput() const override { return ready; }
  void Accepted(const ParsedRequest&) override {}
  void Started(int32_t, int32_t, const AnswerStart&) override {}
  absl::Status Prompt(PromptPart) override { return absl::OkStatus(); }
  absl::Status Delta(int32_t, AnswerDelta) override { return absl::OkStatus(); }
  void Finished(int32_t, const ChoiceEnd&, bool last) override { finished = last; }
  void Failed(const absl::Status&) override {}
  void BreakOff() override { ++breaks; }
};

TEST_F(CallLifecycleTest, LastMessageThatNobodyTakesIsBrokenOffOnce) {
  StartReady();
  const v1::GenerateRequest request = Ask("hi");
  const auto call = std::make_shared<ScriptedCall>(core_.get());
  call->Start([&](const RequestLimits& limits) { return ParseRequest(request, limits); },
              absl::InfiniteFuture());
  ASSERT_TRUE(Eventually([&] { return call->finished.load(); }));
  for (int i = 0; i < 3; ++i) call->ReaderStuck();
  EXPECT_TRUE(Eventually([&] { return call->breaks > 0; }));
  absl::SleepFor(absl::Milliseconds(50));
  EXPECT_EQ(call->breaks, 1);
  EXPECT_TRUE(Counted("fixpoint_slow_readers_total 1"));
  EXPECT_TRUE(Counted("fixpoint_calls_total{code=\"OK\",method=\"Generate\"} 1"));
}

// The engine is free again while the wire still holds the call and takes nothing.
TEST_F(CallLifecycleTest, CallerThatLeftFreesAllChoicesBeforeTheWireLetsGo) {
  StartReady({.max_context_tokens = 100000, .time_per_token = absl::Milliseconds(1)});
  v1::GenerateRequest request = Ask("hi", 50000);
  request.set_n(3);
  const auto call = std::make_shared<ScriptedCall>(core_.get());
  call->ready = false;
  call->Start([&](const RequestLimits& limits) { return ParseRequest(request, limits); },
              absl::InfiniteFuture());
  ASSERT_TRUE(Eventually([&] { return engine_->running() == 3; }));
  call->CallerLeft();
  EXPECT_TRUE(Eventually([&] { return engine_->running() == 0; }));
  // The call itself has not ended.
  EXPECT_FALSE(Counted("fixpoint_calls_total{code=\"CANCELLED\",method=\"Generate\"} 1"));
  call->ready = true;
  call->Signal();
  EXPECT_TRUE(Eventually(
      [&] { return Counted("fixpoint_calls_total{code=\"CANCELLED\",method=\"Generate\"} 1"); }));
}

TEST_F(CallLifecycleTest, CallsThatEndAreForgotten) {
  StartReady();
  for (int i = 0; i < 20; ++i) Generate(Ask("hi"));
  EXPECT_TRUE(Eventually([&] {
    EXPECT_EQ(EndStuckReaders(absl::Seconds(30)), 0u);
    return core_->open_calls().size() == 0;
  }));
}

TEST_F(CallLifecycleTest, StuckEngineTakesNoNewCalls) {
  StartReady();
  core_->SetStuck(true);
  EXPECT_FALSE(core_->IsReady());
  const Result refused = Generate(Ask("hi"));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("stuck"));
  EXPECT_TRUE(Counted("fixpoint_calls_refused_total{reason=\"stuck\"} 1"));
  core_->SetStuck(false);
  EXPECT_TRUE(core_->IsReady());
  EXPECT_TRUE(Generate(Ask("hi")).status.ok());
}

TEST_F(CallLifecycleTest, QueueTimeoutAndRefusedResumeAreTheEnginesOwnWords) {
  StartReady(
      {.fail_at = 0, .failure = absl::ResourceExhaustedError("waited in the queue too long")});
  Result result = Generate(Ask("hi"));
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(result.status.error_message(), HasSubstr("waited in the queue"));
  EXPECT_TRUE(Counted("fixpoint_calls_refused_total{reason=\"queue_timeout\"} 1"));
  TearDown();
  StartReady({.fail_at = 0, .failure = absl::InvalidArgumentError("resume: not in the grammar")});
  EXPECT_EQ(Generate(Ask("hi")).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(CallLifecycleTest, TraceparentIsLoggedAndABadOneIsIgnored) {
  StartReady();
  const auto logged = [&](const std::vector<std::string>& headers) {
    testing::internal::CaptureStderr();
    grpc::ClientContext context;
    for (const std::string& header : headers) context.AddMetadata("traceparent", header);
    auto reader = stub_->Generate(&context, Ask("hi"));
    v1::GenerateResponse message;
    while (reader->Read(&message)) {
    }
    EXPECT_TRUE(reader->Finish().ok());
    return testing::internal::GetCapturedStderr();
  };
  const std::string good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  EXPECT_THAT(logged({good}), HasSubstr("\"trace_id\":\"4bf92f3577b34da6a3ce929d0e0e4736\","
                                        "\"parent_id\":\"00f067aa0ba902b7\""));
  EXPECT_THAT(logged({"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0"}),
              testing::Not(HasSubstr("trace_id")));
  EXPECT_THAT(logged({good, good}), testing::Not(HasSubstr("trace_id")));
  EXPECT_THAT(logged({}), testing::Not(HasSubstr("trace_id")));
}

TEST_F(CallLifecycleTest, EngineHooksAreCounted) {
  StartReady();
  metrics_.OnPreempted();
  metrics_.OnCacheLookup(64, 48);
  metrics_.OnDraft(5, 3);
  metrics_.OnDraft(4, 0);
  metrics_.OnStep(1, 1, absl::Milliseconds(1), absl::Microseconds(5));
  EXPECT_EQ(metrics_.steps(), 1u);
  for (const char* sample :
       {"fixpoint_preemptions_total 1", "fixpoint_prefix_cache_query_tokens_total 64",
        "fixpoint_prefix_cache_hit_tokens_total 48", "fixpoint_drafts_total 2",
        "fixpoint_draft_tokens_total 9", "fixpoint_draft_tokens_accepted_total 3",
        "fixpoint_max_running 64", "fixpoint_max_waiting 256",
        "fixpoint_kv_cache_block_tokens 16"}) {
    EXPECT_TRUE(Counted(sample)) << sample;
  }
}

}  // namespace
}  // namespace fixpoint
