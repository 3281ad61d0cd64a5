#include "calibrator/check_scales.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace fixpoint {
namespace {

// Numbers with a name for messages; `count` is how many there must be.
template <typename T>
absl::Status CheckPositive(const char* site, const char* what, const std::vector<T>& values,
                           int64_t count) {
  if (static_cast<int64_t>(values.size()) != count) {
    return absl::InvalidArgumentError(
        absl::StrCat(site, ": ", values.size(), " ", what, ", the model needs ", count));
  }
  for (size_t i = 0; i < values.size(); ++i) {
    if (!(values[i] > 0) || !std::isfinite(values[i])) {
      return absl::InvalidArgumentError(
          absl::StrCat(site, ": ", what, " ", i, " is ", values[i], ", must be positive"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckGains(const char* site, const std::vector<float>& gain, int64_t channels) {
  return gain.empty() ? absl::OkStatus() : CheckPositive(site, "gains", gain, channels);
}

absl::Status CheckSite(const char* name, const LinearSite& site, int64_t channels) {
  RETURN_IF_ERROR(CheckPositive(name, "scales", std::vector<double>{site.scale}, 1));
  return CheckGains(name, site.gain, channels);
}

absl::Status CheckLayer(const ModelConfig& c, const LayerScales& s) {
  const int64_t q = int64_t{c.num_attention_heads} * c.head_dim;
  const int64_t kv = int64_t{c.num_key_value_heads} * c.head_dim;
  RETURN_IF_ERROR(CheckSite("attn_in", s.attn_in, c.hidden_size));
  RETURN_IF_ERROR(CheckSite("o_in", s.o_in, q));
  RETURN_IF_ERROR(CheckSite("mlp_in", s.mlp_in, c.hidden_size));
  RETURN_IF_ERROR(CheckSite("down_in", s.down_in, c.intermediate_size));
  RETURN_IF_ERROR(CheckPositive("q", "scales", s.q, c.num_attention_heads));
  RETURN_IF_ERROR(CheckPositive("k", "scales", s.k, c.num_key_value_heads));
  RETURN_IF_ERROR(CheckPositive("v", "scales", s.v, c.num_key_value_heads));
  RETURN_IF_ERROR(CheckGains("q", s.q_gain, q));
  RETURN_IF_ERROR(CheckGains("k", s.k_gain, kv));
  return CheckGains("v", s.v_gain, kv);
}

}  // namespace

absl::Status CheckScales(const ModelConfig& config, const Scales& scales) {
  if (static_cast<int64_t>(scales.layers.size()) != config.num_hidden_layers) {
    return absl::InvalidArgumentError(absl::StrCat(
        "scales of ", scales.layers.size(), " layers, the model has ", config.num_hidden_layers));
  }
  for (size_t i = 0; i < scales.layers.size(); ++i)
    RETURN_IF_ERROR(Annotate(CheckLayer(config, scales.layers[i]), absl::StrCat("layer ", i)));
  return CheckSite("head_in", scales.head_in, config.hidden_size);
}

}  // namespace fixpoint
