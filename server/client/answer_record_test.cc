#include "server/client/answer_record.h"

#include <gmock/gmock.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "server/client/message_json.h"
#include "server/client/receipt_check.h"
#include "server/client/replay.h"

namespace fixpoint::client {
namespace {

using google::protobuf::util::MessageDifferencer;
using testing::HasSubstr;

// Every field set, with values that lose something in careless hands.
v1::GenerateRequest FullRequest() {
  v1::GenerateRequest request;
  request.mutable_prompt()->set_text("Grüße \"\\\n\x01 \xf0\x9f\x99\x82");
  v1::Sampling* sampling = request.mutable_sampling();
  sampling->set_temperature(0.1 + 0.2);
  sampling->set_top_k(40);
  sampling->set_top_p(1.0 / 3);
  sampling->set_min_p(0);
  sampling->set_seed(~uint64_t{0});
  sampling->set_presence_penalty(-2);
  sampling->set_frequency_penalty(1e-5);
  sampling->set_repetition_penalty(1.1);
  v1::LogitBias* bias = sampling->add_logit_bias();
  bias->set_token_id(4294967295u);
  bias->set_bias(-100);
  v1::Stopping* stopping = request.mutable_stopping();
  stopping->set_max_tokens(7);
  stopping->add_stop_strings("\n\n");
  stopping->add_stop_strings("END");
  stopping->add_stop_ids(0);
  stopping->set_ignore_eos(false);
  stopping->set_min_tokens(1);
  request.mutable_output()->set_top_logprobs(0);
  request.mutable_output()->set_echo(true);
  request.set_priority(-100);
  request.add_resume_token_ids(11);
  request.mutable_constraint()->set_regex("[a-z]+\\d");
  request.set_speculation(v1::SPECULATION_OFF);
  request.set_cache_salt("secret");
  request.set_use_cache(false);
  return request;
}

Answer FullAnswer() {
  Answer answer;
  answer.started.set_system_fingerprint("fp-1");
  answer.started.set_request_id("r");
  answer.text = "text";
  answer.token_ids = {12, 13};
  answer.finished.set_reason(v1::FINISH_REASON_STOP);
  answer.finished.set_stop_string("END");
  answer.finished.set_receipt("abc");
  answer.finished.set_max_tokens(7);
  return answer;
}

absl::StatusOr<AnswerRecord> ParseOne(const std::string& text) {
  const auto records = ParseRecords(text);
  if (!records.ok()) return records.status();
  EXPECT_EQ(records->size(), 1u);
  return (*records)[0];
}

TEST(MessageJsonTest, EveryFieldSurvives) {
  const v1::GenerateRequest request = FullRequest();
  JsonWriter writer;
  WriteMessage(request, &writer);
  const std::string json = writer.Take();
  EXPECT_THAT(json, HasSubstr("\"seed\":\"18446744073709551615\""));
  EXPECT_THAT(json, HasSubstr("\"min_p\":0"));
  simdjson::dom::parser parser;
  v1::GenerateRequest read;
  ASSERT_TRUE(ReadMessage(parser.parse(json).value(), "request", &read).ok());
  EXPECT_TRUE(MessageDifferencer::Equals(request, read)) << json << read.DebugString();
}

TEST(MessageJsonTest, ChatsAndNumbersAsText) {
  simdjson::dom::parser parser;
  v1::GenerateRequest read;
  const std::string json =
      R"({"prompt":{"chat":{"messages":[{"role":"user","content":"Hi"}],"add_generation_prompt":false}},
          "sampling":{"seed":"9007199254740993","temperature":1}})";
  ASSERT_TRUE(ReadMessage(parser.parse(json).value(), "request", &read).ok());
  EXPECT_EQ(read.prompt().chat().messages(0).content(), "Hi");
  EXPECT_FALSE(read.prompt().chat().add_generation_prompt());
  EXPECT_EQ(read.sampling().seed(), 9007199254740993u);
  EXPECT_EQ(read.sampling().temperature(), 1);
}

TEST(MessageJsonTest, WrongFieldsAreNamed) {
  const std::vector<std::pair<const char*, const char*>> cases = {
      {R"({"nonsense":1})", "request.nonsense' is unknown"},
      {R"({"sampling":{"seed":-1}})", "request.sampling.seed"},
      {R"({"sampling":{"seed":"x"}})", "request.sampling.seed"},
      {R"({"sampling":{"top_k":4294967296}})", "request.sampling.top_k"},
      {R"({"sampling":{"temperature":"hot"}})", "request.sampling.temperature"},
      {R"({"sampling":[]})", "request.sampling' must be an object"},
      {R"({"stopping":{"stop_ids":7}})", "request.stopping.stop_ids' must be an array"},
      {R"({"stopping":{"stop_ids":[1,"x"]}})", "request.stopping.stop_ids[1]"},
      {R"({"stopping":{"ignore_eos":1}})", "request.stopping.ignore_eos"},
      {R"({"speculation":"MAYBE"})", "is 'MAYBE'"},
      {R"({"priority":1,"priority":2})", "request.priority' stands twice"},
      {R"({"prompt":{"text":"a","token_ids":{"ids":[1]}}})", "only one of the kinds"},
      {R"({"prompt":{"text":1}})", "request.prompt.text' must be a string"},
      {R"([])", "'request' must be an object"},
  };
  for (const auto& [json, sentence] : cases) {
    simdjson::dom::parser parser;
    v1::GenerateRequest read;
    const absl::Status status =
        ReadMessage(parser.parse(std::string(json)).value(), "request", &read);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << json;
    EXPECT_THAT(std::string(status.message()), HasSubstr(sentence));
  }
}

TEST(AnswerRecordTest, ReadsBackWhatItWrote) {
  const std::string json = RecordJson(FullRequest(), 0, FullAnswer(), nullptr, "a:1");
  EXPECT_EQ(json.find('\n'), std::string::npos);
  EXPECT_EQ(json.find("secret"), std::string::npos);
  const auto record = ParseOne(json);
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_EQ(record->output_ids, (std::vector<uint32_t>{11, 12, 13}));
  EXPECT_EQ(record->system_fingerprint, "fp-1");
  EXPECT_EQ(record->finished.stop_string(), "END");
  EXPECT_EQ(record->finished.receipt(), "abc");
  EXPECT_EQ(record->finished.max_tokens(), 7u);
  v1::GenerateRequest expected = FullRequest();
  expected.clear_cache_salt();
  expected.clear_resume_token_ids();
  EXPECT_TRUE(MessageDifferencer::Equals(record->request, expected));
}

TEST(AnswerRecordTest, EachChoiceCanBeAskedForAlone) {
  v1::GenerateRequest request;
  request.mutable_prompt()->set_text("a");
  request.add_more_prompts()->set_text("b");
  request.set_n(2);
  request.mutable_sampling()->set_seed(5);
  Answer answer = FullAnswer();
  answer.finished.set_max_tokens(99);
  const auto record = ParseOne(RecordJson(request, 3, answer, nullptr, "a:1"));
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_EQ(record->request.prompt().text(), "b");
  EXPECT_EQ(record->request.sampling().seed(), 6u);
  EXPECT_FALSE(record->request.has_n());
  EXPECT_EQ(record->request.more_prompts_size(), 0);
  EXPECT_EQ(record->request.stopping().max_tokens(), 99u);
}

TEST(AnswerRecordTest, DocumentsFollowEachOther) {
  const std::string one = RecordJson(FullRequest(), 0, FullAnswer(), nullptr, "a:1");
  const std::string pretty = absl::StrReplaceAll(one, {{",\"request\"", ",\n  \"request\""}});
  const auto records = ParseRecords(absl::StrCat(one, "\n", pretty, "\n\n", one, "\n"));
  ASSERT_TRUE(records.ok()) << records.status();
  EXPECT_EQ(records->size(), 3u);
}

TEST(AnswerRecordTest, BadDocumentsAreNamed) {
  const std::string good = RecordJson(FullRequest(), 0, FullAnswer(), nullptr, "a:1");
  const std::vector<std::pair<std::string, const char*>> cases = {
      {"", "no JSON document"},
      {"  \n", "no JSON document"},
      {"{", "document 1"},
      {"nonsense", "document 1"},
      {good + "\n" + good.substr(0, good.size() / 2), "document 2"},
      {"[1]", "must be a JSON object"},
      {"{}", "'format' is missing"},
      {absl::StrReplaceAll(good, {{"fixpoint-answer-1", "fixpoint-answer-2"}}),
       "fixpoint-answer-2"},
      {absl::StrReplaceAll(good, {{"\"finish_reason\":\"stop\"", "\"finish_reason\":\"tired\""}}),
       "tired"},
      {absl::StrReplaceAll(good, {{"[12,13]", "[12,-13]"}}), "token_ids[1]"},
      {absl::StrReplaceAll(good, {{"\"token_ids\"", "\"ids\""}}), "'token_ids' is missing"},
      {absl::StrReplaceAll(good, {{"\"priority\":-100", "\"n\":2"}}), "one choice"},
  };
  for (const auto& [text, sentence] : cases) {
    const auto records = ParseRecords(text);
    EXPECT_EQ(records.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(records.status().message()), HasSubstr(sentence));
  }
}

AnswerRecord Recorded() {
  AnswerRecord record;
  record.output_ids = {1, 2, 3};
  record.finished = FullAnswer().finished;
  return record;
}

Replayed Again() { return {.output_ids = {1, 2, 3}, .finished = FullAnswer().finished}; }

TEST(ReplayTest, EqualAnswersAreEqual) {
  Replayed replayed = Again();
  EXPECT_TRUE(Compare(Recorded(), replayed).equal);
  replayed.recorded_receipt = replayed.new_receipt = "abc";
  const Verdict verdict = Compare(Recorded(), replayed);
  EXPECT_TRUE(verdict.equal);
  EXPECT_EQ(verdict.sentence, "equal, 3 tokens, receipt abc");
}

TEST(ReplayTest, TheFirstDifferenceIsNamed) {
  Replayed replayed = Again();
  replayed.output_ids = {1, 9, 8};
  EXPECT_EQ(Compare(Recorded(), replayed).sentence,
            "differs at token 1: recorded is 2, now it is 9");
  replayed.output_ids = {1, 2};
  EXPECT_EQ(Compare(Recorded(), replayed).sentence,
            "differs at token 2: recorded is 3, now it is the end");
  replayed.output_ids = {1, 2, 3, 4};
  const Verdict verdict = Compare(Recorded(), replayed);
  EXPECT_FALSE(verdict.equal);
  EXPECT_EQ(verdict.sentence, "differs at token 3: recorded is the end, now it is 4");
}

TEST(ReplayTest, EndsAndReceiptsAreCompared) {
  Replayed replayed = Again();
  replayed.finished.set_stop_token_id(2);
  EXPECT_THAT(Compare(Recorded(), replayed).sentence, HasSubstr("the end differs"));
  EXPECT_THAT(Compare(Recorded(), replayed).sentence, HasSubstr("stop by token 2"));
  replayed = Again();
  replayed.finished.set_receipt("abd");
  EXPECT_THAT(Compare(Recorded(), replayed).sentence, HasSubstr("the receipts differ"));
  replayed = Again();
  replayed.recorded_receipt = "other";
  EXPECT_THAT(Compare(Recorded(), replayed).sentence, HasSubstr("not that of the recorded answer"));
  replayed = Again();
  replayed.new_receipt = "other";
  const Verdict verdict = Compare(Recorded(), replayed);
  EXPECT_FALSE(verdict.equal);
  EXPECT_THAT(verdict.sentence, HasSubstr("not that of its answer"));
}

TEST(ReplayTest, AsksForTheWholeAnswerOnly) {
  AnswerRecord record;
  record.request = FullRequest();
  const v1::GenerateRequest asked = ReplayRequest(record);
  EXPECT_EQ(asked.resume_token_ids_size(), 0);
  EXPECT_FALSE(asked.has_output());
  EXPECT_FALSE(asked.has_cache_salt());
  EXPECT_TRUE(MessageDifferencer::Equals(asked.sampling(), record.request.sampling()));
  EXPECT_TRUE(MessageDifferencer::Equals(asked.stopping(), record.request.stopping()));
  EXPECT_TRUE(MessageDifferencer::Equals(asked.constraint(), record.request.constraint()));
}

// The answer of server/receipt_test.cc, as the wire tells it.
TEST(ReceiptCheckTest, IsTheServersReceipt) {
  v1::GetModelResponse model;
  model.set_bundle_digest(std::string(64, 'd'));
  model.set_numerics_version(3);
  model.set_vocab_size(100000);
  v1::GenerateRequest request;
  v1::Sampling* sampling = request.mutable_sampling();
  sampling->set_temperature(65536.0 / 93623);
  sampling->set_top_k(40);
  sampling->set_top_p(58982 / 65536.0);
  sampling->set_min_p(3277 / 65536.0);
  sampling->set_seed(0x0123456789abcdef);
  sampling->set_repetition_penalty(72090 / 65536.0);
  sampling->set_presence_penalty(-0.5);
  sampling->set_frequency_penalty(6554 / 65536.0);
  for (const auto& [id, bias] : {std::pair(9, -100.0), {5, 1.0}}) {
    v1::LogitBias* added = sampling->add_logit_bias();
    added->set_token_id(static_cast<uint32_t>(id));
    added->set_bias(bias);
  }
  request.mutable_stopping()->set_min_tokens(2);
  for (const uint32_t id : {8, 7}) request.mutable_stopping()->add_stop_ids(id);
  for (const char* text : {"END", "\n\n"}) request.mutable_stopping()->add_stop_strings(text);
  request.mutable_constraint()->set_regex("[a-z]+");
  v1::Finished finished;
  finished.set_reason(v1::FINISH_REASON_STOP);
  finished.set_stop_token_id(2);
  finished.set_max_tokens(16);
  const auto receipt = ComputeReceipt(model, request, {1, 2, 70000}, {11, 12, 13}, finished);
  ASSERT_TRUE(receipt.ok()) << receipt.status();
  EXPECT_EQ(*receipt, "0bd646b5ecfcaaff97f3105d41afbe45d2d31b9aa0bb820e78520b4232493a80");
}

}  // namespace
}  // namespace fixpoint::client
