#include "server/unary_answer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "server/fake_engine/fake_engine.h"

namespace fixpoint {
namespace {

using ::testing::ElementsAre;

ParsedRequest TwoPromptsTwice() {
  ParsedRequest request;
  request.prompts.resize(2);
  request.n = 2;
  return request;
}

class UnaryAnswerTest : public testing::Test {
 protected:
  std::unique_ptr<Tokenizer> tokenizer_ = FakeTokenizer();
  v1::GenerateOnceResponse response_;
};

TEST_F(UnaryAnswerTest, DeltasOfEachChoiceAreJoined) {
  UnaryAnswer answer(TwoPromptsTwice(), tokenizer_.get(), &response_);
  ASSERT_TRUE(answer.Add(3, {.text = "x", .token_ids = {1}}).ok());
  ASSERT_TRUE(answer.Add(0, {.text = "a", .token_ids = {2}}).ok());
  ASSERT_TRUE(answer.Add(3, {.text = "y", .token_ids = {3, 4}, .index = 1}).ok());
  for (int32_t choice = 0; choice < 4; ++choice) {
    answer.End(choice, {.answer = {.reason = FinishReason::kLength, .completion_tokens = choice},
                        .receipt = "r",
                        .seed = 7});
  }
  EXPECT_EQ(response_.text(), "a");
  EXPECT_THAT(response_.token_ids(), ElementsAre(2));
  EXPECT_EQ(response_.finished().choice(), 0u);
  ASSERT_EQ(response_.more_choices_size(), 3);
  EXPECT_EQ(response_.more_choices(2).text(), "xy");
  EXPECT_THAT(response_.more_choices(2).token_ids(), ElementsAre(1, 3, 4));
  EXPECT_EQ(response_.more_choices(2).finished().choice(), 3u);
  EXPECT_EQ(response_.more_choices(2).finished().usage().completion_tokens(), 3u);
  EXPECT_EQ(response_.more_choices(2).finished().seed(), 7u);
  EXPECT_EQ(response_.prompts_size(), 0);
}

TEST_F(UnaryAnswerTest, PartsOfEachPromptAreJoined) {
  ParsedRequest request = TwoPromptsTwice();
  request.prompt_logprobs = 0;
  UnaryAnswer answer(request, tokenizer_.get(), &response_);
  ASSERT_TRUE(answer.Add({.prompt = 1, .text = "hello"}).ok());
  const auto part = [](int32_t index) {
    return PromptPart{.prompt = 1,
                      .logprobs = {.token_ids = {10, 11}, .logprobs = {{}, {}}, .index = index}};
  };
  ASSERT_TRUE(answer.Add(part(1)).ok());
  ASSERT_TRUE(answer.Add(part(3)).ok());
  ASSERT_EQ(response_.prompts_size(), 2);  // also the one that nothing came for
  EXPECT_EQ(response_.prompts(1).prompt(), 1u);
  EXPECT_EQ(response_.prompts(1).text(), "hello");
  EXPECT_EQ(response_.prompts(1).index(), 1u);
  EXPECT_THAT(response_.prompts(1).token_ids(), ElementsAre(10, 11, 10, 11));
  EXPECT_EQ(response_.prompts(1).logprobs_size(), 4);
}

// The estimate must not be below what is really sent.
TEST_F(UnaryAnswerTest, SizeIsBounded) {
  constexpr size_t kMost = 20'000;
  ParsedRequest request;
  request.prompts.resize(1);
  UnaryAnswer answer(request, tokenizer_.get(), &response_, kMost);
  absl::Status status;
  int deltas = 0;
  while (status.ok()) {
    AnswerDelta delta{.text = "abc", .token_ids = {200, 201, 202}};
    PositionLogprobs logprobs{.chosen = {1, -1}};
    logprobs.top.assign(20, TokenLogprob{200, -70000});
    delta.logprobs.assign(3, logprobs);
    status = answer.Add(0, std::move(delta));
    ASSERT_LT(++deltas, 1000);
    if (status.ok()) {
      EXPECT_LE(response_.ByteSizeLong(), kMost);
    }
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
  EXPECT_GT(deltas, 5);
}

}  // namespace
}  // namespace fixpoint
