// Test only: servers without a wire. Their answers are a function of prompt, seed and max_tokens,
// so a test can say what an undisturbed call gives; each attempt can break wherever a test wants.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "fixpoint/v1/generation.pb.h"
#include "server/client/library/clock.h"
#include "server/client/library/transport.h"

namespace fixpoint::client {

// Only moves when somebody waits.
class FakeClock final : public Clock {
 public:
  absl::Time Now() override;
  void WaitUntil(absl::Time time, const Cancellation& cancellation) override;
  void Advance(absl::Duration duration);

 private:
  absl::Mutex mutex_;
  absl::Time now_ ABSL_GUARDED_BY(mutex_) = absl::UnixEpoch() + absl::Hours(1);
};

// The answer to one choice: the text that each token brings, and what is held back to the end.
struct FakeAnswer {
  std::vector<uint32_t> ids;
  std::vector<std::string> texts;
  std::string tail;
  v1::Finished finished;
};
FakeAnswer TrueAnswer(const std::string& prompt, uint64_t seed, uint32_t max_tokens);

// What befalls one attempt.
struct Fault {
  int after_messages = 1 << 30;  // the stream ends (or stalls) in front of this message
  std::optional<StreamEnd> end;  // nothing: it stalls
  std::string fingerprint = "fp-1";
  // Gives out what it holds back before it ends in the middle of an answer, as servers should not.
  bool flushes = false;
  std::function<void(v1::GenerateResponse*)> spoil;  // applied to each message
};

struct Attempt {
  int target = 0;
  v1::GenerateRequest request;
  absl::Time when;
};

// Obeys the contract of generation.proto for resume_token_ids, n, more_prompts, echo and
// prompt_logprobs: a wrong continuation is INVALID_ARGUMENT. Thread-safe.
class FakeTransport final : public Transport {
 public:
  // `fault` is asked for each attempt, numbered from 0 over all targets.
  FakeTransport(int num_targets, FakeClock* clock, uint64_t seed,
                std::function<Fault(int target, int attempt)> fault);

  int num_targets() const override { return static_cast<int>(names_.size()); }
  const std::string& TargetName(int target) const override {
    return names_[static_cast<size_t>(target)];
  }
  std::unique_ptr<StreamCall> Start(int target, const v1::GenerateRequest& request,
                                    absl::Time deadline) override;
  std::vector<Attempt> attempts() const;

 private:
  std::vector<v1::GenerateResponse> Messages(const v1::GenerateRequest& request,
                                             const std::string& fingerprint)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  std::vector<std::string> names_;
  FakeClock* const clock_;
  const std::function<Fault(int, int)> fault_;
  mutable absl::Mutex mutex_;
  std::mt19937_64 random_ ABSL_GUARDED_BY(mutex_);
  std::vector<Attempt> attempts_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace fixpoint::client
