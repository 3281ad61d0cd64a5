// Several choices, continued answers and receipts, over a real gRPC server and a fake engine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "server/fake_engine/service_fixture.h"
#include "server/receipt.h"

namespace fixpoint {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class ChoicesTest : public ServiceFixture {
 protected:
  struct Received {
    v1::Started started;
    std::string text;
    std::vector<uint32_t> ids;
    v1::Finished finished;
    int messages = 0;
  };
  // By choice; checks the order of each choice's messages.
  static std::map<uint32_t, Received> ByChoice(const Result& result) {
    std::map<uint32_t, Received> choices;
    for (const v1::GenerateResponse& message : result.messages) {
      if (message.has_started()) {
        Received& choice = choices[message.started().choice()];
        EXPECT_EQ(choice.messages++, 0);
        choice.started = message.started();
      } else if (message.has_delta()) {
        Received& choice = choices[message.delta().choice()];
        EXPECT_GT(choice.messages++, 0);
        EXPECT_FALSE(choice.finished.has_usage());
        EXPECT_EQ(message.delta().index(), choice.ids.size());
        choice.text += message.delta().text();
        for (const uint32_t id : message.delta().token_ids()) choice.ids.push_back(id);
      } else if (message.has_finished()) {
        Received& choice = choices[message.finished().choice()];
        EXPECT_GT(choice.messages++, 0);
        choice.finished = message.finished();
      }
    }
    return choices;
  }

  // The letters depend on prompt and seed.
  static int32_t Letter(const Request& request, int32_t index) {
    return 'a' +
           static_cast<int32_t>(
               (static_cast<uint64_t>(request.prompt.back() + index) + request.sampling.seed) % 26);
  }
};

TEST_F(ChoicesTest, EachChoiceEqualsItsOwnCall) {
  StartReady({.token = Letter, .time_per_token = absl::Microseconds(300)});
  v1::GenerateRequest request = Ask("A", 12);
  request.add_more_prompts()->set_text("K");
  request.set_n(3);
  request.mutable_sampling()->set_seed(~uint64_t{0});  // seed + 1 is 0
  const Result result = Generate(request);
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  const auto choices = ByChoice(result);
  ASSERT_EQ(choices.size(), 6u);
  for (const auto& [index, choice] : choices) {
    v1::GenerateRequest alone = Ask(index < 3 ? "A" : "K", 12);
    alone.mutable_sampling()->set_seed(~uint64_t{0} + index % 3);
    const auto expected = ByChoice(Generate(alone)).at(0);
    EXPECT_EQ(choice.text, expected.text) << index;
    EXPECT_EQ(choice.finished.receipt(), expected.finished.receipt()) << index;
    EXPECT_EQ(choice.finished.seed(), alone.sampling().seed());
    EXPECT_EQ(choice.started.request_id(), choices.at(0).started.request_id());
    EXPECT_EQ(choice.started.cached_tokens(), 1u);
  }
  EXPECT_NE(choices.at(0).text, choices.at(1).text);
  EXPECT_NE(choices.at(0).text, choices.at(3).text);
}

TEST_F(ChoicesTest, DeltasOfChoicesComeMixed) {
  StartReady({.token = Letter, .time_per_token = absl::Milliseconds(2)});
  v1::GenerateRequest request = Ask("A", 40);
  request.set_n(2);
  const Result result = Generate(request);
  int changes = 0;
  uint32_t last = 0;
  for (const v1::GenerateResponse& message : result.messages) {
    if (!message.has_delta()) continue;
    changes += message.delta().choice() != last ? 1 : 0;
    last = message.delta().choice();
  }
  EXPECT_GT(changes, 4);
}

TEST_F(ChoicesTest, GenerateOnceHoldsAllChoicesAndPrompts) {
  StartReady({.token = Letter});
  v1::GenerateRequest streamed = Ask("A", 5);
  streamed.add_more_prompts()->set_text("K");
  streamed.set_n(2);
  streamed.mutable_output()->set_echo(true);
  v1::GenerateOnceRequest request;
  ASSERT_TRUE(request.ParseFromString(streamed.SerializeAsString()));
  v1::GenerateOnceResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(stub_->GenerateOnce(&context, request, &response).ok());
  const auto choices = ByChoice(Generate(streamed));
  EXPECT_EQ(response.text(), choices.at(0).text);
  EXPECT_EQ(response.finished().receipt(), choices.at(0).finished.receipt());
  ASSERT_EQ(response.more_choices_size(), 3);
  for (int i = 0; i < 3; ++i) {
    const Received& expected = choices.at(static_cast<uint32_t>(i + 1));
    EXPECT_EQ(response.more_choices(i).text(), expected.text);
    EXPECT_EQ(response.more_choices(i).finished().receipt(), expected.finished.receipt());
  }
  ASSERT_EQ(response.prompts_size(), 2);
  EXPECT_EQ(response.prompts(0).text(), "A");
  EXPECT_EQ(response.prompts(1).text(), "K");
  EXPECT_EQ(context.GetServerInitialMetadata().count("fixpoint-request-id"), 1u);
}

TEST_F(ChoicesTest, OneFailureEndsTheCallAndAllOtherChoices) {
  StartReady({.max_context_tokens = 100000,
              .token = [](const Request& request,
                          int32_t) { return request.sampling.seed == 1 ? kFakeEos : int{'a'}; },
              .time_per_token = absl::Milliseconds(1),
              .fail_at = 30});
  v1::GenerateRequest request = Ask("A", 50000);
  request.set_n(3);
  const Result result = Generate(request);
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_TRUE(Eventually([&] { return engine_->running() == 0; }));
  EXPECT_THAT(metrics_.Render(), HasSubstr("fixpoint_requests_finished_total{reason=\"stop\"} 1"));
}

TEST_F(ChoicesTest, ChoicesThatTheQueueRefusesTakeTheOthersWithThem) {
  StartReady(
      {.max_context_tokens = 100000, .time_per_token = absl::Milliseconds(1), .refuse_from = 2});
  v1::GenerateRequest request = Ask("A", 50000);
  request.set_n(4);
  const Result result = Generate(request);
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(result.messages.empty());
  EXPECT_EQ(engine_->submitted(), 2);
  EXPECT_TRUE(Eventually([&] { return engine_->running() == 0; }));
  EXPECT_THAT(metrics_.Render(),
              HasSubstr("fixpoint_calls_refused_total{reason=\"queue_full\"} 1"));
}

TEST_F(ChoicesTest, CallerThatLeavesFreesAllChoices) {
  StartReady({.max_context_tokens = 100000, .time_per_token = absl::Milliseconds(2)});
  v1::GenerateRequest request = Ask("A", 50000);
  request.set_n(8);
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, request);
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  EXPECT_EQ(engine_->running(), 8);
  context.TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(Eventually([&] { return engine_->running() == 0; }));
}

TEST_F(ChoicesTest, EchoAndPromptLogprobsComeOnceAPromptInFrontOfItsDeltas) {
  StartReady({.token = Letter});
  v1::GenerateRequest request = Ask("A\xC3\xA4", 3);
  v1::ChatMessage* message = request.add_more_prompts()->mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content("hi");
  request.set_n(2);
  request.mutable_output()->set_echo(true);
  request.mutable_output()->set_prompt_logprobs(2);
  const Result result = Generate(request);
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  std::map<uint32_t, std::string> texts;
  std::map<uint32_t, std::vector<uint32_t>> ids;
  std::map<uint32_t, bool> begun;  // by prompt: its first choice has sent a delta
  for (const v1::GenerateResponse& m : result.messages) {
    if (m.has_delta() && m.delta().choice() % 2 == 0) begun[m.delta().choice() / 2] = true;
    if (!m.has_prompt_part()) continue;
    const v1::PromptPart& part = m.prompt_part();
    EXPECT_FALSE(begun[part.prompt()]);
    texts[part.prompt()] += part.text();
    EXPECT_EQ(part.token_ids_size(), part.logprobs_size());
    if (part.token_ids_size() > 0) {
      EXPECT_EQ(part.index(), 1 + ids[part.prompt()].size());
    }
    for (int i = 0; i < part.token_ids_size(); ++i) {
      ids[part.prompt()].push_back(part.token_ids(i));
      EXPECT_EQ(part.logprobs(i).chosen().token_id(), part.token_ids(i));
      EXPECT_EQ(part.logprobs(i).chosen().logprob(), -2.0);
      EXPECT_EQ(part.logprobs(i).top_size(), 2);
    }
  }
  EXPECT_EQ(texts[0], "A\xC3\xA4");
  EXPECT_EQ(texts[1], "user:hi");
  EXPECT_EQ(ids[0], (std::vector<uint32_t>{'A', 0xC3, 0xA4}));  // behind <bos>
  EXPECT_EQ(ids[1].size(), std::string("user:hi").size() - 1);
  const std::vector<Request> asked = engine_->requests();
  ASSERT_EQ(asked.size(), 4u);
  EXPECT_EQ(asked[0].prompt_logprobs, 2);
  EXPECT_EQ(asked[1].prompt_logprobs, -1);
  EXPECT_EQ(asked[2].prompt_logprobs, 2);
}

TEST_F(ChoicesTest, ResumedStreamsGoOnAndHaveTheReceiptOfTheWhole) {
  StartReady({.token = Letter});
  const v1::GenerateRequest request = Ask("A", 10);
  const auto whole = ByChoice(Generate(request)).at(0);
  ASSERT_EQ(whole.ids.size(), 10u);
  for (size_t broke_at = 0; broke_at <= 10; ++broke_at) {
    v1::GenerateRequest again = request;
    for (size_t i = 0; i < broke_at; ++i) again.add_resume_token_ids(whole.ids[i]);
    again.mutable_output()->set_echo(broke_at > 0);
    const int32_t submitted = engine_->submitted();
    const Result result = Generate(again);
    ASSERT_TRUE(result.status.ok()) << result.status.error_message();
    EXPECT_EQ(result.text, whole.text.substr(broke_at)) << broke_at;
    EXPECT_EQ(result.ids, std::vector<uint32_t>(whole.ids.begin() + static_cast<int>(broke_at),
                                                whole.ids.end()));
    for (const auto& message : result.messages) {
      EXPECT_FALSE(message.has_prompt_part());  // no second echo
      if (message.has_delta()) {
        EXPECT_GE(message.delta().index(), broke_at);
      }
    }
    const v1::Finished& finished = result.messages.back().finished();
    EXPECT_EQ(finished.receipt(), whole.finished.receipt()) << broke_at;
    EXPECT_EQ(finished.usage().completion_tokens(), 10u);
    EXPECT_EQ(finished.reason(), v1::FINISH_REASON_LENGTH);
    // Nothing is left to run for a complete answer.
    EXPECT_EQ(engine_->submitted() - submitted, broke_at < 10 ? 1 : 0);
  }
}

TEST_F(ChoicesTest, ResumedAnswerThatAStopStringHasEndedIsFinishedAtOnce) {
  StartReady({.token = Letter});
  v1::GenerateRequest request = Ask("A", 10);
  const std::string text = Generate(request).text;
  request.mutable_stopping()->add_stop_strings(text.substr(3, 2));
  const auto whole = ByChoice(Generate(request)).at(0);
  ASSERT_EQ(whole.finished.stop_string(), text.substr(3, 2));
  for (const uint32_t id : whole.ids) request.add_resume_token_ids(id);
  Result result = Generate(request);
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  EXPECT_EQ(result.text, "");
  EXPECT_EQ(result.messages.back().finished().SerializeAsString(), [&] {
    v1::Finished expected = whole.finished;
    expected.mutable_usage()->set_cached_tokens(0);
    return expected.SerializeAsString();
  }());
  request.add_resume_token_ids('z');
  result = Generate(request);
  EXPECT_EQ(result.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(result.status.error_message(),
              AllOf(HasSubstr("resume_token_ids"), HasSubstr("5 ids"), HasSubstr("6 ids")));
}

TEST_F(ChoicesTest, ReceiptIsWhatReceiptHSays) {
  StartReady({.token = [](const Request&, int32_t i) { return i == 3 ? kFakeEos : 'a' + i; }});
  v1::GenerateRequest request = Ask("hi", 9);
  request.mutable_sampling()->set_temperature(0.5);
  request.mutable_sampling()->set_seed(77);
  request.mutable_sampling()->set_presence_penalty(1);
  request.mutable_stopping()->add_stop_ids(7);
  request.mutable_stopping()->add_stop_strings("never");
  request.mutable_stopping()->set_min_tokens(2);
  // None of these can change a token.
  request.mutable_output()->set_top_logprobs(3);
  request.set_speculation(v1::SPECULATION_OFF);
  request.set_cache_salt("tenant");
  request.set_priority(5);
  ReceiptRequest expected{.bundle_digest = std::string(64, 'd'),
                          .numerics_version = 1,
                          .prompt = {kFakeBos, 'h', 'i'},
                          .max_tokens = 9,
                          .min_tokens = 2,
                          .stop_ids = {7},
                          .stop_strings = {"never"}};
  expected.sampling.inverse_temperature_q16 = 131072;
  expected.sampling.seed = 77;
  expected.adjust.presence_q16 = 65536;
  EXPECT_EQ(Generate(request).messages.back().finished().receipt(),
            ReceiptHasher(expected).Finish(
                {'a', 'b', 'c'}, {.reason = ReceiptReason::kStop, .stop_token_id = kFakeEos}));
}

TEST_F(ChoicesTest, ConstraintsAreMadeForEachChoiceOrRefused) {
  StartReady();
  v1::GenerateRequest request = Ask("hi");
  request.mutable_constraint()->set_regex("[a-z]+");
  EXPECT_EQ(Generate(request).status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(engine_->submitted(), 0);
  TearDown();

  class AllowAll final : public TokenConstraint {
   public:
    void FillMask(absl::Span<uint32_t> mask) override {
      for (uint32_t& word : mask) word = ~uint32_t{0};
    }
    bool Accept(int32_t) override { return true; }
  };
  constraints_ =
      [](const ConstraintSpec& spec) -> absl::StatusOr<std::shared_ptr<TokenConstraint>> {
    if (spec.text == "(") return absl::InvalidArgumentError("byte 0: not closed");
    EXPECT_EQ(spec.kind, ConstraintKind::kRegex);
    EXPECT_EQ(spec.text, "[a-z]+");
    return std::make_shared<AllowAll>();
  };
  StartReady();
  request.set_n(2);
  EXPECT_TRUE(Generate(request).status.ok());
  const std::vector<Request> asked = engine_->requests();
  ASSERT_EQ(asked.size(), 2u);
  EXPECT_NE(asked[0].constraint, nullptr);
  EXPECT_NE(asked[0].constraint, asked[1].constraint);  // each has its own state
  request.mutable_constraint()->set_regex("(");
  const Result refused = Generate(request);
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(refused.status.error_message(),
              AllOf(HasSubstr("constraint.regex"), HasSubstr("not closed")));
}

TEST_F(ChoicesTest, AnswerOver4MiBIsForGenerate) {
  StartReady({.max_context_tokens = 100000});
  v1::GenerateOnceRequest request;
  request.mutable_prompt()->set_text("hi");
  request.mutable_stopping()->set_max_tokens(20000);
  request.mutable_output()->set_top_logprobs(20);
  v1::GenerateOnceResponse response;
  grpc::ClientContext context;
  const grpc::Status status = stub_->GenerateOnce(&context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::OUT_OF_RANGE);
  EXPECT_THAT(status.error_message(), HasSubstr("use Generate"));
  EXPECT_TRUE(Eventually([&] { return engine_->running() == 0; }));
}

}  // namespace
}  // namespace fixpoint
