#include "calibrator/float_forward.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "calibrator/vector_loops.h"

namespace fixpoint {
namespace {

constexpr int64_t kRowGrain = 16;

void Reserve(AlignedBuffer& buffer, int64_t bytes) {
  if (static_cast<int64_t>(buffer.size_bytes()) < bytes)
    buffer = AlignedBuffer(static_cast<size_t>(bytes));
}

}  // namespace

FloatForward::FloatForward(const ForwardModel& model, FloatGemm& gemm, ThreadPool& pool)
    : model_(model),
      config_(model.config()),
      gemm_(gemm),
      pool_(pool),
      attention_(gemm, pool),
      score_units_(config_.num_attention_heads),
      v_units_(config_.num_key_value_heads) {
  const int64_t widest = std::max({config_.hidden_size, config_.intermediate_size,
                                   config_.num_attention_heads * config_.head_dim});
  for (int i = 0; i < pool.thread_count(); ++i) row_.emplace_back(widest * sizeof(float));
}

FloatForward::~FloatForward() { gemm_.ForgetWeights(); }

template <typename F>
void FloatForward::ForRows(F&& fn) {
  pool_.ParallelFor(rows(), kRowGrain, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t row = begin; row < end; ++row) fn(row, thread);
  });
}

void FloatForward::Run(const ForwardBatch& batch, const ForwardOptions& options) {
  Prepare(batch, options);
  const int32_t first_layer = Resume();
  if (first_layer == 0) EmbedTokens();
  for (int32_t layer = first_layer; layer < config_.num_hidden_layers; ++layer) {
    Record(layer);
    RunLayer(layer);
  }
  FinishLayers();
}

void FloatForward::Start(const ForwardBatch& batch, const ForwardOptions& options) {
  Prepare(batch, options);
  EmbedTokens();
}

void FloatForward::RunLayer(int32_t layer) {
  kv_layer_ = options_.kv ? layer : 0;
  AttentionInput(layer);
  ProjectQkv(layer);
  RotateHeads(layer);
  Attend(layer);
  AttentionOutputInput(layer);
  AddAttentionOutput(layer);
  MlpInput(layer);
  ProjectGateUp(layer);
  SwiGlu(layer);
  AddMlpOutput(layer);
}

void FloatForward::FinishLayers() {
  HeadInput();
  if (options_.statistics) options_.statistics->EndBatch(rows());
}

void FloatForward::Prepare(const ForwardBatch& batch, const ForwardOptions& options) {
  CHECK(batch.sequences > 0 && batch.tokens > 0) << "empty batch";
  CHECK(options.scales == nullptr || !options.round || model_.kind == WeightKind::kInt8)
      << "static sites need int8 weights";
  CHECK(!options.dynamic_int8 ||
        (options.scales == nullptr && options.kv == nullptr && model_.kind == WeightKind::kInt8));
  CHECK(batch.start == 0 || options.kv != nullptr) << "earlier positions need a KV buffer";
  batch_ = batch;
  options_ = options;
  const FloatConfig& c = config_;
  const int64_t n = rows();
  const int64_t q_width = int64_t{c.num_attention_heads} * c.head_dim;
  const int64_t kv_width = int64_t{c.num_key_value_heads} * c.head_dim;
  Reserve(residual_, n * c.hidden_size * 4);
  Reserve(linear_out_, n * c.hidden_size * 4);
  Reserve(qkv_, n * (q_width + 2 * kv_width) * 4);
  Reserve(q_heads_, n * q_width * 4);
  Reserve(attention_out_, n * q_width * 4);
  Reserve(gate_, n * c.intermediate_size * 4);
  Reserve(up_, n * c.intermediate_size * 4);
  const int64_t widest = static_cast<int64_t>(row_[0].size_bytes()) / 4;
  Reserve(input_.hi, n * widest * 4);
  Reserve(input_.lo, n * widest * 2);
  if (options.kv) {
    kv_ = options.kv;
  } else {
    if (window_kv_.capacity() < batch.tokens || window_kv_.sequences() < batch.sequences ||
        window_kv_.type() != AttentionType()) {
      window_kv_ = KvBuffer(AttentionType(), 1, batch.sequences, c.num_key_value_heads,
                            batch.tokens, c.head_dim);
    }
    kv_ = &window_kv_;
  }
  FillRopeTables(prefix_tokens() + batch.start, batch.tokens);
}

void LayerTape::Reserve(const FloatConfig& c, int64_t rows) {
  const int64_t q_width = int64_t{c.num_attention_heads} * c.head_dim;
  const int64_t kv_width = int64_t{c.num_key_value_heads} * c.head_dim;
  for (AlignedBuffer LayerTape::*hidden :
       {&LayerTape::attn_in, &LayerTape::middle, &LayerTape::mlp_in, &LayerTape::head_in}) {
    fixpoint::Reserve(this->*hidden, rows * c.hidden_size * 4);
  }
  for (AlignedBuffer LayerTape::*wide : {&LayerTape::gate, &LayerTape::up, &LayerTape::down_in})
    fixpoint::Reserve(this->*wide, rows * c.intermediate_size * 4);
  fixpoint::Reserve(attention_out, rows * q_width * 4);
  fixpoint::Reserve(o_in, rows * q_width * 4);
  fixpoint::Reserve(heads, rows * (q_width + 2 * kv_width) * 4);
}

void FloatForward::Record(int32_t layer) {
  if (options_.record == nullptr || layer % options_.record->stride != 0) return;
  std::vector<std::vector<float>>& residual = options_.record->residual;
  residual.resize(
      std::max<size_t>(residual.size(), static_cast<size_t>(layer / options_.record->stride) + 1));
  const float* h = residual_.as<float>();
  residual[layer / options_.record->stride].assign(h, h + rows() * config_.hidden_size);
}

// The layer to start with; its input is in the residual stream unless it is layer 0.
int32_t FloatForward::Resume() {
  if (options_.resume == nullptr) return 0;
  const std::vector<std::vector<float>>& residual = options_.resume->residual;
  const int32_t stride = options_.resume->stride;
  const int32_t index =
      std::min(options_.first_layer / stride, static_cast<int32_t>(residual.size()) - 1);
  if (index <= 0) return 0;
  CHECK_EQ(static_cast<int64_t>(residual[index].size()), rows() * config_.hidden_size);
  std::copy(residual[index].begin(), residual[index].end(), residual_.as<float>());
  return index * stride;
}

void FloatForward::FillRopeTables(int32_t first_position, int32_t count) {
  const int32_t half = config_.head_dim / 2;
  if (rope_first_ == first_position && rope_cos_.size() >= static_cast<size_t>(count) * half)
    return;
  rope_first_ = first_position;
  rope_cos_.resize(static_cast<size_t>(count) * half);
  rope_sin_.resize(rope_cos_.size());
  for (int32_t i = 0; i < count; ++i) {
    for (int32_t j = 0; j < half; ++j) {
      const double angle = (first_position + i) * model_.source->rope_inverse_frequency[j];
      rope_cos_[static_cast<size_t>(i) * half + j] = static_cast<float>(std::cos(angle));
      rope_sin_[static_cast<size_t>(i) * half + j] = static_cast<float>(std::sin(angle));
    }
  }
}

void FloatForward::EmbedTokens() {
  const int64_t hidden = config_.hidden_size;
  ForRows([&](int64_t row, int thread) {
    const int32_t id = batch_.token_ids[row];
    CHECK(id >= 0 && id < config_.vocab_size) << "token id " << id;
    float* h = residual_.as<float>() + row * hidden;
    const float* from = model_.source->embedding.row(id);
    if (model_.embedding_steps.empty()) {
      std::memcpy(h, from, hidden * sizeof(float));
    } else {
      const float step = model_.embedding_steps[id];
      Vec().quantize(from, hidden, 1 / step, 127, step, h);
    }
    if (options_.statistics) options_.statistics->AddResidual(Vec().abs_max(h, hidden), thread);
  });
}

const LinearSite* FloatForward::Site(int32_t layer, LayerSite site) const {
  return options_.scales ? &options_.scales->layers[layer].linear(site) : nullptr;
}

// Decides how the rows of the next linear input are stored.
void FloatForward::StartSite(const LinearSite* site, const ForwardLinear& consumer) {
  const bool rounds = site != nullptr && options_.round;
  input_.type = consumer.type;
  input_.depth = consumer.depth;
  input_.factor = rounds ? static_cast<float>(site->scale) : 1;
  input_.row_factors.resize(options_.dynamic_int8 ? rows() : 0);
  input_.two_planes = consumer.type == GemmType::kBf16 && !options_.dynamic_int8 &&
                      (rounds ? site->wide : options_.precise_activations);
}

// One row of the linear input: integers in units of the site's scale (q, or q / 256 at an int16
// site), or the value itself. x is multiplied by the site's gain in place.
void FloatForward::WriteSiteRow(const LinearSite* site, int64_t row, float* x,
                                AlignedBuffer LayerTape::*tape, int32_t layer, LayerSite kind,
                                int thread) {
  const int64_t n = input_.depth;
  if (site != nullptr && !site->gain.empty()) Vec().multiply(x, site->gain.data(), n);
  if (options_.statistics) {
    if (layer == config_.num_hidden_layers)
      options_.statistics->AddHeadIn(x, n, thread);
    else
      options_.statistics->AddLinear(layer, kind, x, n, thread);
  }
  if (options_.tape)
    std::memcpy((options_.tape->*tape).as<float>() + row * n, x, n * sizeof(float));
  const bool rounds = site != nullptr && options_.round;
  float inverse = rounds ? static_cast<float>(1 / site->scale) : 1;
  if (options_.dynamic_int8) {
    const float scale = std::max(Vec().abs_max(x, n), 1e-20f) / 127;
    input_.row_factors[row] = scale;
    inverse = 1 / scale;
  }
  const bool narrow = options_.dynamic_int8 || (rounds && !site->wide);
  if (input_.type == GemmType::kFloat32) {
    float* out = input_.hi.as<float>() + row * n;
    if (narrow)
      Vec().quantize(x, n, inverse, 127, 1, out);
    else if (rounds)
      Vec().quantize(x, n, inverse * 256, 32512, 1.0f / 256, out);
    else
      std::memcpy(out, x, n * sizeof(float));
    return;
  }
  uint16_t* hi = input_.hi.as<uint16_t>() + row * n;
  uint16_t* lo = input_.lo.as<uint16_t>() + row * n;
  if (narrow)
    Vec().quantize_bf16(x, n, inverse, 127, hi);
  else if (rounds)
    Vec().quantize_wide_bf16(x, n, inverse * 256, hi, lo);
  else if (input_.two_planes)
    Vec().split_bf16(x, n, hi, lo);
  else
    Vec().to_bf16(x, n, hi);
}

void FloatForward::EndSite(int32_t layer, LayerSite site) {
  if (options_.observer == nullptr) return;
  options_.observer->OnSite({.layer = layer,
                             .site = site,
                             .type = input_.type,
                             .rows = rows(),
                             .depth = input_.depth,
                             .hi = input_.hi.data(),
                             .lo = input_.two_planes ? input_.lo.data() : nullptr});
}

// y = (hi + lo) * w^T for rows [begin, begin + rows) of the linear input, before the factors that
// ScaleRow brings in.
void FloatForward::Multiply(const ForwardLinear& w, int64_t begin, int64_t rows, float* y,
                            int64_t y_stride) {
  const int64_t offset = begin * input_.depth * BytesOf(input_.type);
  GemmArgs args{.type = input_.type,
                .rows = rows,
                .outputs = w.outputs,
                .depth = w.depth,
                .x = input_.hi.data() + offset,
                .x_stride = input_.depth,
                .w = w.values(),
                .w_stride = w.depth,
                .y = y,
                .y_stride = y_stride,
                .keep_w = true};
  gemm_.Multiply(args);
  if (!input_.two_planes) return;
  args.x = input_.lo.data() + offset;
  args.accumulate = true;
  gemm_.Multiply(args);
}

void FloatForward::ScaleRow(const ForwardLinear& w, int64_t row, float* y) const {
  const float factor = input_.row_factors.empty() ? input_.factor : input_.row_factors[row];
  Vec().scale_bias(y, w.outputs, factor, w.steps.empty() ? nullptr : w.steps.data(), w.bias);
}

void FloatForward::AttentionInput(int32_t layer) {
  const LinearSite* site = Site(layer, LayerSite::kAttnIn);
  StartSite(site, model_.layers[layer].q);
  ForRows([&](int64_t row, int thread) {
    float* x = row_[thread].as<float>();
    Vec().rms_norm(residual_.as<float>() + row * config_.hidden_size,
                   model_.layers[layer].attn_norm, config_.hidden_size,
                   static_cast<float>(config_.rms_norm_eps), x);
    WriteSiteRow(site, row, x, &LayerTape::attn_in, layer, LayerSite::kAttnIn, thread);
  });
  EndSite(layer, LayerSite::kAttnIn);
}

void FloatForward::ProjectQkv(int32_t layer) {
  const ForwardLayer& l = model_.layers[layer];
  const int64_t stride = l.q.outputs + l.k.outputs + l.v.outputs;
  float* qkv = qkv_.as<float>();
  Multiply(l.q, 0, rows(), qkv, stride);
  Multiply(l.k, 0, rows(), qkv + l.q.outputs, stride);
  Multiply(l.v, 0, rows(), qkv + l.q.outputs + l.k.outputs, stride);
}

void FloatForward::RotateHeads(int32_t layer) {
  PreparePrefix(layer);
  ForRows([&](int64_t row, int thread) { RotateRow(layer, row, thread); });
}

// One token's q, k and v: RoPE, Hadamard, rounding, and into the places where attention wants them.
void FloatForward::RotateRow(int32_t layer, int64_t row, int thread) {
  using Heads = StatisticsCollector::Heads;
  const ForwardLayer& l = model_.layers[layer];
  const int32_t d = config_.head_dim;
  const int32_t sequence = static_cast<int32_t>(row / batch_.tokens);
  const int32_t token = static_cast<int32_t>(row % batch_.tokens);
  float* q = qkv_.as<float>() + row * (l.q.outputs + l.k.outputs + l.v.outputs);
  float* k = q + l.q.outputs;
  float* v = k + l.k.outputs;
  ScaleRow(l.q, row, q);
  ScaleRow(l.k, row, k);
  ScaleRow(l.v, row, v);
  LayerRanges* ranges =
      options_.statistics ? &options_.statistics->layer_ranges(layer, thread) : nullptr;
  if (ranges) {
    Vec().abs_max_into(q, l.q.outputs, ranges->q_out.data());
    Vec().abs_max_into(k, l.k.outputs, ranges->k_out.data());
    Vec().abs_max_into(v, l.v.outputs, ranges->v_out.data());
  }
  const float* cos = rope_cos_.data() + int64_t{token} * (d / 2);
  const float* sin = rope_sin_.data() + int64_t{token} * (d / 2);
  const auto rotate = [&](float* x, float* largest) {
    Vec().rope(x, cos, sin, d / 2);
    if (largest) *largest = std::max(*largest, Vec().abs_max(x, d));
    if (model_.online.qk_hadamard) Vec().hadamard(x, d, d);
  };
  const LayerScales* s = options_.scales ? &options_.scales->layers[layer] : nullptr;
  float* tape = options_.tape ? options_.tape->heads.as<float>() +
                                    row * (l.q.outputs + l.k.outputs + l.v.outputs)
                              : nullptr;
  // Gain, tape, rounding: head h of a tensor whose first column is `column` of the row.
  const auto store = [&](Heads tensor, float* x, int32_t h, int64_t column,
                         const std::vector<float>* gain, const std::vector<double>* scale,
                         void* out) {
    if (gain && !gain->empty()) Vec().multiply(x, gain->data() + int64_t{h} * d, d);
    if (ranges) options_.statistics->AddHead(layer, tensor, h, x, d, thread);
    if (tape) std::memcpy(tape + column + int64_t{h} * d, x, d * sizeof(float));
    StoreHead(x, Rounds() ? (*scale)[h] : 0, out);
  };
  const AttentionShape shape{.sequences = batch_.sequences,
                             .tokens = batch_.tokens,
                             .heads = config_.num_attention_heads,
                             .kv_heads = config_.num_key_value_heads,
                             .head_dim = d};
  for (int32_t h = 0; h < config_.num_attention_heads; ++h, q += d) {
    rotate(q, ranges ? &ranges->q_rope[h] : nullptr);
    store(Heads::kQ, q, h, 0, s ? &s->q_gain : nullptr, s ? &s->q : nullptr,
          q_heads_.data() + shape.QOffset(sequence, token, h) * BytesOf(AttentionType()));
  }
  for (int32_t h = 0; h < config_.num_key_value_heads; ++h, k += d, v += d) {
    rotate(k, ranges ? &ranges->k_rope[h] : nullptr);
    store(Heads::kK, k, h, l.q.outputs, s ? &s->k_gain : nullptr, s ? &s->k : nullptr,
          kv_->k(kv_layer_, sequence, h, batch_.start + token));
    store(Heads::kV, v, h, l.q.outputs + l.k.outputs, s ? &s->v_gain : nullptr, s ? &s->v : nullptr,
          kv_->v(kv_layer_, sequence, h, batch_.start + token));
  }
}

// scale 0: the value itself.
void FloatForward::StoreHead(const float* x, double scale, void* out) {
  const int32_t d = config_.head_dim;
  if (options_.dynamic_int8) {
    const float own = std::max(Vec().abs_max(x, d), 1e-20f) / 127;
    Vec().quantize(x, d, 1 / own, 127, own, static_cast<float*>(out));
  } else if (AttentionType() == GemmType::kFloat32) {
    if (scale == 0)
      std::memcpy(out, x, d * sizeof(float));
    else
      Vec().quantize(x, d, static_cast<float>(1 / scale), 127, 1, static_cast<float*>(out));
  } else {
    if (scale == 0)
      Vec().to_bf16(x, d, static_cast<uint16_t*>(out));
    else
      Vec().quantize_bf16(x, d, static_cast<float>(1 / scale), 127, static_cast<uint16_t*>(out));
  }
}

// Units of the layer's scores and values, and the prefix in them.
void FloatForward::PreparePrefix(int32_t layer) {
  const LayerScales* s = options_.scales ? &options_.scales->layers[layer] : nullptr;
  const int32_t group = config_.num_attention_heads / config_.num_key_value_heads;
  for (int32_t h = 0; h < config_.num_attention_heads; ++h) {
    score_units_[h] = static_cast<float>((Rounds() ? s->q[h] * s->k[h / group] : 1) /
                                         std::sqrt(config_.head_dim));
  }
  for (int32_t h = 0; h < config_.num_key_value_heads; ++h)
    v_units_[h] = static_cast<float>(Rounds() ? s->v[h] : 1);
  if (prefix_tokens() == 0) return;
  prefix_k_ = options_.prefix->layers[layer].k;
  prefix_v_ = options_.prefix->layers[layer].v;
  if (s == nullptr) return;
  const auto convert = [&](const std::vector<float>& gain, const std::vector<double>& scale,
                           std::vector<float>* x) {
    const int32_t d = config_.head_dim;
    for (int32_t h = 0; h < config_.num_key_value_heads; ++h) {
      for (int32_t p = 0; p < prefix_tokens(); ++p) {
        float* at = x->data() + (int64_t{h} * prefix_tokens() + p) * d;
        if (!gain.empty()) Vec().multiply(at, gain.data() + int64_t{h} * d, d);
        if (options_.round)
          Vec().scale_bias(at, d, static_cast<float>(1 / scale[h]), nullptr, nullptr);
      }
    }
  };
  convert(s->k_gain, s->k, &prefix_k_);
  convert(s->v_gain, s->v, &prefix_v_);
}

FloatAttentionArgs FloatForward::attention_args(int32_t layer) {
  kv_layer_ = options_.kv ? layer : 0;
  FloatAttentionArgs args;
  args.shape = {.sequences = batch_.sequences,
                .tokens = batch_.tokens,
                .start = batch_.start,
                .heads = config_.num_attention_heads,
                .kv_heads = config_.num_key_value_heads,
                .head_dim = config_.head_dim,
                .prefix_tokens = prefix_tokens()};
  args.q = q_heads_.data();
  args.kv = kv_;
  args.kv_layer = kv_layer_;
  args.score_units = score_units_.data();
  args.v_units = v_units_.data();
  args.prefix_k = prefix_k_.data();
  args.prefix_v = prefix_v_.data();
  args.out = attention_out_.as<float>();
  return args;
}

void FloatForward::Attend(int32_t layer) { attention_.Run(attention_args(layer)); }

void FloatForward::AttentionOutputInput(int32_t layer) {
  const LinearSite* site = Site(layer, LayerSite::kOIn);
  StartSite(site, model_.layers[layer].o);
  ForRows([&](int64_t row, int thread) {
    float* x = attention_out_.as<float>() + row * input_.depth;
    if (options_.tape) {
      std::memcpy(options_.tape->attention_out.as<float>() + row * input_.depth, x,
                  input_.depth * sizeof(float));
    }
    WriteSiteRow(site, row, x, &LayerTape::o_in, layer, LayerSite::kOIn, thread);
  });
  EndSite(layer, LayerSite::kOIn);
}

void FloatForward::AddAttentionOutput(int32_t layer) {
  AddToResidual(model_.layers[layer].o, &LayerRanges::o_out, layer);
  if (options_.tape) {
    ForRows([&](int64_t row, int) {
      const int64_t n = config_.hidden_size;
      std::memcpy(options_.tape->middle.as<float>() + row * n, residual_.as<float>() + row * n,
                  n * sizeof(float));
    });
  }
}

void FloatForward::AddToResidual(const ForwardLinear& w, std::vector<float> LayerRanges::*range,
                                 int32_t layer) {
  const int64_t hidden = config_.hidden_size;
  Multiply(w, 0, rows(), linear_out_.as<float>(), hidden);
  ForRows([&](int64_t row, int thread) {
    float* y = linear_out_.as<float>() + row * hidden;
    float* h = residual_.as<float>() + row * hidden;
    ScaleRow(w, row, y);
    Vec().add(h, y, hidden);
    if (options_.statistics) {
      Vec().abs_max_into(y, hidden,
                         (options_.statistics->layer_ranges(layer, thread).*range).data());
      options_.statistics->AddResidual(Vec().abs_max(h, hidden), thread);
    }
  });
}

void FloatForward::MlpInput(int32_t layer) {
  const LinearSite* site = Site(layer, LayerSite::kMlpIn);
  StartSite(site, model_.layers[layer].gate);
  ForRows([&](int64_t row, int thread) {
    float* x = row_[thread].as<float>();
    Vec().rms_norm(residual_.as<float>() + row * config_.hidden_size, model_.layers[layer].mlp_norm,
                   config_.hidden_size, static_cast<float>(config_.rms_norm_eps), x);
    WriteSiteRow(site, row, x, &LayerTape::mlp_in, layer, LayerSite::kMlpIn, thread);
  });
  EndSite(layer, LayerSite::kMlpIn);
}

void FloatForward::ProjectGateUp(int32_t layer) {
  const ForwardLayer& l = model_.layers[layer];
  Multiply(l.gate, 0, rows(), gate_.as<float>(), l.gate.outputs);
  Multiply(l.up, 0, rows(), up_.as<float>(), l.up.outputs);
}

void FloatForward::SwiGlu(int32_t layer) {
  const ForwardLayer& l = model_.layers[layer];
  const int64_t n = config_.intermediate_size;
  const LinearSite* site = Site(layer, LayerSite::kDownIn);
  // The factor of the gate and up products belongs to the site before: it is used up before
  // StartSite changes it.
  ForRows([&](int64_t row, int) {
    ScaleRow(l.gate, row, gate_.as<float>() + row * n);
    ScaleRow(l.up, row, up_.as<float>() + row * n);
    if (options_.tape) {
      std::memcpy(options_.tape->gate.as<float>() + row * n, gate_.as<float>() + row * n, n * 4);
      std::memcpy(options_.tape->up.as<float>() + row * n, up_.as<float>() + row * n, n * 4);
    }
  });
  StartSite(site, l.down);
  ForRows([&](int64_t row, int thread) {
    const float* gate = gate_.as<float>() + row * n;
    const float* up = up_.as<float>() + row * n;
    float* x = row_[thread].as<float>();
    Vec().silu_multiply(gate, up, n, x);
    if (options_.statistics) {
      LayerRanges& ranges = options_.statistics->layer_ranges(layer, thread);
      Vec().abs_max_into(gate, n, ranges.gate_out.data());
      Vec().abs_max_into(up, n, ranges.up_out.data());
      ranges.product = std::max(ranges.product, Vec().abs_max(x, n));
    }
    if (model_.online.down_block > 1) Vec().hadamard(x, n, model_.online.down_block);
    WriteSiteRow(site, row, x, &LayerTape::down_in, layer, LayerSite::kDownIn, thread);
  });
  EndSite(layer, LayerSite::kDownIn);
}

void FloatForward::AddMlpOutput(int32_t layer) {
  AddToResidual(model_.layers[layer].down, &LayerRanges::down_out, layer);
}

void FloatForward::HeadInput() {
  const LinearSite* site = options_.scales ? &options_.scales->head_in : nullptr;
  StartSite(site, model_.head);
  ForRows([&](int64_t row, int thread) {
    float* x = row_[thread].as<float>();
    Vec().rms_norm(residual_.as<float>() + row * config_.hidden_size,
                   model_.source->final_norm.data(), config_.hidden_size,
                   static_cast<float>(config_.rms_norm_eps), x);
    WriteSiteRow(site, row, x, &LayerTape::head_in, config_.num_hidden_layers, LayerSite::kAttnIn,
                 thread);
  });
  EndSite(config_.num_hidden_layers, LayerSite::kAttnIn);
}

void FloatForward::Logits(int64_t begin, int64_t end, float* out) {
  CHECK(begin >= 0 && begin <= end && end <= rows()) << begin << ", " << end;
  const int64_t vocab = config_.vocab_size;
  Multiply(model_.head, begin, end - begin, out, vocab);
  pool_.ParallelFor(end - begin, 1, [&](int64_t first, int64_t last, int thread) {
    for (int64_t row = first; row < last; ++row) {
      ScaleRow(model_.head, begin + row, out + row * vocab);
      if (options_.statistics)
        options_.statistics->AddLogits(Vec().abs_max(out + row * vocab, vocab), thread);
    }
  });
}

FloatPrefix FloatForward::ComputePrefix(absl::Span<const int32_t> token_ids) {
  CHECK(kv_type() == GemmType::kFloat32) << "the prefix is computed in float32";
  FloatPrefix prefix;
  prefix.token_ids.assign(token_ids.begin(), token_ids.end());
  const FloatConfig& c = config_;
  prefix.layers.resize(c.num_hidden_layers);
  if (token_ids.empty()) return prefix;
  const int32_t n = static_cast<int32_t>(token_ids.size());
  KvBuffer kv(GemmType::kFloat32, c.num_hidden_layers, 1, c.num_key_value_heads, n, c.head_dim);
  Run({.token_ids = token_ids.data(), .sequences = 1, .tokens = n}, {.kv = &kv});
  for (int32_t layer = 0; layer < c.num_hidden_layers; ++layer) {
    FloatPrefix::Layer& out = prefix.layers[layer];
    for (int32_t h = 0; h < c.num_key_value_heads; ++h) {
      const float* k = static_cast<const float*>(kv.k(layer, 0, h, 0));
      const float* v = static_cast<const float*>(kv.v(layer, 0, h, 0));
      out.k.insert(out.k.end(), k, k + int64_t{n} * c.head_dim);
      out.v.insert(out.v.end(), v, v + int64_t{n} * c.head_dim);
    }
  }
  return prefix;
}

}  // namespace fixpoint
