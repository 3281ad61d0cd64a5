// Mixes on the CPU, at every kernel level. (On the device: engine/cuda_mix_test.cc.)
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "engine/mix_fixture.h"

namespace fixpoint {
namespace {

class MixTest : public MixFixture {
 protected:
  std::unique_ptr<Executor> RandomExecutor() {
    const auto levels = SupportedOps();
    const Ops* ops = FindOps(levels[1 + Below(static_cast<uint32_t>(levels.size()) - 1)]);
    executor_name_ = ops->name;
    const int32_t threads = Below(4) == 0 ? 2 + static_cast<int32_t>(Below(2)) : 1;
    return MakeMixExecutor(threads, RandomBlocks(), ops);
  }
};

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kDefaultMixes = 30;  // each is 10 to 50 times slower there
#else
constexpr int kDefaultMixes = 300;
#endif

// FIXPOINT_MIXES sets another number for long runs.
TEST_F(MixTest, EveryRequestGetsWhatItGetsAlone) {
  const char* text = std::getenv("FIXPOINT_MIXES");
  const int mixes = text == nullptr ? kDefaultMixes : std::atoi(text);
  ASSERT_GE(mixes, 1);
  for (int mix = 0; mix < mixes && !HasFailure(); ++mix)
    RunMix(mix, [&] { return RandomExecutor(); });
  if (mixes >= 100) {  // the mixes held what they are meant to hold
    EXPECT_GT(cancelled_, 10);
    EXPECT_GT(stopped_, 10);
    EXPECT_GT(resumed_, 10);
    EXPECT_GT(tokens_, 5000u);
    EXPECT_GT(counter_.preempted, 5);
    EXPECT_GT(counter_.cache_hits, 100);
    EXPECT_GT(counter_.accepted, 100);
    EXPECT_GT(counter_.rejected, 100);
  }
}

// One line for what the arithmetic, the sampler and the rules around them say: the same on every
// machine. A change of this digest is a change of numerics and has to be meant.
TEST_F(MixTest, AnswersHaveTheGoldenDigest) {
  Sha256 digest;
  for (int i = 0; i < 200; ++i) {
    const Answer answer = Alone(RandomRequest());
    for (const std::vector<int32_t>& part : {answer.tokens, answer.logprobs, answer.prompt})
      digest.Update(part.data(), part.size() * sizeof(int32_t));
    digest.Update(absl::StrCat("|", static_cast<int>(answer.reason), "|", answer.stop_token_id));
  }
  std::ifstream file(FIXPOINT_MIX_GOLDEN);
  std::string golden;
  ASSERT_TRUE(file >> golden) << FIXPOINT_MIX_GOLDEN;
  EXPECT_EQ(digest.FinishHex(), golden);
}

}  // namespace
}  // namespace fixpoint
