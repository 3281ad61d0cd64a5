// For tests of the engine: an executor whose model counts. The likeliest token behind token t is t
// + 1 (modulo the vocabulary).
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "engine/executor.h"

namespace fixpoint {

class FakeExecutor : public Executor {
 public:
  explicit FakeExecutor(const ExecutorLimits& limits = {.vocab_size = 100,
                                                        .num_blocks = 32,
                                                        .block_tokens = 16,
                                                        .block_bytes = 1,
                                                        .max_sequence_tokens = 200,
                                                        .max_step_tokens = 64,
                                                        .max_step_logits = 16})
      : limits_(limits) {}

  const ExecutorLimits& limits() const override { return limits_; }

  absl::Status Forward(absl::Span<const SequenceChunk> chunks, int32_t* logits) override {
    std::unique_lock<std::mutex> lock(mutex_);
    ++steps_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return allowed_steps_ != 0; });
    if (allowed_steps_ > 0) --allowed_steps_;
    if (fails_) return absl::InternalError("the fake device fell off the bus");
    for (const SequenceChunk& chunk : chunks) {
      for (const int32_t index : chunk.logit_indices) {
        std::fill(logits, logits + limits_.vocab_size, 0);
        const int32_t next = (chunk.token_ids[static_cast<size_t>(index)] + 1) % limits_.vocab_size;
        logits[next] = 20 << 16;
        logits += limits_.vocab_size;
      }
    }
    return absl::OkStatus();
  }

  // Steps that may still end: -1 for any number.
  void Allow(int steps) {
    std::lock_guard<std::mutex> lock(mutex_);
    allowed_steps_ = steps;
    changed_.notify_all();
  }
  void Fail() {
    std::lock_guard<std::mutex> lock(mutex_);
    fails_ = true;
  }
  int steps() {
    std::lock_guard<std::mutex> lock(mutex_);
    return steps_;
  }
  // Until `steps` steps have begun.
  void AwaitSteps(int steps) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return steps_ >= steps; });
  }

 private:
  const ExecutorLimits limits_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int steps_ = 0;
  int allowed_steps_ = -1;
  bool fails_ = false;
};

}  // namespace fixpoint
