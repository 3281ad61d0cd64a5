#include "calibrator/generate.h"

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "calibrator/random.h"
#include "calibrator/vector_loops.h"

namespace fixpoint {
namespace {

constexpr int64_t kMaxBatch = 64;

// Draws an id with probability softmax(logits). Overwrites the row.
int32_t Sample(float* logits, int64_t vocab, double uniform) {
  const float max = Vec().max(logits, vocab);
  const double target = uniform * Vec().exp_row(logits, vocab, max, 1, logits);
  double sum = 0;
  int32_t last = 0;
  for (int64_t i = 0; i < vocab; ++i) {
    if (logits[i] == 0) continue;
    sum += logits[i];
    last = static_cast<int32_t>(i);
    if (sum > target) break;
  }
  return last;  // rounding may leave sum just below target: then the last possible id
}

class BatchWriter {
 public:
  BatchWriter(FloatForward& forward, const FloatConfig& config, const FloatPrefix& prefix,
              const GenerateOptions& options, ThreadPool& pool)
      : forward_(forward), config_(config), prefix_(prefix), options_(options), pool_(pool) {}

  // Openings [first, first + count) to out [count][tokens].
  void Write(const std::vector<Opening>& openings, int64_t first, int32_t count, int32_t* out,
             const std::function<void(int32_t)>& progress) {
    KvBuffer kv(forward_.kv_type(), config_.num_hidden_layers, count, config_.num_key_value_heads,
                options_.tokens, config_.head_dim);
    std::vector<Random> random;
    for (int32_t i = 0; i < count; ++i) random.emplace_back(options_.seed, 1000 + first + i);
    std::vector<int32_t> ids(count);
    std::vector<float> logits(int64_t{count} * config_.vocab_size);
    for (int32_t t = 0; t < options_.tokens; ++t) {
      if (t > 0) forward_.Logits(0, count, logits.data());
      pool_.ParallelFor(count, 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
          const Opening& opening = openings[first + i];
          const double uniform = random[i].Uniform();
          if (t < static_cast<int32_t>(opening.token_ids.size())) {
            ids[i] = opening.token_ids[t];
          } else {
            float* row = logits.data() + i * config_.vocab_size;
            if (!opening.allow_control) Ban(row);
            ids[i] = Sample(row, config_.vocab_size, uniform);
          }
          out[i * options_.tokens + t] = ids[i];
        }
      });
      if (t + 1 < options_.tokens) {
        forward_.Run({.token_ids = ids.data(), .sequences = count, .tokens = 1, .start = t},
                     {.prefix = &prefix_, .precise_activations = false, .kv = &kv});
      }
      progress(t);
    }
  }

 private:
  void Ban(float* row) const {
    for (const int32_t id : options_.control_ids) row[id] = -std::numeric_limits<float>::infinity();
  }

  FloatForward& forward_;
  const FloatConfig& config_;
  const FloatPrefix& prefix_;
  const GenerateOptions& options_;
  ThreadPool& pool_;
};

}  // namespace

Windows GenerateWindows(FloatForward& forward, const FloatConfig& config, const FloatPrefix& prefix,
                        const std::vector<Opening>& openings, const GenerateOptions& options,
                        ThreadPool& pool, const std::function<void(double)>& progress) {
  for (const Opening& opening : openings)
    CHECK(!opening.token_ids.empty()) << "an opening needs a token";
  const int64_t windows = static_cast<int64_t>(openings.size());
  const int64_t window_bytes = int64_t{2} * config.num_hidden_layers * config.num_key_value_heads *
                               config.head_dim * options.tokens * BytesOf(forward.kv_type());
  const int64_t batch = std::clamp<int64_t>(options.max_kv_bytes / window_bytes, 1, kMaxBatch);
  Windows result;
  result.tokens = options.tokens;
  result.token_ids.resize(windows * options.tokens);
  BatchWriter writer(forward, config, prefix, options, pool);
  for (int64_t first = 0; first < windows; first += batch) {
    const int32_t count = static_cast<int32_t>(std::min(batch, windows - first));
    writer.Write(
        openings, first, count, result.token_ids.data() + first * options.tokens, [&](int32_t t) {
          progress((static_cast<double>(first) + static_cast<double>(count) * t / options.tokens) /
                   static_cast<double>(windows));
        });
  }
  return result;
}

}  // namespace fixpoint
