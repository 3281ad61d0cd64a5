#include "server/self_test.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "bundle/test_model.h"
#include "engine/cpu_executor.h"
#include "engine/golden.h"

namespace fixpoint {
namespace {

using ::testing::HasSubstr;

// An executor over a test model that breaks one logit of each step with more than one row.
class BrokenChunks final : public Executor {
 public:
  explicit BrokenChunks(Executor* real) : real_(real) {}
  const ExecutorLimits& limits() const override { return real_->limits(); }
  absl::Status Forward(absl::Span<const SequenceChunk> chunks, int32_t* logits) override {
    absl::Status status = real_->Forward(chunks, logits);
    if (chunks[0].logit_indices.size() > 1) ++logits[limits().vocab_size];
    return status;
  }

 private:
  Executor* const real_;
};

class SelfTestTest : public testing::Test {
 protected:
  static std::unique_ptr<CpuExecutor> MakeExecutor(int64_t kv_cache_bytes = 0) {
    auto executor =
        CpuExecutor::Create(MakeTestModel(), {.threads = 1, .kv_cache_bytes = kv_cache_bytes});
    EXPECT_TRUE(executor.ok()) << executor.status();
    return *std::move(executor);
  }

  std::unique_ptr<CpuExecutor> executor_ = MakeExecutor();
  std::unique_ptr<Tokenizer> tokenizer_ = *Tokenizer::Create(MakeTestTokenizer());
  std::string golden_ = *GoldenDigest(*executor_, GoldenPrompts(*tokenizer_));
};

TEST_F(SelfTestTest, ComparesTheGoldenDigest) {
  const auto result = SelfTest(*executor_, *tokenizer_, golden_, absl::InfiniteDuration());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->kind, SelfTestKind::kGolden);
}

TEST_F(SelfTestTest, AnotherDigestIsDataLossNamingBoth) {
  const std::string other(64, 'a');
  const absl::Status status =
      SelfTest(*executor_, *tokenizer_, other, absl::InfiniteDuration()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr(other));
  EXPECT_THAT(std::string(status.message()), HasSubstr(golden_));
}

TEST_F(SelfTestTest, WithoutDigestTimeOrRoomOnePromptIsRunTwice) {
  auto result = SelfTest(*executor_, *tokenizer_, "", absl::InfiniteDuration());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->kind, SelfTestKind::kConsistent);
  EXPECT_THAT(result->why_not_golden, HasSubstr("no golden digest"));
  result = SelfTest(*executor_, *tokenizer_, golden_, absl::ZeroDuration());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->why_not_golden, HasSubstr("might take"));
  // A cache of one or two blocks cuts the prompts, which gives another digest.
  const auto small = MakeExecutor(16 << 10);
  ASSERT_LT(small->limits().num_blocks * small->limits().block_tokens, 400);
  result = SelfTest(*small, *tokenizer_, golden_, absl::InfiniteDuration());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->why_not_golden, HasSubstr("smaller than"));
}

TEST_F(SelfTestTest, WrongArithmeticIsNoticedWithoutADigest) {
  BrokenChunks broken(executor_.get());
  const absl::Status status = SelfTest(broken, *tokenizer_, "", absl::InfiniteDuration()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace fixpoint
