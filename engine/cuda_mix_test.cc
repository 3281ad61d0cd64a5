// The engine on an emulated device that chooses tokens: every answer as on the CPU alone, and
// logits are copied for the rows that need them, not for others.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/cuda_executor.h"
#include "engine/emulated_device.h"
#include "engine/fake_executor.h"
#include "engine/mix_fixture.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

// What the engine asks of its executor.
struct Rows {
  int64_t chosen = 0, copied = 0, drafted = 0;  // drafted: chosen in chunks of several tokens
};

// A CudaExecutor and its device, which does nothing before it is waited for. Counts rows, checks
// what was copied for them, and that a step is not waited for when it is submitted. Until Wait,
// tokens and logits are junk.
class CountingExecutor final : public Executor {
 public:
  CountingExecutor(int32_t blocks, Rows* rows) : rows_(*rows) {
    state_.lazy = true;
    auto executor =
        CudaExecutor::Create(MakeTestModel(MixModel()), std::make_unique<EmulatedDevice>(&state_),
                             {.kv_cache_bytes = int64_t{8192} * blocks,
                              .max_step_tokens = 96,
                              .max_step_logits = 12,
                              .decode_bytes = 1 << 20});
    EXPECT_TRUE(executor.ok()) << executor.status();
    executor_ = std::move(executor).value();
  }
  const ExecutorLimits& limits() const override { return executor_->limits(); }
  bool chooses_tokens() const override { return executor_->chooses_tokens(); }
  bool copies_chunks() const override { return executor_->copies_chunks(); }
  absl::Status Forward(absl::Span<const SequenceChunk>, int32_t*) override {
    return absl::InternalError("the engine did not submit");
  }
  absl::Status Submit(absl::Span<const SequenceChunk> chunks, int32_t* logits,
                      int32_t* tokens) override {
    int64_t copied = 0, rows = 0;
    for (const SequenceChunk& chunk : chunks) {
      rows += static_cast<int64_t>(chunk.choices.size());
      for (const RowChoice& choice : chunk.choices) {
        const bool chosen = choice.sampling != nullptr;
        (chosen ? rows_.chosen : copied) += 1;
        if (chosen && chunk.choices.size() > 1) ++rows_.drafted;
      }
    }
    rows_.copied += copied;
    std::fill_n(logits, rows * limits().vocab_size, kJunk);
    std::fill_n(tokens, rows, kJunk);
    downloaded_before_ = state_.downloaded_bytes;
    to_download_ = 4 * copied * limits().vocab_size;
    const int synchronized = state_.synchronizations;
    ChunkCopies copies(chunks);
    absl::Status status = executor_->Submit(copies.chunks(), logits, tokens);
    copies.Spoil();
    EXPECT_EQ(state_.synchronizations, synchronized);
    return status;
  }
  absl::Status Wait() override {
    absl::Status status = executor_->Wait();
    EXPECT_EQ(state_.downloaded_bytes - downloaded_before_, to_download_);
    return status;
  }
  int graph_launches() const { return state_.graph_launches; }

 private:
  static constexpr int32_t kJunk = 123;  // in range: an answer with it is wrong, not a crash
  Rows& rows_;
  EmulatedDeviceState state_;
  std::unique_ptr<CudaExecutor> executor_;
  int64_t downloaded_before_ = 0, to_download_ = 0;
};

class CudaMixTest : public MixFixture {};

TEST_F(CudaMixTest, EveryRequestGetsWhatItGetsAloneOnTheCpu) {
  Rows rows;
  for (int mix = 0; mix < 30 && !HasFailure(); ++mix) {
    RunMix(mix, [&] { return std::make_unique<CountingExecutor>(RandomBlocks(), &rows); });
  }
  EXPECT_GT(rows.chosen, 100);
  EXPECT_GT(rows.copied, 100);
  EXPECT_GT(rows.drafted, 10);
  EXPECT_GT(counter_.accepted, 10);
  EXPECT_GT(counter_.rejected, 10);
}

// Four answers of three blocks each where there are five: a preempted one is read again, and goes
// on with the tokens that it would have had.
TEST_F(CudaMixTest, PreemptedAnswersGoOn) {
  Rows rows;
  CountingExecutor executor(5, &rows);
  const auto engine = Engine::Create(&executor, MixOptions(*alone_executor_, 90, 4), &counter_);
  std::vector<std::shared_ptr<Stream>> streams;
  std::vector<Answer> expected;
  for (uint64_t i = 0; i < 4; ++i) {
    Request request;
    for (int32_t k = 0; k < 30; ++k) request.prompt.push_back(static_cast<int32_t>(Below(298)));
    request.max_tokens = 140;
    request.ignore_eos = true;
    request.sampling = {.inverse_temperature_q16 = 65536, .top_p_q16 = 62000, .seed = i};
    expected.push_back(Alone(request));
    auto stream = engine->Submit(std::move(request));
    ASSERT_TRUE(stream.ok()) << stream.status();
    streams.push_back(*std::move(stream));
  }
  for (size_t i = 0; i < streams.size(); ++i) {
    EXPECT_EQ(Read(*streams[i]).tokens, expected[i].tokens) << i;
  }
  EXPECT_GT(counter_.preempted, 0);
  EXPECT_EQ(rows.copied, 0);
  EXPECT_GT(executor.graph_launches(), 100);
}

class CudaChosenRowsTest : public MixFixture {
 protected:
  // Rows of one request that gives eight tokens, after its answer was compared.
  Rows RowsOf(void (*change)(Request*)) {
    Request request;
    request.prompt = {5, 6, 7, 8};
    request.max_tokens = 8;
    request.ignore_eos = true;
    request.speculation = Speculation::kOff;
    request.sampling = {.inverse_temperature_q16 = 65536,
                        .top_k = 40,
                        .top_p_q16 = 60000,
                        .min_p_q16 = 500,
                        .seed = 9};
    change(&request);
    constrained_.clear();
    if (request.constraint != nullptr) constrained_.insert(request.sampling.seed);
    const Answer expected = Alone(request);
    Rows rows;
    CountingExecutor executor(8, &rows);
    const auto engine = Engine::Create(&executor, MixOptions(*alone_executor_, 90, 4), nullptr);
    auto stream = engine->Submit(Fresh(request));
    EXPECT_TRUE(stream.ok()) << stream.status();
    const Answer answer = Read(**stream);
    EXPECT_EQ(answer.tokens.size(), 8u);
    EXPECT_EQ(answer.tokens, expected.tokens);
    EXPECT_EQ(answer.logprobs, expected.logprobs);
    EXPECT_EQ(answer.prompt, expected.prompt);
    return rows;
  }
  void ExpectRows(int64_t chosen, int64_t copied, void (*change)(Request*)) {
    const Rows rows = RowsOf(change);
    EXPECT_EQ(rows.chosen, chosen);
    EXPECT_EQ(rows.copied, copied);
  }
};

TEST_F(CudaChosenRowsTest, SamplingAloneCopiesNoLogits) {
  ExpectRows(8, 0, [](Request*) {});
  ExpectRows(8, 0, [](Request* r) { r->sampling = {}; });
  ExpectRows(8, 0, [](Request* r) { r->stop_ids = {298}; });
}

TEST_F(CudaChosenRowsTest, WhatNeedsLogitsGetsThem) {
  ExpectRows(0, 8, [](Request* r) { r->adjust.bias_q16 = {{3, 70000}}; });
  ExpectRows(0, 8, [](Request* r) { r->adjust.repetition_q16 = 80000; });
  ExpectRows(0, 8, [](Request* r) { r->adjust.presence_q16 = 20000; });
  ExpectRows(0, 8, [](Request* r) { r->adjust.frequency_q16 = 20000; });
  ExpectRows(0, 8, [](Request* r) { r->constraint = std::make_shared<RemainderConstraint>(300); });
  ExpectRows(0, 8, [](Request* r) { r->top_logprobs = 0; });
  // The prompt's rows, but not the answer's.
  ExpectRows(8, 3, [](Request* r) { r->prompt_logprobs = 1; });
  // Until the endings are allowed.
  ExpectRows(5, 3, [](Request* r) { r->min_tokens = 3; });
}

}  // namespace
}  // namespace fixpoint
