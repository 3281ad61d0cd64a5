#include "calibrator/ranges.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace fixpoint {
namespace {

constexpr int kClipCandidates = 160;
constexpr double kSmallestClip = 0.02;  // share of the largest magnitude
constexpr double kSmallestMagnitude = 1e-6;
constexpr double kWideHeadroom = 1.5;

double LargestOf(const MagnitudeHistogram& histogram) {
  return std::max<double>(histogram.largest, kSmallestMagnitude);
}

double SquaredError(const MagnitudeHistogram& histogram, double clip) {
  const double step = clip / 127;
  const double rounding = step * step / 12;
  double sum = 0;
  for (int32_t bin = 0; bin < kHistogramBins; ++bin) {
    if (histogram.counts[bin] == 0) continue;
    const double x = BinMagnitude(bin);
    sum += histogram.counts[bin] * (x > clip ? (x - clip) * (x - clip) : std::min(rounding, x * x));
  }
  return sum;
}

std::vector<double> HeadScales(const std::vector<MagnitudeHistogram>& heads, HeadClip clip) {
  std::vector<double> scales;
  for (const MagnitudeHistogram& head : heads) {
    scales.push_back((clip == HeadClip::kMse ? MseClip(head) : LargestOf(head)) / 127);
  }
  return scales;
}

}  // namespace

double MseClip(const MagnitudeHistogram& histogram, double* error) {
  const double largest = LargestOf(histogram);
  double best_clip = largest;
  double best_error = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kClipCandidates; ++i) {
    const double clip =
        largest * std::pow(kSmallestClip, static_cast<double>(i) / (kClipCandidates - 1));
    const double candidate = SquaredError(histogram, clip);
    if (candidate < best_error) {
      best_error = candidate;
      best_clip = clip;
    }
  }
  if (error) *error = best_error / std::max(1.0, histogram.total());
  return best_clip;
}

double MeanSquare(const MagnitudeHistogram& histogram) {
  double sum = 0;
  for (int32_t bin = 0; bin < kHistogramBins; ++bin)
    sum += histogram.counts[bin] * BinMagnitude(bin) * BinMagnitude(bin);
  return sum / std::max(1.0, histogram.total());
}

double RelativeRoundingError(const MagnitudeHistogram& histogram, double scale, bool wide) {
  const double clip = 127 * scale;
  const double step = wide ? scale / 256 : scale;
  double error = 0;
  for (int32_t bin = 0; bin < kHistogramBins; ++bin) {
    const double x = BinMagnitude(bin);
    error += histogram.counts[bin] *
             (x > clip ? (x - clip) * (x - clip) : std::min(step * step / 12, x * x));
  }
  const double signal = MeanSquare(histogram) * std::max(1.0, histogram.total());
  return signal > 0 ? error / signal : 0;
}

LinearSite ScaleSite(const MagnitudeHistogram& histogram, bool wide) {
  if (wide) return {.scale = LargestOf(histogram) * kWideHeadroom / 127, .wide = true};
  return {.scale = MseClip(histogram) / 127, .wide = false};
}

Scales ChooseScales(const Statistics& statistics, HeadClip head_clip) {
  Scales scales;
  for (const LayerStatistics& from : statistics.layers) {
    LayerScales layer;
    for (int32_t i = 0; i < kLayerLinearSites; ++i) {
      layer.linear(static_cast<LayerSite>(i)) = ScaleSite(from.linear[i], false);
    }
    layer.q = HeadScales(from.q, head_clip);
    layer.k = HeadScales(from.k, head_clip);
    layer.v = HeadScales(from.v, head_clip);
    scales.layers.push_back(std::move(layer));
  }
  scales.head_in = ScaleSite(statistics.head_in, false);
  return scales;
}

}  // namespace fixpoint
