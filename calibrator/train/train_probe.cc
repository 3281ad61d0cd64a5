// train_probe SEED gain|folded: a tiny random model with a prefix, gains and static scales, its KL
// to random teacher logits and the gradients of it, in float32, as one JSON object on standard
// output. For tests/train_oracle_test.py, which computes the same in double.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

#include "calibrator/random.h"
#include "calibrator/ranges.h"
#include "calibrator/statistics.h"
#include "calibrator/test_float_model.h"
#include "calibrator/train/backward_pass.h"
#include "calibrator/train/float32_gemm.h"
#include "calibrator/vector_loops.h"

namespace fixpoint {
namespace {

constexpr int32_t kSequences = 2, kTokens = 6;
constexpr int64_t kRows = kSequences * kTokens;

class JsonOut {
 public:
  JsonOut() { std::printf("{"); }
  ~JsonOut() { std::printf("}\n"); }
  void Number(const std::string& name, double value) {
    Key(name);
    std::printf("%.17g", value);
  }
  template <typename T>
  void Numbers(const std::string& name, const T& values) {
    Key(name);
    const char* comma = "[";
    for (const auto x : values) {
      std::printf("%s%.17g", comma, static_cast<double>(x));
      comma = ",";
    }
    std::printf(*comma == '[' ? "[]" : "]");
  }

 private:
  void Key(const std::string& name) {
    std::printf("%s\"%s\":", first_ ? "" : ",\n", name.c_str());
    first_ = false;
  }
  bool first_ = true;
};

// real = step * integer.
std::vector<double> Real(const IntegerLinear& w) {
  std::vector<double> real(w.values.size());
  for (size_t i = 0; i < real.size(); ++i)
    real[i] = static_cast<double>(w.steps[i / w.depth]) * w.values[i];
  return real;
}

// MSE clips of the model itself, a quarter smaller so that more is clipped; int16 at the last
// down_in and the head, behind which no int8 site can turn their float noise into whole steps.
Scales MakeScales(FloatForward& forward, const ForwardBatch& batch, const FloatPrefix& prefix,
                  Random& random) {
  const FloatConfig& c = forward.model().config();
  StatisticsCollector collector(c, 1);
  forward.Run(batch, {.prefix = &prefix, .statistics = &collector});
  const Statistics statistics = collector.Result();
  Scales scales = ChooseScales(statistics, HeadClip::kMse);
  const auto gain = [&](int64_t n) {
    std::vector<float> g(n);
    for (float& x : g) x = static_cast<float>(std::exp2(random.Uniform() - 0.5));
    return g;
  };
  const int64_t q = int64_t{c.num_attention_heads} * c.head_dim;
  const int64_t kv = int64_t{c.num_key_value_heads} * c.head_dim;
  for (LayerScales& s : scales.layers) {
    s.attn_in.gain = gain(c.hidden_size);
    s.o_in.gain = gain(q);
    s.mlp_in.gain = gain(c.hidden_size);
    s.down_in.gain = gain(c.intermediate_size);
    for (int32_t i = 0; i < kLayerLinearSites; ++i)
      s.linear(static_cast<LayerSite>(i)).scale *= 0.75;
    for (std::vector<double>* heads : {&s.q, &s.k, &s.v}) {
      for (double& scale : *heads) scale *= 0.75;
    }
    s.q_gain = gain(q);
    s.k_gain = gain(kv);
    s.v_gain = gain(kv);
  }
  scales.layers.back().down_in =
      ScaleSite(statistics.layers.back().linear[static_cast<int32_t>(LayerSite::kDownIn)], true);
  scales.layers.back().down_in.gain = gain(c.intermediate_size);
  scales.head_in = ScaleSite(statistics.head_in, true);
  scales.head_in.gain = gain(c.hidden_size);
  return scales;
}

void PrintModel(const FloatModel& model, const IntegerWeights& weights, JsonOut& out) {
  const FloatConfig& c = model.config;
  out.Number("sequences", kSequences);
  out.Number("tokens", kTokens);
  out.Number("hidden", c.hidden_size);
  out.Number("intermediate", c.intermediate_size);
  out.Number("layers", c.num_hidden_layers);
  out.Number("heads", c.num_attention_heads);
  out.Number("kv_heads", c.num_key_value_heads);
  out.Number("head_dim", c.head_dim);
  out.Number("vocab", c.vocab_size);
  out.Number("epsilon", c.rms_norm_eps);
  out.Numbers("rope", model.rope_inverse_frequency);
  out.Numbers("embedding", Real(weights.embedding));
  out.Numbers("head", Real(weights.head));
  out.Numbers("final_norm", model.final_norm);
  for (int32_t i = 0; i < c.num_hidden_layers; ++i) {
    const std::string name = std::to_string(i) + ".";
    const FloatLayer& l = model.layers[i];
    for (const LayerLinear& linear : kLayerLinears)
      out.Numbers(name + linear.name, Real(weights.layers[i].*linear.integers));
    out.Numbers(name + "attn_norm", l.attn_norm);
    out.Numbers(name + "mlp_norm", l.mlp_norm);
    out.Numbers(name + "q_bias", l.q_bias);
    out.Numbers(name + "k_bias", l.k_bias);
    out.Numbers(name + "v_bias", l.v_bias);
  }
}

void PrintSite(const std::string& name, const LinearSite& site, JsonOut& out) {
  out.Number(name + ".scale", site.scale);
  out.Number(name + ".wide", site.wide ? 1 : 0);
  out.Numbers(name + ".gain", site.gain);
}

void PrintScales(const Scales& scales, const FloatPrefix& prefix, JsonOut& out) {
  static constexpr const char* kSites[] = {"attn_in", "o_in", "mlp_in", "down_in"};
  out.Number("prefix_tokens", prefix.size());
  for (size_t i = 0; i < scales.layers.size(); ++i) {
    const LayerScales& s = scales.layers[i];
    const std::string name = std::to_string(i) + ".";
    for (int32_t j = 0; j < kLayerLinearSites; ++j)
      PrintSite(name + kSites[j], s.linear(static_cast<LayerSite>(j)), out);
    out.Numbers(name + "q.scale", s.q);
    out.Numbers(name + "k.scale", s.k);
    out.Numbers(name + "v.scale", s.v);
    out.Numbers(name + "q.gain", s.q_gain);
    out.Numbers(name + "k.gain", s.k_gain);
    out.Numbers(name + "v.gain", s.v_gain);
    out.Numbers(name + "prefix_k", prefix.layers[i].k);
    out.Numbers(name + "prefix_v", prefix.layers[i].v);
  }
  PrintSite("head_in", scales.head_in, out);
}

// In the order of the layout, piece by piece, under the names of the values they belong to.
void PrintGradients(const ParameterLayout& layout, const std::vector<double>& gradient,
                    const FloatConfig& c, JsonOut& out) {
  static constexpr const char* kSites[] = {"attn_in", "o_in", "mlp_in", "down_in"};
  const auto print = [&](const std::string& name, int64_t begin, int64_t count) {
    out.Numbers("grad." + name,
                std::vector<double>(gradient.begin() + begin, gradient.begin() + begin + count));
  };
  for (int32_t i = 0; i < layout.layers(); ++i) {
    const std::string name = std::to_string(i) + ".";
    for (int32_t j = 0; j < kLayerLinearSites; ++j) {
      const LayerSite site = static_cast<LayerSite>(j);
      print(name + kSites[j] + ".scale", layout.LinearScale(i, site), 1);
      print(name + kSites[j] + ".gain", layout.LinearGain(i, site), layout.Channels(site));
    }
    int64_t scale = layout.HeadScales(i), gain = layout.HeadGains(i);
    for (const auto& [tensor, heads] :
         {std::pair("q", c.num_attention_heads), std::pair("k", c.num_key_value_heads),
          std::pair("v", c.num_key_value_heads)}) {
      print(name + tensor + ".scale", scale, heads);
      print(name + tensor + ".gain", gain, int64_t{heads} * c.head_dim);
      scale += heads;
      gain += int64_t{heads} * c.head_dim;
    }
    const int64_t half = layout.prefix_per_layer() / 2;
    print(name + "prefix_k", layout.Prefix(i), half);
    print(name + "prefix_v", layout.Prefix(i) + half, half);
  }
  print("head_in.scale", layout.LinearScale(layout.layers(), LayerSite::kAttnIn), 1);
  print("head_in.gain", layout.LinearGain(layout.layers(), LayerSite::kAttnIn), c.hidden_size);
}

void Probe(uint64_t seed, bool folded) {
  ThreadPool pool(1);
  const std::unique_ptr<FloatGemm> cpu = CreateCpuGemm(pool);
  Float32Gemm gemm(*cpu);
  const FloatModel model = MakeTestFloatModel({.seed = seed,
                                               .hidden = 16,
                                               .heads = 4,
                                               .kv_heads = 2,
                                               .head_dim = 8,
                                               .intermediate = 24,
                                               .vocab = 40,
                                               .qkv_bias = true,
                                               .tied = false});
  const FloatConfig& c = model.config;
  Random random(seed, 77);
  std::vector<int32_t> ids(kRows);
  for (int32_t& id : ids) id = static_cast<int32_t>(random.Below(c.vocab_size));
  const ForwardBatch batch{.token_ids = ids.data(), .sequences = kSequences, .tokens = kTokens};
  const ForwardModel plain = MakeForwardModel(model, {}, WeightKind::kFloat32, gemm, pool);
  FloatForward float_forward(plain, gemm, pool);
  const FloatPrefix prefix = float_forward.ComputePrefix({1, 2});
  const Scales scales = MakeScales(float_forward, batch, prefix, random);
  const IntegerWeights weights = RoundWeights(model, folded ? &scales : nullptr, pool);
  const ForwardModel integers = MakeIntegerForwardModel(weights, model, {}, gemm, pool);

  FloatForward forward(integers, gemm, pool);
  const ParameterLayout layout(c, prefix.size());
  BackwardPass pass(forward, layout, gemm, pool);
  pass.Forward(batch, {.prefix = &prefix, .scales = &scales}, folded);
  const int64_t n = c.vocab_size;
  std::vector<float> student(kRows * n), teacher(kRows * n);
  for (float& x : teacher) x = static_cast<float>(random.Normal() * 2);
  pass.Logits(0, kRows, student.data());
  JsonOut out;
  out.Numbers("logits", student);
  double loss = 0;
  for (int64_t row = 0; row < kRows; ++row) {
    float* b = student.data() + row * n;
    const RowComparison r = Vec().compare_rows(teacher.data() + row * n, b, n);
    loss += r.kl / kRows;
    Vec().softmax_difference(teacher.data() + row * n, b, n, static_cast<float>(r.log_sum_a),
                             static_cast<float>(r.log_sum_b), 1.0f / kRows, b);
  }
  pass.AddLogitGradient(0, kRows, student.data());
  pass.Backward();

  out.Number("folded", folded ? 1 : 0);
  out.Number("loss", loss);
  out.Numbers("ids", ids);
  out.Numbers("teacher", teacher);
  PrintModel(model, weights, out);
  PrintScales(scales, prefix, out);
  PrintGradients(layout, pass.gradient(), c, out);
}

}  // namespace
}  // namespace fixpoint

int main(int argc, char** argv) {
  const std::string_view mode = argc == 3 ? argv[2] : "";
  if (mode != "gain" && mode != "folded") {
    std::cerr << "usage: train_probe SEED gain|folded\n";
    return 2;
  }
  fixpoint::Probe(std::strtoul(argv[1], nullptr, 10), mode == "folded");
  return 0;
}
