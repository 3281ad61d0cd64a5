#include "calibrator/window_statistics.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "base/check.h"
#include "calibrator/random.h"

namespace fixpoint {
namespace {

constexpr size_t kMaxRuns = 4096;

double Weight(const std::vector<double>& weights, size_t i) {
  return weights.empty() ? 1 : weights[i];
}

// Rank p * (n - 1) of sorted values, linear between neighbours.
template <typename T>
double AtRank(const std::vector<T>& sorted, double p) {
  if (sorted.empty()) return 0;
  const double rank = std::clamp(p, 0.0, 1.0) * static_cast<double>(sorted.size() - 1);
  const size_t below = static_cast<size_t>(rank);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  const double share = rank - static_cast<double>(below);
  return (1 - share) * sorted[below] + share * sorted[above];
}

// A run of neighbouring windows: its weight and the weighted sum of their differences.
struct Run {
  double weight = 0, difference = 0;
};

std::vector<Run> JoinRuns(const std::vector<double>& a, const std::vector<double>& b,
                          const std::vector<double>& weights) {
  const size_t count = std::min(a.size(), kMaxRuns);
  std::vector<Run> runs(count);
  for (size_t i = 0; i < a.size(); ++i) {
    Run& run = runs[i * count / a.size()];
    run.weight += Weight(weights, i);
    run.difference += Weight(weights, i) * (b[i] - a[i]);
  }
  return runs;
}

double MeanOfRandomRuns(const std::vector<Run>& runs, Random& random) {
  Run sum;
  for (size_t i = 0; i < runs.size(); ++i) {
    const Run& run = runs[random.Below(static_cast<int64_t>(runs.size()))];
    sum.weight += run.weight;
    sum.difference += run.difference;
  }
  return sum.difference / sum.weight;
}

}  // namespace

double WeightedMean(const std::vector<double>& values, const std::vector<double>& weights) {
  CHECK(weights.empty() || weights.size() == values.size());
  double sum = 0, weight = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    sum += Weight(weights, i) * values[i];
    weight += Weight(weights, i);
  }
  return weight > 0 ? sum / weight : 0;
}

double Percentile(std::vector<float> values, double p) {
  std::sort(values.begin(), values.end());
  return AtRank(values, p);
}

double Perplexity(const std::vector<double>& window_loss, const std::vector<double>& weights) {
  return std::exp(WeightedMean(window_loss, weights));
}

RelativePerplexity RelativeTo(const std::vector<double>& base, const std::vector<double>& loss,
                              const std::vector<double>& weights) {
  CHECK_EQ(base.size(), loss.size());
  std::vector<double> difference(base.size());
  for (size_t i = 0; i < base.size(); ++i) difference[i] = loss[i] - base[i];
  const double mean = WeightedMean(difference, weights);
  RelativePerplexity result;
  result.percent = 100 * std::expm1(mean);
  if (base.size() < 2) return result;
  // Of a ratio estimate: each window's weighted distance from the mean, over the sum of weights.
  double squares = 0, weight = 0;
  for (size_t i = 0; i < difference.size(); ++i) {
    const double distance = Weight(weights, i) * (difference[i] - mean);
    squares += distance * distance;
    weight += Weight(weights, i);
  }
  const double n = static_cast<double>(base.size());
  result.standard_error_percent = 100 * std::sqrt(squares * n / (n - 1)) / weight;
  return result;
}

PairedDifference PairedBootstrap(const std::vector<double>& a, const std::vector<double>& b,
                                 const std::vector<double>& weights,
                                 const BootstrapOptions& options) {
  CHECK_EQ(a.size(), b.size());
  CHECK_GE(options.resamples, 1);
  PairedDifference result;
  if (a.empty()) return result;
  const std::vector<Run> runs = JoinRuns(a, b, weights);
  double weight = 0;
  for (const Run& run : runs) {
    weight += run.weight;
    result.mean += run.difference;
  }
  result.mean /= weight;
  Random random(options.seed);
  std::vector<double> means(options.resamples);
  for (double& mean : means) mean = MeanOfRandomRuns(runs, random);
  std::sort(means.begin(), means.end());
  result.low = AtRank(means, (1 - options.confidence) / 2);
  result.high = AtRank(means, (1 + options.confidence) / 2);
  result.significant = runs.size() >= 2 && (result.low > 0 || result.high < 0);
  return result;
}

}  // namespace fixpoint
