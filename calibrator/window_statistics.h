// What the per-window and per-token figures of an evaluation say about each other: means,
// percentiles, paired standard errors and bootstrap intervals. All functions are thread-safe.
//
// Windows weigh by the number of tokens that count in them; where `weights` is empty all weigh the
// same. Weights are positive and as many as there are values.
#pragma once

#include <cstdint>
#include <vector>

namespace fixpoint {

// 0 without values.
double WeightedMean(const std::vector<double>& values, const std::vector<double>& weights = {});

// The value below which the share `p` in [0, 1] lies: linear between the two nearest ranks, rank
// p * (n - 1) counted from 0. 0 without values.
double Percentile(std::vector<float> values, double p);

// exp of the mean loss, from losses in nats per token.
double Perplexity(const std::vector<double>& window_loss, const std::vector<double>& weights = {});

// Perplexity of `loss` over that of `base` in percent, and the standard error of the paired
// differences; 0 with one window.
struct RelativePerplexity {
  double percent = 0;
  double standard_error_percent = 0;
};
RelativePerplexity RelativeTo(const std::vector<double>& base, const std::vector<double>& loss,
                              const std::vector<double>& weights = {});

struct BootstrapOptions {
  int32_t resamples = 10000;
  uint64_t seed = 0;
  double confidence = 0.95;
};

// The mean of b - a over the windows and where it lies when other windows of the same kind are
// drawn.
struct PairedDifference {
  double mean = 0;
  double low = 0, high = 0;  // percentiles of the resampled means
  // Zero is outside [low, high]. Never with fewer than two windows, which say nothing about others.
  bool significant = false;
};

// Paired bootstrap: each resample draws as many windows as there are, with replacement, and takes
// both values of each. More than 4,096 windows are joined into so many runs of neighbours first, so
// the work is bounded and neighbours that depend on each other stay together. The same input and
// seed give the same result on every machine.
PairedDifference PairedBootstrap(const std::vector<double>& a, const std::vector<double>& b,
                                 const std::vector<double>& weights = {},
                                 const BootstrapOptions& options = {});

}  // namespace fixpoint
