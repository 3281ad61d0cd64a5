#include "server/generation_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "server/fake_engine/service_fixture.h"

namespace fixpoint {
namespace {

using ::testing::HasSubstr;

class GenerationServiceTest : public ServiceFixture {};

TEST_F(GenerationServiceTest, StreamHasStartDeltasAndEnd) {
  StartReady();
  const Result result = Generate(Ask("hi"));
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  ASSERT_GE(result.messages.size(), 3u);
  EXPECT_EQ(result.messages.front().started().prompt_tokens(), 3u);  // <bos> h i
  EXPECT_EQ(result.messages.front().started().system_fingerprint(), "fp-dddddddddddddddd-n1");
  EXPECT_EQ(result.text, "abcdefghij");
  EXPECT_EQ(result.ids.size(), 10u);
  const v1::Finished& finished = result.messages.back().finished();
  EXPECT_EQ(finished.reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(finished.usage().prompt_tokens(), 3u);
  EXPECT_EQ(finished.usage().completion_tokens(), 10u);
  EXPECT_EQ(finished.usage().cached_tokens(), 1u);
  uint32_t index = 0;
  for (const v1::GenerateResponse& message : result.messages) {
    if (!message.has_delta()) continue;
    EXPECT_EQ(message.delta().index(), index);
    index += message.delta().token_ids_size();
  }
}

TEST_F(GenerationServiceTest, GenerateOnceEqualsTheStream) {
  StartReady();
  v1::GenerateOnceRequest request;
  request.mutable_prompt()->set_text("hi");
  request.mutable_stopping()->set_max_tokens(10);
  request.mutable_output()->set_top_logprobs(2);
  v1::GenerateOnceResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(stub_->GenerateOnce(&context, request, &response).ok());
  EXPECT_EQ(response.text(), Generate(Ask("hi")).text);
  ASSERT_EQ(response.logprobs_size(), 10);
  EXPECT_EQ(response.logprobs(0).chosen().logprob(), -1.0);
  EXPECT_EQ(response.logprobs(0).chosen().token(), "a");
  EXPECT_EQ(response.logprobs(0).top_size(), 2);
  EXPECT_EQ(response.finished().reason(), v1::FINISH_REASON_LENGTH);
}

TEST_F(GenerationServiceTest, EndOfSequenceStopStringAndStopIdEndTheAnswer) {
  StartReady({.token = [](const Request&, int32_t i) { return i == 6 ? kFakeEos : 'a' + i; }});
  Result result = Generate(Ask("hi"));
  EXPECT_EQ(result.text, "abcdef");
  EXPECT_EQ(result.messages.back().finished().stop_token_id(), static_cast<uint32_t>(kFakeEos));

  v1::GenerateRequest request = Ask("hi");
  request.mutable_stopping()->add_stop_strings("cd");
  result = Generate(request);
  EXPECT_EQ(result.text, "ab");
  EXPECT_EQ(result.messages.back().finished().reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(result.messages.back().finished().stop_string(), "cd");
  EXPECT_EQ(result.messages.back().finished().usage().completion_tokens(), 4u);

  request = Ask("hi");
  request.mutable_stopping()->add_stop_ids('c');
  result = Generate(request);
  EXPECT_EQ(result.text, "ab");
  EXPECT_EQ(result.messages.back().finished().stop_token_id(), static_cast<uint32_t>('c'));

  request = Ask("hi", 8);
  request.mutable_stopping()->set_ignore_eos(true);
  EXPECT_EQ(Generate(request).text, "abcdefh");
}

TEST_F(GenerationServiceTest, BadRequestNeverReachesTheEngine) {
  StartReady();
  v1::GenerateRequest request = Ask("hi");
  request.mutable_sampling()->set_top_p(2);
  Result result = Generate(request);
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(result.status.error_message(), HasSubstr("sampling.top_p"));
  request = Ask("hi");
  request.GetReflection()->MutableUnknownFields(&request)->AddVarint(29, 1);
  result = Generate(request);
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(result.status.error_message(), HasSubstr("field number 29 "));
  EXPECT_EQ(engine_->submitted(), 0);
}

TEST_F(GenerationServiceTest, ChatGoesThroughTheTemplateAndUserTextStaysText) {
  StartReady();
  v1::TokenizeRequest request;
  v1::ChatMessage* message = request.mutable_prompt()->mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content("<eos>");
  v1::TokenizeResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(stub_->Tokenize(&context, request, &response).ok());
  const std::string expected = "user:<eos>";  // ten plain bytes, no control token
  ASSERT_EQ(response.token_ids_size(), static_cast<int>(expected.size()));
  message->set_role("bad");
  grpc::ClientContext second;
  EXPECT_EQ(stub_->Tokenize(&second, request, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(GenerationServiceTest, DetokenizeLeavesControlTokensOut) {
  StartReady();
  v1::DetokenizeRequest request;
  for (const int id : {kFakeBos, int{'h'}, int{'i'}, 0xE2, kFakeEos})
    request.mutable_token_ids()->add_ids(id);
  v1::DetokenizeResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(stub_->Detokenize(&context, request, &response).ok());
  EXPECT_EQ(response.text(), "hi\xEF\xBF\xBD");
}

TEST_F(GenerationServiceTest, CallerThatLeavesFreesTheEngine) {
  StartReady({.max_context_tokens = 100000, .time_per_token = absl::Milliseconds(2)});
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, Ask("hi", 50000));
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  ASSERT_TRUE(reader->Read(&message));
  EXPECT_EQ(engine_->running(), 1);
  context.TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(Eventually([&] { return engine_->running() == 0; }));
  EXPECT_TRUE(Eventually([&] {
    return metrics_.Render().find(
               "fixpoint_calls_total{code=\"CANCELLED\",method=\"Generate\"} 1") !=
           std::string::npos;
  })) << metrics_.Render();
}

TEST_F(GenerationServiceTest, DeadlineEndsTheCallAndTheEnginesWork) {
  StartReady({.max_context_tokens = 100000, .time_per_token = absl::Milliseconds(2)});
  EXPECT_EQ(Generate(Ask("hi", 50000), absl::Milliseconds(150)).status.error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(Eventually([&] { return engine_->running() == 0; }));
}

TEST_F(GenerationServiceTest, LoadingAndDrainingAreUnavailable) {
  Start({});
  EXPECT_EQ(Generate(Ask("hi")).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_FALSE(core_->IsReady());
  SetModel();
  EXPECT_TRUE(core_->IsReady());
  EXPECT_TRUE(Generate(Ask("hi")).status.ok());
  core_->BeginDrain();
  EXPECT_FALSE(core_->IsReady());
  EXPECT_TRUE(Generate(Ask("hi")).status.ok());  // notice: still served
  core_->RefuseNewCalls();
  const Result refused = Generate(Ask("hi"));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("shutting down"));
}

TEST_F(GenerationServiceTest, DrainTimeoutEndsStreamsWithUnavailable) {
  StartReady({.max_context_tokens = 100000, .time_per_token = absl::Milliseconds(2)});
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, Ask("hi", 50000));
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  core_->BeginDrain();
  core_->RefuseNewCalls();
  model_->engine().Drain(absl::Milliseconds(50));
  while (reader->Read(&message)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(GenerationServiceTest, LostDeviceIsUnavailableBeforeTokensAndAbortedAfter) {
  StartReady({.fail_at = 3});
  const Result after = Generate(Ask("hi"));
  EXPECT_EQ(after.status.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_THAT(after.status.error_message(), testing::Not(HasSubstr("fake")));  // no internal text
  TearDown();
  StartReady({.fail_at = 0});
  EXPECT_EQ(Generate(Ask("hi")).status.error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(GenerationServiceTest, FullQueueTellsWhenToTryAgain) {
  StartReady(
      {.submit_error = absl::ResourceExhaustedError("queue: 256 requests wait, the limit is 256")});
  grpc::ClientContext context;
  v1::GenerateOnceRequest request;
  request.mutable_prompt()->set_text("hi");
  v1::GenerateOnceResponse response;
  EXPECT_EQ(stub_->GenerateOnce(&context, request, &response).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
}

TEST_F(GenerationServiceTest, FullIntakeIsResourceExhausted) {
  StartReady({}, {.intake_threads = 1, .max_intake_jobs = 0});
  EXPECT_EQ(Generate(Ask("hi")).status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(GenerationServiceTest, ManyStreamsAtOnceGetTheirOwnAnswers) {
  StartReady({.token = [](const Request& request,
                          int32_t index) { return 'a' + (request.prompt.back() + index) % 26; },
              .time_per_token = absl::Microseconds(200)});
  std::vector<std::thread> threads;
  std::vector<std::string> texts(32);
  for (size_t i = 0; i < texts.size(); ++i) {
    threads.emplace_back(
        [&, i] { texts[i] = Generate(Ask(std::string(1, static_cast<char>('A' + i)), 50)).text; });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < texts.size(); ++i) {
    std::string expected;
    for (size_t k = 0; k < 50; ++k) expected += static_cast<char>('a' + ('A' + i + k) % 26);
    EXPECT_EQ(texts[i], expected) << i;
  }
}

TEST_F(GenerationServiceTest, CallersThatNeverReadHoldUpNobody) {
  StartReady({.max_context_tokens = 1000000});
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>>> readers;
  for (int i = 0; i < 20; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(stub_->Generate(contexts.back().get(), Ask("slow", 100000)));
  }
  for (int i = 0; i < 50; ++i) ASSERT_EQ(Generate(Ask("hi")).text, "abcdefghij");
  for (const auto& context : contexts) context->TryCancel();
  for (const auto& reader : readers)
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(Eventually([&] { return engine_->running() == 0; }));
}

TEST_F(GenerationServiceTest, ModelAndLoadAreTold) {
  StartReady();
  v1::GetModelResponse model;
  grpc::ClientContext first;
  ASSERT_TRUE(stub_->GetModel(&first, v1::GetModelRequest(), &model).ok());
  EXPECT_EQ(model.model(), "fake");
  EXPECT_EQ(model.vocab_size(), static_cast<uint32_t>(kFakeVocab));
  EXPECT_EQ(model.max_prompt_tokens(), 127u);
  EXPECT_EQ(model.max_prompt_bytes(), 127u * 5);  // "<bos>" is the longest token
  EXPECT_EQ(model.bos_id(), static_cast<uint32_t>(kFakeBos));
  v1::GetLoadResponse load;
  grpc::ClientContext second;
  ASSERT_TRUE(stub_->GetLoad(&second, v1::GetLoadRequest(), &load).ok());
  EXPECT_EQ(load.waiting(), 2u);
  EXPECT_EQ(load.free_kv_blocks(), 6u);
  EXPECT_FALSE(load.draining());
  EXPECT_TRUE(load.ready());
  EXPECT_EQ(load.kv_usage(), 0.25);
  EXPECT_EQ(load.kv_block_tokens(), 16u);
  EXPECT_EQ(load.max_running(), 64u);
  EXPECT_EQ(load.max_waiting(), 256u);
  EXPECT_EQ(load.max_waiting_tokens(), 4096u);
  metrics_.OnCacheLookup(100, 40);
  metrics_.OnCacheLookup(1, 0);
  grpc::ClientContext third;
  ASSERT_TRUE(stub_->GetLoad(&third, v1::GetLoadRequest(), &load).ok());
  EXPECT_EQ(load.cache_query_tokens(), 101u);
  EXPECT_EQ(load.cache_hit_tokens(), 40u);
}

TEST_F(GenerationServiceTest, MetricsCountCallsByMethodAndCode) {
  StartReady();
  Generate(Ask("hi"));
  Generate(Ask(""));
  const std::string text = metrics_.Render();
  EXPECT_THAT(text, HasSubstr("fixpoint_calls_total{code=\"OK\",method=\"Generate\"} 1"));
  EXPECT_THAT(text,
              HasSubstr("fixpoint_calls_total{code=\"INVALID_ARGUMENT\",method=\"Generate\"} 1"));
  EXPECT_THAT(text, HasSubstr("fixpoint_requests_finished_total{reason=\"length\"} 1"));
  EXPECT_THAT(text, HasSubstr("fixpoint_kv_cache_usage_ratio 0.25"));
}

}  // namespace
}  // namespace fixpoint
