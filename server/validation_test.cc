#include "server/validation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "server/parse_sampling.h"

namespace fixpoint {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const RequestLimits kLimits = {
    .engine = {.max_prompt_tokens = 99, .max_context_tokens = 100, .vocab_size = 300},
    .max_prompt_bytes = 1000,
    .eos_ids = {290, 291}};

v1::GenerateRequest GoodRequest() {
  v1::GenerateRequest request;
  request.mutable_prompt()->set_text("hello");
  return request;
}

// Each case spoils a good request; the message must name field, limit and value.
struct BadCase {
  const char* name;
  std::function<void(v1::GenerateRequest*)> spoil;
  std::vector<std::string> named;
};

class BadRequestTest : public testing::TestWithParam<BadCase> {};

TEST_P(BadRequestTest, IsRefusedNamingFieldLimitAndValue) {
  v1::GenerateRequest request = GoodRequest();
  ASSERT_TRUE(ParseRequest(request, kLimits).ok());
  GetParam().spoil(&request);
  const auto parsed = ParseRequest(request, kLimits);
  ASSERT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
  for (const std::string& part : GetParam().named) {
    EXPECT_THAT(std::string(parsed.status().message()), HasSubstr(part));
  }
}

v1::Sampling* S(v1::GenerateRequest* request) { return request->mutable_sampling(); }
v1::Stopping* T(v1::GenerateRequest* request) { return request->mutable_stopping(); }
v1::Chat* C(v1::GenerateRequest* request) { return request->mutable_prompt()->mutable_chat(); }
void AddMessage(v1::GenerateRequest* request, const std::string& role, const std::string& content) {
  v1::ChatMessage* message = C(request)->add_messages();
  message->set_role(role);
  message->set_content(content);
}

void AddBias(v1::GenerateRequest* request, uint32_t id, double value) {
  v1::LogitBias* bias = S(request)->add_logit_bias();
  bias->set_token_id(id);
  bias->set_bias(value);
}

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

INSTANTIATE_TEST_SUITE_P(
    All, BadRequestTest,
    testing::Values(
        BadCase{"no_prompt", [](auto* r) { r->clear_prompt(); }, {"prompt", "not set"}},
        BadCase{"empty_prompt",
                [](auto* r) {
                  r->mutable_prompt();
                  r->mutable_prompt()->set_text("");
                },
                {"prompt.text", "1 to 1000", "0 bytes"}},
        BadCase{"long_prompt",
                [](auto* r) { r->mutable_prompt()->set_text(std::string(1001, 'x')); },
                {"prompt.text", "1000 bytes", "1001 bytes"}},
        BadCase{"utf8",
                [](auto* r) { r->mutable_prompt()->set_text("ab\xff"); },
                {"prompt.text", "UTF-8", "byte 2"}},
        BadCase{"surrogate",
                [](auto* r) { r->mutable_prompt()->set_text("\xED\xA0\x80"); },
                {"prompt.text", "byte 0"}},
        BadCase{"cut_code_point",
                [](auto* r) { r->mutable_prompt()->set_text("a\xE2\x82"); },
                {"byte 1"}},
        BadCase{"nul",
                [](auto* r) { r->mutable_prompt()->set_text(std::string("a\0b", 3)); },
                {"NUL", "byte 1"}},
        BadCase{"no_ids",
                [](auto* r) { r->mutable_prompt()->mutable_token_ids(); },
                {"prompt.token_ids", "1 to 99", "0 ids"}},
        BadCase{"many_ids",
                [](auto* r) {
                  for (int i = 0; i < 100; ++i)
                    r->mutable_prompt()->mutable_token_ids()->add_ids(1);
                },
                {"prompt.token_ids", "99", "100 ids"}},
        BadCase{"id_out_of_vocabulary",
                [](auto* r) {
                  r->mutable_prompt()->mutable_token_ids()->add_ids(299);
                  r->mutable_prompt()->mutable_token_ids()->add_ids(300);
                },
                {"prompt.token_ids.ids[1]", "vocab_size 300", "300 is outside"}},
        BadCase{"id_negative_as_uint32",
                [](auto* r) { r->mutable_prompt()->mutable_token_ids()->add_ids(0xffffffffu); },
                {"prompt.token_ids.ids[0]", "4294967295"}},
        BadCase{"no_messages", [](auto* r) { C(r); }, {"prompt.chat.messages", "0 messages"}},
        BadCase{"many_messages",
                [](auto* r) {
                  for (int i = 0; i < kMaxChatMessages + 1; ++i) AddMessage(r, "user", "");
                },
                {"prompt.chat.messages", "1024", "1025"}},
        BadCase{
            "empty_role", [](auto* r) { AddMessage(r, "", "x"); }, {"messages[0].role", "0 bytes"}},
        BadCase{"long_role",
                [](auto* r) { AddMessage(r, std::string(65, 'r'), "x"); },
                {"role", "64", "65 bytes"}},
        BadCase{"bad_content",
                [](auto* r) {
                  AddMessage(r, "user", "x");
                  AddMessage(r, "user", "\xc0");
                },
                {"messages[1].content", "UTF-8"}},
        BadCase{"contents_together",
                [](auto* r) {
                  AddMessage(r, "user", std::string(600, 'x'));
                  AddMessage(r, "user", std::string(600, 'x'));
                },
                {"all contents", "1000", "1200"}},
        BadCase{"big_tools",
                [](auto* r) {
                  AddMessage(r, "user", "x");
                  C(r)->set_tools_json(std::string(kMaxToolsBytes + 1, ' '));
                },
                {"tools_json", "262144", "262145"}},
        BadCase{"temperature_negative",
                [](auto* r) { S(r)->set_temperature(-1); },
                {"sampling.temperature", "0.01 to 100", "-1"}},
        BadCase{"temperature_tiny",
                [](auto* r) { S(r)->set_temperature(0.001); },
                {"sampling.temperature", "0.001"}},
        BadCase{"temperature_huge",
                [](auto* r) { S(r)->set_temperature(101); },
                {"sampling.temperature", "101"}},
        BadCase{"temperature_nan",
                [](auto* r) { S(r)->set_temperature(kNan); },
                {"sampling.temperature", "nan"}},
        BadCase{"temperature_infinite",
                [](auto* r) { S(r)->set_temperature(kInfinity); },
                {"sampling.temperature", "inf"}},
        BadCase{"top_k", [](auto* r) { S(r)->set_top_k(301); }, {"sampling.top_k", "300", "301"}},
        BadCase{"top_p_zero",
                [](auto* r) { S(r)->set_top_p(0); },
                {"sampling.top_p", "to 1", "0 is outside"}},
        BadCase{"top_p_over", [](auto* r) { S(r)->set_top_p(1.5); }, {"sampling.top_p", "1.5"}},
        BadCase{"top_p_nan", [](auto* r) { S(r)->set_top_p(kNan); }, {"sampling.top_p", "nan"}},
        BadCase{"min_p_negative",
                [](auto* r) { S(r)->set_min_p(-0.5); },
                {"sampling.min_p", "0 to 1", "-0.5"}},
        BadCase{"min_p_over", [](auto* r) { S(r)->set_min_p(1.01); }, {"sampling.min_p", "1.01"}},
        BadCase{"max_tokens_zero",
                [](auto* r) { T(r)->set_max_tokens(0); },
                {"stopping.max_tokens", "1 to 100", "0 is"}},
        BadCase{"many_stops",
                [](auto* r) {
                  for (int i = 0; i < 5; ++i) T(r)->add_stop_strings("x");
                },
                {"stopping.stop_strings", "4", "5"}},
        BadCase{"empty_stop",
                [](auto* r) { T(r)->add_stop_strings(""); },
                {"stop_strings[0]", "1 to 256", "0 bytes"}},
        BadCase{"long_stop",
                [](auto* r) { T(r)->add_stop_strings(std::string(257, 'x')); },
                {"stop_strings[0]", "256", "257"}},
        BadCase{"bad_stop",
                [](auto* r) { T(r)->add_stop_strings("\xff"); },
                {"stop_strings[0]", "UTF-8"}},
        BadCase{"many_stop_ids",
                [](auto* r) {
                  for (int i = 0; i < 33; ++i) T(r)->add_stop_ids(1);
                },
                {"stopping.stop_ids", "32", "33"}},
        BadCase{"stop_id", [](auto* r) { T(r)->add_stop_ids(300); }, {"stop_ids[0]", "300"}},
        BadCase{"top_logprobs",
                [](auto* r) { r->mutable_output()->set_top_logprobs(21); },
                {"output.top_logprobs", "20", "21"}},
        BadCase{"presence_high",
                [](auto* r) { S(r)->set_presence_penalty(2.01); },
                {"sampling.presence_penalty", "-2 to 2", "2.01"}},
        BadCase{"frequency_low",
                [](auto* r) { S(r)->set_frequency_penalty(-2.5); },
                {"sampling.frequency_penalty", "-2 to 2", "-2.5"}},
        BadCase{"frequency_nan",
                [](auto* r) { S(r)->set_frequency_penalty(kNan); },
                {"sampling.frequency_penalty", "nan"}},
        BadCase{"repetition_zero",
                [](auto* r) { S(r)->set_repetition_penalty(0); },
                {"sampling.repetition_penalty", "0.01 to 100", "0 is"}},
        BadCase{"repetition_high",
                [](auto* r) { S(r)->set_repetition_penalty(kInfinity); },
                {"sampling.repetition_penalty", "inf"}},
        BadCase{"bias_id", [](auto* r) { AddBias(r, 300, 1); }, {"logit_bias[0].token_id", "300"}},
        BadCase{"bias_high",
                [](auto* r) {
                  AddBias(r, 1, 1);
                  AddBias(r, 2, 100.5);
                },
                {"sampling.logit_bias[1].bias", "-100 to 100", "100.5"}},
        BadCase{"bias_twice",
                [](auto* r) {
                  for (const uint32_t id : {5, 6, 5}) AddBias(r, id, 1);
                },
                {"sampling.logit_bias", "token 5 twice"}},
        BadCase{"many_biases",
                [](auto* r) {
                  for (int i = 0; i < 1025; ++i) AddBias(r, 1, 1);
                },
                {"sampling.logit_bias", "at most 1024", "1025"}},
        BadCase{"prompt_logprobs",
                [](auto* r) { r->mutable_output()->set_prompt_logprobs(21); },
                {"output.prompt_logprobs", "0 to 20", "21"}},
        BadCase{"n_zero", [](auto* r) { r->set_n(0); }, {"n: 0", "1 to 8"}},
        BadCase{"n_high", [](auto* r) { r->set_n(9); }, {"n: 9", "1 to 8"}},
        BadCase{"many_choices",
                [](auto* r) {
                  r->set_n(8);
                  for (int i = 0; i < 4; ++i) r->add_more_prompts()->set_text("x");
                },
                {"more_prompts", "32", "5 times 8"}},
        BadCase{"many_prompts",
                [](auto* r) {
                  for (int i = 0; i < 32; ++i) r->add_more_prompts();  // not even read
                },
                {"more_prompts", "32", "33 times 1"}},
        BadCase{"more_prompt_not_set",
                [](auto* r) {
                  r->add_more_prompts()->set_text("x");
                  r->add_more_prompts();
                },
                {"more_prompts[1]", "not set"}},
        BadCase{"more_prompt_bad",
                [](auto* r) { r->add_more_prompts()->set_text("a\xff"); },
                {"more_prompts[0].text", "UTF-8", "byte 1"}},
        BadCase{"more_prompt_role",
                [](auto* r) { r->add_more_prompts()->mutable_chat()->add_messages(); },
                {"more_prompts[0].chat.messages[0].role", "0 bytes"}},
        BadCase{"resume_id",
                [](auto* r) { r->add_resume_token_ids(300); },
                {"resume_token_ids[0]", "vocab_size 300", "300 is"}},
        BadCase{"resume_with_n",
                [](auto* r) {
                  r->set_n(2);
                  r->add_resume_token_ids(1);
                },
                {"resume_token_ids", "1 choice", "2"}},
        BadCase{"resume_with_batch",
                [](auto* r) {
                  r->add_more_prompts()->set_text("x");
                  r->add_resume_token_ids(1);
                },
                {"resume_token_ids", "1 choice", "2"}},
        BadCase{"resume_with_prompt_logprobs",
                [](auto* r) {
                  r->mutable_output()->set_prompt_logprobs(0);
                  r->add_resume_token_ids(1);
                },
                {"output.prompt_logprobs", "not together", "resume_token_ids"}},
        BadCase{"no_constraint",
                [](auto* r) { r->mutable_constraint(); },
                {"constraint", "json_schema, regex and json_object"}},
        BadCase{"empty_schema",
                [](auto* r) { r->mutable_constraint()->set_json_schema(""); },
                {"constraint.json_schema", "1 to 65536 bytes", "0 bytes"}},
        BadCase{"long_regex",
                [](auto* r) { r->mutable_constraint()->set_regex(std::string(65537, 'a')); },
                {"constraint.regex", "65536", "65537"}},
        BadCase{"regex_text",
                [](auto* r) { r->mutable_constraint()->set_regex("a\xff"); },
                {"constraint.regex", "UTF-8"}},
        BadCase{"json_object_false",
                [](auto* r) { r->mutable_constraint()->set_json_object(false); },
                {"constraint.json_object", "true", "false"}},
        BadCase{"constraint_with_ignore_eos",
                [](auto* r) {
                  r->mutable_constraint()->set_json_object(true);
                  T(r)->set_ignore_eos(true);
                },
                {"stopping.ignore_eos", "not together", "constraint"}},
        BadCase{"constraint_with_min_tokens",
                [](auto* r) {
                  r->mutable_constraint()->set_json_object(true);
                  T(r)->set_min_tokens(1);
                },
                {"stopping.min_tokens", "not together", "constraint"}},
        BadCase{"speculation",
                [](auto* r) { r->set_speculation(static_cast<v1::Speculation>(4)); },
                {"speculation", "0 to 3", "4 is"}},
        BadCase{"cache_salt",
                [](auto* r) { r->set_cache_salt(std::string(65, 's')); },
                {"cache_salt", "0 to 64 bytes", "65 bytes"}},
        BadCase{"priority_high", [](auto* r) { r->set_priority(101); }, {"priority", "100", "101"}},
        BadCase{
            "priority_low", [](auto* r) { r->set_priority(-101); }, {"priority", "-100", "-101"}}),
    [](const testing::TestParamInfo<BadCase>& info) { return info.param.name; });

TEST(ValidationTest, DefaultsAreGreedyWithRoomForAnAnswer) {
  const auto parsed = ParseRequest(GoodRequest(), kLimits);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const auto request = BuildEngineRequest(*parsed, {1, 2, 3}, kLimits);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->sampling.inverse_temperature_q16, 0u);
  EXPECT_EQ(request->sampling.top_k, 0);
  EXPECT_EQ(request->sampling.top_p_q16, 65536u);
  EXPECT_EQ(request->sampling.min_p_q16, 0u);
  EXPECT_EQ(request->sampling.seed, 0u);
  EXPECT_EQ(request->max_tokens, 97);  // the context leaves less than 512
  EXPECT_EQ(request->top_logprobs, -1);
  EXPECT_FALSE(request->ignore_eos);
  EXPECT_TRUE(request->adjust.empty());
  EXPECT_EQ(request->min_tokens, 0);
  EXPECT_EQ(request->prompt_logprobs, -1);
  EXPECT_EQ(request->speculation, Speculation::kAuto);
  EXPECT_TRUE(request->use_cache);
  EXPECT_TRUE(request->cache_salt.empty());
  EXPECT_TRUE(request->resume.empty());
  EXPECT_EQ(parsed->n, 1);
  EXPECT_EQ(parsed->prompts.size(), 1u);
  EXPECT_EQ(parsed->constraint.kind, ConstraintKind::kNone);
}

TEST(ValidationTest, DecimalsBecomeTheNearestQ16) {
  v1::GenerateRequest request = GoodRequest();
  S(&request)->set_temperature(0.7);
  S(&request)->set_top_p(0.9);
  S(&request)->set_min_p(0.05);
  S(&request)->set_top_k(300);
  S(&request)->set_seed(std::numeric_limits<uint64_t>::max());
  const auto parsed = ParseRequest(request, kLimits);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->sampling.inverse_temperature_q16, 93623u);  // 65536 / 0.7 = 93622.857
  EXPECT_EQ(parsed->sampling.top_p_q16, 58982u);                // 58982.4
  EXPECT_EQ(parsed->sampling.min_p_q16, 3277u);                 // 3276.8
  EXPECT_EQ(parsed->sampling.top_k, 300);
  EXPECT_EQ(parsed->sampling.seed, std::numeric_limits<uint64_t>::max());
}

TEST(ValidationTest, TemperatureLimitsAreInclusive) {
  v1::GenerateRequest request = GoodRequest();
  S(&request)->set_temperature(kMinTemperature);
  EXPECT_EQ(ParseRequest(request, kLimits)->sampling.inverse_temperature_q16, 6553600u);
  S(&request)->set_temperature(kMaxTemperature);
  EXPECT_EQ(ParseRequest(request, kLimits)->sampling.inverse_temperature_q16, 655u);
}

TEST(ValidationTest, PenaltiesAndBiasBecomeTheNearestQ16) {
  v1::GenerateRequest wire = GoodRequest();
  S(&wire)->set_presence_penalty(-0.3);    // -19660.8
  S(&wire)->set_frequency_penalty(2);      // inclusive
  S(&wire)->set_repetition_penalty(0.01);  // 655.36
  AddBias(&wire, 299, -100);
  AddBias(&wire, 0, 0.7);  // 45875.2
  const auto parsed = ParseRequest(wire, kLimits);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const auto request = BuildEngineRequest(*parsed, {1}, kLimits);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->adjust.presence_q16, -19661);
  EXPECT_EQ(request->adjust.frequency_q16, 131072);
  EXPECT_EQ(request->adjust.repetition_q16, 655u);
  const std::vector<std::pair<int32_t, int32_t>> rising = {{0, 45875}, {299, -6553600}};
  EXPECT_EQ(request->adjust.bias_q16, rising);
  // Halves go away from zero on both sides.
  S(&wire)->set_presence_penalty(0.5 / 65536);
  S(&wire)->set_frequency_penalty(-0.5 / 65536);
  S(&wire)->set_repetition_penalty(100);
  EXPECT_EQ(ParseRequest(wire, kLimits)->adjust.presence_q16, 1);
  EXPECT_EQ(ParseRequest(wire, kLimits)->adjust.frequency_q16, -1);
  EXPECT_EQ(ParseRequest(wire, kLimits)->adjust.repetition_q16, 6553600u);
}

TEST(ValidationTest, EverythingAskedForReachesTheEngine) {
  v1::GenerateRequest wire = GoodRequest();
  wire.mutable_output()->set_top_logprobs(0);
  wire.mutable_output()->set_prompt_logprobs(3);
  T(&wire)->set_max_tokens(20);
  T(&wire)->set_min_tokens(20);
  wire.set_speculation(v1::SPECULATION_OFF);
  wire.set_cache_salt(std::string("\0\xff", 2));  // any bytes
  wire.set_use_cache(false);
  wire.set_priority(-100);
  const auto request = BuildEngineRequest(*ParseRequest(wire, kLimits), {1}, kLimits);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->top_logprobs, 0);
  EXPECT_EQ(request->prompt_logprobs, 3);
  EXPECT_EQ(request->min_tokens, 20);
  EXPECT_EQ(request->speculation, Speculation::kOff);
  EXPECT_EQ(request->cache_salt, std::string("\0\xff", 2));
  EXPECT_FALSE(request->use_cache);
  EXPECT_EQ(request->priority, -100);
  wire.set_speculation(v1::SPECULATION_ON);
  EXPECT_EQ(ParseRequest(wire, kLimits)->speculation, Speculation::kOn);
  T(&wire)->set_min_tokens(21);
  EXPECT_THAT(
      std::string(
          BuildEngineRequest(*ParseRequest(wire, kLimits), {1}, kLimits).status().message()),
      AllOf(HasSubstr("stopping.min_tokens"), HasSubstr("max_tokens 20"), HasSubstr("21 is")));
}

TEST(ValidationTest, ResumedIdsAreAtMostMaxTokensAndNoneEndsAnAnswer) {
  v1::GenerateRequest wire = GoodRequest();
  T(&wire)->set_max_tokens(3);
  for (const uint32_t id : {1, 290, 3}) wire.add_resume_token_ids(id);
  const auto build = [&] { return BuildEngineRequest(*ParseRequest(wire, kLimits), {1}, kLimits); };
  EXPECT_THAT(std::string(build().status().message()),
              AllOf(HasSubstr("resume_token_ids[1]"), HasSubstr("290 ends")));
  T(&wire)->set_ignore_eos(true);
  EXPECT_EQ(build()->resume, (std::vector<int32_t>{1, 290, 3}));  // max_tokens of them: complete
  T(&wire)->add_stop_ids(3);
  EXPECT_THAT(std::string(build().status().message()), HasSubstr("resume_token_ids[2]"));
  T(&wire)->clear_stop_ids();
  wire.add_resume_token_ids(4);
  EXPECT_THAT(std::string(build().status().message()),
              AllOf(HasSubstr("resume_token_ids"), HasSubstr("max_tokens 3"), HasSubstr("4 ids")));
}

TEST(ValidationTest, MaxTokensMayFillTheContextAndNotMore) {
  v1::GenerateRequest wire = GoodRequest();
  T(&wire)->set_max_tokens(90);
  const auto parsed = ParseRequest(wire, kLimits);
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(BuildEngineRequest(*parsed, std::vector<int32_t>(10, 1), kLimits)->max_tokens, 90);
  const absl::Status status =
      BuildEngineRequest(*parsed, std::vector<int32_t>(11, 1), kLimits).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("stopping.max_tokens"), HasSubstr("at most 89"), HasSubstr("90 is")));
}

TEST(ValidationTest, HugeMaxTokensDoesNotWrap) {
  v1::GenerateRequest wire = GoodRequest();
  T(&wire)->set_max_tokens(std::numeric_limits<uint32_t>::max());
  const auto parsed = ParseRequest(wire, kLimits);
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(BuildEngineRequest(*parsed, {1}, kLimits).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(ValidationTest, PromptOverTheContextIsRefusedAfterTokenizing) {
  const absl::Status status = BuildEngineRequest(*ParseRequest(GoodRequest(), kLimits),
                                                 std::vector<int32_t>(100, 1), kLimits)
                                  .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("prompt"), HasSubstr("99 tokens"), HasSubstr("100 tokens")));
}

TEST(ValidationTest, MessagesNeverRepeatTheText) {
  v1::GenerateRequest request = GoodRequest();
  request.mutable_prompt()->set_text("secret\xff");
  EXPECT_THAT(std::string(ParseRequest(request, kLimits).status().message()),
              testing::Not(HasSubstr("secret")));
}

TEST(ValidationTest, BothRequestMessagesHaveTheSameFields) {
  const auto* stream = v1::GenerateRequest::descriptor();
  const auto* once = v1::GenerateOnceRequest::descriptor();
  ASSERT_EQ(stream->field_count(), once->field_count());
  for (int i = 0; i < stream->field_count(); ++i) {
    const auto* other = once->FindFieldByNumber(stream->field(i)->number());
    ASSERT_NE(other, nullptr) << stream->field(i)->full_name();
    EXPECT_EQ(other->name(), stream->field(i)->name());
    EXPECT_EQ(other->type(), stream->field(i)->type());
  }
}

TEST(ValidationTest, DetokenizeIsBoundedByTheContext) {
  v1::DetokenizeRequest request;
  EXPECT_EQ(ParseDetokenize(request, kLimits).status().code(), absl::StatusCode::kInvalidArgument);
  for (int i = 0; i < 100; ++i) request.mutable_token_ids()->add_ids(i);
  EXPECT_EQ(ParseDetokenize(request, kLimits)->size(), 100u);
  request.mutable_token_ids()->add_ids(1);
  EXPECT_EQ(ParseDetokenize(request, kLimits).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace fixpoint
