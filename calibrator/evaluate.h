// Comparing models on text: loss, KL divergence and top-1 agreement, token by token, with logits in
// blocks of rows. What the figures say about each other is in window_statistics.h.
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
#include "calibrator/window_statistics.h"
#include "engine/cpu_executor.h"

namespace fixpoint {

// Text cut into windows of equal length. A token counts in loss figures when an earlier token of
// its window predicts it, so the first token of a window never does.
struct Windows {
  int32_t tokens = 0;  // in a window
  // Sliding windows: in every window but the first only the last `stride` tokens count, the others
  // are there to be looked back at. 0: all tokens of each window.
  int32_t stride = 0;
  std::vector<int32_t> token_ids;  // [count][tokens]
  int32_t count() const { return tokens ? static_cast<int32_t>(token_ids.size() / tokens) : 0; }
  const int32_t* window(int32_t i) const { return token_ids.data() + int64_t{i} * tokens; }

  // The first token of window i that counts.
  int32_t first_scored(int32_t i) const { return i == 0 || stride == 0 ? 0 : tokens - stride; }
  // Tokens whose loss counts, by window: the weights of window losses.
  std::vector<double> PredictionCounts() const;
};

// Logits of windows from some model. Start, then blocks of rows in rising order, of which some may
// be left out; row = window in the batch * tokens + token.
class LogitSource {
 public:
  virtual ~LogitSource() = default;
  virtual int32_t vocab_size() const = 0;
  // Windows [first, first + count) of `windows`, which stays alive until the batch is done.
  virtual absl::Status Start(const Windows& windows, int32_t first, int32_t count) = 0;
  // out [end - begin][vocab_size]; a block never crosses the border of two windows.
  virtual absl::Status Logits(int64_t begin, int64_t end, float* out) = 0;
};

// The float forward pass with given options (statistics and kv must be null). Sources that are
// measured together need a FloatForward each: it holds the batch.
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
  absl::Status Forward(int64_t begin, int64_t end, bool want_logits);

  CpuExecutor& executor_;
  const Windows* windows_ = nullptr;
  int32_t first_ = 0;
  int64_t next_row_ = 0;  // rows before it are in the cache, or of windows that are done
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

// Roundings that flip somewhere move single tokens' KL by tenths of a nat, which on some thousand
// tokens moves the mean by 7 % (measured on SmolLM2-135M). Comparing steps of training wants less
// noise: there each token counts at most this much.
inline constexpr double kRobustKl = 0.1;

// How far a model is from a teacher, over all tokens that count.
struct Divergence {
  double kl_mean = 0;             // KL(teacher || model), nats
  double kl_robust = 0;           // the mean with each token's KL cut at kRobustKl
  double top1_agreement = 0;      // share of tokens in [0, 1]
  std::vector<double> window_kl;  // mean of each window
  std::vector<float> token_kl;    // in order
};

// Places in a list of models.
struct TeacherAndModel {
  int32_t teacher = 0, model = 0;
};

struct Measurement {
  std::vector<std::vector<double>> loss;  // [models][windows]: mean over the window's tokens, nats
  std::vector<Divergence> divergence;     // [pairs]
};

// Runs every model once over all windows and compares the pairs. Memory is 128 rows of logits a
// model. `progress`, when given, is told the finished windows. INVALID_ARGUMENT: no window of two
// tokens, or models with different vocabularies.
absl::StatusOr<Measurement> Measure(const std::vector<LogitSource*>& models,
                                    const std::vector<TeacherAndModel>& pairs,
                                    const Windows& windows, ThreadPool& pool,
                                    const std::function<void(int32_t)>& progress = nullptr);

struct Comparison {
  std::vector<double> teacher_loss, loss;  // per window: mean over its tokens 2..n, nats
  double kl_mean = 0;                      // over all tokens, KL(teacher || model), nats
  double kl_robust = 0;                    // with each token's KL cut at kRobustKl
  double top1_agreement = 0;               // share of tokens in [0, 1]
  int64_t tokens = 0;                      // that the two figures above are means of
};

// Compares models with one teacher on all windows: Measure without the details.
absl::StatusOr<std::vector<Comparison>> Compare(
    LogitSource& teacher, const std::vector<LogitSource*>& models, const Windows& windows,
    ThreadPool& pool, const std::function<void(int32_t)>& progress = nullptr);

// Loss per window of one model, as in Measurement.
absl::StatusOr<std::vector<double>> WindowLosses(
    LogitSource& model, const Windows& windows, ThreadPool& pool,
    const std::function<void(int32_t)>& progress = nullptr);

}  // namespace fixpoint
