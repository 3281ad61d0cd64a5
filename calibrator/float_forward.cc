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
    kv_layer_ = options.kv ? layer : 0;
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
  HeadInput();
  if (options.statistics) options.statistics->EndBatch(rows());
}

void FloatForward::Prepare(const ForwardBatch& batch, const ForwardOptions& options) {
  CHECK(batch.sequences > 0 && batch.tokens > 0) << "empty batch";
  CHECK(options.scales == nullptr || model_.kind == WeightKind::kInt8)
      << "static sites need int8 weights";
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
    if (window_kv_.capacity() < batch.tokens || window_kv_.sequences() < batch.sequences) {
      window_kv_ =
          KvBuffer(kv_type(), 1, batch.sequences, c.num_key_value_heads, batch.tokens, c.head_dim);
    }
    kv_ = &window_kv_;
  }
  FillRopeTables(prefix_tokens() + batch.start, batch.tokens);
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
  input_.type = consumer.type;
  input_.depth = consumer.depth;
  input_.factor = site ? static_cast<float>(site->scale) : 1;
  input_.two_planes =
      consumer.type == GemmType::kBf16 && (site ? site->wide : options_.precise_activations);
}

// One row of the linear input: integers in units of the site's scale (q, or q / 256 at an int16
// site), or the value itself.
void FloatForward::WriteSiteRow(const LinearSite* site, int64_t row, const float* x) {
  const int64_t n = input_.depth;
  const float inverse = site ? static_cast<float>(1 / site->scale) : 1;
  if (input_.type == GemmType::kFloat32) {
    float* out = input_.hi.as<float>() + row * n;
    if (site == nullptr)
      std::memcpy(out, x, n * sizeof(float));
    else if (site->wide)
      Vec().quantize(x, n, inverse * 256, 32512, 1.0f / 256, out);
    else
      Vec().quantize(x, n, inverse, 127, 1, out);
    return;
  }
  uint16_t* hi = input_.hi.as<uint16_t>() + row * n;
  uint16_t* lo = input_.lo.as<uint16_t>() + row * n;
  if (site == nullptr) {
    if (input_.two_planes)
      Vec().split_bf16(x, n, hi, lo);
    else
      Vec().to_bf16(x, n, hi);
  } else if (site->wide) {
    Vec().quantize_wide_bf16(x, n, inverse * 256, hi, lo);
  } else {
    Vec().quantize_bf16(x, n, inverse, 127, hi);
  }
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
                .y_stride = y_stride};
  gemm_.Multiply(args);
  if (!input_.two_planes) return;
  args.x = input_.lo.data() + offset;
  args.accumulate = true;
  gemm_.Multiply(args);
}

void FloatForward::ScaleRow(const ForwardLinear& w, float* y) const {
  Vec().scale_bias(y, w.outputs, input_.factor, w.steps.empty() ? nullptr : w.steps.data(), w.bias);
}

void FloatForward::AttentionInput(int32_t layer) {
  const LinearSite* site = Site(layer, LayerSite::kAttnIn);
  StartSite(site, model_.layers[layer].q);
  ForRows([&](int64_t row, int thread) {
    float* x = row_[thread].as<float>();
    Vec().rms_norm(residual_.as<float>() + row * config_.hidden_size,
                   model_.layers[layer].attn_norm, config_.hidden_size,
                   static_cast<float>(config_.rms_norm_eps), x);
    if (options_.statistics)
      options_.statistics->AddLinear(layer, LayerSite::kAttnIn, x, config_.hidden_size, thread);
    WriteSiteRow(site, row, x);
  });
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
  ScaleRow(l.q, q);
  ScaleRow(l.k, k);
  ScaleRow(l.v, v);
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
  const AttentionShape shape{.sequences = batch_.sequences,
                             .tokens = batch_.tokens,
                             .heads = config_.num_attention_heads,
                             .kv_heads = config_.num_key_value_heads,
                             .head_dim = d};
  for (int32_t h = 0; h < config_.num_attention_heads; ++h, q += d) {
    rotate(q, ranges ? &ranges->q_rope[h] : nullptr);
    if (ranges) options_.statistics->AddHead(layer, Heads::kQ, h, q, d, thread);
    StoreHead(q, s ? s->q[h] : 0,
              q_heads_.data() + shape.QOffset(sequence, token, h) * BytesOf(kv_type()));
  }
  for (int32_t h = 0; h < config_.num_key_value_heads; ++h, k += d, v += d) {
    rotate(k, ranges ? &ranges->k_rope[h] : nullptr);
    if (ranges) {
      options_.statistics->AddHead(layer, Heads::kK, h, k, d, thread);
      options_.statistics->AddHead(layer, Heads::kV, h, v, d, thread);
    }
    StoreHead(k, s ? s->k[h] : 0, kv_->k(kv_layer_, sequence, h, batch_.start + token));
    StoreHead(v, s ? s->v[h] : 0, kv_->v(kv_layer_, sequence, h, batch_.start + token));
  }
}

// scale 0: the value itself.
void FloatForward::StoreHead(const float* x, double scale, void* out) {
  const int32_t d = config_.head_dim;
  if (kv_type() == GemmType::kFloat32) {
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
    score_units_[h] =
        static_cast<float>((s ? s->q[h] * s->k[h / group] : 1) / std::sqrt(config_.head_dim));
  }
  for (int32_t h = 0; h < config_.num_key_value_heads; ++h)
    v_units_[h] = static_cast<float>(s ? s->v[h] : 1);
  if (prefix_tokens() == 0) return;
  prefix_k_ = options_.prefix->layers[layer].k;
  prefix_v_ = options_.prefix->layers[layer].v;
  if (s == nullptr) return;
  const int64_t per_head = int64_t{prefix_tokens()} * config_.head_dim;
  for (size_t i = 0; i < prefix_k_.size(); ++i) {
    prefix_k_[i] /= static_cast<float>(s->k[i / per_head]);
    prefix_v_[i] /= static_cast<float>(s->v[i / per_head]);
  }
}

void FloatForward::Attend(int32_t) {
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
  attention_.Run(args);
}

void FloatForward::AttentionOutputInput(int32_t layer) {
  const LinearSite* site = Site(layer, LayerSite::kOIn);
  StartSite(site, model_.layers[layer].o);
  ForRows([&](int64_t row, int thread) {
    const float* x = attention_out_.as<float>() + row * input_.depth;
    if (options_.statistics)
      options_.statistics->AddLinear(layer, LayerSite::kOIn, x, input_.depth, thread);
    WriteSiteRow(site, row, x);
  });
}

void FloatForward::AddAttentionOutput(int32_t layer) {
  AddToResidual(model_.layers[layer].o, &LayerRanges::o_out, layer);
}

void FloatForward::AddToResidual(const ForwardLinear& w, std::vector<float> LayerRanges::*range,
                                 int32_t layer) {
  const int64_t hidden = config_.hidden_size;
  Multiply(w, 0, rows(), linear_out_.as<float>(), hidden);
  ForRows([&](int64_t row, int thread) {
    float* y = linear_out_.as<float>() + row * hidden;
    float* h = residual_.as<float>() + row * hidden;
    ScaleRow(w, y);
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
    if (options_.statistics)
      options_.statistics->AddLinear(layer, LayerSite::kMlpIn, x, config_.hidden_size, thread);
    WriteSiteRow(site, row, x);
  });
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
    ScaleRow(l.gate, gate_.as<float>() + row * n);
    ScaleRow(l.up, up_.as<float>() + row * n);
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
    if (options_.statistics)
      options_.statistics->AddLinear(layer, LayerSite::kDownIn, x, n, thread);
    WriteSiteRow(site, row, x);
  });
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
    if (options_.statistics) options_.statistics->AddHeadIn(x, config_.hidden_size, thread);
    WriteSiteRow(site, row, x);
  });
}

void FloatForward::Logits(int64_t begin, int64_t end, float* out) {
  CHECK(begin >= 0 && begin <= end && end <= rows()) << begin << ", " << end;
  const int64_t vocab = config_.vocab_size;
  Multiply(model_.head, begin, end - begin, out, vocab);
  pool_.ParallelFor(end - begin, 1, [&](int64_t first, int64_t last, int thread) {
    for (int64_t row = first; row < last; ++row) {
      ScaleRow(model_.head, out + row * vocab);
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
