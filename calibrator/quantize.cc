#include "calibrator/quantize.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "calibrator/check_scales.h"
#include "kernels/ops.h"

namespace fixpoint {
namespace {

// Room above the largest calibrated magnitude for int16 intermediates and accumulators: unseen text
// may go half as far again before it saturates, and 15 bits less this factor are still far finer
// than any int8 site.
constexpr double kHeadroom = 1.5;
// Room of the residual stream above the calibrated maximum. That maximum is the value of a rare
// sink token which RMSNorm divides away again: were it to saturate on other text, little would
// change, while each bit of room is a bit that all other tokens lack.
constexpr double kResidualHeadroom = 2;
constexpr int32_t kLogitFractionBits = 16;
constexpr double kMaxInt16 = 32767;

// Smallest n in [low, high] with value <= limit * 2^n, or an error that names `what`.
absl::StatusOr<int32_t> SmallestShift(double value, double limit, int32_t low, int32_t high,
                                      const std::string& what) {
  int32_t n = low;
  while (n <= high && value > std::ldexp(limit, n)) ++n;
  if (n > high || !std::isfinite(value)) {
    return absl::OutOfRangeError(
        absl::StrCat(what, ": magnitude ", value, " needs a shift above ", high));
  }
  return n;
}

// Largest k in [1, 30] with ratio * 2^k <= 32767.
absl::StatusOr<int32_t> MultiplierShift(double ratio, const std::string& what) {
  if (!(ratio > 0) || !std::isfinite(ratio) || std::ldexp(ratio, 1) > kMaxInt16) {
    return absl::OutOfRangeError(
        absl::StrCat(what, ": ratio of scales ", ratio, " cannot be represented"));
  }
  int32_t k = 1;
  while (k < 30 && std::ldexp(ratio, k + 1) <= kMaxInt16) ++k;
  return k;
}

double MaxOf(const std::vector<float>& values) {
  return values.empty() ? 0 : *std::max_element(values.begin(), values.end());
}

double LargestOf(const std::vector<double>& values) {
  return *std::max_element(values.begin(), values.end());
}

// Multipliers round(ratio * 2^(p + k)) with the largest k at which all fit, at least 1.
absl::Status SetMultipliers(const std::vector<double>& ratios, int32_t p, const std::string& what,
                            int32_t* k, std::vector<int16_t>* multipliers) {
  ASSIGN_OR_RETURN(*k, MultiplierShift(std::ldexp(LargestOf(ratios), p), what));
  multipliers->resize(ratios.size());
  for (size_t i = 0; i < ratios.size(); ++i) {
    const double exact = std::ldexp(ratios[i], p + *k);
    (*multipliers)[i] = static_cast<int16_t>(std::clamp(std::nearbyint(exact), 1.0, kMaxInt16));
  }
  return absl::OkStatus();
}

// Real value of one int8 step in each channel, in front of the gain: scale / gain.
std::vector<double> ChannelUnits(const LinearSite& site, int64_t channels) {
  std::vector<double> units(channels, site.scale);
  for (size_t i = 0; i < site.gain.size(); ++i) units[i] /= site.gain[i];
  return units;
}
std::vector<double> ChannelUnits(const std::vector<double>& head_scales,
                                 const std::vector<float>& gain, int32_t head_dim) {
  std::vector<double> units;
  for (const double scale : head_scales) units.insert(units.end(), head_dim, scale);
  for (size_t i = 0; i < gain.size(); ++i) units[i] /= gain[i];
  return units;
}

// Ratios of `from` to the units of a site, whose steps are a 256th when it is wide.
std::vector<double> Ratios(double from, const std::vector<double>& units, bool wide) {
  std::vector<double> ratios;
  for (const double unit : units) ratios.push_back(from * (wide ? 256 : 1) / unit);
  return ratios;
}

absl::Status CheckWeights(const char* what, const Matrix& matrix, const IntegerLinear& w) {
  if (w.outputs == matrix.rows && w.depth == matrix.cols &&
      static_cast<int64_t>(w.steps.size()) == w.outputs &&
      static_cast<int64_t>(w.values.size()) == w.outputs * w.depth) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(what, ": integers of shape [", w.outputs, ", ",
                                                 w.depth, "] with ", w.steps.size(), " steps and ",
                                                 w.values.size(), " values for a matrix [",
                                                 matrix.rows, ", ", matrix.cols, "]"));
}

class Quantizer {
 public:
  Quantizer(const FloatModel& rotated, const IntegerWeights& weights, const Scales& scales,
            const Ranges& ranges, const FloatPrefix& prefix, int32_t down_hadamard_block,
            bool qk_hadamard, ThreadPool& pool)
      : rotated_(rotated),
        weights_(weights),
        scales_(scales),
        ranges_(ranges),
        prefix_(prefix),
        pool_(pool) {
    const FloatConfig& f = rotated.config;
    ModelConfig& c = model_.config;
    c.hidden_size = f.hidden_size;
    c.intermediate_size = f.intermediate_size;
    c.num_hidden_layers = f.num_hidden_layers;
    c.num_attention_heads = f.num_attention_heads;
    c.num_key_value_heads = f.num_key_value_heads;
    c.head_dim = f.head_dim;
    c.vocab_size = f.vocab_size;
    c.max_position_embeddings = std::min(f.max_position_embeddings, kMaxContext);
    c.down_hadamard_block = down_hadamard_block;
    c.qk_hadamard = qk_hadamard;
    model_.prefix_token_ids = prefix.token_ids;
  }

  absl::StatusOr<IntegerModel> Run() {
    RETURN_IF_ERROR(Check());
    RETURN_IF_ERROR(ChooseFixedPoints());
    FillRope();
    RETURN_IF_ERROR(QuantizeEmbedding());
    model_.layers.resize(rotated_.layers.size());
    for (size_t i = 0; i < rotated_.layers.size(); ++i) {
      RETURN_IF_ERROR(Annotate(QuantizeAttention(i), absl::StrCat("layer ", i)));
      RETURN_IF_ERROR(Annotate(QuantizeMlp(i), absl::StrCat("layer ", i)));
    }
    RETURN_IF_ERROR(QuantizeHead());
    return std::move(model_);
  }

 private:
  const ModelConfig& config() const { return model_.config; }
  double residual_unit() const { return std::ldexp(1.0, -config().residual_fraction_bits); }

  absl::Status Check() const {
    const size_t layers = rotated_.layers.size();
    if (ranges_.layers.size() != layers || weights_.layers.size() != layers ||
        (prefix_.size() > 0 && prefix_.layers.size() != layers)) {
      return absl::InvalidArgumentError("weights, ranges and prefix must have one entry per layer");
    }
    RETURN_IF_ERROR(CheckScales(config(), scales_));
    RETURN_IF_ERROR(CheckWeights("embedding", rotated_.embedding, weights_.embedding));
    RETURN_IF_ERROR(CheckWeights("head", rotated_.head_or_embedding(), weights_.head));
    for (size_t i = 0; i < layers; ++i) {
      for (const LayerLinear& linear : kLayerLinears) {
        RETURN_IF_ERROR(Annotate(CheckWeights(linear.name, rotated_.layers[i].*linear.weights,
                                              weights_.layers[i].*linear.integers),
                                 absl::StrCat("layer ", i)));
      }
    }
    return absl::OkStatus();
  }

  absl::Status ChooseFixedPoints() {
    ModelConfig& c = model_.config;
    if (!(ranges_.residual > 0))
      return absl::InvalidArgumentError("residual range is not positive");
    c.residual_fraction_bits = std::min(
        20, static_cast<int32_t>(std::floor(27 - std::log2(ranges_.residual * kResidualHeadroom))));
    if (c.residual_fraction_bits < 0) {
      return absl::OutOfRangeError(
          absl::StrCat("residual stream reaches ", ranges_.residual, ": no room in 27 bits"));
    }
    const double epsilon = rotated_.config.rms_norm_eps * c.hidden_size *
                           std::ldexp(1.0, 2 * c.residual_fraction_bits);
    if (!(epsilon < std::ldexp(1.0, 59)))
      return absl::OutOfRangeError(absl::StrCat("rms_norm_eps too large: ", epsilon));
    c.norm_epsilon = static_cast<uint64_t>(std::llround(epsilon));
    c.logit_fraction_bits = kLogitFractionBits;
    while (c.logit_fraction_bits > 0 &&
           std::ldexp(ranges_.logits * 4.0, c.logit_fraction_bits) > kLogitLimit) {
      --c.logit_fraction_bits;
    }
    return absl::OkStatus();
  }

  void FillRope() {
    const ModelConfig& c = config();
    const int32_t half = c.head_dim / 2;
    model_.rope_cos.resize(static_cast<size_t>(c.max_position_embeddings) * half);
    model_.rope_sin.resize(model_.rope_cos.size());
    pool_.ParallelFor(c.max_position_embeddings, 64, [&](int64_t begin, int64_t end, int) {
      for (int64_t position = begin; position < end; ++position) {
        for (int32_t i = 0; i < half; ++i) {
          const double angle = position * rotated_.rope_inverse_frequency[i];
          model_.rope_cos[position * half + i] =
              static_cast<int16_t>(std::nearbyint(16384 * std::cos(angle)));
          model_.rope_sin[position * half + i] =
              static_cast<int16_t>(std::nearbyint(16384 * std::sin(angle)));
        }
      }
    });
  }

  // RMSNorm that feeds `site`.
  absl::Status QuantizeNorm(const LinearSite& site, const std::string& what, Norm* norm) const {
    const int32_t hidden = config().hidden_size;
    const double root = std::sqrt(hidden);
    const std::vector<double> units = ChannelUnits(site, hidden);
    // A normalised value is at most sqrt(hidden), and t = value * 2^fraction_bits / sqrt(hidden). t
    // should reach 32767 just above the largest value that is not clipped, which is that of the
    // channel with the smallest gain: finest steps, and what saturates earlier would have been
    // clipped anyway. With 15 bits t reaches it nowhere.
    const double clip = 127.5 * LargestOf(units) / root;
    norm->fraction_bits = 30;
    while (norm->fraction_bits > 15 && std::ldexp(clip, norm->fraction_bits) > kMaxInt16)
      --norm->fraction_bits;
    norm->wide = site.wide;
    return SetMultipliers(Ratios(std::ldexp(root, -norm->fraction_bits), units, site.wide), 0, what,
                          &norm->k, &norm->multipliers);
  }

  static void AppendRows(const IntegerLinear& w, LinearWeights* linear) {
    linear->depth = static_cast<int32_t>(w.depth);
    linear->outputs += static_cast<int32_t>(w.outputs);
    linear->weights.insert(linear->weights.end(), w.values.begin(), w.values.end());
  }

  // A projection whose accumulator, acc * in_scale * steps[r], goes through a narrow requantize to
  // steps of units[r].
  absl::Status AppendNarrowLinear(const IntegerLinear& w, const std::vector<float>& bias,
                                  const std::vector<float>& range, double in_scale,
                                  const std::vector<double>& units, const std::string& what,
                                  LinearWeights* linear, NarrowRequantize* requantize) const {
    double largest_acc = 0;
    std::vector<double> ratios(units.size());
    for (size_t r = 0; r < units.size(); ++r) {
      const double acc_unit = in_scale * w.steps[r];
      largest_acc = std::max(largest_acc, range[r] * kHeadroom / acc_unit);
      ratios[r] = acc_unit / units[r];
    }
    ASSIGN_OR_RETURN(requantize->p, SmallestShift(largest_acc, kMaxInt16, 0, 30, what));
    RETURN_IF_ERROR(
        SetMultipliers(ratios, requantize->p, what, &requantize->k, &requantize->multipliers));
    RETURN_IF_ERROR(AppendBias(bias, in_scale, w.steps, what, linear));
    AppendRows(w, linear);
    return absl::OkStatus();
  }

  // Biases in accumulator units. Rows without one are zero when another projection of the same
  // group has them.
  absl::Status AppendBias(const std::vector<float>& bias, double in_scale,
                          const std::vector<float>& steps, const std::string& what,
                          LinearWeights* linear) const {
    if (bias.empty() && linear->bias.empty()) return absl::OkStatus();
    linear->bias.resize(linear->outputs);
    for (size_t r = 0; r < steps.size(); ++r) {
      const double value = bias.empty() ? 0 : bias[r] / (in_scale * steps[r]);
      if (std::fabs(value) > std::ldexp(1.0, 30)) {
        return absl::OutOfRangeError(
            absl::StrCat(what, " bias of row ", r, ": ", value, " exceeds 2^30 accumulator units"));
      }
      linear->bias.push_back(static_cast<int32_t>(std::llround(value)));
    }
    return absl::OkStatus();
  }

  // Multipliers for acc * in_scale * steps[r] in units of `out_unit`.
  static absl::Status WideMultipliers(const std::vector<float>& steps, double in_scale,
                                      double out_unit, const std::string& what,
                                      WideRequantize* requantize) {
    const double largest = MaxOf(steps) * in_scale / out_unit;
    requantize->n = 1;
    if (!(largest > 0) || std::ldexp(largest, 1) > 2147483647.0) {
      return absl::OutOfRangeError(
          absl::StrCat(what, ": ratio of scales ", largest, " cannot be represented"));
    }
    while (requantize->n < 62 && std::ldexp(largest, requantize->n + 1) <= 2147483647.0)
      ++requantize->n;
    requantize->multipliers.resize(steps.size());
    for (size_t r = 0; r < steps.size(); ++r) {
      const double exact = std::ldexp(steps[r] * in_scale / out_unit, requantize->n);
      requantize->multipliers[r] =
          static_cast<int32_t>(std::clamp(std::nearbyint(exact), 1.0, 2147483647.0));
    }
    return absl::OkStatus();
  }

  // A projection into the residual stream or to the logits.
  static absl::Status WideLinear(const IntegerLinear& w, double in_scale, double out_unit,
                                 const std::string& what, LinearWeights* linear,
                                 WideRequantize* requantize) {
    AppendRows(w, linear);
    return WideMultipliers(w.steps, in_scale, out_unit, what, requantize);
  }

  // Requantize of integers up to `largest`, each worth `from`, to a site with the given units.
  // Clipped values may saturate in the first step, never others.
  static absl::Status SiteRequantize(double from, double largest, const std::vector<double>& units,
                                     bool wide, const std::string& what,
                                     NarrowRequantize* requantize) {
    const double clip = 127.5 * LargestOf(units) / from;
    ASSIGN_OR_RETURN(requantize->p, SmallestShift(std::min(clip, largest), kMaxInt16, 0, 30, what));
    return SetMultipliers(Ratios(from, units, wide), requantize->p, what, &requantize->k,
                          &requantize->multipliers);
  }

  absl::Status ScoreScales(const std::vector<double>& q, const std::vector<double>& k,
                           std::vector<ScoreScale>* scores) {
    const ModelConfig& c = config();
    const int32_t group = c.num_attention_heads / c.num_key_value_heads;
    for (int32_t h = 0; h < c.num_attention_heads; ++h) {
      const double unit = q[h] * k[h / group] * std::numbers::log2e /
                          std::sqrt(c.head_dim);  // log2 units of one score step
      ScoreScale s;
      const double d_max = std::ceil(16 / unit);
      if (!(d_max >= 1) || d_max >= std::ldexp(1.0, 30)) {
        return absl::OutOfRangeError(
            absl::StrCat("attention scores of head ", h, ": unit ", unit, " is too fine"));
      }
      s.d_max = static_cast<int32_t>(d_max);
      s.a = std::max(0, static_cast<int32_t>(std::bit_width(static_cast<uint32_t>(s.d_max))) - 15);
      for (s.n = 11; s.n > 1 && std::ldexp(unit, 15 + s.a + s.n) >= 65535; --s.n) {
      }
      const double multiplier = std::nearbyint(std::ldexp(unit, 15 + s.a + s.n));
      if (multiplier < 1 || multiplier > 65535) {
        return absl::OutOfRangeError(
            absl::StrCat("attention scores of head ", h, ": unit ", unit, " is too coarse"));
      }
      s.c = static_cast<int32_t>(multiplier);
      scores->push_back(s);
    }
    return absl::OkStatus();
  }

  absl::Status QuantizeAttention(size_t i) {
    const ModelConfig& c = config();
    const FloatLayer& f = rotated_.layers[i];
    const IntegerLayerWeights& w = weights_.layers[i];
    const LayerScales& s = scales_.layers[i];
    const LayerRanges& r = ranges_.layers[i];
    ModelLayer& l = model_.layers[i];

    RETURN_IF_ERROR(QuantizeNorm(s.attn_in, "attn_in", &l.attn_norm));
    const double in = s.attn_in.scale;
    const double q16 = kHeadroom * std::max(MaxOf(r.q_out), MaxOf(r.q_rope)) / kMaxInt16;
    const double k16 = kHeadroom * std::max(MaxOf(r.k_out), MaxOf(r.k_rope)) / kMaxInt16;
    const std::vector<double> v_units = ChannelUnits(s.v, s.v_gain, c.head_dim);
    RETURN_IF_ERROR(AppendNarrowLinear(w.q, f.q_bias, r.q_out, in,
                                       std::vector<double>(w.q.outputs, q16), "q_proj", &l.qkv,
                                       &l.q_before));
    RETURN_IF_ERROR(AppendNarrowLinear(w.k, f.k_bias, r.k_out, in,
                                       std::vector<double>(w.k.outputs, k16), "k_proj", &l.qkv,
                                       &l.k_before));
    RETURN_IF_ERROR(
        AppendNarrowLinear(w.v, f.v_bias, r.v_out, in, v_units, "v_proj", &l.qkv, &l.v));
    if (!l.qkv.bias.empty()) l.qkv.bias.resize(l.qkv.outputs);

    // The integer Hadamard grows values by sqrt(head_dim) over the orthonormal one.
    const double growth = c.qk_hadamard ? std::sqrt(c.head_dim) : 1;
    const double largest = kMaxInt16 * (c.qk_hadamard ? c.head_dim : 1);
    RETURN_IF_ERROR(SiteRequantize(q16 / growth, largest, ChannelUnits(s.q, s.q_gain, c.head_dim),
                                   false, "q", &l.q_after));
    RETURN_IF_ERROR(SiteRequantize(k16 / growth, largest, ChannelUnits(s.k, s.k_gain, c.head_dim),
                                   false, "k", &l.k_after));
    RETURN_IF_ERROR(ScoreScales(s.q, s.k, &l.scores));
    StorePrefix(i);
    RETURN_IF_ERROR(AttentionOutput(s, &l));
    return WideLinear(w.o, s.o_in.scale, residual_unit(), "o_proj", &l.o_proj, &l.o_requantize);
  }

  // The attention output has 128 steps in one step of v, whose gain it keeps. Heads with small v
  // scales get small multipliers.
  absl::Status AttentionOutput(const LayerScales& s, ModelLayer* layer) const {
    const ModelConfig& c = config();
    const int32_t group = c.num_attention_heads / c.num_key_value_heads;
    const std::vector<double> units =
        ChannelUnits(s.o_in, int64_t{c.num_attention_heads} * c.head_dim);
    std::vector<double> ratios = Ratios(1.0 / 128, units, s.o_in.wide);
    for (size_t i = 0; i < ratios.size(); ++i) ratios[i] *= s.v[i / c.head_dim / group];
    layer->attn_out.p = 0;
    layer->attn_out_wide = s.o_in.wide;
    return SetMultipliers(ratios, 0, "o_in", &layer->attn_out.k, &layer->attn_out.multipliers);
  }

  void StorePrefix(size_t i) {
    if (prefix_.size() == 0) return;
    const int64_t d = config().head_dim;
    const int64_t per_head = prefix_.size() * d;
    const auto quantize = [d, per_head](const std::vector<float>& from,
                                        const std::vector<double>& units,
                                        std::vector<int16_t>* to) {
      for (int64_t j = 0; j < static_cast<int64_t>(from.size()); ++j) {
        const double q = std::nearbyint(from[j] / units[j / per_head * d + j % d]);
        to->push_back(static_cast<int16_t>(std::clamp(q, -kMaxInt16, kMaxInt16)));
      }
    };
    const LayerScales& s = scales_.layers[i];
    const int32_t head_dim = config().head_dim;
    ModelLayer& l = model_.layers[i];
    quantize(prefix_.layers[i].k, ChannelUnits(s.k, s.k_gain, head_dim), &l.prefix_k);
    quantize(prefix_.layers[i].v, ChannelUnits(s.v, s.v_gain, head_dim), &l.prefix_v);
  }

  absl::Status QuantizeMlp(size_t i) {
    const ModelConfig& c = config();
    const IntegerLayerWeights& w = weights_.layers[i];
    const LayerScales& s = scales_.layers[i];
    const LayerRanges& r = ranges_.layers[i];
    ModelLayer& l = model_.layers[i];

    RETURN_IF_ERROR(QuantizeNorm(s.mlp_in, "mlp_in", &l.mlp_norm));
    const double in = s.mlp_in.scale;
    const double gate16 = kHeadroom * MaxOf(r.gate_out) / kMaxInt16;
    const double up16 = kHeadroom * MaxOf(r.up_out) / kMaxInt16;
    RETURN_IF_ERROR(AppendNarrowLinear(w.gate, {}, r.gate_out, in,
                                       std::vector<double>(w.gate.outputs, gate16), "gate_proj",
                                       &l.gate_up, &l.gate));
    RETURN_IF_ERROR(AppendNarrowLinear(w.up, {}, r.up_out, in,
                                       std::vector<double>(w.up.outputs, up16), "up_proj",
                                       &l.gate_up, &l.up));

    // The sigmoid's table has 2048 steps for 1.
    std::vector<int16_t> sigmoid;
    RETURN_IF_ERROR(SetMultipliers({gate16 * 2048}, 0, "sigmoid", &l.sigmoid_shift, &sigmoid));
    l.sigmoid_multiplier = sigmoid[0];
    ASSIGN_OR_RETURN(l.product_shift, SmallestShift(kHeadroom * r.product / (gate16 * up16),
                                                    kProductLimit, 1, 30, "product"));
    const double product_unit = std::ldexp(gate16 * up16, l.product_shift);

    // The integer Hadamard grows values by sqrt(block) over the orthonormal one.
    const int32_t block = c.down_hadamard_block;
    l.down_in_wide = s.down_in.wide;
    RETURN_IF_ERROR(SiteRequantize(
        product_unit / std::sqrt(block), static_cast<double>(kProductLimit) * block,
        ChannelUnits(s.down_in, c.intermediate_size), s.down_in.wide, "down_in", &l.down_in));
    return WideLinear(w.down, s.down_in.scale, residual_unit(), "down_proj", &l.down_proj,
                      &l.down_requantize);
  }

  absl::Status QuantizeEmbedding() {
    model_.embedding = weights_.embedding.values;
    return WideMultipliers(weights_.embedding.steps, 1.0, residual_unit(), "embedding",
                           &model_.embedding_requantize);
  }

  absl::Status QuantizeHead() {
    RETURN_IF_ERROR(QuantizeNorm(scales_.head_in, "head_in", &model_.final_norm));
    return WideLinear(weights_.head, scales_.head_in.scale,
                      std::ldexp(1.0, -config().logit_fraction_bits), "head", &model_.head,
                      &model_.head_requantize);
  }

  const FloatModel& rotated_;
  const IntegerWeights& weights_;
  const Scales& scales_;
  const Ranges& ranges_;
  const FloatPrefix& prefix_;
  ThreadPool& pool_;
  IntegerModel model_;
};

}  // namespace

absl::StatusOr<IntegerModel> QuantizeModel(const FloatModel& rotated, const IntegerWeights& weights,
                                           const Scales& scales, const Ranges& ranges,
                                           const FloatPrefix& prefix, int32_t down_hadamard_block,
                                           bool qk_hadamard, ThreadPool& pool) {
  return Quantizer(rotated, weights, scales, ranges, prefix, down_hadamard_block, qk_hadamard, pool)
      .Run();
}

}  // namespace fixpoint
