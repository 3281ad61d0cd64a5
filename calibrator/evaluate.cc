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

// The rows of a window whose logits count: the one in front of the first token that counts predicts
// that token.
int32_t FirstRow(const Windows& windows, int32_t window) {
  return std::max(0, windows.first_scored(window) - 1);
}

// start(first window, windows in the batch), then block(window, first token, first row of the
// batch, end row) for all blocks of rows that count.
template <typename StartBatch, typename Block>
absl::Status ForBlocks(const Windows& windows, StartBatch&& start, Block&& block) {
  const int32_t step = WindowsPerBatch(windows);
  for (int32_t first = 0; first < windows.count(); first += step) {
    const int32_t count = std::min(step, windows.count() - first);
    RETURN_IF_ERROR(start(first, count));
    for (int32_t w = 0; w < count; ++w) {
      for (int64_t token = FirstRow(windows, first + w); token < windows.tokens;
           token += kRowBlock) {
        const int64_t begin = int64_t{w} * windows.tokens + token;
        RETURN_IF_ERROR(block(first + w, token, begin,
                              begin + std::min<int64_t>(kRowBlock, windows.tokens - token)));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<double> Windows::PredictionCounts() const {
  std::vector<double> counts(count());
  for (int32_t i = 0; i < count(); ++i) counts[i] = tokens - std::max(1, first_scored(i));
  return counts;
}

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
  next_row_ = 0;
  return absl::OkStatus();
}

// Rows [begin, end) of one window, at most a step of them, into the cache; their logits into
// logits_.
absl::Status ExecutorLogits::Forward(int64_t begin, int64_t end, bool want_logits) {
  const ExecutorLimits& limits = executor_.limits();
  const int64_t position = begin % windows_->tokens;
  logit_indices_.resize(want_logits ? end - begin : 0);
  std::iota(logit_indices_.begin(), logit_indices_.end(), 0);
  const int32_t* ids =
      windows_->window(first_ + static_cast<int32_t>(begin / windows_->tokens)) + position;
  const int64_t blocks = (position + end - begin + limits.block_tokens - 1) / limits.block_tokens;
  const SequenceChunk chunk{.token_ids = absl::MakeConstSpan(ids, end - begin),
                            .position = static_cast<int32_t>(position),
                            .block_table = absl::MakeConstSpan(block_table_.data(), blocks),
                            .logit_indices = logit_indices_};
  absl::Status status;
  RunOnFreshThread([&] { status = executor_.Forward({&chunk, 1}, logits_.data()); });
  next_row_ = end;
  return status;
}

absl::Status ExecutorLogits::Logits(int64_t begin, int64_t end, float* out) {
  const ExecutorLimits& limits = executor_.limits();
  const float unit = std::ldexp(1.0f, -executor_.config().logit_fraction_bits);
  const int64_t step = std::min(limits.max_step_logits, limits.max_step_tokens);
  const int64_t vocab = limits.vocab_size;
  logits_.resize(std::min(step, end - begin) * vocab);
  // Rows of this window that were left out belong into the cache all the same.
  const int64_t window_start = begin / windows_->tokens * windows_->tokens;
  for (int64_t row = std::max(next_row_, window_start); row < begin;) {
    const int64_t next = std::min(begin, row + limits.max_step_tokens);
    RETURN_IF_ERROR(Forward(row, next, /*want_logits=*/false));
    row = next;
  }
  for (int64_t row = begin; row < end; row += step) {
    const int64_t rows = std::min(step, end - row);
    RETURN_IF_ERROR(Forward(row, row + rows, /*want_logits=*/true));
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

class Measurer {
 public:
  Measurer(const std::vector<LogitSource*>& models, const std::vector<TeacherAndModel>& pairs,
           const Windows& windows, ThreadPool& pool)
      : models_(models), pairs_(pairs), windows_(windows), pool_(pool) {
    vocab_ = models.front()->vocab_size();
    for (size_t m = 0; m < models.size(); ++m) {
      result_.loss.emplace_back(windows.count());
      blocks_.emplace_back(kRowBlock * vocab_);
    }
    result_.divergence.resize(pairs.size());
    for (Divergence& divergence : result_.divergence) divergence.window_kl.resize(windows.count());
    row_loss_.resize(kRowBlock);
    rows_.resize(kRowBlock);
  }

  absl::Status Start(int32_t first, int32_t count) {
    for (LogitSource* model : models_) RETURN_IF_ERROR(model->Start(windows_, first, count));
    return absl::OkStatus();
  }

  absl::Status Block(int32_t window, int64_t token, int64_t begin, int64_t end) {
    for (size_t m = 0; m < models_.size(); ++m) {
      RETURN_IF_ERROR(models_[m]->Logits(begin, end, blocks_[m].data()));
      AddLosses(blocks_[m].data(), window, token, end - begin, &result_.loss[m][window]);
    }
    for (size_t p = 0; p < pairs_.size(); ++p) {
      AddDivergence(blocks_[pairs_[p].teacher].data(), blocks_[pairs_[p].model].data(), window,
                    token, end - begin, &result_.divergence[p]);
    }
    return absl::OkStatus();
  }

  Measurement Finish() {
    const std::vector<double> predictions = windows_.PredictionCounts();
    for (std::vector<double>& losses : result_.loss) {
      for (int32_t w = 0; w < windows_.count(); ++w) losses[w] /= predictions[w];
    }
    for (Divergence& divergence : result_.divergence) {
      const double tokens = static_cast<double>(divergence.token_kl.size());
      divergence.kl_mean /= tokens;
      divergence.kl_robust /= tokens;
      divergence.top1_agreement /= tokens;
      for (int32_t w = 0; w < windows_.count(); ++w)
        divergence.window_kl[w] /= windows_.tokens - windows_.first_scored(w);
    }
    return std::move(result_);
  }

 private:
  template <typename F>
  void ForRows(int64_t begin, int64_t end, F&& fn) {
    pool_.ParallelFor(end - begin, 1, [&](int64_t first, int64_t last, int) {
      for (int64_t r = begin + first; r < begin + last; ++r) fn(r);
    });
  }

  void AddLosses(const float* logits, int32_t window, int64_t token, int64_t rows, double* loss) {
    const int32_t* next_ids = windows_.window(window) + token + 1;
    const int64_t predictions = std::min(rows, windows_.tokens - 1 - token);
    ForRows(0, predictions, [&](int64_t r) {
      int32_t argmax = 0;
      const float* row = logits + r * vocab_;
      row_loss_[r] = Vec().log_sum_exp(row, vocab_, &argmax) - row[next_ids[r]];
    });
    // In order: the sums do not depend on the threads.
    for (int64_t r = 0; r < predictions; ++r) *loss += row_loss_[r];
  }

  void AddDivergence(const float* teacher, const float* model, int32_t window, int64_t token,
                     int64_t rows, Divergence* divergence) {
    const int64_t first = std::max<int64_t>(0, windows_.first_scored(window) - token);
    ForRows(first, rows, [&](int64_t r) {
      rows_[r] = Vec().compare_rows(teacher + r * vocab_, model + r * vocab_, vocab_);
    });
    for (int64_t r = first; r < rows; ++r) {
      divergence->kl_mean += rows_[r].kl;
      divergence->kl_robust += std::min(rows_[r].kl, kRobustKl);
      divergence->window_kl[window] += rows_[r].kl;
      divergence->token_kl.push_back(static_cast<float>(rows_[r].kl));
      divergence->top1_agreement += rows_[r].argmax_a == rows_[r].argmax_b;
    }
  }

  const std::vector<LogitSource*>& models_;
  const std::vector<TeacherAndModel>& pairs_;
  const Windows& windows_;
  ThreadPool& pool_;
  int64_t vocab_ = 0;
  Measurement result_;
  std::vector<std::vector<float>> blocks_;  // [models][rows of a block][vocab]
  std::vector<double> row_loss_;
  std::vector<RowComparison> rows_;
};

}  // namespace

absl::StatusOr<Measurement> Measure(const std::vector<LogitSource*>& models,
                                    const std::vector<TeacherAndModel>& pairs,
                                    const Windows& windows, ThreadPool& pool,
                                    const std::function<void(int32_t)>& progress) {
  if (windows.count() < 1 || windows.tokens < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("text of ", windows.token_ids.size(), " tokens has no window to measure"));
  }
  CHECK(windows.stride >= 0 && windows.stride <= windows.tokens) << windows.stride;
  CHECK(!models.empty());
  for (const LogitSource* model : models) {
    if (model->vocab_size() != models.front()->vocab_size()) {
      return absl::InvalidArgumentError(absl::StrCat("vocabulary of ", model->vocab_size(),
                                                     " against ", models.front()->vocab_size()));
    }
  }
  Measurer measurer(models, pairs, windows, pool);
  RETURN_IF_ERROR(ForBlocks(
      windows,
      [&](int32_t first, int32_t count) {
        if (progress) progress(first);
        return measurer.Start(first, count);
      },
      [&](int32_t window, int64_t token, int64_t begin, int64_t end) {
        return measurer.Block(window, token, begin, end);
      }));
  if (progress) progress(windows.count());
  return measurer.Finish();
}

absl::StatusOr<std::vector<Comparison>> Compare(LogitSource& teacher,
                                                const std::vector<LogitSource*>& models,
                                                const Windows& windows, ThreadPool& pool,
                                                const std::function<void(int32_t)>& progress) {
  std::vector<LogitSource*> all = {&teacher};
  std::vector<TeacherAndModel> pairs;
  for (LogitSource* model : models) {
    pairs.push_back({.teacher = 0, .model = static_cast<int32_t>(all.size())});
    all.push_back(model);
  }
  ASSIGN_OR_RETURN(Measurement measured, Measure(all, pairs, windows, pool, progress));
  std::vector<Comparison> results;
  for (size_t m = 0; m < models.size(); ++m) {
    results.push_back({.teacher_loss = measured.loss[0],
                       .loss = std::move(measured.loss[m + 1]),
                       .kl_mean = measured.divergence[m].kl_mean,
                       .kl_robust = measured.divergence[m].kl_robust,
                       .top1_agreement = measured.divergence[m].top1_agreement,
                       .tokens = static_cast<int64_t>(measured.divergence[m].token_kl.size())});
  }
  return results;
}

absl::StatusOr<std::vector<double>> WindowLosses(LogitSource& model, const Windows& windows,
                                                 ThreadPool& pool,
                                                 const std::function<void(int32_t)>& progress) {
  ASSIGN_OR_RETURN(Measurement measured, Measure({&model}, {}, windows, pool, progress));
  return std::move(measured.loss[0]);
}

}  // namespace fixpoint
