// What training may change, as one flat vector: logs of scales, logs of gains, and the K and V of
// the prefix.
#pragma once

#include <cstdint>
#include <vector>

#include "calibrator/calibration.h"
#include "calibrator/float_model.h"

namespace fixpoint {

enum class Granularity { kTensor, kChannel };
// Of channel granularity. Gain: weights stay as they are, so a gain also scales the signal.
// Folded: weights are divided by the gains of their linear site and rounded again whenever the
// gains move; q, k and v keep one scale a head.
enum class Vectors { kGain, kFolded };

// Offsets into the vector. Layer num_hidden_layers is the head, with its site at kAttnIn.
class ParameterLayout {
 public:
  ParameterLayout(const FloatConfig& config, int32_t prefix_tokens);

  int64_t size() const { return size_; }
  int64_t Channels(LayerSite site) const;
  int64_t LinearScale(int32_t layer, LayerSite site) const;
  int64_t LinearGain(int32_t layer, LayerSite site) const;
  // Heads of q, k, v in the order of the tape: [heads + 2 * kv_heads] scales, and as many gains of
  // head_dim each.
  int64_t HeadScales(int32_t layer) const { return Layer(layer) + kLayerLinearSites; }
  int64_t HeadGains(int32_t layer) const { return head_gains_ + Layer(layer); }
  // K then V, each [kv_heads][prefix_tokens][head_dim].
  int64_t Prefix(int32_t layer) const { return prefix_ + layer * prefix_per_layer_; }
  int64_t prefix_per_layer() const { return prefix_per_layer_; }
  int32_t layers() const { return layers_; }
  int64_t all_heads() const { return heads_ + 2 * kv_heads_; }
  int64_t head_dim() const { return head_dim_; }

  enum class Kind { kScale, kLinearGain, kHeadGain, kPrefix };
  // Calls fn(kind, begin, count) for pieces that cover the vector.
  template <typename F>
  void ForEachPiece(F&& fn) const {
    for (int32_t layer = 0; layer < layers_; ++layer) {
      const int64_t begin = Layer(layer);
      const int64_t scales = kLayerLinearSites + all_heads();
      fn(Kind::kScale, begin, scales);
      fn(Kind::kLinearGain, begin + scales, linear_channels_);
      fn(Kind::kHeadGain, HeadGains(layer), all_heads() * head_dim_);
      fn(Kind::kPrefix, Prefix(layer), prefix_per_layer_);
    }
    fn(Kind::kScale, Layer(layers_), 1);
    fn(Kind::kLinearGain, Layer(layers_) + 1, hidden_);
  }

 private:
  int64_t Layer(int32_t layer) const { return layer * per_layer_; }

  int64_t layers_, heads_, kv_heads_, head_dim_, hidden_, intermediate_;
  int64_t linear_channels_ = 0, per_layer_ = 0, head_gains_ = 0, prefix_ = 0;
  int64_t prefix_per_layer_ = 0, size_ = 0;
};

// `base` moved by `parameters` (zeros: base itself): scales and gains times exp of theirs; prefix
// values plus theirs.
Scales MoveScales(const Scales& base, const ParameterLayout& layout,
                  const std::vector<float>& parameters);
FloatPrefix MovePrefix(const FloatPrefix& base, const ParameterLayout& layout,
                       const std::vector<float>& parameters);

}  // namespace fixpoint
