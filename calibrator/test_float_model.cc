#include "calibrator/test_float_model.h"

#include <algorithm>
#include <cmath>

#include "calibrator/random.h"

namespace fixpoint {
namespace {

Matrix RandomMatrix(int64_t rows, int64_t cols, double scale, Random& random) {
  Matrix m{.rows = rows, .cols = cols, .data = std::vector<float>(rows * cols)};
  for (float& value : m.data) value = static_cast<float>(random.Normal() * scale);
  return m;
}

std::vector<float> RandomGains(int64_t n, Random& random) {
  std::vector<float> gains(n);
  for (float& gain : gains) gain = static_cast<float>(0.5 + random.Uniform());
  return gains;
}

using Row = std::vector<double>;

Row Normalise(const Row& x, const std::vector<float>& gain, double epsilon) {
  double sum = 0;
  for (const double value : x) sum += value * value;
  const double inverse = 1 / std::sqrt(sum / static_cast<double>(x.size()) + epsilon);
  Row out(x.size());
  for (size_t i = 0; i < x.size(); ++i) out[i] = x[i] * inverse * gain[i];
  return out;
}

Row Apply(const Matrix& w, const Row& x, const std::vector<float>& bias = {}) {
  Row y(w.rows);
  for (int64_t r = 0; r < w.rows; ++r) {
    double sum = bias.empty() ? 0 : bias[r];
    for (int64_t c = 0; c < w.cols; ++c) sum += w.row(r)[c] * x[c];
    y[r] = sum;
  }
  return y;
}

void Rope(Row& x, int32_t head_dim, int64_t position,
          const std::vector<double>& inverse_frequency) {
  const int32_t half = head_dim / 2;
  for (size_t head = 0; head < x.size(); head += head_dim) {
    for (int32_t i = 0; i < half; ++i) {
      const double c = std::cos(position * inverse_frequency[i]),
                   s = std::sin(position * inverse_frequency[i]);
      const double a = x[head + i], b = x[head + i + half];
      x[head + i] = a * c - b * s;
      x[head + i + half] = b * c + a * s;
    }
  }
}

Row Attend(const Row& q, const std::vector<Row>& k, const std::vector<Row>& v,
           const FloatConfig& c) {
  Row out(q.size());
  const int32_t d = c.head_dim;
  for (int32_t h = 0; h < c.num_attention_heads; ++h) {
    const int32_t kv = h / (c.num_attention_heads / c.num_key_value_heads) * d;
    Row weights;
    double largest = -HUGE_VAL;
    for (const Row& key : k) {
      double score = 0;
      for (int32_t i = 0; i < d; ++i) score += q[h * d + i] * key[kv + i];
      weights.push_back(score / std::sqrt(d));
      largest = std::max(largest, weights.back());
    }
    double sum = 0;
    for (double& w : weights) sum += (w = std::exp(w - largest));
    for (size_t j = 0; j < v.size(); ++j) {
      for (int32_t i = 0; i < d; ++i) out[h * d + i] += weights[j] / sum * v[j][kv + i];
    }
  }
  return out;
}

void AddTo(Row& h, const Row& x) {
  for (size_t i = 0; i < h.size(); ++i) h[i] += x[i];
}

}  // namespace

FloatModel MakeTestFloatModel(const TestFloatOptions& o) {
  Random random(o.seed);
  FloatModel m;
  m.config = {.architecture = "llama",
              .hidden_size = o.hidden,
              .intermediate_size = o.intermediate,
              .num_hidden_layers = o.layers,
              .num_attention_heads = o.heads,
              .num_key_value_heads = o.kv_heads,
              .head_dim = o.head_dim,
              .vocab_size = o.vocab,
              .max_position_embeddings = o.context,
              .rms_norm_eps = 1e-5,
              .rope_theta = 10000,
              .tie_word_embeddings = o.tied};
  for (int32_t i = 0; i < o.head_dim / 2; ++i)
    m.rope_inverse_frequency.push_back(std::pow(10000.0, -2.0 * i / o.head_dim));
  const double in = 1 / std::sqrt(o.hidden);
  const int64_t q = int64_t{o.heads} * o.head_dim, kv = int64_t{o.kv_heads} * o.head_dim;
  m.embedding = RandomMatrix(o.vocab, o.hidden, 1, random);
  for (int32_t i = 0; i < o.layers; ++i) {
    FloatLayer l;
    l.attn_norm = RandomGains(o.hidden, random);
    l.q_proj = RandomMatrix(q, o.hidden, in, random);
    l.k_proj = RandomMatrix(kv, o.hidden, in, random);
    l.v_proj = RandomMatrix(kv, o.hidden, in, random);
    if (o.qkv_bias) {
      l.q_bias = RandomMatrix(1, q, 0.5, random).data;
      l.k_bias = RandomMatrix(1, kv, 0.5, random).data;
      l.v_bias = RandomMatrix(1, kv, 0.5, random).data;
    }
    l.o_proj = RandomMatrix(o.hidden, q, 1 / std::sqrt(q), random);
    l.mlp_norm = RandomGains(o.hidden, random);
    l.gate_proj = RandomMatrix(o.intermediate, o.hidden, in, random);
    l.up_proj = RandomMatrix(o.intermediate, o.hidden, in, random);
    l.down_proj = RandomMatrix(o.hidden, o.intermediate, 1 / std::sqrt(o.intermediate), random);
    m.layers.push_back(std::move(l));
  }
  m.final_norm = RandomGains(o.hidden, random);
  // A tied head of unit rows would give logits of size sqrt(hidden); real ones stay below 30 or so.
  if (o.tied) {
    for (float& gain : m.final_norm) gain *= 0.4f;
  } else {
    m.head = RandomMatrix(o.vocab, o.hidden, 2.5 * in, random);
  }
  return m;
}

std::vector<double> NaiveLogits(const FloatModel& model, const std::vector<int32_t>& token_ids) {
  const FloatConfig& c = model.config;
  std::vector<std::vector<Row>> k(c.num_hidden_layers), v(c.num_hidden_layers);
  std::vector<double> logits;
  for (size_t t = 0; t < token_ids.size(); ++t) {
    const float* embedding = model.embedding.row(token_ids[t]);
    Row h(embedding, embedding + c.hidden_size);
    for (int32_t i = 0; i < c.num_hidden_layers; ++i) {
      const FloatLayer& l = model.layers[i];
      Row x = Normalise(h, l.attn_norm, c.rms_norm_eps);
      Row q = Apply(l.q_proj, x, l.q_bias);
      k[i].push_back(Apply(l.k_proj, x, l.k_bias));
      v[i].push_back(Apply(l.v_proj, x, l.v_bias));
      Rope(q, c.head_dim, static_cast<int64_t>(t), model.rope_inverse_frequency);
      Rope(k[i].back(), c.head_dim, static_cast<int64_t>(t), model.rope_inverse_frequency);
      AddTo(h, Apply(l.o_proj, Attend(q, k[i], v[i], c)));
      x = Normalise(h, l.mlp_norm, c.rms_norm_eps);
      Row gate = Apply(l.gate_proj, x);
      const Row up = Apply(l.up_proj, x);
      for (size_t j = 0; j < gate.size(); ++j) gate[j] = gate[j] / (1 + std::exp(-gate[j])) * up[j];
      AddTo(h, Apply(l.down_proj, gate));
    }
    const Row row =
        Apply(model.head_or_embedding(), Normalise(h, model.final_norm, c.rms_norm_eps));
    logits.insert(logits.end(), row.begin(), row.end());
  }
  return logits;
}

}  // namespace fixpoint
