#include "calibrator/quantize.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
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

// A multiplier for `ratio`. Small ones are rounded up: a weight step that is a little too large
// wastes range, one that is too small would clip the row.
int16_t NarrowMultiplier(double ratio, int32_t shift) {
  const double exact = std::ldexp(ratio, shift);
  const double rounded = exact < 64 ? std::ceil(exact) : std::nearbyint(exact);
  return static_cast<int16_t>(std::clamp(rounded, 1.0, kMaxInt16));
}

double MaxOf(const std::vector<float>& values) {
  return values.empty() ? 0 : *std::max_element(values.begin(), values.end());
}

// Rows of float weights seen through the scales of their input columns: element (r, c) counts as
// data[r][c] * column[c].
struct WeightRows {
  const Matrix* matrix;
  const std::vector<double>* column_scale = nullptr;  // relative to the site's scale; null: all 1
};

float ScaledWeight(const WeightRows& w, int64_t row, int64_t column) {
  const float value = w.matrix->row(row)[column];
  return w.column_scale ? static_cast<float>(value * (*w.column_scale)[column]) : value;
}

// Step of an int8 row: the clip with the least squared error among the row's maximum and a few
// values below it.
double RowStep(const WeightRows& w, int64_t row) {
  const int64_t depth = w.matrix->cols;
  float largest = 0;
  for (int64_t c = 0; c < depth; ++c)
    largest = std::max(largest, std::fabs(ScaledWeight(w, row, c)));
  if (largest == 0) return 1e-8;
  double best_step = largest / 127.0;
  double best_error = HUGE_VAL;
  for (const float factor : {1.0f, 0.95f, 0.9f, 0.85f, 0.8f}) {
    const float step = largest * factor / 127.0f;
    const float inverse = 1.0f / step;
    float error = 0;
    for (int64_t c = 0; c < depth; ++c) {
      const float x = ScaledWeight(w, row, c);
      const float q = std::clamp(std::nearbyintf(x * inverse), -127.0f, 127.0f);
      error += (x - q * step) * (x - q * step);
    }
    if (error < best_error) {
      best_error = error;
      best_step = step;
    }
  }
  return best_step;
}

void QuantizeRow(const WeightRows& w, int64_t row, double step, int8_t* out) {
  const float inverse = static_cast<float>(1.0 / step);
  for (int64_t c = 0; c < w.matrix->cols; ++c) {
    out[c] = static_cast<int8_t>(
        std::clamp(std::nearbyintf(ScaledWeight(w, row, c) * inverse), -127.0f, 127.0f));
  }
}

class Quantizer {
 public:
  Quantizer(const FloatModel& rotated, const Scales& scales, const Ranges& ranges,
            const FloatPrefix& prefix, int32_t down_hadamard_block, bool qk_hadamard,
            ThreadPool& pool)
      : rotated_(rotated), scales_(scales), ranges_(ranges), prefix_(prefix), pool_(pool) {
    const FloatConfig& f = rotated.config;
    ModelConfig& c = model().config;
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
    model().prefix_token_ids = prefix.token_ids;
  }

  absl::StatusOr<QuantizedModel> Run() {
    RETURN_IF_ERROR(ChooseFixedPoints());
    FillRope();
    RETURN_IF_ERROR(QuantizeEmbedding());
    model().layers.resize(rotated_.layers.size());
    result_.steps.layers.resize(rotated_.layers.size());
    for (size_t i = 0; i < rotated_.layers.size(); ++i) {
      RETURN_IF_ERROR(Annotate(QuantizeAttention(i), absl::StrCat("layer ", i)));
      RETURN_IF_ERROR(Annotate(QuantizeMlp(i), absl::StrCat("layer ", i)));
    }
    RETURN_IF_ERROR(QuantizeHead());
    return std::move(result_);
  }

 private:
  IntegerModel& model() { return result_.model; }
  const ModelConfig& config() const { return result_.model.config; }
  double residual_unit() const { return std::ldexp(1.0, -config().residual_fraction_bits); }

  absl::Status ChooseFixedPoints() {
    ModelConfig& c = model().config;
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
    model().rope_cos.resize(static_cast<size_t>(c.max_position_embeddings) * half);
    model().rope_sin.resize(model().rope_cos.size());
    pool_.ParallelFor(c.max_position_embeddings, 64, [&](int64_t begin, int64_t end, int) {
      for (int64_t position = begin; position < end; ++position) {
        for (int32_t i = 0; i < half; ++i) {
          const double angle = position * rotated_.rope_inverse_frequency[i];
          model().rope_cos[position * half + i] =
              static_cast<int16_t>(std::nearbyint(16384 * std::cos(angle)));
          model().rope_sin[position * half + i] =
              static_cast<int16_t>(std::nearbyint(16384 * std::sin(angle)));
        }
      }
    });
  }

  // RMSNorm that feeds `site`. Sets *scale to the site's exact scale, which the rounded multiplier
  // decides.
  absl::Status QuantizeNorm(const LinearSite& site, const std::string& what, Norm* norm,
                            double* scale) {
    const ModelConfig& c = config();
    // A normalised value is at most sqrt(hidden), and t = value * 2^fraction_bits / sqrt(hidden). t
    // should reach 32767 just above the site's clip: finest steps, and what saturates earlier would
    // have been clipped anyway.
    const double clip = 127.5 * site.scale / std::sqrt(c.hidden_size);
    norm->fraction_bits = 30;
    while (norm->fraction_bits > 8 && std::ldexp(clip, norm->fraction_bits) > kMaxInt16)
      --norm->fraction_bits;
    const double ratio = std::sqrt(c.hidden_size) / (std::ldexp(site.scale, norm->fraction_bits)) *
                         (site.wide ? 256 : 1);
    ASSIGN_OR_RETURN(norm->k, MultiplierShift(ratio, what));
    const int16_t multiplier = NarrowMultiplier(ratio, norm->k);
    norm->wide = site.wide;
    norm->multipliers.assign(c.hidden_size, multiplier);
    *scale = site.scale * ratio / std::ldexp(multiplier, -norm->k);
    return absl::OkStatus();
  }

  // Int8 weights for given steps, appended to `linear`.
  void AppendRows(const WeightRows& w, const std::vector<double>& steps, LinearWeights* linear) {
    const int64_t first = linear->outputs;
    linear->depth = static_cast<int32_t>(w.matrix->cols);
    linear->outputs += static_cast<int32_t>(w.matrix->rows);
    linear->weights.resize(static_cast<size_t>(linear->outputs) * linear->depth);
    pool_.ParallelFor(w.matrix->rows, 16, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) {
        QuantizeRow(w, r, steps[r], linear->weights.data() + (first + r) * linear->depth);
      }
    });
  }

  std::vector<double> RowSteps(const WeightRows& w) {
    std::vector<double> steps(w.matrix->rows);
    pool_.ParallelFor(w.matrix->rows, 16, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) steps[r] = RowStep(w, r);
    });
    return steps;
  }

  // A projection whose accumulator goes through a narrow requantize to scale out_scale[row]. The
  // multipliers are rounded first and the weight steps derived from them, so the rounding costs
  // nothing.
  absl::Status AppendNarrowLinear(const WeightRows& w, const std::vector<float>& bias,
                                  const std::vector<float>& range, double in_scale,
                                  const std::vector<double>& out_scale, const std::string& what,
                                  LinearWeights* linear, NarrowRequantize* requantize,
                                  std::vector<double>* all_steps) {
    std::vector<double> steps = RowSteps(w);
    double largest_acc = 0;
    double largest_ratio = 0;
    for (size_t r = 0; r < steps.size(); ++r) {
      largest_acc = std::max(largest_acc, range[r] * kHeadroom / (in_scale * steps[r]));
      largest_ratio = std::max(largest_ratio, in_scale * steps[r] / out_scale[r]);
    }
    ASSIGN_OR_RETURN(requantize->p, SmallestShift(largest_acc, kMaxInt16, 0, 30, what));
    ASSIGN_OR_RETURN(requantize->k,
                     MultiplierShift(std::ldexp(largest_ratio, requantize->p), what));
    const int32_t shift = requantize->p + requantize->k;
    requantize->multipliers.resize(steps.size());
    for (size_t r = 0; r < steps.size(); ++r) {
      requantize->multipliers[r] = NarrowMultiplier(in_scale * steps[r] / out_scale[r], shift);
      steps[r] = std::ldexp(requantize->multipliers[r], -shift) * out_scale[r] / in_scale;
    }
    RETURN_IF_ERROR(AppendBias(bias, in_scale, steps, what, linear));
    AppendRows(w, steps, linear);
    all_steps->insert(all_steps->end(), steps.begin(), steps.end());
    return absl::OkStatus();
  }

  // Biases in accumulator units. Rows without one are zero when another projection of the same
  // group has them.
  absl::Status AppendBias(const std::vector<float>& bias, double in_scale,
                          const std::vector<double>& steps, const std::string& what,
                          LinearWeights* linear) {
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
  absl::Status WideMultipliers(const std::vector<double>& steps, double in_scale, double out_unit,
                               const std::string& what, WideRequantize* requantize) {
    const double largest = *std::max_element(steps.begin(), steps.end()) * in_scale / out_unit;
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
  absl::Status WideLinear(const WeightRows& w, double in_scale, double out_unit,
                          const std::string& what, LinearWeights* linear,
                          WideRequantize* requantize, std::vector<double>* steps) {
    *steps = RowSteps(w);
    RETURN_IF_ERROR(WideMultipliers(*steps, in_scale, out_unit, what, requantize));
    AppendRows(w, *steps, linear);
    return absl::OkStatus();
  }

  // Requantize of values of scale `from` (a power of the Hadamard's growth already divided out) to
  // the int8 scales to[head] of heads of `width` channels. Clipped values may saturate in the first
  // step, never others.
  absl::Status HeadRequantize(double from, const std::vector<double>& to, int32_t width,
                              const std::string& what, NarrowRequantize* requantize,
                              std::vector<double>* exact) {
    const double coarsest = *std::max_element(to.begin(), to.end());
    const double finest = *std::min_element(to.begin(), to.end());
    ASSIGN_OR_RETURN(requantize->p, SmallestShift(127.5 * coarsest / from, kMaxInt16, 0, 30, what));
    ASSIGN_OR_RETURN(requantize->k,
                     MultiplierShift(std::ldexp(from / finest, requantize->p), what));
    const int32_t shift = requantize->p + requantize->k;
    exact->clear();
    for (const double scale : to) {
      const int16_t multiplier = NarrowMultiplier(from / scale, shift);
      requantize->multipliers.insert(requantize->multipliers.end(), width, multiplier);
      exact->push_back(from / std::ldexp(multiplier, -shift));
    }
    return absl::OkStatus();
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
    const LayerScales& s = scales_.layers[i];
    const LayerRanges& r = ranges_.layers[i];
    ModelLayer& l = model().layers[i];
    WeightSteps::Layer& steps = result_.steps.layers[i];
    const double growth =
        c.qk_hadamard ? 1 / std::sqrt(c.head_dim) : 1;  // the integer Hadamard is not scaled

    double x_scale = 0;
    RETURN_IF_ERROR(QuantizeNorm(s.attn_in, "attn_in", &l.attn_norm, &x_scale));
    const double q16 = kHeadroom * std::max(MaxOf(r.q_out), MaxOf(r.q_rope)) / kMaxInt16;
    const double k16 = kHeadroom * std::max(MaxOf(r.k_out), MaxOf(r.k_rope)) / kMaxInt16;
    RETURN_IF_ERROR(AppendNarrowLinear({&f.q_proj}, f.q_bias, r.q_out, x_scale,
                                       std::vector<double>(f.q_proj.rows, q16), "q_proj", &l.qkv,
                                       &l.q_before, &steps.qkv));
    RETURN_IF_ERROR(AppendNarrowLinear({&f.k_proj}, f.k_bias, r.k_out, x_scale,
                                       std::vector<double>(f.k_proj.rows, k16), "k_proj", &l.qkv,
                                       &l.k_before, &steps.qkv));
    std::vector<double> v_scale;
    for (const double scale : s.v) v_scale.insert(v_scale.end(), c.head_dim, scale);
    RETURN_IF_ERROR(AppendNarrowLinear({&f.v_proj}, f.v_bias, r.v_out, x_scale, v_scale, "v_proj",
                                       &l.qkv, &l.v, &steps.qkv));
    if (!l.qkv.bias.empty()) l.qkv.bias.resize(l.qkv.outputs);

    std::vector<double> q_scale, k_scale;
    RETURN_IF_ERROR(HeadRequantize(q16 * growth, s.q, c.head_dim, "q", &l.q_after, &q_scale));
    RETURN_IF_ERROR(HeadRequantize(k16 * growth, s.k, c.head_dim, "k", &l.k_after, &k_scale));
    RETURN_IF_ERROR(ScoreScales(q_scale, k_scale, &l.scores));
    StorePrefix(i, k_scale, s.v);

    const std::vector<double> column = AttentionOutput(s, &l);
    if (column.empty())
      return absl::OutOfRangeError(
          absl::StrCat("o_in: scale ", s.o_in.scale, " cannot be represented"));
    return WideLinear({&f.o_proj, &column}, s.o_in.scale, residual_unit(), "o_proj", &l.o_proj,
                      &l.o_requantize, &steps.o_proj);
  }

  // The attention output has 128 steps in one step of v. Heads with small v scales get small
  // multipliers; what their rounding changes is returned per column, relative to the site's scale,
  // and folded into o_proj. Empty: out of range.
  std::vector<double> AttentionOutput(const LayerScales& s, ModelLayer* layer) {
    const ModelConfig& c = config();
    const int32_t group = c.num_attention_heads / c.num_key_value_heads;
    const double steps = 128.0 / (s.o_in.wide ? 256 : 1);
    const double largest = *std::max_element(s.v.begin(), s.v.end()) / (steps * s.o_in.scale);
    const absl::StatusOr<int32_t> k = MultiplierShift(largest, "o_in");
    if (!k.ok()) return {};
    layer->attn_out.p = 0;
    layer->attn_out.k = *k;
    layer->attn_out_wide = s.o_in.wide;
    std::vector<double> column;
    for (int32_t h = 0; h < c.num_attention_heads; ++h) {
      const double ratio = s.v[h / group] / (steps * s.o_in.scale);
      const int16_t multiplier = NarrowMultiplier(ratio, *k);
      layer->attn_out.multipliers.insert(layer->attn_out.multipliers.end(), c.head_dim, multiplier);
      column.insert(column.end(), c.head_dim, ratio / std::ldexp(multiplier, -*k));
    }
    return column;
  }

  void StorePrefix(size_t i, const std::vector<double>& k_scale,
                   const std::vector<double>& v_scale) {
    const int64_t per_head = int64_t{prefix_.size()} * config().head_dim;
    ModelLayer& l = model().layers[i];
    const auto quantize = [per_head](const std::vector<float>& from,
                                     const std::vector<double>& scale, std::vector<int16_t>* to) {
      for (size_t j = 0; j < from.size(); ++j) {
        const double q = std::nearbyint(from[j] / scale[j / per_head]);
        to->push_back(static_cast<int16_t>(std::clamp(q, -kMaxInt16, kMaxInt16)));
      }
    };
    if (per_head == 0) return;
    quantize(prefix_.layers[i].k, k_scale, &l.prefix_k);
    quantize(prefix_.layers[i].v, v_scale, &l.prefix_v);
  }

  absl::Status QuantizeMlp(size_t i) {
    const ModelConfig& c = config();
    const FloatLayer& f = rotated_.layers[i];
    const LayerScales& s = scales_.layers[i];
    const LayerRanges& r = ranges_.layers[i];
    ModelLayer& l = model().layers[i];
    WeightSteps::Layer& steps = result_.steps.layers[i];

    double x_scale = 0;
    RETURN_IF_ERROR(QuantizeNorm(s.mlp_in, "mlp_in", &l.mlp_norm, &x_scale));
    const double gate16 = kHeadroom * MaxOf(r.gate_out) / kMaxInt16;
    const double up16 = kHeadroom * MaxOf(r.up_out) / kMaxInt16;
    RETURN_IF_ERROR(AppendNarrowLinear({&f.gate_proj}, {}, r.gate_out, x_scale,
                                       std::vector<double>(f.gate_proj.rows, gate16), "gate_proj",
                                       &l.gate_up, &l.gate, &steps.gate_up));
    RETURN_IF_ERROR(AppendNarrowLinear({&f.up_proj}, {}, r.up_out, x_scale,
                                       std::vector<double>(f.up_proj.rows, up16), "up_proj",
                                       &l.gate_up, &l.up, &steps.gate_up));

    ASSIGN_OR_RETURN(l.sigmoid_shift, MultiplierShift(gate16 * 2048, "sigmoid"));
    l.sigmoid_multiplier = NarrowMultiplier(gate16 * 2048, l.sigmoid_shift);
    ASSIGN_OR_RETURN(l.product_shift, SmallestShift(kHeadroom * r.product / (gate16 * up16),
                                                    kProductLimit, 1, 30, "product"));
    const double product_unit = std::ldexp(gate16 * up16, l.product_shift);

    // The integer Hadamard grows values by sqrt(block) over the orthonormal one.
    const double from =
        product_unit / std::sqrt(c.down_hadamard_block) * (s.down_in.wide ? 256 : 1);
    const double clip_from = product_unit / std::sqrt(c.down_hadamard_block);
    ASSIGN_OR_RETURN(l.down_in.p, SmallestShift(127.5 * s.down_in.scale / clip_from, kMaxInt16, 0,
                                                30, "down_in"));
    ASSIGN_OR_RETURN(l.down_in.k,
                     MultiplierShift(std::ldexp(from / s.down_in.scale, l.down_in.p), "down_in"));
    const int32_t shift = l.down_in.p + l.down_in.k;
    const int16_t multiplier = NarrowMultiplier(from / s.down_in.scale, shift);
    l.down_in.multipliers.assign(c.intermediate_size, multiplier);
    l.down_in_wide = s.down_in.wide;
    const double down_scale = from / std::ldexp(multiplier, -shift);
    return WideLinear({&f.down_proj}, down_scale, residual_unit(), "down_proj", &l.down_proj,
                      &l.down_requantize, &steps.down_proj);
  }

  absl::Status QuantizeEmbedding() {
    const WeightRows w{&rotated_.embedding};
    std::vector<double>& steps = result_.steps.embedding;
    steps = RowSteps(w);
    RETURN_IF_ERROR(
        WideMultipliers(steps, 1.0, residual_unit(), "embedding", &model().embedding_requantize));
    LinearWeights rows;
    AppendRows(w, steps, &rows);
    model().embedding = std::move(rows.weights);
    return absl::OkStatus();
  }

  absl::Status QuantizeHead() {
    double x_scale = 0;
    RETURN_IF_ERROR(QuantizeNorm(scales_.head_in, "head_in", &model().final_norm, &x_scale));
    return WideLinear({&rotated_.head_or_embedding()}, x_scale,
                      std::ldexp(1.0, -config().logit_fraction_bits), "head", &model().head,
                      &model().head_requantize, &result_.steps.head);
  }

  const FloatModel& rotated_;
  const Scales& scales_;
  const Ranges& ranges_;
  const FloatPrefix& prefix_;
  ThreadPool& pool_;
  QuantizedModel result_;
};

}  // namespace

absl::StatusOr<QuantizedModel> QuantizeModel(const FloatModel& rotated, const Scales& scales,
                                             const Ranges& ranges, const FloatPrefix& prefix,
                                             int32_t down_hadamard_block, bool qk_hadamard,
                                             ThreadPool& pool) {
  if (scales.layers.size() != rotated.layers.size() ||
      ranges.layers.size() != rotated.layers.size() ||
      (prefix.size() > 0 && prefix.layers.size() != rotated.layers.size())) {
    return absl::InvalidArgumentError("scales, ranges and prefix must have one entry per layer");
  }
  return Quantizer(rotated, scales, ranges, prefix, down_hadamard_block, qk_hadamard, pool).Run();
}

}  // namespace fixpoint
