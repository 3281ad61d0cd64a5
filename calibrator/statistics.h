// What the forward pass saw at each site: full histograms of magnitudes and largest values, over
// all tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "calibrator/calibration.h"
#include "calibrator/float_model.h"
#include "calibrator/vector_loops.h"

namespace fixpoint {

struct MagnitudeHistogram {
  std::vector<double> counts;  // [kHistogramBins], see vector_loops.h
  float largest = 0;

  double total() const;
  // Share of values above `limit`, in [0, 1].
  double ShareAbove(double limit) const;
};

struct LayerStatistics {
  MagnitudeHistogram linear[kLayerLinearSites];  // by LayerSite
  std::vector<MagnitudeHistogram> q, k, v;       // per head
};

struct Statistics {
  std::vector<LayerStatistics> layers;
  MagnitudeHistogram head_in;
  Ranges ranges;
  int64_t tokens = 0;
};

// Filled by the threads of a forward pass, each in its own part.
class StatisticsCollector {
 public:
  enum class Heads { kQ, kK, kV };

  StatisticsCollector(const FloatConfig& config, int threads);

  // `n` values of one token at a linear site.
  void AddLinear(int32_t layer, LayerSite site, const float* x, int64_t n, int thread);
  void AddHeadIn(const float* x, int64_t n, int thread);
  void AddHead(int32_t layer, Heads tensor, int32_t head, const float* x, int64_t n, int thread);
  LayerRanges& layer_ranges(int32_t layer, int thread) {
    return threads_[thread].ranges.layers[layer];
  }
  void AddResidual(float largest, int thread);
  void AddLogits(float largest, int thread);
  // After each batch, by one thread while no other works: 32-bit counters go into the totals.
  void EndBatch(int64_t tokens);

  // Everything so far.
  Statistics Result() const;

 private:
  struct Thread {
    std::vector<uint32_t> counts;  // [sites][kHistogramBins]
    std::vector<float> largest;    // [sites]
    Ranges ranges;
  };

  int64_t HeadSite(int32_t layer, Heads tensor, int32_t head) const;
  void Add(int64_t site, const float* x, int64_t n, int thread);
  MagnitudeHistogram Histogram(int64_t site) const;

  int32_t layers_, heads_, kv_heads_;
  int64_t sites_per_layer_, sites_;
  std::vector<Thread> threads_;
  std::vector<double> totals_;
  int64_t tokens_ = 0;
};

}  // namespace fixpoint
