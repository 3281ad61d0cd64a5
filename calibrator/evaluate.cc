#include "calibrator/evaluate.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "calibrator/vector_loops.h"

namespace fixpoint {
namespace {

constexpr int64_t kBatchTokens = 2048;  // of one forward pass
constexpr int64_t kRowBlock =
    128;  // rows of logits at once: 25 MB a model for a vocabulary of 49,152
constexpr float kCachedRange = 30;  // exp(-30) is nothing

int32_t WindowsPerBatch(const Windows& windows) {
  return static_cast<int32_t>(std::max<int64_t>(1, kBatchTokens / windows.tokens));
}

double Mean(const std::vector<double>& values) {
  return values.empty() ? 0
                        : std::accumulate(values.begin(), values.end(), 0.0) /
                              static_cast<double>(values.size());
}

// fn(first window, windows in the batch, first row, end row) for all blocks of rows, which stay
// inside a window.
template <typename StartBatch, typename Block>
absl::Status ForBlocks(const Windows& windows, StartBatch&& start, Block&& block) {
  const int32_t step = WindowsPerBatch(windows);
  for (int32_t first = 0; first < windows.count(); first += step) {
    const int32_t count = std::min(step, windows.count() - first);
    RETURN_IF_ERROR(start(first, count));
    for (int32_t w = 0; w < count; ++w) {
      for (int64_t token = 0; token < windows.tokens; token += kRowBlock) {
        const int64_t begin = int64_t{w} * windows.tokens + token;
        RETURN_IF_ERROR(block(first + w, token, begin,
                              begin + std::min<int64_t>(kRowBlock, windows.tokens - token)));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ForwardLogits::Start(const Windows& windows, int32_t first, int32_t count) {
  forward_.Run({.token_ids = windows.window(first), .sequences = count, .tokens = windows.tokens},
               options_);
  return absl::OkStatus();
}

absl::Status ForwardLogits::Logits(int64_t begin, int64_t end, float* out) {
  forward_.Logits(begin, end, out);
  return absl::OkStatus();
}

void RunOnFreshThread(const std::function<void()>& fn) { std::thread(fn).join(); }

ExecutorLogits::ExecutorLogits(CpuExecutor& executor) : executor_(executor) {
  block_table_.resize(executor.limits().num_blocks);
  std::iota(block_table_.begin(), block_table_.end(), 0);
}

absl::Status ExecutorLogits::Start(const Windows& windows, int32_t first, int32_t) {
  const ExecutorLimits& limits = executor_.limits();
  const int64_t room = std::min<int64_t>(limits.max_sequence_tokens,
                                         int64_t{limits.num_blocks} * limits.block_tokens);
  if (windows.tokens > room) {
    return absl::InvalidArgumentError(
        absl::StrCat("window of ", windows.tokens, " tokens: the model has room for ", room));
  }
  windows_ = &windows;
  first_ = first;
  return absl::OkStatus();
}

absl::Status ExecutorLogits::Logits(int64_t begin, int64_t end, float* out) {
  const ExecutorLimits& limits = executor_.limits();
  const float unit = std::ldexp(1.0f, -executor_.config().logit_fraction_bits);
  const int64_t step = std::min(limits.max_step_logits, limits.max_step_tokens);
  const int64_t vocab = limits.vocab_size;
  logits_.resize(std::min(step, end - begin) * vocab);
  for (int64_t row = begin; row < end; row += step) {
    const int64_t rows = std::min(step, end - row);
    const int64_t position = row % windows_->tokens;
    logit_indices_.resize(rows);
    std::iota(logit_indices_.begin(), logit_indices_.end(), 0);
    const int32_t* ids =
        windows_->window(first_ + static_cast<int32_t>(row / windows_->tokens)) + position;
    const int64_t blocks = (position + rows + limits.block_tokens - 1) / limits.block_tokens;
    const SequenceChunk chunk{.token_ids = absl::MakeConstSpan(ids, rows),
                              .position = static_cast<int32_t>(position),
                              .block_table = absl::MakeConstSpan(block_table_.data(), blocks),
                              .logit_indices = logit_indices_};
    absl::Status status;
    RunOnFreshThread([&] { status = executor_.Forward({&chunk, 1}, logits_.data()); });
    RETURN_IF_ERROR(status);
    float* to = out + (row - begin) * vocab;
    for (int64_t i = 0; i < rows * vocab; ++i) to[i] = static_cast<float>(logits_[i]) * unit;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<CachedLogits>> CachedLogits::Create(LogitSource& source,
                                                                   const Windows& windows,
                                                                   ThreadPool& pool) {
  std::unique_ptr<CachedLogits> cache(new CachedLogits(pool));
  const int64_t vocab = source.vocab_size();
  cache->vocab_ = source.vocab_size();
  cache->window_tokens_ = windows.tokens;
  cache->below_max_.resize(static_cast<int64_t>(windows.token_ids.size()) * vocab);
  std::vector<float> block(kRowBlock * vocab);
  RETURN_IF_ERROR(ForBlocks(
      windows, [&](int32_t first, int32_t count) { return source.Start(windows, first, count); },
      [&](int32_t window, int64_t token, int64_t begin, int64_t end) -> absl::Status {
        RETURN_IF_ERROR(source.Logits(begin, end, block.data()));
        uint16_t* to =
            cache->below_max_.data() + (int64_t{window} * windows.tokens + token) * vocab;
        pool.ParallelFor(end - begin, 1, [&](int64_t first, int64_t last, int) {
          for (int64_t row = first; row < last; ++row) {
            const float* from = block.data() + row * vocab;
            Vec().store_below_max(from, vocab, Vec().max(from, vocab), 65535 / kCachedRange,
                                  to + row * vocab);
          }
        });
        return absl::OkStatus();
      }));
  return cache;
}

absl::Status CachedLogits::Start(const Windows& windows, int32_t first, int32_t) {
  CHECK_EQ(windows.tokens, window_tokens_);
  first_row_ = int64_t{first} * window_tokens_;
  return absl::OkStatus();
}

absl::Status CachedLogits::Logits(int64_t begin, int64_t end, float* out) {
  pool_.ParallelFor(end - begin, 1, [&](int64_t first, int64_t last, int) {
    for (int64_t row = first; row < last; ++row) {
      Vec().load_below_max(below_max_.data() + (first_row_ + begin + row) * vocab_, vocab_,
                           kCachedRange / 65535, out + row * vocab_);
    }
  });
  return absl::OkStatus();
}

namespace {

// What one row adds.
struct RowResult {
  RowComparison comparison;
  double teacher_loss = 0, loss = 0;
};

class Comparer {
 public:
  Comparer(LogitSource& teacher, const std::vector<LogitSource*>& models, const Windows& windows,
           ThreadPool& pool)
      : teacher_(teacher),
        models_(models),
        windows_(windows),
        pool_(pool),
        results_(models.size()) {
    teacher_block_.resize(kRowBlock * teacher.vocab_size());
    block_.resize(teacher_block_.size());
    for (Comparison& result : results_) {
      result.teacher_loss.resize(windows.count());
      result.loss.resize(windows.count());
      result.tokens = static_cast<int64_t>(windows.token_ids.size());
    }
  }

  absl::Status Start(int32_t first, int32_t count) {
    RETURN_IF_ERROR(teacher_.Start(windows_, first, count));
    for (LogitSource* model : models_) RETURN_IF_ERROR(model->Start(windows_, first, count));
    return absl::OkStatus();
  }

  absl::Status Block(int32_t window, int64_t token, int64_t begin, int64_t end) {
    RETURN_IF_ERROR(teacher_.Logits(begin, end, teacher_block_.data()));
    for (size_t m = 0; m < models_.size(); ++m) {
      RETURN_IF_ERROR(models_[m]->Logits(begin, end, block_.data()));
      CompareBlock(window, token, end - begin, &results_[m]);
    }
    return absl::OkStatus();
  }

  std::vector<Comparison> Finish() {
    for (Comparison& result : results_) {
      const double predictions = windows_.tokens - 1;
      for (double& loss : result.teacher_loss) loss /= predictions;
      for (double& loss : result.loss) loss /= predictions;
      result.kl_mean /= static_cast<double>(result.tokens);
      result.top1_agreement /= static_cast<double>(result.tokens);
    }
    return std::move(results_);
  }

 private:
  void CompareBlock(int32_t window, int64_t token, int64_t rows, Comparison* result) {
    const int64_t vocab = teacher_.vocab_size();
    const int32_t* ids = windows_.window(window);
    rows_.resize(rows);
    pool_.ParallelFor(rows, 1, [&](int64_t first, int64_t last, int) {
      for (int64_t r = first; r < last; ++r) {
        const float* a = teacher_block_.data() + r * vocab;
        const float* b = block_.data() + r * vocab;
        RowResult& row = rows_[r];
        row.comparison = Vec().compare_rows(a, b, vocab);
        const bool has_next = token + r + 1 < windows_.tokens;
        row.teacher_loss = has_next ? row.comparison.log_sum_a - a[ids[token + r + 1]] : 0;
        row.loss = has_next ? row.comparison.log_sum_b - b[ids[token + r + 1]] : 0;
      }
    });
    for (const RowResult& row : rows_) {  // in order: the sums do not depend on the threads
      result->teacher_loss[window] += row.teacher_loss;
      result->loss[window] += row.loss;
      result->kl_mean += row.comparison.kl;
      result->top1_agreement += row.comparison.argmax_a == row.comparison.argmax_b;
    }
  }

  LogitSource& teacher_;
  const std::vector<LogitSource*>& models_;
  const Windows& windows_;
  ThreadPool& pool_;
  std::vector<Comparison> results_;
  std::vector<float> teacher_block_, block_;
  std::vector<RowResult> rows_;
};

}  // namespace

absl::StatusOr<std::vector<Comparison>> Compare(LogitSource& teacher,
                                                const std::vector<LogitSource*>& models,
                                                const Windows& windows, ThreadPool& pool,
                                                const std::function<void(int32_t)>& progress) {
  if (windows.count() < 1 || windows.tokens < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("text of ", windows.token_ids.size(), " tokens has no window to measure"));
  }
  for (const LogitSource* model : models) {
    if (model->vocab_size() != teacher.vocab_size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("vocabulary of ", model->vocab_size(), " against ", teacher.vocab_size()));
    }
  }
  Comparer comparer(teacher, models, windows, pool);
  RETURN_IF_ERROR(ForBlocks(
      windows,
      [&](int32_t first, int32_t count) {
        if (progress) progress(first);
        return comparer.Start(first, count);
      },
      [&](int32_t window, int64_t token, int64_t begin, int64_t end) {
        return comparer.Block(window, token, begin, end);
      }));
  if (progress) progress(windows.count());
  return comparer.Finish();
}

absl::StatusOr<std::vector<double>> WindowLosses(LogitSource& model, const Windows& windows,
                                                 ThreadPool& pool,
                                                 const std::function<void(int32_t)>& progress) {
  if (windows.count() < 1 || windows.tokens < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("text of ", windows.token_ids.size(), " tokens has no window to measure"));
  }
  const int64_t vocab = model.vocab_size();
  std::vector<float> block(kRowBlock * vocab);
  std::vector<double> row_loss(kRowBlock);
  std::vector<double> losses(windows.count());
  RETURN_IF_ERROR(ForBlocks(
      windows,
      [&](int32_t first, int32_t count) {
        if (progress) progress(first);
        return model.Start(windows, first, count);
      },
      [&](int32_t window, int64_t token, int64_t begin, int64_t end) -> absl::Status {
        RETURN_IF_ERROR(model.Logits(begin, end, block.data()));
        const int64_t predictions = std::min(end - begin, windows.tokens - 1 - token);
        pool.ParallelFor(predictions, 1, [&](int64_t first, int64_t last, int) {
          for (int64_t r = first; r < last; ++r) {
            int32_t argmax = 0;
            const float* row = block.data() + r * vocab;
            row_loss[r] =
                Vec().log_sum_exp(row, vocab, &argmax) - row[windows.window(window)[token + r + 1]];
          }
        });
        for (int64_t r = 0; r < predictions; ++r)
          losses[window] += row_loss[r] / (windows.tokens - 1);
        return absl::OkStatus();
      }));
  return losses;
}

double Perplexity(const std::vector<double>& window_loss) { return std::exp(Mean(window_loss)); }

RelativePerplexity RelativeTo(const std::vector<double>& base, const std::vector<double>& loss) {
  CHECK_EQ(base.size(), loss.size());
  std::vector<double> difference(base.size());
  for (size_t i = 0; i < base.size(); ++i) difference[i] = loss[i] - base[i];
  const double mean = Mean(difference);
  RelativePerplexity result;
  result.percent = 100 * std::expm1(mean);
  if (base.size() < 2) return result;
  double squares = 0;
  for (const double d : difference) squares += (d - mean) * (d - mean);
  const double n = static_cast<double>(base.size());
  result.standard_error_percent = 100 * std::sqrt(squares / (n - 1) / n);
  return result;
}

}  // namespace fixpoint
