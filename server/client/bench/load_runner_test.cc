#include "server/client/bench/load_runner.h"

#include <gtest/gtest.h>

#include <atomic>
#include <set>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "server/client/bench/bench_report.h"

namespace fixpoint::client {
namespace {

Workload Make(double cancel_share = 0) {
  WorkloadOptions options;
  options.prompt_tokens = *LengthDistribution::Parse("", "3");
  options.output_tokens = *LengthDistribution::Parse("", "5");
  options.cancel_share = cancel_share;
  return *Workload::Create(options,
                           {.size = 50, .max_prompt_tokens = 90, .max_context_tokens = 99});
}

// A server that gives max_tokens tokens, one every `step`.
AskFunction Server(absl::Duration step, std::atomic<int>* open_max = nullptr) {
  auto open = std::make_shared<std::atomic<int>>(0);
  return [=](const RequestSpec& spec, Cancellation* cancellation, const OnMessage& on_message,
             CallReport*) -> absl::Status {
    const int now_open = ++*open;
    if (open_max != nullptr && now_open > *open_max) *open_max = now_open;
    absl::Status status;
    v1::GenerateResponse message;
    message.mutable_started();
    if (!on_message(message)) status = absl::CancelledError("left");
    for (uint32_t i = 0; i < spec.max_tokens && status.ok(); ++i) {
      cancellation->WaitUntil(absl::Now() + step);
      message.mutable_delta()->Clear();
      message.mutable_delta()->add_token_ids(i);
      if (cancellation->cancelled() || !on_message(message)) status = absl::CancelledError("left");
    }
    --*open;
    return status;
  };
}

TEST(RunLoadTest, ClosedLoopSendsExactlyTheRequestsAskedFor) {
  std::atomic<int> open_max{0};
  const auto result =
      RunLoad({.concurrency = 4, .requests = 40}, Make(), Server(absl::Milliseconds(1), &open_max));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->totals.requests, 40);
  EXPECT_EQ(result->totals.finished, 40);
  EXPECT_EQ(result->totals.tokens, 200);
  EXPECT_EQ(result->totals.first_token.count(), 40u);
  EXPECT_EQ(result->totals.inter_token.count(), 160u);
  EXPECT_EQ(result->totals.end_to_end.count(), 40u);
  EXPECT_EQ(result->totals.open_max, 4);
  EXPECT_EQ(open_max, 4);
  EXPECT_GE(result->totals.first_token.Percentile(0), 1'000'000);
  EXPECT_GE(result->totals.end_to_end.Percentile(0), 5'000'000);
}

TEST(RunLoadTest, AThousandStreamsAtATime) {
  std::atomic<int> open_max{0};
  const auto result = RunLoad({.concurrency = 1000, .requests = 1000}, Make(),
                              Server(absl::Milliseconds(300), &open_max));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->totals.finished, 1000);
  EXPECT_EQ(open_max, 1000);
}

// One stream that takes 20 ms a request, asked for every 5 ms: the queue grows here, in front of
// the server, and every request's wait in it must show.
TEST(RunLoadTest, OpenLoopCountsTheWaitInFrontOfABusyGenerator) {
  const auto result = RunLoad({.rate = 200, .requests = 60, .max_streams = 1}, Make(),
                              Server(absl::Milliseconds(4)));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->totals.finished, 60);
  EXPECT_EQ(result->totals.open_max, 1);
  // 60 requests take 1.2 s at least, the last one should have begun after 0.3 s or so.
  EXPECT_GE(result->totals.end_to_end.max(), 500'000'000);
  EXPECT_GE(result->totals.end_to_end.Percentile(0.5), 150'000'000);
}

TEST(RunLoadTest, OpenLoopOpensAsManyStreamsAsItTakes) {
  std::atomic<int> open_max{0};
  const auto result =
      RunLoad({.rate = 400, .requests = 100}, Make(), Server(absl::Milliseconds(40), &open_max));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->totals.finished, 100);
  EXPECT_GT(open_max, 30);
}

TEST(RunLoadTest, WarmUpIsNotMeasured) {
  const auto result = RunLoad({.concurrency = 2, .warmup = 0.2, .requests = 10}, Make(),
                              Server(absl::Milliseconds(2)));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->totals.requests, 10);
  int64_t all = 0;
  for (const Slice& slice : result->slices) all += slice.finished;
  EXPECT_GT(all, 12);
}

TEST(RunLoadTest, DurationEndsTheRunAndDrainLetsStreamsEnd) {
  const absl::Time start = absl::Now();
  const auto result = RunLoad({.concurrency = 3, .duration = 0.3, .drain = 30}, Make(),
                              Server(absl::Milliseconds(40)));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(300));
  EXPECT_EQ(result->totals.cut, 0);
  EXPECT_EQ(result->totals.finished, result->totals.requests);
  EXPECT_DOUBLE_EQ(result->measured_seconds, 0.3);
}

TEST(RunLoadTest, StreamsThatDoNotEndAreCut) {
  const auto result = RunLoad({.concurrency = 3, .duration = 0.1, .drain = 0.1}, Make(),
                              Server(absl::Seconds(100)));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->totals.cut, 3);
  EXPECT_EQ(result->totals.failures(), 0);
}

TEST(RunLoadTest, FailuresAreCountedByCodeAndCancelsApart) {
  std::atomic<int> number{0};
  const AskFunction good = Server(absl::ZeroDuration());
  const AskFunction ask = [&](const RequestSpec& spec, Cancellation* cancellation,
                              const OnMessage& on_message, CallReport* report) -> absl::Status {
    report->breaks = 2;
    const int n = number++;
    if (n % 10 == 0) return absl::ResourceExhaustedError("full");
    if (n % 10 == 1) return absl::UnavailableError("gone");
    return good(spec, cancellation, on_message, report);
  };
  const auto result = RunLoad({.concurrency = 1, .requests = 200}, Make(0.5), ask);
  ASSERT_TRUE(result.ok()) << result.status();
  const Totals& totals = result->totals;
  EXPECT_EQ(totals.failed.at(absl::StatusCode::kResourceExhausted), 20);
  EXPECT_EQ(totals.failed.at(absl::StatusCode::kUnavailable), 20);
  EXPECT_EQ(totals.failures(), 40);
  EXPECT_GT(totals.left, 50);
  EXPECT_EQ(totals.left + totals.finished, 160);
  EXPECT_EQ(totals.breaks, 400);
  EXPECT_EQ(totals.end_to_end.count(), static_cast<uint64_t>(totals.finished));
}

TEST(RunLoadTest, RampOpensStreamsOneAfterTheOther) {
  std::atomic<int> open{0};
  absl::Mutex mutex;
  std::vector<absl::Time> begins;
  const AskFunction ask = [&](const RequestSpec&, Cancellation*, const OnMessage&,
                              CallReport*) -> absl::Status {
    {
      absl::MutexLock lock(&mutex);
      begins.push_back(absl::Now());
    }
    absl::SleepFor(absl::Milliseconds(600));
    return absl::OkStatus();
  };
  const auto result = RunLoad({.concurrency = 4, .ramp = 0.4, .requests = 4}, Make(), ask);
  ASSERT_TRUE(result.ok());
  ASSERT_EQ(begins.size(), 4u);
  EXPECT_GE(begins.back() - begins.front(), absl::Milliseconds(290));
}

TEST(RecorderTest, SlicesStayFewInALongRun) {
  Recorder recorder(0, INT64_MAX);
  for (int64_t second = 0; second < 7200; ++second) {
    recorder.Tokens(second * 1'000'000'000, second * 1'000'000'000, 1000, 3, false);
  }
  EXPECT_LE(recorder.slices().size(), 240u);
  EXPECT_GE(recorder.slices().size(), 100u);
  int64_t tokens = 0;
  for (const Slice& slice : recorder.slices()) tokens += slice.tokens;
  EXPECT_EQ(tokens, 21600);
  // Evenly: nothing was merged into the wrong slice.
  const auto& slices = recorder.slices();
  for (size_t i = 0; i + 1 < slices.size(); ++i) EXPECT_EQ(slices[i].tokens, slices[0].tokens);
}

}  // namespace
}  // namespace fixpoint::client
