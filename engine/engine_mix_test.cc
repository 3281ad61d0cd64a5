// The promise: a request's tokens and log-probabilities in any mix equal those of the request
// alone.
#include <chrono>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bundle/test_model.h"
#include "engine/cpu_executor.h"
#include "engine/engine.h"
#include "gtest/gtest.h"
#include "kernels/cpu/dispatch.h"

namespace fixpoint {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(120);

struct Answer {
  std::vector<int32_t> tokens;
  std::vector<int32_t> logprobs;  // chosen, then top, of each token
  FinishReason reason = FinishReason::kError;
  int32_t stop_token_id = -1;
};

void Append(const Event& event, Answer* answer) {
  answer->tokens.push_back(event.token_id);
  answer->logprobs.push_back(event.chosen.logprob_q16);
  for (const TokenLogprob& top : event.top) {
    answer->logprobs.push_back(top.token_id);
    answer->logprobs.push_back(top.logprob_q16);
  }
}

Answer Read(Stream& stream) {
  Answer answer;
  Event event;
  while (stream.Next(&event, kPatience)) {
    if (event.finished) {
      answer.reason = event.reason;
      answer.stop_token_id = event.stop_token_id;
      return answer;
    }
    Append(event, &answer);
  }
  ADD_FAILURE() << "no end";
  return answer;
}

TestModelOptions MixModel() {
  return {.seed = 31,
          .context = 256,
          .prefix_tokens = 2,
          .odd_layer_wide_sites = kWideDownIn,
          .qkv_bias = true};
}

std::unique_ptr<CpuExecutor> MakeExecutor(int32_t threads, int32_t blocks, const Ops* ops) {
  auto executor =
      CpuExecutor::Create(MakeTestModel(MixModel()), {.threads = threads,
                                                      .kv_cache_bytes = int64_t{8192} * blocks,
                                                      .max_step_tokens = 96,
                                                      .max_step_logits = 12,
                                                      .ops = ops});
  EXPECT_TRUE(executor.ok()) << executor.status();
  return std::move(executor).value();
}

EngineOptions Options(const CpuExecutor& executor, int32_t chunk, int32_t max_running) {
  EngineOptions options;
  options.prefix_token_ids = executor.prefix_token_ids();
  options.eos_ids = {299};
  options.logit_fraction_bits = executor.config().logit_fraction_bits;
  options.prefill_chunk_tokens = chunk;
  options.max_running = max_running;
  return options;
}

class MixTest : public testing::Test {
 protected:
  MixTest() : alone_executor_(MakeExecutor(1, 4, FindOps("portable"))) {
    alone_ = Engine::Create(alone_executor_.get(), Options(*alone_executor_, 96, 1), nullptr);
  }

  uint32_t Below(uint32_t bound) { return random_() % bound; }

  Request RandomRequest() {
    Request request;
    if (Below(3) == 0) request.prompt = alone_executor_->prefix_token_ids();
    const uint32_t length = 1 + Below(Below(3) == 0 ? 150 : 12);
    for (uint32_t i = 0; i < length; ++i) {
      request.prompt.push_back(static_cast<int32_t>(Below(298)));
    }
    request.max_tokens = 1 + static_cast<int32_t>(Below(24));
    if (Below(3) > 0) request.sampling.inverse_temperature_q16 = 20000 + Below(100000);
    if (Below(3) == 0) request.sampling.top_k = 1 + static_cast<int32_t>(Below(50));
    if (Below(3) == 0) request.sampling.top_p_q16 = 30000 + Below(35000);
    if (Below(4) == 0) request.sampling.min_p_q16 = Below(3000);
    request.sampling.seed = random_();
    if (Below(3) == 0)
      request.stop_ids = {static_cast<int32_t>(Below(300)), static_cast<int32_t>(Below(300))};
    request.ignore_eos = Below(2) == 0;
    request.top_logprobs = static_cast<int32_t>(Below(5)) - 1;
    request.priority = static_cast<int32_t>(Below(3));
    return request;
  }

  Answer Alone(const Request& request) {
    auto stream = alone_->Submit(request);
    EXPECT_TRUE(stream.ok()) << stream.status();
    return Read(**stream);
  }

  // One engine of random shape with a random mix; some requests are cancelled on the way.
  void RunMix(int mix) {
    const auto levels = SupportedOps();
    const Ops* ops = FindOps(levels[1 + Below(static_cast<uint32_t>(levels.size()) - 1)]);
    const auto executor =
        MakeExecutor(1 + static_cast<int32_t>(Below(3)), 4 + static_cast<int32_t>(Below(20)), ops);
    const auto engine = Engine::Create(executor.get(),
                                       Options(*executor, 1 + static_cast<int32_t>(Below(90)),
                                               1 + static_cast<int32_t>(Below(12))),
                                       nullptr);
    const size_t count = 1 + Below(8);
    std::vector<Request> requests;
    std::vector<Answer> expected, answers(count);
    std::vector<int> cancel_after(count, -1);  // tokens
    std::vector<std::shared_ptr<Stream>> streams;
    std::vector<bool> ended(count, false);
    for (size_t i = 0; i < count; ++i) {
      requests.push_back(RandomRequest());
      expected.push_back(Alone(requests.back()));
      if (Below(6) == 0) cancel_after[i] = static_cast<int>(Below(5));
    }
    size_t left = count;
    const auto poll = [&] {
      for (size_t i = 0; i < streams.size(); ++i) {
        if (cancel_after[i] == static_cast<int>(answers[i].tokens.size())) streams[i]->Cancel();
        Event event;
        while (!ended[i] && streams[i]->TryNext(&event)) {
          if (event.finished) {
            answers[i].reason = event.reason;
            answers[i].stop_token_id = event.stop_token_id;
            ended[i] = true;
            --left;
          } else {
            Append(event, &answers[i]);
          }
        }
      }
    };
    for (const Request& request : requests) {
      auto stream = engine->Submit(request);
      ASSERT_TRUE(stream.ok()) << stream.status();
      streams.push_back(*std::move(stream));
      for (uint32_t i = Below(4); i > 0; --i) std::this_thread::yield(), poll();
    }
    const absl::Time give_up = absl::Now() + kPatience;
    while (left > 0 && absl::Now() < give_up) poll(), std::this_thread::yield();
    ASSERT_EQ(left, 0u);
    for (size_t i = 0; i < count; ++i) {
      SCOPED_TRACE(absl::StrCat("mix ", mix, ", request ", i, ", level ", ops->name));
      Answer want = expected[i];
      if (cancel_after[i] >= 0 && answers[i].reason == FinishReason::kCancelled) {
        ASSERT_LE(answers[i].tokens.size(), want.tokens.size());
        ++cancelled_;
        want.reason = FinishReason::kCancelled;
        want.stop_token_id = -1;
        want.tokens.resize(answers[i].tokens.size());
        want.logprobs.resize(answers[i].logprobs.size());
      }
      EXPECT_EQ(answers[i].tokens, want.tokens);
      EXPECT_EQ(answers[i].logprobs, want.logprobs);
      EXPECT_EQ(answers[i].reason, want.reason);
      EXPECT_EQ(answers[i].stop_token_id, want.stop_token_id);
      if (want.reason == FinishReason::kStop) ++stopped_;
      tokens_ += want.tokens.size();
    }
    const EngineLoad load = engine->load();
    EXPECT_EQ(load.free_blocks, load.total_blocks);
  }

  std::mt19937 random_{5};
  std::unique_ptr<CpuExecutor> alone_executor_;
  std::unique_ptr<Engine> alone_;
  int cancelled_ = 0, stopped_ = 0;
  size_t tokens_ = 0;
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
  for (int mix = 0; mix < mixes && !HasFailure(); ++mix) RunMix(mix);
  if (mixes >= 100) {  // the mixes held what they are meant to hold
    EXPECT_GT(cancelled_, 10);
    EXPECT_GT(stopped_, 10);
    EXPECT_GT(tokens_, 5000u);
  }
}

// A stream that broke off continues from its tokens: the prompt with what came so far gives the
// rest.
TEST_F(MixTest, AStreamContinuesFromItsTokens) {
  int continued = 0;
  for (int round = 0; round < 60; ++round) {
    Request request = RandomRequest();
    request.sampling.inverse_temperature_q16 = 65536;
    const Answer whole = Alone(request);
    if (whole.tokens.size() < 4) continue;
    const size_t cut = 1 + Below(static_cast<uint32_t>(whole.tokens.size()) - 2);
    Request rest = request;
    rest.prompt.insert(rest.prompt.end(), whole.tokens.begin(),
                       whole.tokens.begin() + static_cast<std::ptrdiff_t>(cut));
    rest.max_tokens -= static_cast<int32_t>(cut);
    const Answer tail = Alone(rest);
    EXPECT_EQ(tail.tokens,
              std::vector<int32_t>(whole.tokens.begin() + static_cast<std::ptrdiff_t>(cut),
                                   whole.tokens.end()));
    EXPECT_EQ(tail.reason, whole.reason);
    ++continued;
  }
  EXPECT_GT(continued, 20);
}

}  // namespace
}  // namespace fixpoint
