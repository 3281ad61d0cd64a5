#include "calibrator/train/backward_pass.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "calibrator/vector_loops.h"

namespace fixpoint {
namespace {

// Rows are split into so many parts, each with its own float sums, whatever the number of threads:
// the same batch gives the same gradient.
constexpr int64_t kChunks = 16;

void Reserve(AlignedBuffer& buffer, int64_t bytes) {
  if (static_cast<int64_t>(buffer.size_bytes()) < bytes)
    buffer = AlignedBuffer(static_cast<size_t>(bytes));
}

}  // namespace

BackwardPass::BackwardPass(FloatForward& forward, const ParameterLayout& layout, FloatGemm& gemm,
                           ThreadPool& pool)
    : forward_(forward),
      model_(forward.model()),
      config_(model_.config()),
      layout_(layout),
      gemm_(gemm),
      pool_(pool),
      attention_(gemm, pool),
      q_units_(config_.num_attention_heads),
      k_units_(config_.num_key_value_heads),
      gradient_(layout.size()) {
  const int64_t widest =
      std::max({layout.Channels(LayerSite::kAttnIn), layout.Channels(LayerSite::kOIn),
                layout.Channels(LayerSite::kDownIn), layout.head_dim()});
  ones_.assign(widest, 1.0f);
}

void BackwardPass::Forward(const ForwardBatch& batch, const ForwardOptions& options, bool folded) {
  CHECK(options.scales != nullptr && options.kv == nullptr && batch.start == 0);
  batch_ = batch;
  options_ = options;
  options_.tape = nullptr;
  folded_ = folded;
  const int64_t hidden = config_.hidden_size;
  const int64_t bytes = rows() * hidden * static_cast<int64_t>(sizeof(float));
  const int64_t heads_width = layout_.all_heads() * layout_.head_dim();
  const int64_t wide = std::max<int64_t>(config_.intermediate_size, heads_width);
  checkpoints_.resize(config_.num_hidden_layers + 1);
  for (AlignedBuffer& checkpoint : checkpoints_) Reserve(checkpoint, bytes);
  tape_.Reserve(config_, rows());
  Reserve(d_residual_, bytes);
  Reserve(d_site_, rows() * std::max(hidden, layout_.Channels(LayerSite::kOIn)) * 4);
  Reserve(d_wide_, rows() * wide * 4);
  Reserve(d_wide2_, rows() * wide * 4);

  forward_.Start(batch, options_);
  rope_cos_ = forward_.rope_cos();
  rope_negative_sin_ = forward_.rope_sin();
  for (float& x : rope_negative_sin_) x = -x;
  const auto keep = [&](int32_t layer) {
    pool_.ParallelFor(rows(), 64, [&](int64_t begin, int64_t end, int) {
      std::memcpy(checkpoints_[layer].as<float>() + begin * hidden,
                  forward_.residual() + begin * hidden, (end - begin) * hidden * sizeof(float));
    });
  };
  for (int32_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
    keep(layer);
    forward_.RunLayer(layer);
  }
  keep(config_.num_hidden_layers);
  forward_.SetTape(&tape_);
  forward_.FinishLayers();
  forward_.SetTape(nullptr);
}

const LinearSite& BackwardPass::Site(int32_t layer, LayerSite site) const {
  return layer == config_.num_hidden_layers ? options_.scales->head_in
                                            : options_.scales->layers[layer].linear(site);
}

// dx (+)= (dy * steps) w: the gradient of what the product reads, as a real value.
void BackwardPass::MultiplyBack(const ForwardLinear& w, int64_t begin, int64_t rows,
                                const float* dy, int64_t dy_stride, float* dx, bool accumulate) {
  Reserve(operand_, rows * w.outputs * BytesOf(w.type));
  pool_.ParallelFor(rows, 16, [&](int64_t first, int64_t last, int) {
    for (int64_t row = first; row < last; ++row) {
      const float* from = dy + row * dy_stride;
      std::byte* to = operand_.data() + row * w.outputs * BytesOf(w.type);
      if (w.type == GemmType::kBf16)
        Vec().scale_to_bf16(from, w.steps.empty() ? nullptr : w.steps.data(), w.outputs,
                            reinterpret_cast<uint16_t*>(to));
      else
        Vec().scale_to(from, w.steps.empty() ? nullptr : w.steps.data(), w.outputs,
                       reinterpret_cast<float*>(to));
    }
  });
  gemm_.Multiply({.type = w.type,
                  .rows = rows,
                  .outputs = w.depth,
                  .depth = w.outputs,
                  .x = operand_.data(),
                  .x_stride = w.outputs,
                  .w = w.values(),
                  .w_stride = w.depth,
                  .w_by_depth = true,
                  .y = dx + begin * w.depth,
                  .y_stride = w.depth,
                  .accumulate = accumulate,
                  .keep_w = true});
}

// fn(row, sums of the row's chunk [width]).
template <typename F>
void BackwardPass::ForChunks(int64_t width, F&& fn) {
  chunk_sums_.assign(kChunks * width, 0.0f);
  const int64_t per_chunk = (rows() + kChunks - 1) / kChunks;
  pool_.ParallelFor(kChunks, 1, [&](int64_t first, int64_t last, int) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t end = std::min(rows(), (chunk + 1) * per_chunk);
      for (int64_t row = chunk * per_chunk; row < end; ++row)
        fn(row, chunk_sums_.data() + chunk * width);
    }
  });
}

// Adds `count` sums of each chunk, from `first` on, to the gradient.
void BackwardPass::ReduceChunks(int64_t width, int64_t first, int64_t count, int64_t offset) {
  for (int64_t chunk = 0; chunk < kChunks; ++chunk) {
    const float* sums = chunk_sums_.data() + chunk * width + first;
    for (int64_t i = 0; i < count; ++i) gradient_[offset + i] += sums[i];
  }
}

// dy [rows][channels] of the site's output becomes that of its input, row by row, and is handed to
// then(row, dx).
template <typename F>
void BackwardPass::SiteBackward(int32_t layer, LayerSite site, const float* tape, float* dy,
                                F&& then) {
  const LinearSite& s = Site(layer, site);
  const int64_t n = layout_.Channels(site);
  const float* gain = s.gain.empty() ? ones_.data() : s.gain.data();
  const float step = static_cast<float>(s.wide ? s.scale / 256 : s.scale);
  const float limit = s.wide ? 32512 : 127;
  ForChunks(n + 1, [&](int64_t row, float* sums) {
    float* d = dy + row * n;
    const float* v = tape + row * n;
    if (options_.round)
      sums[n] += Vec().site_backward(v, d, gain, n, step, limit, folded_, d, sums);
    else
      Vec().gain_backward(v, d, gain, n, d, sums);
    then(row, d);
  });
  ReduceChunks(n + 1, 0, n, layout_.LinearGain(layer, site));
  ReduceChunks(n + 1, n, 1, layout_.LinearScale(layer, site));
}

// A site behind an RMSNorm of the residual stream x: d_site_ in, added to d_residual_.
void BackwardPass::NormBackward(int32_t layer, LayerSite site, const float* tape, const float* x,
                                const float* norm) {
  const int64_t hidden = config_.hidden_size;
  SiteBackward(layer, site, tape, d_site_.as<float>(), [&](int64_t row, const float* d) {
    Vec().rms_norm_backward(x + row * hidden, norm, d, hidden,
                            static_cast<float>(config_.rms_norm_eps),
                            d_residual_.as<float>() + row * hidden);
  });
}

void BackwardPass::AddLogitGradient(int64_t begin, int64_t end, float* d_logits) {
  MultiplyBack(model_.head, begin, end - begin, d_logits, config_.vocab_size, d_site_.as<float>(),
               /*accumulate=*/false);
}

void BackwardPass::Backward() {
  HeadBackward();
  for (int32_t layer = config_.num_hidden_layers - 1; layer >= 0; --layer) LayerBackward(layer);
}

void BackwardPass::HeadBackward() {
  const int32_t layers = config_.num_hidden_layers;
  std::memset(d_residual_.data(), 0, rows() * config_.hidden_size * sizeof(float));
  NormBackward(layers, LayerSite::kAttnIn, tape_.head_in.as<float>(),
               checkpoints_[layers].as<float>(), model_.source->final_norm.data());
}

void BackwardPass::LayerBackward(int32_t layer) {
  const int64_t hidden = config_.hidden_size;
  pool_.ParallelFor(rows(), 64, [&](int64_t begin, int64_t end, int) {
    std::memcpy(forward_.residual() + begin * hidden,
                checkpoints_[layer].as<float>() + begin * hidden,
                (end - begin) * hidden * sizeof(float));
  });
  forward_.SetTape(&tape_);
  forward_.RunLayer(layer);
  forward_.SetTape(nullptr);
  MlpBackward(layer);
  AttentionBackwardPart(layer);
}

void BackwardPass::MlpBackward(int32_t layer) {
  const ForwardLayer& l = model_.layers[layer];
  DownBackward(layer);
  MultiplyBack(l.gate, 0, rows(), d_wide_.as<float>(), l.gate.outputs, d_site_.as<float>(), false);
  MultiplyBack(l.up, 0, rows(), d_wide2_.as<float>(), l.up.outputs, d_site_.as<float>(), true);
  NormBackward(layer, LayerSite::kMlpIn, tape_.mlp_in.as<float>(), tape_.middle.as<float>(),
               l.mlp_norm);
}

// Leaves the gradients of gate and up in d_wide_ and d_wide2_.
void BackwardPass::DownBackward(int32_t layer) {
  const ForwardLayer& l = model_.layers[layer];
  const int64_t n = config_.intermediate_size;
  MultiplyBack(l.down, 0, rows(), d_residual_.as<float>(), config_.hidden_size, d_wide_.as<float>(),
               false);
  SiteBackward(layer, LayerSite::kDownIn, tape_.down_in.as<float>(), d_wide_.as<float>(),
               [&](int64_t row, float* d) {
                 if (model_.online.down_block > 1) Vec().hadamard(d, n, model_.online.down_block);
                 Vec().silu_multiply_backward(tape_.gate.as<float>() + row * n,
                                              tape_.up.as<float>() + row * n, d, n, d,
                                              d_wide2_.as<float>() + row * n);
               });
}

void BackwardPass::AttentionBackwardPart(int32_t layer) {
  const ForwardLayer& l = model_.layers[layer];
  MultiplyBack(l.o, 0, rows(), d_residual_.as<float>(), config_.hidden_size, d_site_.as<float>(),
               false);
  SiteBackward(layer, LayerSite::kOIn, tape_.o_in.as<float>(), d_site_.as<float>(),
               [](int64_t, const float*) {});
  HeadsBackward(layer);
  const float* d_heads = d_wide_.as<float>();
  const int64_t stride = l.q.outputs + l.k.outputs + l.v.outputs;
  MultiplyBack(l.q, 0, rows(), d_heads, stride, d_site_.as<float>(), false);
  MultiplyBack(l.k, 0, rows(), d_heads + l.q.outputs, stride, d_site_.as<float>(), true);
  MultiplyBack(l.v, 0, rows(), d_heads + l.q.outputs + l.k.outputs, stride, d_site_.as<float>(),
               true);
  NormBackward(layer, LayerSite::kAttnIn, tape_.attn_in.as<float>(),
               checkpoints_[layer].as<float>(), l.attn_norm);
}

// From the gradient of the attention's result in d_site_ to that of the projections' results in
// d_wide_.
void BackwardPass::HeadsBackward(int32_t layer) {
  const LayerScales& scales = options_.scales->layers[layer];
  for (size_t h = 0; h < q_units_.size(); ++h)
    q_units_[h] = options_.round ? static_cast<float>(scales.q[h]) : 1;
  for (size_t h = 0; h < k_units_.size(); ++h)
    k_units_[h] = options_.round ? static_cast<float>(scales.k[h]) : 1;
  AttentionBackwardArgs args;
  args.forward = forward_.attention_args(layer);
  args.q_units = q_units_.data();
  args.k_units = k_units_.data();
  args.out = tape_.attention_out.as<float>();
  args.d_out = d_site_.as<float>();
  args.d_heads = d_wide_.as<float>();
  const int64_t half = layout_.prefix_per_layer() / 2;
  std::vector<double> d_prefix(2 * half);
  if (half > 0) {
    args.d_prefix_k = d_prefix.data();
    args.d_prefix_v = d_prefix.data() + half;
  }
  attention_.Run(args);

  const int64_t width = layout_.all_heads() * layout_.head_dim();
  const int64_t scales_too = width + layout_.all_heads();
  ForChunks(scales_too, [&](int64_t row, float* sums) { HeadRow(layer, row, sums, sums + width); });
  ReduceChunks(scales_too, 0, width, layout_.HeadGains(layer));
  ReduceChunks(scales_too, width, layout_.all_heads(), layout_.HeadScales(layer));
  if (half == 0) return;
  // The prefix passes through the gains of k and v, but is not rounded.
  const int64_t d = layout_.head_dim();
  const int64_t per_head = half / config_.num_key_value_heads;
  const FloatPrefix::Layer& prefix = options_.prefix->layers[layer];
  const auto through = [&](const std::vector<float>& gain, const std::vector<float>& x,
                           const double* dx, int64_t first_head, double* out) {
    for (int64_t i = 0; i < half; ++i) {
      const int64_t channel = i / per_head * d + i % d;
      const double factor = gain.empty() ? 1 : gain[channel];
      out[i] += dx[i] * factor;
      gradient_[layout_.HeadGains(layer) + first_head * d + channel] += dx[i] * factor * x[i];
    }
  };
  const int64_t heads = config_.num_attention_heads;
  double* out = gradient_.data() + layout_.Prefix(layer);
  through(scales.k_gain, prefix.k, args.d_prefix_k, heads, out);
  through(scales.v_gain, prefix.v, args.d_prefix_v, heads + config_.num_key_value_heads,
          out + half);
}

// One token's heads: rounding, gain, and for q and k Hadamard and RoPE.
void BackwardPass::HeadRow(int32_t layer, int64_t row, float* sums, float* scale_sums) {
  const LayerScales& scales = options_.scales->layers[layer];
  const int64_t d = layout_.head_dim();
  const int64_t width = layout_.all_heads() * d;
  const int32_t token = static_cast<int32_t>(row % batch_.tokens);
  const float* cos = rope_cos_.data() + token * (d / 2);
  const float* negative_sin = rope_negative_sin_.data() + token * (d / 2);
  float* dx = d_wide_.as<float>() + row * width;
  const float* v = tape_.heads.as<float>() + row * width;
  const auto tensor = [&](const std::vector<double>& scale, const std::vector<float>& gain,
                          bool rotated) {
    for (size_t h = 0; h < scale.size(); ++h, dx += d, v += d, sums += d, ++scale_sums) {
      const float* g = gain.empty() ? ones_.data() : gain.data() + static_cast<int64_t>(h) * d;
      if (options_.round) {
        *scale_sums += Vec().site_backward(v, dx, g, d, static_cast<float>(scale[h]), 127,
                                           /*folded=*/false, dx, sums);
      } else {
        Vec().gain_backward(v, dx, g, d, dx, sums);
      }
      if (!rotated) continue;
      if (model_.online.qk_hadamard) Vec().hadamard(dx, d, d);
      Vec().rope(dx, cos, negative_sin, d / 2);
    }
  };
  tensor(scales.q, scales.q_gain, true);
  tensor(scales.k, scales.k_gain, true);
  tensor(scales.v, scales.v_gain, false);
}

}  // namespace fixpoint
