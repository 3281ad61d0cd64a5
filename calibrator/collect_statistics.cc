#include "calibrator/collect_statistics.h"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace fixpoint {
namespace {

constexpr int64_t kBatchTokens = 2048;
constexpr int64_t kLogitRows = 128;

}  // namespace

Statistics CollectStatistics(FloatForward& student, const FloatConfig& config,
                             const FloatPrefix& prefix, const Scales* scales, const Windows& text,
                             ThreadPool& pool, const std::function<void(double)>& progress) {
  StatisticsCollector collector(config, pool.thread_count());
  const ForwardOptions options{.prefix = &prefix,
                               .scales = scales,
                               .round = false,
                               .precise_activations = false,
                               .statistics = &collector};
  const int32_t step = static_cast<int32_t>(std::max<int64_t>(1, kBatchTokens / text.tokens));
  std::vector<float> logits(kLogitRows * config.vocab_size);
  for (int32_t first = 0; first < text.count(); first += step) {
    progress(static_cast<double>(first) / text.count());
    const int32_t count = std::min(step, text.count() - first);
    student.Run({.token_ids = text.window(first), .sequences = count, .tokens = text.tokens},
                options);
    const int64_t rows = int64_t{count} * text.tokens;
    for (int64_t row = 0; row < rows; row += kLogitRows)
      student.Logits(row, std::min(rows, row + kLogitRows), logits.data());
  }
  return collector.Result();
}

}  // namespace fixpoint
