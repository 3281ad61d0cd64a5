// Test only: an Engine without a model, and a tiny tokenizer. Lets the handlers be tested for
// themselves, with answers that a test can predict and timing that it controls.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "engine/engine.h"
#include "server/served_model.h"
#include "text/tokenizer.h"

namespace fixpoint {

// 256 bytes as tokens 0 .. 255, then control tokens kFakeBos and kFakeEos.
inline constexpr int32_t kFakeBos = 256;
inline constexpr int32_t kFakeEos = 257;
inline constexpr int32_t kFakeVocab = 258;
std::unique_ptr<Tokenizer> FakeTokenizer();

struct FakeEngineOptions {
  int32_t max_context_tokens = 128;
  // Called for each token: index and request to id. kFakeEos ends the answer.
  std::function<int32_t(const Request&, int32_t)> token = [](const Request&, int32_t index) {
    return 'a' + index % 26;
  };
  absl::Duration time_per_token = absl::ZeroDuration();
  int32_t fail_at = -1;  // the device fails in front of this token
  absl::Status failure = absl::InternalError("fake device fault");  // what it says then
  absl::Status submit_error;
  int32_t refuse_from = 1 << 30;  // submissions from this one on get RESOURCE_EXHAUSTED
  int32_t cached_tokens = 1;
};

// One thread a request. Obeys cancel, deadline, max_tokens, stop_ids, ignore_eos, resume and
// prompt_logprobs as the contract in engine/engine.h says; everything else is only kept for the
// test to look at.
class FakeEngine final : public Engine {
 public:
  explicit FakeEngine(FakeEngineOptions options) : options_(std::move(options)) {}
  ~FakeEngine() override { Drain(absl::ZeroDuration()); }

  EngineLimits limits() const override;
  absl::StatusOr<std::shared_ptr<Stream>> Submit(Request request) override;
  EngineLoad load() const override;
  bool healthy() const override { return true; }
  void Drain(absl::Duration timeout) override;

  int32_t submitted() const { return submitted_; }
  // Everything that was submitted, in order.
  std::vector<Request> requests() const;
  int32_t running() const { return *running_; }

 private:
  const FakeEngineOptions options_;
  std::atomic<int32_t> submitted_{0};
  mutable absl::Mutex mutex_;
  std::vector<Request> requests_ ABSL_GUARDED_BY(mutex_);
  std::atomic<bool> draining_{false};
  std::shared_ptr<std::atomic<bool>> stop_ = std::make_shared<std::atomic<bool>>(false);
  std::shared_ptr<std::atomic<int32_t>> running_ = std::make_shared<std::atomic<int32_t>>(0);
};

}  // namespace fixpoint
