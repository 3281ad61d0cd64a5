#include "calibrator/statistics.h"

#include <algorithm>

#include "base/check.h"

namespace fixpoint {
namespace {

void MaxInto(const std::vector<float>& from, std::vector<float>* to) {
  CHECK_EQ(from.size(), to->size());
  for (size_t i = 0; i < from.size(); ++i) (*to)[i] = std::max((*to)[i], from[i]);
}

Ranges EmptyRanges(const FloatConfig& c) {
  LayerRanges layer;
  const int64_t q = int64_t{c.num_attention_heads} * c.head_dim;
  const int64_t kv = int64_t{c.num_key_value_heads} * c.head_dim;
  layer.q_out.resize(q);
  layer.k_out.resize(kv);
  layer.v_out.resize(kv);
  layer.q_rope.resize(c.num_attention_heads);
  layer.k_rope.resize(c.num_key_value_heads);
  layer.gate_out.resize(c.intermediate_size);
  layer.up_out.resize(c.intermediate_size);
  layer.o_out.resize(c.hidden_size);
  layer.down_out.resize(c.hidden_size);
  Ranges ranges;
  ranges.layers.assign(c.num_hidden_layers, layer);
  return ranges;
}

void MergeRanges(const Ranges& from, Ranges* to) {
  for (size_t i = 0; i < from.layers.size(); ++i) {
    const LayerRanges& a = from.layers[i];
    LayerRanges& b = to->layers[i];
    MaxInto(a.q_out, &b.q_out);
    MaxInto(a.k_out, &b.k_out);
    MaxInto(a.v_out, &b.v_out);
    MaxInto(a.q_rope, &b.q_rope);
    MaxInto(a.k_rope, &b.k_rope);
    MaxInto(a.gate_out, &b.gate_out);
    MaxInto(a.up_out, &b.up_out);
    b.product = std::max(b.product, a.product);
    MaxInto(a.o_out, &b.o_out);
    MaxInto(a.down_out, &b.down_out);
  }
  to->residual = std::max(to->residual, from.residual);
  to->logits = std::max(to->logits, from.logits);
}

}  // namespace

double MagnitudeHistogram::total() const {
  double sum = 0;
  for (const double count : counts) sum += count;
  return sum;
}

double MagnitudeHistogram::ShareAbove(double limit) const {
  double above = 0;
  for (int32_t bin = 0; bin < kHistogramBins; ++bin) {
    if (BinMagnitude(bin) > limit) above += counts[bin];
  }
  const double all = total();
  return all > 0 ? above / all : 0;
}

StatisticsCollector::StatisticsCollector(const FloatConfig& config, int threads)
    : layers_(config.num_hidden_layers),
      heads_(config.num_attention_heads),
      kv_heads_(config.num_key_value_heads),
      sites_per_layer_(kLayerLinearSites + heads_ + 2 * int64_t{kv_heads_}),
      sites_(layers_ * sites_per_layer_ + 1),
      threads_(threads),
      totals_(sites_ * kHistogramBins) {
  for (Thread& thread : threads_) {
    thread.counts.resize(sites_ * kHistogramBins);
    thread.largest.resize(sites_);
    thread.ranges = EmptyRanges(config);
  }
}

int64_t StatisticsCollector::HeadSite(int32_t layer, Heads tensor, int32_t head) const {
  const int64_t first = layer * sites_per_layer_ + kLayerLinearSites;
  if (tensor == Heads::kQ) return first + head;
  return first + heads_ + (tensor == Heads::kV ? kv_heads_ : 0) + head;
}

void StatisticsCollector::Add(int64_t site, const float* x, int64_t n, int thread) {
  Thread& t = threads_[thread];
  Vec().histogram(x, n, t.counts.data() + site * kHistogramBins);
  t.largest[site] = std::max(t.largest[site], Vec().abs_max(x, n));
}

void StatisticsCollector::AddLinear(int32_t layer, LayerSite site, const float* x, int64_t n,
                                    int thread) {
  Add(layer * sites_per_layer_ + static_cast<int64_t>(site), x, n, thread);
}

void StatisticsCollector::AddHeadIn(const float* x, int64_t n, int thread) {
  Add(sites_ - 1, x, n, thread);
}

void StatisticsCollector::AddHead(int32_t layer, Heads tensor, int32_t head, const float* x,
                                  int64_t n, int thread) {
  Add(HeadSite(layer, tensor, head), x, n, thread);
}

void StatisticsCollector::AddResidual(float largest, int thread) {
  threads_[thread].ranges.residual = std::max(threads_[thread].ranges.residual, largest);
}

void StatisticsCollector::AddLogits(float largest, int thread) {
  threads_[thread].ranges.logits = std::max(threads_[thread].ranges.logits, largest);
}

void StatisticsCollector::EndBatch(int64_t tokens) {
  for (Thread& thread : threads_) {
    for (size_t i = 0; i < totals_.size(); ++i) totals_[i] += thread.counts[i];
    std::fill(thread.counts.begin(), thread.counts.end(), 0);
  }
  tokens_ += tokens;
}

MagnitudeHistogram StatisticsCollector::Histogram(int64_t site) const {
  MagnitudeHistogram histogram;
  histogram.counts.assign(totals_.begin() + site * kHistogramBins,
                          totals_.begin() + (site + 1) * kHistogramBins);
  for (const Thread& thread : threads_)
    histogram.largest = std::max(histogram.largest, thread.largest[site]);
  return histogram;
}

Statistics StatisticsCollector::Result() const {
  Statistics result;
  result.tokens = tokens_;
  result.ranges = threads_[0].ranges;
  for (const Thread& thread : threads_) MergeRanges(thread.ranges, &result.ranges);
  result.layers.resize(layers_);
  for (int32_t i = 0; i < layers_; ++i) {
    LayerStatistics& layer = result.layers[i];
    for (int32_t site = 0; site < kLayerLinearSites; ++site)
      layer.linear[site] = Histogram(i * sites_per_layer_ + site);
    for (int32_t h = 0; h < heads_; ++h) layer.q.push_back(Histogram(HeadSite(i, Heads::kQ, h)));
    for (int32_t h = 0; h < kv_heads_; ++h) {
      layer.k.push_back(Histogram(HeadSite(i, Heads::kK, h)));
      layer.v.push_back(Histogram(HeadSite(i, Heads::kV, h)));
    }
  }
  result.head_in = Histogram(sites_ - 1);
  return result;
}

}  // namespace fixpoint
