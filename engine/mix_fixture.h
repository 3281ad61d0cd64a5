// The promise: a request's tokens and log-probabilities in any mix equal those of the request
// alone. A fixture that makes random mixes and compares; the executor is the test's.
#pragma once

#include <algorithm>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "bundle/test_model.h"
#include "engine/cpu_executor.h"
#include "engine/engine.h"
#include "gtest/gtest.h"
#include "kernels/cpu/dispatch.h"

namespace fixpoint {

inline constexpr absl::Duration kMixPatience = absl::Seconds(120);

struct Answer {
  std::vector<int32_t> tokens;
  std::vector<int32_t> logprobs;  // chosen, then top, of each token
  std::vector<int32_t> prompt;    // index, token, its log-probability, then top, of each
  FinishReason reason = FinishReason::kError;
  int32_t stop_token_id = -1;
};

inline void Append(const Event& event, Answer* answer) {
  if (event.of_prompt) {
    answer->prompt.push_back(event.index);
    answer->prompt.push_back(event.token_id);
  } else {
    answer->tokens.push_back(event.token_id);
  }
  std::vector<int32_t>& logprobs = event.of_prompt ? answer->prompt : answer->logprobs;
  logprobs.push_back(event.chosen.logprob_q16);
  for (const TokenLogprob& top : event.top) {
    logprobs.push_back(top.token_id);
    logprobs.push_back(top.logprob_q16);
  }
}

// A grammar of two states: the token decides by its remainder which remainders may follow.
class RemainderConstraint final : public TokenConstraint {
 public:
  explicit RemainderConstraint(int32_t vocab_size) : vocab_size_(vocab_size) {}
  void FillMask(absl::Span<uint32_t> mask) override {
    std::fill(mask.begin(), mask.end(), 0);
    for (int32_t id = 0; id < vocab_size_; ++id) {
      if (Allows(id)) mask[static_cast<size_t>(id / 32)] |= uint32_t{1} << (id % 32);
    }
  }
  bool Accept(int32_t id) override {
    if (!Allows(id)) return false;
    last_ = id;
    return true;
  }

 private:
  bool Allows(int32_t id) const { return last_ % 2 == 0 ? id % 3 != 1 : id % 5 < 3; }
  const int32_t vocab_size_;
  int32_t last_ = 0;
};

inline Answer Read(Stream& stream) {
  Answer answer;
  Event event;
  while (stream.Next(&event, kMixPatience)) {
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

inline TestModelOptions MixModel() {
  return {.seed = 31,
          .context = 256,
          .prefix_tokens = 2,
          .odd_layer_wide_sites = kWideDownIn,
          .qkv_bias = true};
}

inline std::unique_ptr<CpuExecutor> MakeMixExecutor(int32_t threads, int32_t blocks,
                                                    const Ops* ops) {
  auto executor =
      CpuExecutor::Create(MakeTestModel(MixModel()), {.threads = threads,
                                                      .kv_cache_bytes = int64_t{8192} * blocks,
                                                      .max_step_tokens = 96,
                                                      .max_step_logits = 12,
                                                      .ops = ops});
  EXPECT_TRUE(executor.ok()) << executor.status();
  return std::move(executor).value();
}

inline EngineOptions MixOptions(const CpuExecutor& executor, int32_t chunk, int32_t max_running) {
  EngineOptions options;
  options.prefix_token_ids = executor.prefix_token_ids();
  options.eos_ids = {299};
  options.logit_fraction_bits = executor.config().logit_fraction_bits;
  options.prefill_chunk_tokens = chunk;
  options.max_running = max_running;
  return options;
}

class MixFixture : public testing::Test {
 protected:
  MixFixture() : alone_executor_(MakeMixExecutor(1, 4, FindOps("portable"))) {
    EngineOptions options = MixOptions(*alone_executor_, 96, 1);
    options.prefix_cache = false;
    alone_ = Engine::Create(alone_executor_.get(), options, nullptr);
    for (std::vector<int32_t>& opening : openings_) {
      for (int i = 0; i < 80; ++i) opening.push_back(static_cast<int32_t>(Below(298)));
    }
  }

  // What the mixes went through.
  struct Counter final : EngineObserver {
    void OnPreempted() override { ++preempted; }
    void OnCacheLookup(int32_t, int32_t hits) override { cache_hits += hits; }
    void OnDraft(int32_t drafted, int32_t right) override {
      rejected += drafted - right;
      accepted += right;
    }
    int64_t preempted = 0, cache_hits = 0, accepted = 0, rejected = 0;
  };

  uint32_t Below(uint32_t bound) { return random_() % bound; }
  // KV blocks of a mix's executor.
  int32_t RandomBlocks() { return 4 + static_cast<int32_t>(Below(long_answers_ ? 2 : 16)); }

  Request RandomRequest() {
    Request request;
    if (Below(3) == 0) request.prompt = alone_executor_->prefix_token_ids();
    // Half of the prompts begin like others, some repeat themselves.
    if (Below(2) == 0) {
      const std::vector<int32_t>& opening =
          openings_[Below(static_cast<uint32_t>(openings_.size()))];
      const size_t all = opening.size();
      const size_t taken = Below(3) > 0 ? all : 1 + Below(static_cast<uint32_t>(all));
      request.prompt.insert(request.prompt.end(), opening.begin(),
                            opening.begin() + static_cast<std::ptrdiff_t>(taken));
    }
    const uint32_t length = 1 + Below(Below(3) == 0 ? 60 : 12);
    const uint32_t period = Below(3) == 0 ? 1 + Below(6) : 1000;
    for (uint32_t i = 0; i < length; ++i) {
      request.prompt.push_back(i < period ? static_cast<int32_t>(Below(298))
                                          : request.prompt[request.prompt.size() - period]);
    }
    request.max_tokens = 1 + static_cast<int32_t>(Below(long_answers_ ? 160 : 24));
    request.max_tokens = std::min(request.max_tokens, 250 - static_cast<int32_t>(length) - 90);
    if (Below(3) == 0) request.min_tokens = static_cast<int32_t>(Below(request.max_tokens + 1));
    if (Below(4) == 0) request.adjust = RandomAdjustment();
    if (Below(5) == 0) constrained_.insert(request.sampling.seed = random_());
    if (Below(5) == 0) request.prompt_logprobs = static_cast<int32_t>(Below(3));
    request.speculation = static_cast<Speculation>(Below(3));
    request.use_cache = Below(5) > 0;
    if (Below(4) == 0) request.cache_salt = Below(2) == 0 ? "a" : "b";
    if (Below(3) > 0) request.sampling.inverse_temperature_q16 = 20000 + Below(100000);
    if (Below(3) == 0) request.sampling.top_k = 1 + static_cast<int32_t>(Below(50));
    if (Below(3) == 0) request.sampling.top_p_q16 = 30000 + Below(35000);
    if (Below(4) == 0) request.sampling.min_p_q16 = Below(3000);
    if (request.sampling.seed == 0) request.sampling.seed = random_();
    if (Below(3) == 0)
      request.stop_ids = {static_cast<int32_t>(Below(300)), static_cast<int32_t>(Below(300))};
    request.ignore_eos = long_answers_ || Below(2) == 0;
    request.top_logprobs = static_cast<int32_t>(Below(5)) - 1;
    request.priority = static_cast<int32_t>(Below(3));
    return request;
  }

  LogitAdjustment RandomAdjustment() {
    LogitAdjustment adjust;
    int32_t id = -1;
    for (uint32_t i = Below(4); i > 0; --i) {
      id += 1 + static_cast<int32_t>(Below(60));
      adjust.bias_q16.emplace_back(id, static_cast<int32_t>(Below(400000)) - 200000);
    }
    if (Below(2) == 0) adjust.repetition_q16 = 40000 + Below(80000);
    if (Below(2) == 0) adjust.presence_q16 = static_cast<int32_t>(Below(200000)) - 100000;
    if (Below(2) == 0) adjust.frequency_q16 = static_cast<int32_t>(Below(100000)) - 20000;
    return adjust;
  }

  // Requests are kept without their constraint, which belongs to one run.
  Request Fresh(const Request& request) const {
    Request fresh = request;
    if (constrained_.count(request.sampling.seed) > 0)
      fresh.constraint = std::make_shared<RemainderConstraint>(300);
    return fresh;
  }

  // On an engine that has one request at a time, no prefix cache and no drafts.
  Answer Alone(const Request& request) {
    Request plain = Fresh(request);
    plain.speculation = Speculation::kOff;
    auto stream = alone_->Submit(std::move(plain));
    EXPECT_TRUE(stream.ok()) << stream.status();
    return Read(**stream);
  }

  // The request as a client sends it when its stream broke behind a random token.
  void ResumeInTheMiddle(const Answer& whole, Request* request) {
    if (whole.tokens.empty()) return;
    size_t cut = Below(static_cast<uint32_t>(whole.tokens.size()));
    request->resume.assign(whole.tokens.begin(),
                           whole.tokens.begin() + static_cast<ptrdiff_t>(cut));
    ++resumed_;
  }

  // The part of the whole answer that a resumed request has still to give.
  static void SkipResumed(const Request& request, Answer* answer) {
    const auto skipped = static_cast<std::ptrdiff_t>(request.resume.size());
    if (skipped == 0) return;
    const auto width = static_cast<std::ptrdiff_t>(answer->logprobs.size() / answer->tokens.size());
    answer->tokens.erase(answer->tokens.begin(), answer->tokens.begin() + skipped);
    answer->logprobs.erase(answer->logprobs.begin(), answer->logprobs.begin() + skipped * width);
  }

  // One engine of random shape over the executor that `make` returns, with a random mix; some
  // requests are cancelled on the way.
  void RunMix(int mix, absl::FunctionRef<std::unique_ptr<Executor>()> make) {
    long_answers_ = Below(4) == 0;  // more than the cache can hold: sequences are preempted
    const std::unique_ptr<Executor> executor = make();
    EngineOptions options =
        MixOptions(*alone_executor_, 1 + static_cast<int32_t>(Below(90)),
                   1 + static_cast<int32_t>((long_answers_ ? 4 : 0) + Below(12)));
    options.mixed_prefill_tokens = 1 + static_cast<int32_t>(Below(90));
    options.prefix_cache = Below(5) > 0;
    const auto engine = Engine::Create(executor.get(), options, &counter_);
    const size_t count = 1 + (long_answers_ ? 5 : 0) + Below(8);
    std::vector<Request> requests;
    std::vector<Answer> expected, answers(count);
    std::vector<int> cancel_after(count, -1);  // tokens
    std::vector<std::shared_ptr<Stream>> streams;
    std::vector<bool> ended(count, false);
    for (size_t i = 0; i < count; ++i) {
      requests.push_back(RandomRequest());
      expected.push_back(Alone(requests.back()));
      if (Below(4) == 0) ResumeInTheMiddle(expected.back(), &requests.back());
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
      auto stream = engine->Submit(Fresh(request));
      ASSERT_TRUE(stream.ok()) << stream.status();
      streams.push_back(*std::move(stream));
      for (uint32_t i = Below(4); i > 0; --i) std::this_thread::yield(), poll();
    }
    const absl::Time give_up = absl::Now() + kMixPatience;
    while (left > 0 && absl::Now() < give_up) poll(), std::this_thread::yield();
    ASSERT_EQ(left, 0u);
    for (size_t i = 0; i < count; ++i) {
      SCOPED_TRACE(absl::StrCat("mix ", mix, ", request ", i, ", ", executor_name_));
      Answer want = expected[i];
      SkipResumed(requests[i], &want);
      if (cancel_after[i] >= 0 && answers[i].reason == FinishReason::kCancelled) {
        ASSERT_LE(answers[i].tokens.size(), want.tokens.size());
        ++cancelled_;
        want.reason = FinishReason::kCancelled;
        want.stop_token_id = -1;
        ASSERT_LE(answers[i].prompt.size(), want.prompt.size());
        want.tokens.resize(answers[i].tokens.size());
        want.logprobs.resize(answers[i].logprobs.size());
        want.prompt.resize(answers[i].prompt.size());
      }
      EXPECT_EQ(answers[i].tokens, want.tokens);
      EXPECT_EQ(answers[i].logprobs, want.logprobs);
      EXPECT_EQ(answers[i].prompt, want.prompt);
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
  std::vector<std::vector<int32_t>> openings_{3};
  std::set<uint64_t> constrained_;  // seeds of requests with a constraint
  Counter counter_;
  std::string executor_name_;  // of the mix, for messages
  bool long_answers_ = false;
  int cancelled_ = 0, stopped_ = 0, resumed_ = 0;
  size_t tokens_ = 0;
};

}  // namespace fixpoint
