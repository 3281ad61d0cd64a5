// Comparing models on text: loss, KL divergence and top-1 agreement, token by token, with logits in
// blocks of rows.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/thread_pool.h"
#include "calibrator/float_forward.h"
#include "engine/cpu_executor.h"

namespace fixpoint {

// Text cut into windows of equal length.
struct Windows {
  int32_t tokens = 0;              // in a window
  std::vector<int32_t> token_ids;  // [count][tokens]
  int32_t count() const { return tokens ? static_cast<int32_t>(token_ids.size() / tokens) : 0; }
  const int32_t* window(int32_t i) const { return token_ids.data() + int64_t{i} * tokens; }
};

// Logits of windows from some model. Start, then blocks of rows in rising order; row = window in
// the batch * tokens + token.
class LogitSource {
 public:
  virtual ~LogitSource() = default;
  virtual int32_t vocab_size() const = 0;
  // Windows [first, first + count) of `windows`, which stays alive until the batch is done.
  virtual absl::Status Start(const Windows& windows, int32_t first, int32_t count) = 0;
  // out [end - begin][vocab_size]; a block never crosses the border of two windows.
  virtual absl::Status Logits(int64_t begin, int64_t end, float* out) = 0;
};

// The float forward pass with given options (statistics and kv must be null).
class ForwardLogits : public LogitSource {
 public:
  ForwardLogits(FloatForward& forward, const ForwardOptions& options)
      : forward_(forward), options_(options) {}
  int32_t vocab_size() const override { return forward_.vocab_size(); }
  absl::Status Start(const Windows& windows, int32_t first, int32_t count) override;
  absl::Status Logits(int64_t begin, int64_t end, float* out) override;

 private:
  FloatForward& forward_;
  ForwardOptions options_;
};

// Runs fn on a new thread and waits for it. oneDNN leaves its own AMX tile configuration in each
// thread that it ran on, which the integer kernels, configured once in a thread, do not expect:
// they get threads that oneDNN has never seen.
void RunOnFreshThread(const std::function<void()>& fn);

// The integer engine. Its result does not depend on the batch, so windows run one after the other.
class ExecutorLogits : public LogitSource {
 public:
  // `executor` must outlive it; its cache must hold a window.
  explicit ExecutorLogits(CpuExecutor& executor);
  int32_t vocab_size() const override { return executor_.limits().vocab_size; }
  absl::Status Start(const Windows& windows, int32_t first, int32_t count) override;
  absl::Status Logits(int64_t begin, int64_t end, float* out) override;

 private:
  CpuExecutor& executor_;
  const Windows* windows_ = nullptr;
  int32_t first_ = 0;
  std::vector<int32_t> block_table_, logit_indices_, logits_;
};

// A model's logits kept in 16 bits each (steps of 30 / 65535 below each row's maximum, so KL is off
// by less than 1e-7), for comparing many candidates with one teacher.
class CachedLogits : public LogitSource {
 public:
  static absl::StatusOr<std::unique_ptr<CachedLogits>> Create(LogitSource& source,
                                                              const Windows& windows,
                                                              ThreadPool& pool);
  int32_t vocab_size() const override { return vocab_; }
  absl::Status Start(const Windows& windows, int32_t first, int32_t count) override;
  absl::Status Logits(int64_t begin, int64_t end, float* out) override;

 private:
  explicit CachedLogits(ThreadPool& pool) : pool_(pool) {}

  ThreadPool& pool_;
  int32_t vocab_ = 0;
  int32_t window_tokens_ = 0;
  int64_t first_row_ = 0;
  std::vector<uint16_t> below_max_;  // [rows][vocab]
};

struct Comparison {
  std::vector<double> teacher_loss, loss;  // per window: mean over its tokens 2..n, nats
  double kl_mean = 0;                      // over all tokens, KL(teacher || model), nats
  double top1_agreement = 0;               // share of tokens in [0, 1]
  int64_t tokens = 0;
};

// Compares models with a teacher on all windows. `progress`, when given, is told the finished
// windows.
absl::StatusOr<std::vector<Comparison>> Compare(
    LogitSource& teacher, const std::vector<LogitSource*>& models, const Windows& windows,
    ThreadPool& pool, const std::function<void(int32_t)>& progress = nullptr);

// Loss per window of one model, as in Comparison.
absl::StatusOr<std::vector<double>> WindowLosses(
    LogitSource& model, const Windows& windows, ThreadPool& pool,
    const std::function<void(int32_t)>& progress = nullptr);

// exp of the mean of window losses.
double Perplexity(const std::vector<double>& window_loss);
// Perplexity of `loss` over that of `base` in percent, and the standard error of the paired
// differences; 0 with one window.
struct RelativePerplexity {
  double percent = 0;
  double standard_error_percent = 0;
};
RelativePerplexity RelativeTo(const std::vector<double>& base, const std::vector<double>& loss);

}  // namespace fixpoint
