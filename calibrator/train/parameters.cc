#include "calibrator/train/parameters.h"

#include <algorithm>
#include <cmath>

namespace fixpoint {

ParameterLayout::ParameterLayout(const FloatConfig& config, int32_t prefix_tokens)
    : layers_(config.num_hidden_layers),
      heads_(config.num_attention_heads),
      kv_heads_(config.num_key_value_heads),
      head_dim_(config.head_dim),
      hidden_(config.hidden_size),
      intermediate_(config.intermediate_size) {
  linear_channels_ = 2 * hidden_ + heads_ * head_dim_ + intermediate_;
  const int64_t scales = kLayerLinearSites + all_heads();
  per_layer_ = scales + linear_channels_ + all_heads() * head_dim_;
  head_gains_ = scales + linear_channels_;
  prefix_ = Layer(static_cast<int32_t>(layers_)) + 1 + hidden_;
  prefix_per_layer_ = 2 * kv_heads_ * prefix_tokens * head_dim_;
  size_ = prefix_ + layers_ * prefix_per_layer_;
}

int64_t ParameterLayout::Channels(LayerSite site) const {
  switch (site) {
    case LayerSite::kAttnIn:
    case LayerSite::kMlpIn:
      return hidden_;
    case LayerSite::kOIn:
      return heads_ * head_dim_;
    case LayerSite::kDownIn:
      return intermediate_;
  }
  return 0;
}

int64_t ParameterLayout::LinearScale(int32_t layer, LayerSite site) const {
  return Layer(layer) + static_cast<int64_t>(site);
}

int64_t ParameterLayout::LinearGain(int32_t layer, LayerSite site) const {
  int64_t offset = Layer(layer) + (layer == layers_ ? 1 : kLayerLinearSites + all_heads());
  for (int32_t i = 0; i < static_cast<int32_t>(site); ++i)
    offset += Channels(static_cast<LayerSite>(i));
  return offset;
}

namespace {

// Gains times exp of `count` parameters; left empty as long as all of these are 0.
void MoveGain(const float* parameters, int64_t count, std::vector<float>* gain) {
  if (std::all_of(parameters, parameters + count, [](float x) { return x == 0; })) return;
  gain->resize(count, 1.0f);
  for (int64_t i = 0; i < count; ++i) (*gain)[i] *= std::exp(parameters[i]);
}

void MoveSite(const float* scale, const float* gain, int64_t channels, LinearSite* site) {
  site->scale *= std::exp(static_cast<double>(*scale));
  MoveGain(gain, channels, &site->gain);
}

}  // namespace

Scales MoveScales(const Scales& base, const ParameterLayout& layout,
                  const std::vector<float>& parameters) {
  Scales result = base;
  const float* p = parameters.data();
  for (int32_t layer = 0; layer < layout.layers(); ++layer) {
    LayerScales& to = result.layers[layer];
    for (int32_t i = 0; i < kLayerLinearSites; ++i) {
      const LayerSite site = static_cast<LayerSite>(i);
      MoveSite(p + layout.LinearScale(layer, site), p + layout.LinearGain(layer, site),
               layout.Channels(site), &to.linear(site));
    }
    const float* scale = p + layout.HeadScales(layer);
    const float* gain = p + layout.HeadGains(layer);
    for (const auto& [scales, gains] : {std::pair(&to.q, &to.q_gain), std::pair(&to.k, &to.k_gain),
                                        std::pair(&to.v, &to.v_gain)}) {
      for (double& s : *scales) s *= std::exp(static_cast<double>(*scale++));
      const int64_t channels = static_cast<int64_t>(scales->size()) * layout.head_dim();
      MoveGain(gain, channels, gains);
      gain += channels;
    }
  }
  MoveSite(p + layout.LinearScale(layout.layers(), LayerSite::kAttnIn),
           p + layout.LinearGain(layout.layers(), LayerSite::kAttnIn),
           layout.Channels(LayerSite::kAttnIn), &result.head_in);
  return result;
}

FloatPrefix MovePrefix(const FloatPrefix& base, const ParameterLayout& layout,
                       const std::vector<float>& parameters) {
  FloatPrefix result = base;
  if (layout.prefix_per_layer() == 0) return result;
  for (int32_t layer = 0; layer < layout.layers(); ++layer) {
    const float* from = parameters.data() + layout.Prefix(layer);
    for (float& x : result.layers[layer].k) x += *from++;
    for (float& x : result.layers[layer].v) x += *from++;
  }
  return result;
}

}  // namespace fixpoint
