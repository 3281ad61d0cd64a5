#include "server/client/bench/load_runner.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <deque>
#include <limits>
#include <system_error>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"

namespace fixpoint::client {
namespace {

// Open loop: requests that wait for one of max_streams. More are counted as not sent.
constexpr size_t kMaxBacklog = 100'000;

int64_t Nanos(double seconds) { return static_cast<int64_t>(seconds * 1e9); }

struct Job {
  uint64_t number = 0;
  int64_t scheduled = 0;
};

class LoadRunner {
 public:
  LoadRunner(const LoadOptions& options, const Workload& workload, const AskFunction& ask)
      : options_(options),
        workload_(workload),
        ask_(ask),
        stop_(options.duration > 0 ? Nanos(options.warmup + options.duration)
                                   : std::numeric_limits<int64_t>::max()),
        recorder_(Nanos(options.warmup), stop_) {}

  absl::StatusOr<LoadResult> Run() {
    const absl::Status status = options_.concurrency > 0 ? RunClosed() : RunOpen();
    JoinWithin(status.ok() ? options_.drain : 0);
    RETURN_IF_ERROR(status);
    const int64_t end = options_.duration > 0 ? stop_ : last_end_.load();
    LoadResult result;
    result.totals = recorder_.totals();
    result.slices = recorder_.slices();
    result.slice_seconds = static_cast<double>(recorder_.slice_nanos()) * 1e-9;
    result.measured_seconds =
        static_cast<double>(std::max<int64_t>(end - Nanos(options_.warmup), 0)) * 1e-9;
    return result;
  }

 private:
  int64_t Now() const {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() -
                                                                start_)
        .count();
  }

  void SleepUntil(int64_t time) const {
    std::this_thread::sleep_until(start_ + std::chrono::nanoseconds(time));
  }

  // The next request's number, unless the run is over for one that begins now.
  bool Take(int64_t now, Job* job) {
    if (now >= stop_ || cancellation_.cancelled()) return false;
    absl::MutexLock lock(&mutex_);
    if (options_.duration <= 0 && now >= Nanos(options_.warmup)) {
      if (measured_ >= options_.requests) return false;
      ++measured_;
    }
    *job = {next_number_++, now};
    return true;
  }

  template <typename Body>
  absl::Status StartThread(Body body) {
    try {
      threads_.emplace_back(body);
    } catch (const std::system_error& error) {
      return absl::ResourceExhaustedError(
          absl::StrCat("thread ", threads_.size() + 1, ": ", error.what()));
    }
    return absl::OkStatus();
  }

  absl::Status RunClosed() {
    for (int i = 0; i < options_.concurrency; ++i) {
      const int64_t begin = Nanos(options_.ramp * i / options_.concurrency);
      const auto body = [this, begin] {
        SleepUntil(begin);
        Job job;
        while (Take(Now(), &job)) Ask(job);
        ThreadEnds();
      };
      CountThread();
      if (const absl::Status status = StartThread(body); !status.ok()) {
        ThreadEnds();
        return status;
      }
    }
    WaitUntilStop();
    return absl::OkStatus();
  }

  absl::Status RunOpen() {
    PoissonArrivals arrivals(options_.seed, options_.rate, options_.ramp);
    absl::Status status;
    while (status.ok()) {
      const double at = arrivals.Next();
      if (at >= 1e9) break;  // a rate that no run lives to see
      Job job;
      if (!Take(Nanos(at), &job)) break;
      SleepUntil(job.scheduled);
      status = Post(job);
    }
    absl::MutexLock lock(&mutex_);
    all_posted_ = true;
    return status;
  }

  absl::Status Post(const Job& job) {
    bool start = false;
    {
      absl::MutexLock lock(&mutex_);
      if (backlog_.size() >= kMaxBacklog) {
        recorder_.NotSent(job.scheduled);
        return absl::OkStatus();
      }
      backlog_.push_back(job);
      start = backlog_.size() > static_cast<size_t>(idle_) && open_threads_ < options_.max_streams;
      if (start) ++open_threads_;
    }
    if (!start) return absl::OkStatus();
    absl::Status status = StartThread([this] {
      Job next;
      while (TakePosted(&next)) Ask(next);
      ThreadEnds();
    });
    if (!status.ok()) ThreadEnds();
    return status;
  }

  bool TakePosted(Job* job) {
    absl::MutexLock lock(&mutex_);
    ++idle_;
    mutex_.Await(absl::Condition(this, &LoadRunner::HasWork));
    --idle_;
    if (backlog_.empty()) return false;
    *job = backlog_.front();
    backlog_.pop_front();
    return true;
  }
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !backlog_.empty() || all_posted_;
  }

  void CountThread() {
    absl::MutexLock lock(&mutex_);
    ++open_threads_;
  }
  void ThreadEnds() {
    absl::MutexLock lock(&mutex_);
    --open_threads_;
  }
  bool NoThreads() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return open_threads_ == 0; }

  // Closed loop: until nothing new begins. In a run by count that is when all threads are done.
  void WaitUntilStop() {
    absl::MutexLock lock(&mutex_);
    const absl::Time until =
        options_.duration > 0 ? absl::Now() + absl::Nanoseconds(std::max<int64_t>(stop_ - Now(), 0))
                              : absl::InfiniteFuture();
    mutex_.AwaitWithDeadline(absl::Condition(this, &LoadRunner::NoThreads), until);
  }

  void JoinWithin(double seconds) {
    {
      absl::MutexLock lock(&mutex_);
      all_posted_ = true;
      mutex_.AwaitWithTimeout(absl::Condition(this, &LoadRunner::NoThreads),
                              absl::Seconds(seconds));
    }
    cancellation_.Cancel();  // what is still open is cut
    for (std::thread& thread : threads_) thread.join();
  }

  void Ask(const Job& job) {
    RequestOutcome outcome{.scheduled = job.scheduled};
    recorder_.Begin(Now());
    const RequestSpec spec = workload_.Get(job.number);
    outcome.prompt_tokens = static_cast<int64_t>(spec.prompt.size());
    int64_t last = job.scheduled;
    bool left = false;
    CallReport report;
    const auto on_message = [&](const v1::GenerateResponse& message) {
      if (const int64_t tokens = message.delta().token_ids_size(); tokens > 0) {
        const int64_t now = Now();
        const bool first = outcome.first_token < 0;
        if (first) outcome.first_token = now;
        recorder_.Tokens(job.scheduled, now, now - last, tokens, first);
        outcome.tokens += tokens;
        last = now;
      }
      left = spec.cancel_after >= 0 && outcome.tokens >= spec.cancel_after;
      return !left;
    };
    const absl::Status status = cancellation_.cancelled()
                                    ? absl::CancelledError("cut")
                                    : ask_(spec, &cancellation_, on_message, &report);
    outcome.ended = Now();
    outcome.breaks = report.breaks;
    outcome.code = status.code();
    if (status.ok()) {
      outcome.end = RequestOutcome::End::kFinished;
    } else if (left) {
      outcome.end = RequestOutcome::End::kLeft;
    } else if (cancellation_.cancelled()) {
      outcome.end = RequestOutcome::End::kCut;
    } else {
      outcome.end = RequestOutcome::End::kFailed;
    }
    recorder_.End(outcome);
    int64_t seen = last_end_.load();
    while (seen < outcome.ended && !last_end_.compare_exchange_weak(seen, outcome.ended)) {
    }
  }

  const LoadOptions options_;
  const Workload& workload_;
  const AskFunction& ask_;
  const int64_t stop_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  Recorder recorder_;
  Cancellation cancellation_;
  std::atomic<int64_t> last_end_{0};
  std::vector<std::thread> threads_;  // of the thread that runs Run

  absl::Mutex mutex_;
  uint64_t next_number_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t measured_ ABSL_GUARDED_BY(mutex_) = 0;
  std::deque<Job> backlog_ ABSL_GUARDED_BY(mutex_);
  bool all_posted_ ABSL_GUARDED_BY(mutex_) = false;
  int idle_ ABSL_GUARDED_BY(mutex_) = 0;
  int open_threads_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace

absl::StatusOr<LoadResult> RunLoad(const LoadOptions& options, const Workload& workload,
                                   const AskFunction& ask) {
  return LoadRunner(options, workload, ask).Run();
}

}  // namespace fixpoint::client
