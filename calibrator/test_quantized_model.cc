#include "calibrator/test_quantized_model.h"

#include <cmath>

#include "base/check.h"
#include "calibrator/float_forward.h"
#include "calibrator/quantize.h"
#include "calibrator/random.h"
#include "calibrator/ranges.h"
#include "calibrator/statistics.h"
#include "calibrator/test_float_model.h"

namespace fixpoint {
namespace {

constexpr int32_t kWindowTokens = 96;

std::vector<float> RandomGains(int64_t n, Random& random) {
  std::vector<float> gain(n);
  for (float& g : gain) g = static_cast<float>(std::exp2(2 * random.Uniform() - 1));
  return gain;
}

// Every scale 1.
Scales UnitScales(const FloatConfig& c, bool gains, Random& random) {
  const int64_t q = int64_t{c.num_attention_heads} * c.head_dim;
  const int64_t kv = int64_t{c.num_key_value_heads} * c.head_dim;
  const auto draw = [&](int64_t n) {
    return gains ? RandomGains(n, random) : std::vector<float>();
  };
  const auto site = [&](int64_t n) { return LinearSite{.scale = 1, .gain = draw(n)}; };
  Scales scales;
  for (int32_t i = 0; i < c.num_hidden_layers; ++i) {
    LayerScales& s = scales.layers.emplace_back();
    s.attn_in = site(c.hidden_size);
    s.o_in = site(q);
    s.mlp_in = site(c.hidden_size);
    s.down_in = site(c.intermediate_size);
    s.q.assign(c.num_attention_heads, 1);
    s.k.assign(c.num_key_value_heads, 1);
    s.v.assign(c.num_key_value_heads, 1);
    s.q_gain = draw(q);
    s.k_gain = draw(kv);
    s.v_gain = draw(kv);
  }
  scales.head_in = site(c.hidden_size);
  return scales;
}

// Scales for what the statistics saw, with some room for the gains, which they did not see.
void TakeScales(const Statistics& statistics, bool wide, Scales* scales) {
  const double room = scales->head_in.gain.empty() ? 1 : 1.4;
  const Scales chosen = ChooseScales(statistics, HeadClip::kMax);
  int32_t count = 0;
  const auto take = [&](const LinearSite& from, const MagnitudeHistogram& histogram,
                        LinearSite* to) {
    to->wide = wide && count++ % 2 == 0;
    to->scale = room * (to->wide ? ScaleSite(histogram, true).scale : from.scale);
  };
  for (size_t i = 0; i < scales->layers.size(); ++i) {
    LayerScales& s = scales->layers[i];
    for (int32_t j = 0; j < kLayerLinearSites; ++j) {
      const LayerSite site = static_cast<LayerSite>(j);
      take(chosen.layers[i].linear(site), statistics.layers[i].linear[j], &s.linear(site));
    }
    for (size_t h = 0; h < s.q.size(); ++h) s.q[h] = room * chosen.layers[i].q[h];
    for (size_t h = 0; h < s.k.size(); ++h) s.k[h] = room * chosen.layers[i].k[h];
    for (size_t h = 0; h < s.v.size(); ++h) s.v[h] = room * chosen.layers[i].v[h];
  }
  take(chosen.head_in, statistics.head_in, &scales->head_in);
}

}  // namespace

Windows RandomTestWindows(int32_t count, int32_t tokens, int32_t vocab, uint64_t seed) {
  Random random(seed);
  Windows windows;
  windows.tokens = tokens;
  windows.token_ids.resize(int64_t{count} * tokens);
  for (int32_t& id : windows.token_ids) id = static_cast<int32_t>(random.Below(vocab));
  return windows;
}

TestQuantized MakeTestQuantized(const TestQuantizedOptions& options, FloatGemm& gemm,
                                ThreadPool& pool) {
  TestQuantized t;
  Random random(options.seed, 7);
  t.rotated = MakeTestFloatModel({.seed = options.seed, .qkv_bias = true});
  const FloatConfig& c = t.rotated.config;
  t.online = FoldAndRotate(t.rotated, {.seed = options.seed, .qk_hadamard = options.qk_hadamard},
                           gemm, pool);
  const ForwardModel plain =
      MakeForwardModel(t.rotated, t.online, WeightKind::kFloat32, gemm, pool);
  t.prefix = FloatForward(plain, gemm, pool).ComputePrefix({3, 141});
  t.scales = UnitScales(c, options.gains, random);
  t.weights = RoundWeights(t.rotated, options.folded ? &t.scales : nullptr, pool);

  const ForwardModel integers = MakeIntegerForwardModel(t.weights, t.rotated, t.online, gemm, pool);
  FloatForward forward(integers, gemm, pool);
  StatisticsCollector collector(c, pool.thread_count());
  const Windows text = RandomTestWindows(4, kWindowTokens, c.vocab_size, options.seed + 1);
  forward.Run({.token_ids = text.window(0), .sequences = 4, .tokens = kWindowTokens},
              {.prefix = &t.prefix, .scales = &t.scales, .round = false, .statistics = &collector});
  std::vector<float> logits(text.token_ids.size() * c.vocab_size);
  forward.Logits(0, static_cast<int64_t>(text.token_ids.size()), logits.data());
  const Statistics statistics = collector.Result();
  t.ranges = statistics.ranges;
  TakeScales(statistics, options.wide, &t.scales);

  absl::StatusOr<IntegerModel> model =
      QuantizeModel(t.rotated, t.weights, t.scales, t.ranges, t.prefix, t.online.down_block,
                    t.online.qk_hadamard, pool);
  CHECK(model.ok()) << model.status().ToString();
  t.model = *std::move(model);
  const absl::Status valid = ValidateModel(t.model);
  CHECK(valid.ok()) << valid.ToString();
  return t;
}

}  // namespace fixpoint
