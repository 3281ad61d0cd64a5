// The test models must be worth testing with: a forward pass through the reference kernels shows
// that no stage vanishes or saturates and that logits follow the tokens.
#include "bundle/test_model.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "base/aligned_buffer.h"
#include "gtest/gtest.h"
#include "kernels/ops.h"
#include "kernels/reference/reference_ops.h"

namespace fixpoint {
namespace {

struct Planes {
  Planes(int32_t tokens, int32_t width, bool wide)
      : width(width),
        stride(static_cast<size_t>((width + 63) / 64 * 64)),
        hi(tokens * stride),
        lo(wide ? tokens * stride : 0) {}
  ActivationPlanes view() { return {hi.data(), lo.empty() ? nullptr : lo.data(), stride}; }
  int32_t width;
  size_t stride;
  std::vector<int8_t> hi, lo;
};

struct Range {
  double rms = 0;
  double saturated = 0;  // share of values at the clamp
};

Range Measure(const int32_t* values, size_t count, int32_t limit) {
  double sum = 0;
  size_t at_limit = 0;
  for (size_t i = 0; i < count; ++i) {
    sum += static_cast<double>(values[i]) * values[i];
    at_limit += std::abs(values[i]) >= limit;
  }
  return {std::sqrt(sum / static_cast<double>(count)),
          static_cast<double>(at_limit) / static_cast<double>(count)};
}

// One sequence, all tokens in one call, reference kernels only.
class Forward {
 public:
  explicit Forward(const IntegerModel& model) : m_(model), c_(model.config), ops_(ReferenceOps()) {}

  // Logits [tokens][vocab].
  std::vector<int32_t> Run(const std::vector<int32_t>& ids);

  std::map<std::string, Range> ranges;  // of int8 and int16 sites, in units of an int8 step

 private:
  void Linear(const LinearWeights& weights, Planes& x) {
    acc_stride_ = static_cast<size_t>((weights.outputs + 31) / 32 * 32);
    acc_.assign(static_cast<size_t>(tokens_) * acc_stride_, 0);
    AlignedBuffer packed(ops_.packed_weight_bytes(weights.outputs, weights.depth));
    ops_.pack_weights(weights.weights.data(), weights.outputs, weights.depth, 0, weights.outputs,
                      packed.data());
    ops_.linear({packed.data(), weights.outputs, weights.depth,
                 weights.bias.empty() ? nullptr : weights.bias.data(), x.view(), tokens_, 0,
                 weights.outputs, acc_.data(), acc_stride_});
  }
  void NormInto(const Norm& norm, Planes& x) {
    ops_.rms_norm({h_.data(), tokens_, c_.hidden_size, c_.norm_epsilon, norm.fraction_bits,
                   norm.multipliers.data(), norm.k, x.view()});
  }
  void Residual(const WideRequantize& r) {
    ops_.residual_add({acc_.data(),
                       acc_stride_,
                       tokens_,
                       c_.hidden_size,
                       {r.multipliers.data(), r.n},
                       h_.data()});
  }
  static NarrowParams Params(const NarrowRequantize& r) { return {r.multipliers.data(), r.p, r.k}; }
  void Note(const std::string& name, const Planes& planes);
  void Layer(size_t index);
  void Attention(const std::string& name, const ModelLayer& layer, Planes& out);

  const IntegerModel& m_;
  const ModelConfig& c_;
  const Ops& ops_;
  int32_t tokens_ = 0;
  std::vector<int32_t> h_, acc_;
  size_t acc_stride_ = 0;
};

void Forward::Note(const std::string& name, const Planes& planes) {
  const bool wide = !planes.lo.empty();
  std::vector<int32_t> values;
  for (int32_t t = 0; t < tokens_; ++t) {
    for (int32_t j = 0; j < planes.width; ++j) {
      const size_t i = static_cast<size_t>(t) * planes.stride + static_cast<size_t>(j);
      values.push_back(wide ? 256 * planes.hi[i] + planes.lo[i] : planes.hi[i]);
    }
  }
  Range range = Measure(values.data(), values.size(), wide ? kWideSiteLimit : 127);
  if (wide) range.rms /= 256;
  ranges[name] = range;
}

void Forward::Attention(const std::string& name, const ModelLayer& layer, Planes& out) {
  const int32_t d = c_.head_dim, q_width = c_.num_attention_heads * d;
  const int32_t kv_width = c_.num_key_value_heads * d;
  Planes q(tokens_, q_width, false), k(tokens_, kv_width, false), v(tokens_, kv_width, false);
  const auto prefix = static_cast<int32_t>(m_.prefix_token_ids.size());
  const size_t rope = static_cast<size_t>(prefix) * static_cast<size_t>(d / 2);
  const auto rotate = [&](size_t column, int32_t heads, const NarrowRequantize& before,
                          const NarrowRequantize& after, Planes& to) {
    ops_.rotate_heads({acc_.data() + column, acc_stride_, tokens_, heads, d, Params(before),
                       m_.rope_cos.data() + rope, m_.rope_sin.data() + rope,
                       static_cast<size_t>(d / 2), c_.qk_hadamard, Params(after), to.hi.data(),
                       to.stride});
  };
  rotate(0, c_.num_attention_heads, layer.q_before, layer.q_after, q);
  rotate(static_cast<size_t>(q_width), c_.num_key_value_heads, layer.k_before, layer.k_after, k);
  ops_.narrow({acc_.data() + q_width + kv_width, acc_stride_, tokens_, kv_width, Params(layer.v),
               v.hi.data(), v.stride});
  Note(name + "q", q);
  Note(name + "k", k);
  Note(name + "v", v);

  const int32_t blocks = (tokens_ + kKvBlockTokens - 1) / kKvBlockTokens;
  const size_t block_bytes = static_cast<size_t>(2 * kKvBlockTokens * kv_width);
  AlignedBuffer cache(static_cast<size_t>(blocks) * block_bytes);
  std::fill_n(cache.as<int8_t>(), cache.size_bytes(), int8_t{0});
  std::vector<int32_t> table;
  for (int32_t b = 0; b < blocks; ++b) table.push_back(b);
  const KvLayer kv{cache.as<int8_t>(), block_bytes};
  ops_.kv_write({k.hi.data(), v.hi.data(), k.stride, tokens_, c_.num_key_value_heads, d, 0,
                 table.data(), kv});
  std::vector<ScoreParams> scores;
  for (const ScoreScale& s : layer.scores) scores.push_back({s.d_max, s.a, s.c, s.n});
  AlignedBuffer scratch(ops_.attention_scratch_bytes(
      tokens_, tokens_ + prefix, c_.num_attention_heads, c_.num_key_value_heads, d));
  ops_.attention({q.hi.data(), q.stride, tokens_, 0, c_.num_attention_heads, c_.num_key_value_heads,
                  d, 0, c_.num_key_value_heads, kv, table.data(), layer.prefix_k.data(),
                  layer.prefix_v.data(), prefix, scores.data(), Params(layer.attn_out), out.view(),
                  scratch.data()});
}

void Forward::Layer(size_t index) {
  const ModelLayer& layer = m_.layers[index];
  const std::string name = "layers." + std::to_string(index) + ".";
  Planes x(tokens_, c_.hidden_size, layer.attn_norm.wide);
  NormInto(layer.attn_norm, x);
  Note(name + "attn_norm", x);
  Linear(layer.qkv, x);
  Planes attended(tokens_, c_.num_attention_heads * c_.head_dim, layer.attn_out_wide);
  Attention(name, layer, attended);
  Note(name + "attn_out", attended);
  Linear(layer.o_proj, attended);
  Residual(layer.o_requantize);

  Planes y(tokens_, c_.hidden_size, layer.mlp_norm.wide);
  NormInto(layer.mlp_norm, y);
  Note(name + "mlp_norm", y);
  Linear(layer.gate_up, y);
  Planes product(tokens_, c_.intermediate_size, layer.down_in_wide);
  std::vector<int32_t> scratch(static_cast<size_t>(c_.intermediate_size));
  ops_.swiglu({acc_.data(), acc_.data() + c_.intermediate_size, acc_stride_, tokens_,
               c_.intermediate_size, Params(layer.gate), Params(layer.up), layer.sigmoid_multiplier,
               layer.sigmoid_shift, layer.product_shift, c_.down_hadamard_block,
               Params(layer.down_in), product.view(), scratch.data()});
  Note(name + "down_in", product);
  Linear(layer.down_proj, product);
  Residual(layer.down_requantize);
}

std::vector<int32_t> Forward::Run(const std::vector<int32_t>& ids) {
  tokens_ = static_cast<int32_t>(ids.size());
  h_.resize(ids.size() * static_cast<size_t>(c_.hidden_size));
  const WideRequantize& e = m_.embedding_requantize;
  ops_.embed({m_.embedding.data(),
              {e.multipliers.data(), e.n},
              ids.data(),
              tokens_,
              c_.hidden_size,
              h_.data()});
  for (size_t i = 0; i < m_.layers.size(); ++i) Layer(i);
  Planes x(tokens_, c_.hidden_size, m_.final_norm.wide);
  NormInto(m_.final_norm, x);
  Note("final_norm", x);
  Linear(m_.head, x);
  std::vector<int32_t> logits(ids.size() * static_cast<size_t>(c_.vocab_size));
  const WideRequantize& r = m_.head_requantize;
  ops_.logits({acc_.data(),
               acc_stride_,
               tokens_,
               0,
               c_.vocab_size,
               {r.multipliers.data(), r.n},
               logits.data(),
               static_cast<size_t>(c_.vocab_size)});
  return logits;
}

std::vector<TestModelOptions> Variants() {
  std::vector<TestModelOptions> variants(6);
  variants[1].wide_sites = kWideAll;
  variants[2].prefix_tokens = 4;
  variants[2].qkv_bias = true;
  variants[3].qk_hadamard = true;
  variants[3].down_hadamard_block = 128;
  variants[3].odd_layer_wide_sites = kWideDownIn | kWideAttnOut;
  variants[4].hidden = 576;
  variants[4].heads = 9;
  variants[4].kv_heads = 3;
  variants[4].head_dim = 64;
  variants[4].intermediate = 1536;
  variants[4].vocab = 600;
  variants[5].layers = 6;
  variants[5].seed = 5;
  return variants;
}

std::vector<int32_t> SomeTokens() {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 70; ++i) ids.push_back((i * i * 7 + i) % 290);
  return ids;
}

TEST(TestModelTest, VariantsAreValid) {
  for (const TestModelOptions& options : Variants()) {
    const absl::Status status = ValidateModel(MakeTestModel(options));
    EXPECT_TRUE(status.ok()) << status;
  }
  for (const int32_t vocab : {258, 259, 300, 1500, 49152}) {
    const TokenizerSpec spec = MakeTestTokenizer(vocab);
    EXPECT_TRUE(ValidateTokenizerSpec(spec).ok()) << ValidateTokenizerSpec(spec);
    EXPECT_EQ(static_cast<int32_t>(spec.tokens.size()), vocab);
  }
}

TEST(TestModelTest, NoStageVanishesOrSaturates) {
  for (size_t i = 0; i < Variants().size(); ++i) {
    const IntegerModel model = MakeTestModel(Variants()[i]);
    Forward forward(model);
    const std::vector<int32_t> logits = forward.Run(SomeTokens());
    for (const auto& [name, range] : forward.ranges) {
      EXPECT_GT(range.rms, 8) << "variant " << i << " " << name;
      EXPECT_LT(range.rms, 64) << "variant " << i << " " << name;
      EXPECT_LT(range.saturated, 0.06) << "variant " << i << " " << name;
    }
    const double rms = std::ldexp(Measure(logits.data(), logits.size(), kLogitLimit).rms,
                                  -model.config.logit_fraction_bits);
    EXPECT_GT(rms, 1) << "variant " << i;
    EXPECT_LT(rms, 4) << "variant " << i;
  }
}

TEST(TestModelTest, LogitsFollowTheTokens) {
  for (size_t i = 0; i < Variants().size(); ++i) {
    const IntegerModel model = MakeTestModel(Variants()[i]);
    const auto row = [&](const std::vector<int32_t>& logits, size_t token) {
      const auto vocab = static_cast<size_t>(model.config.vocab_size);
      return std::vector<int32_t>(logits.begin() + static_cast<ptrdiff_t>(token * vocab),
                                  logits.begin() + static_cast<ptrdiff_t>((token + 1) * vocab));
    };
    std::vector<int32_t> ids = SomeTokens();
    const std::vector<int32_t> logits = Forward(model).Run(ids);
    std::map<int64_t, int> winners;
    for (size_t t = 0; t < ids.size(); ++t) {
      const std::vector<int32_t> r = row(logits, t);
      ++winners[std::max_element(r.begin(), r.end()) - r.begin()];
    }
    EXPECT_GT(winners.size(), ids.size() / 3) << "variant " << i;
    // The first token reaches the last row through attention only; causality keeps it from nothing
    // else.
    ids[0] = 289;
    const std::vector<int32_t> other = Forward(model).Run(ids);
    EXPECT_NE(row(other, ids.size() - 1), row(logits, ids.size() - 1)) << "variant " << i;
    ids.back() = 288;
    const std::vector<int32_t> last = Forward(model).Run(ids);
    EXPECT_EQ(row(last, ids.size() - 2), row(other, ids.size() - 2)) << "variant " << i;
    EXPECT_NE(row(last, ids.size() - 1), row(other, ids.size() - 1)) << "variant " << i;
  }
}

TEST(TestModelTest, SeedsGiveOtherModels) {
  TestModelOptions options;
  const IntegerModel a = MakeTestModel(options);
  EXPECT_EQ(MakeTestModel(options).head.weights, a.head.weights);
  options.seed = 2;
  EXPECT_NE(MakeTestModel(options).head.weights, a.head.weights);
}

}  // namespace
}  // namespace fixpoint
