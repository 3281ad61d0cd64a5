#include "calibrator/bundle_scales.h"

#include <cmath>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "calibrator/check_scales.h"

namespace fixpoint {
namespace {

// Output steps in one step of the accumulator or of an int16 intermediate.
double NarrowRatio(const NarrowRequantize& r, size_t channel) {
  return std::ldexp(r.multipliers[channel], -(r.p + r.k));
}

// gain = ratio between the site's steps and its input's unit: q = round(real * gain / scale) and
// q = round(integer * multiplier), real = integer * unit.
std::vector<float> Gains(const NarrowRequantize& r, double unit, double scale) {
  std::vector<float> gain(r.multipliers.size());
  for (size_t i = 0; i < gain.size(); ++i)
    gain[i] = static_cast<float>(NarrowRatio(r, i) * scale / unit);
  return gain;
}

double StepScale(const LinearSite& site) { return site.scale / (site.wide ? 256 : 1); }

std::vector<float> NormGains(const Norm& norm, const LinearSite& site) {
  const double unit =
      std::sqrt(static_cast<double>(norm.multipliers.size())) * std::ldexp(1, -norm.fraction_bits);
  return Gains({.k = norm.k, .multipliers = norm.multipliers}, unit, StepScale(site));
}

// The unit u of a requantize in m[r] = ratio * steps[r] * in_scale / u, as far as it is one for all
// rows: least squares over the rows, so that large multipliers, which are the exact ones, count
// most.
double OutputUnit(const NarrowRequantize& requantize, const std::vector<float>& steps,
                  double in_scale) {
  double product = 0, square = 0;
  for (size_t r = 0; r < steps.size(); ++r) {
    const double ratio = NarrowRatio(requantize, r);
    product += ratio * in_scale * steps[r];
    square += ratio * ratio;
  }
  return product / square;
}

// Sums of w * q and q * q of a row over the weights that are not clipped; over all when every one
// is.
struct RowFit {
  double product = 0, square = 0;
};
RowFit FitRow(const float* w, const std::vector<float>& gain, const int8_t* q, int64_t n) {
  RowFit fit, clipped;
  for (int64_t i = 0; i < n; ++i) {
    RowFit& to = q[i] == 127 || q[i] == -127 ? clipped : fit;
    to.product += static_cast<double>(gain.empty() ? w[i] : w[i] / gain[i]) * q[i];
    to.square += static_cast<double>(q[i]) * q[i];
  }
  return fit.square > 0 ? fit : clipped;
}

absl::Status CheckShape(const std::string& what, const Matrix& matrix, int64_t rows, int64_t depth,
                        int64_t available) {
  if (matrix.rows == rows && matrix.cols == depth && available >= rows * depth)
    return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(what, ": the source has [", matrix.rows, ", ",
                                                 matrix.cols, "], the bundle needs [", rows, ", ",
                                                 depth, "] and holds ", available));
}

// Rows of a bundle's matrix from `first` on.
IntegerLinear TakeRows(const std::vector<int8_t>& weights, int64_t first, int64_t rows,
                       int64_t depth) {
  IntegerLinear linear{.outputs = rows, .depth = depth};
  linear.values.assign(weights.begin() + first * depth, weights.begin() + (first + rows) * depth);
  linear.steps.resize(rows);
  return linear;
}

void StepsFromWide(const WideRequantize& requantize, double out_unit, double in_scale,
                   IntegerLinear* linear) {
  for (size_t r = 0; r < linear->steps.size(); ++r) {
    linear->steps[r] = static_cast<float>(std::ldexp(requantize.multipliers[r], -requantize.n) *
                                          out_unit / in_scale);
  }
}

class WeightReader {
 public:
  WeightReader(const IntegerModel& model, const FloatModel& rotated, const Scales& scalars,
               bool folded, ThreadPool& pool)
      : model_(model),
        rotated_(rotated),
        scalars_(scalars),
        folded_(folded),
        pool_(pool),
        residual_unit_(std::ldexp(1, -model.config.residual_fraction_bits)) {}

  absl::StatusOr<IntegerWeights> Run() const {
    const ModelConfig& c = model_.config;
    if (rotated_.layers.size() != model_.layers.size()) {
      return absl::InvalidArgumentError(absl::StrCat("the source has ", rotated_.layers.size(),
                                                     " layers, the bundle ", model_.layers.size()));
    }
    RETURN_IF_ERROR(CheckScales(c, scalars_));
    IntegerWeights result;
    RETURN_IF_ERROR(CheckShape("embedding", rotated_.embedding, c.vocab_size, c.hidden_size,
                               Size(model_.embedding)));
    result.embedding = TakeRows(model_.embedding, 0, c.vocab_size, c.hidden_size);
    StepsFromWide(model_.embedding_requantize, residual_unit_, 1, &result.embedding);
    RETURN_IF_ERROR(CheckShape("head", rotated_.head_or_embedding(), c.vocab_size, c.hidden_size,
                               Size(model_.head.weights)));
    result.head = TakeRows(model_.head.weights, 0, c.vocab_size, c.hidden_size);
    StepsFromWide(model_.head_requantize, std::ldexp(1, -c.logit_fraction_bits),
                  scalars_.head_in.scale, &result.head);
    for (size_t i = 0; i < model_.layers.size(); ++i) {
      IntegerLayerWeights& layer = result.layers.emplace_back();
      RETURN_IF_ERROR(Annotate(ReadLayer(i, &layer), absl::StrCat("layer ", i)));
    }
    return result;
  }

 private:
  static int64_t Size(const std::vector<int8_t>& weights) {
    return static_cast<int64_t>(weights.size());
  }

  absl::Status ReadLayer(size_t i, IntegerLayerWeights* out) const {
    const ModelConfig& c = model_.config;
    const FloatLayer& f = rotated_.layers[i];
    const ModelLayer& l = model_.layers[i];
    const LayerScales& s = scalars_.layers[i];
    const int64_t q = int64_t{c.num_attention_heads} * c.head_dim;
    const int64_t kv = int64_t{c.num_key_value_heads} * c.head_dim;
    const int64_t hidden = c.hidden_size, intermediate = c.intermediate_size;
    const std::vector<float> attn = folded_ ? NormGains(l.attn_norm, s.attn_in) : kNoGain;
    const std::vector<float> mlp = folded_ ? NormGains(l.mlp_norm, s.mlp_in) : kNoGain;
    const auto read = [&](const char* name, const Matrix& matrix,
                          const std::vector<int8_t>& weights, int64_t first, int64_t rows,
                          int64_t depth, IntegerLinear* to) -> absl::Status {
      RETURN_IF_ERROR(CheckShape(name, matrix, rows, depth, Size(weights) - first * depth));
      *to = TakeRows(weights, first, rows, depth);
      return absl::OkStatus();
    };
    RETURN_IF_ERROR(read("q_proj", f.q_proj, l.qkv.weights, 0, q, hidden, &out->q));
    RETURN_IF_ERROR(read("k_proj", f.k_proj, l.qkv.weights, q, kv, hidden, &out->k));
    RETURN_IF_ERROR(read("v_proj", f.v_proj, l.qkv.weights, q + kv, kv, hidden, &out->v));
    RETURN_IF_ERROR(read("o_proj", f.o_proj, l.o_proj.weights, 0, hidden, q, &out->o));
    RETURN_IF_ERROR(
        read("gate_proj", f.gate_proj, l.gate_up.weights, 0, intermediate, hidden, &out->gate));
    RETURN_IF_ERROR(read("up_proj", f.up_proj, l.gate_up.weights, intermediate, intermediate,
                         hidden, &out->up));
    RETURN_IF_ERROR(
        read("down_proj", f.down_proj, l.down_proj.weights, 0, hidden, intermediate, &out->down));
    StepsFromWide(l.o_requantize, residual_unit_, s.o_in.scale, &out->o);
    StepsFromWide(l.down_requantize, residual_unit_, s.down_in.scale, &out->down);
    StepsFromNarrow(f.q_proj, attn, l.q_before, &out->q);
    StepsFromNarrow(f.k_proj, attn, l.k_before, &out->k);
    StepsFromNarrow(f.up_proj, mlp, l.up, &out->up);
    // The gate's unit is in the multiplier of the sigmoid, whose table has 2048 steps for 1.
    const double gate16 = std::ldexp(l.sigmoid_multiplier, -l.sigmoid_shift) / 2048;
    for (size_t r = 0; r < out->gate.steps.size(); ++r)
      out->gate.steps[r] = static_cast<float>(NarrowRatio(l.gate, r) * gate16 / s.mlp_in.scale);
    // A row's multiplier of v holds the gain too.
    const std::vector<RowFit> fits = FitRows(f.v_proj, attn, out->v);
    for (size_t r = 0; r < fits.size(); ++r) out->v.steps[r] = Positive(fits[r]);
    return absl::OkStatus();
  }

  // steps[r] = factor * m[r] with one factor for all rows.
  void StepsFromNarrow(const Matrix& matrix, const std::vector<float>& gain,
                       const NarrowRequantize& requantize, IntegerLinear* linear) const {
    const std::vector<RowFit> fits = FitRows(matrix, gain, *linear);
    RowFit all;
    for (size_t r = 0; r < fits.size(); ++r) {
      const double ratio = NarrowRatio(requantize, r);
      all.product += ratio * fits[r].product;
      all.square += ratio * ratio * fits[r].square;
    }
    const double factor = Positive(all);
    for (size_t r = 0; r < fits.size(); ++r)
      linear->steps[r] = static_cast<float>(factor * NarrowRatio(requantize, r));
  }

  std::vector<RowFit> FitRows(const Matrix& matrix, const std::vector<float>& gain,
                              const IntegerLinear& linear) const {
    std::vector<RowFit> fits(matrix.rows);
    pool_.ParallelFor(matrix.rows, 16, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) {
        fits[r] =
            FitRow(matrix.row(r), gain, linear.values.data() + r * linear.depth, linear.depth);
      }
    });
    return fits;
  }

  // A row of zeros has no step; any does.
  static float Positive(const RowFit& fit) {
    return fit.product > 0 ? static_cast<float>(fit.product / fit.square) : 1e-8f;
  }

  static inline const std::vector<float> kNoGain;
  const IntegerModel& model_;
  const FloatModel& rotated_;
  const Scales& scalars_;
  const bool folded_;
  ThreadPool& pool_;
  const double residual_unit_;
};

absl::Status CheckWide(const char* name, bool in_model, bool in_scales) {
  if (in_model == in_scales) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, " has ", in_model ? 16 : 8,
                                                 " bits in the bundle and ", in_scales ? 16 : 8,
                                                 " in its scales"));
}

absl::Status CheckSteps(const char* name, const IntegerLinear& w, size_t rows) {
  if (w.steps.size() == rows) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": ", w.steps.size(), " steps for ", rows, " rows"));
}

// Gains of one layer, into `s`.
absl::Status LayerGains(const ModelConfig& c, const ModelLayer& l, const IntegerLayerWeights& w,
                        LayerScales* s) {
  RETURN_IF_ERROR(CheckWide("attn_in", l.attn_norm.wide, s->attn_in.wide));
  RETURN_IF_ERROR(CheckWide("o_in", l.attn_out_wide, s->o_in.wide));
  RETURN_IF_ERROR(CheckWide("mlp_in", l.mlp_norm.wide, s->mlp_in.wide));
  RETURN_IF_ERROR(CheckWide("down_in", l.down_in_wide, s->down_in.wide));
  RETURN_IF_ERROR(CheckSteps("q_proj", w.q, l.q_before.multipliers.size()));
  RETURN_IF_ERROR(CheckSteps("k_proj", w.k, l.k_before.multipliers.size()));
  RETURN_IF_ERROR(CheckSteps("v_proj", w.v, l.v.multipliers.size()));
  RETURN_IF_ERROR(CheckSteps("gate_proj", w.gate, l.gate.multipliers.size()));
  RETURN_IF_ERROR(CheckSteps("up_proj", w.up, l.up.multipliers.size()));
  const int32_t d = c.head_dim;
  const int32_t group = c.num_attention_heads / c.num_key_value_heads;
  s->attn_in.gain = NormGains(l.attn_norm, s->attn_in);
  s->mlp_in.gain = NormGains(l.mlp_norm, s->mlp_in);

  const double growth = c.qk_hadamard ? std::sqrt(d) : 1;
  const double in = s->attn_in.scale;
  s->q_gain = Gains(l.q_after, OutputUnit(l.q_before, w.q.steps, in) / growth, 1);
  s->k_gain = Gains(l.k_after, OutputUnit(l.k_before, w.k.steps, in) / growth, 1);
  s->v_gain = Gains(l.v, in, 1);
  s->o_in.gain = Gains(l.attn_out, 1.0 / 128, StepScale(s->o_in));
  for (size_t i = 0; i < s->q_gain.size(); ++i) {
    s->q_gain[i] *= static_cast<float>(s->q[i / d]);
    s->o_in.gain[i] /= static_cast<float>(s->v[i / d / group]);
  }
  for (size_t i = 0; i < s->k_gain.size(); ++i) {
    s->k_gain[i] *= static_cast<float>(s->k[i / d]);
    s->v_gain[i] *= static_cast<float>(s->v[i / d] / w.v.steps[i]);
  }

  const double gate16 = OutputUnit(l.gate, w.gate.steps, s->mlp_in.scale);
  const double up16 = OutputUnit(l.up, w.up.steps, s->mlp_in.scale);
  const double product_unit = std::ldexp(gate16 * up16, l.product_shift);
  s->down_in.gain =
      Gains(l.down_in, product_unit / std::sqrt(c.down_hadamard_block), StepScale(s->down_in));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<IntegerWeights> WeightsOfBundle(const IntegerModel& model, const FloatModel& rotated,
                                               const Scales& scalars, bool folded,
                                               ThreadPool& pool) {
  return WeightReader(model, rotated, scalars, folded, pool).Run();
}

absl::StatusOr<Scales> ScalesOfBundle(const IntegerModel& model, const Scales& scalars,
                                      const IntegerWeights& weights) {
  RETURN_IF_ERROR(CheckScales(model.config, scalars));
  if (weights.layers.size() != model.layers.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "weights of ", weights.layers.size(), " layers, the bundle has ", model.layers.size()));
  }
  Scales result = scalars;
  for (size_t i = 0; i < model.layers.size(); ++i) {
    RETURN_IF_ERROR(
        Annotate(LayerGains(model.config, model.layers[i], weights.layers[i], &result.layers[i]),
                 absl::StrCat("layer ", i)));
  }
  RETURN_IF_ERROR(CheckWide("head_in", model.final_norm.wide, scalars.head_in.wide));
  result.head_in.gain = NormGains(model.final_norm, scalars.head_in);
  return result;
}

FloatPrefix PrefixOfBundle(const IntegerModel& model, const Scales& scales) {
  const int64_t d = model.config.head_dim;
  const int64_t per_head = static_cast<int64_t>(model.prefix_token_ids.size()) * d;
  FloatPrefix prefix{.token_ids = model.prefix_token_ids};
  const auto convert = [d, per_head](const std::vector<int16_t>& from,
                                     const std::vector<double>& scale,
                                     const std::vector<float>& gain, std::vector<float>* to) {
    for (int64_t i = 0; i < static_cast<int64_t>(from.size()); ++i) {
      const int64_t head = i / per_head;
      const double unit = scale[head] / (gain.empty() ? 1 : gain[head * d + i % d]);
      to->push_back(static_cast<float>(from[i] * unit));
    }
  };
  for (size_t i = 0; i < model.layers.size(); ++i) {
    const LayerScales& s = scales.layers[i];
    FloatPrefix::Layer& layer = prefix.layers.emplace_back();
    convert(model.layers[i].prefix_k, s.k, s.k_gain, &layer.k);
    convert(model.layers[i].prefix_v, s.v, s.v_gain, &layer.v);
  }
  return prefix;
}

}  // namespace fixpoint
