#include "bundle/test_model.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "bundle/visit_scalars.h"

namespace fixpoint {
namespace {

// SplitMix64: the standard library's distributions differ between implementations.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int32_t Between(int32_t low, int32_t high) {  // both included
    return low + static_cast<int32_t>(Next() % static_cast<uint64_t>(high - low + 1));
  }
  double Spread() {
    return 0.75 + 0.5 * static_cast<double>(Next() >> 11) * 0x1p-53;
  }  // 0.75 to 1.25

 private:
  uint64_t state_;
};

// Root mean squares that the stages below aim at.
constexpr double kWeight = 73.3;   // uniform in +-127
constexpr double kInt8 = 36;       // int8 activations: peaks of 3.5 sigma fit
constexpr double kInt16 = 4000;    // int16 values between operations
constexpr double kWideGain = 256;  // an int16 site has 8 bits more
constexpr int32_t kResidualBits = 12;
constexpr double kResidualStep = 0.3;  // what each block adds to the residual, real units
constexpr double kResidualStart = 1;

class Builder {
 public:
  explicit Builder(const TestModelOptions& options) : o_(options), random_(options.seed) {}
  IntegerModel Build();

 private:
  double Gain(bool wide) const { return wide ? kWideGain : 1; }
  double Accumulator(double input, int32_t depth) const {
    return input * kWeight * std::sqrt(static_cast<double>(depth));
  }
  std::vector<int8_t> Weights(int64_t count);
  LinearWeights Linear(int32_t outputs, int32_t depth);
  // Multipliers around `factor` * 2^k with the largest k for which they fit.
  NarrowRequantize Narrow(double factor, int32_t p, int32_t channels);
  NarrowRequantize NarrowTo(double from, double to, int32_t channels);
  WideRequantize Wide(double factor, int32_t channels);
  Norm MakeNorm(bool wide);
  ScoreScale Score();
  ModelLayer Layer(uint32_t wide_sites);
  void Attention(uint32_t wide_sites, ModelLayer* layer);
  void Mlp(uint32_t wide_sites, ModelLayer* layer);
  void Rope(IntegerModel* model);

  const TestModelOptions o_;
  Random random_;
};

std::vector<int8_t> Builder::Weights(int64_t count) {
  std::vector<int8_t> weights(static_cast<size_t>(count));
  for (int8_t& w : weights) w = static_cast<int8_t>(random_.Between(-127, 127));
  return weights;
}

LinearWeights Builder::Linear(int32_t outputs, int32_t depth) {
  return {outputs, depth, Weights(int64_t{outputs} * depth), {}};
}

NarrowRequantize Builder::Narrow(double factor, int32_t p, int32_t channels) {
  // factor * 2^k in [2^13, 2^14): the spread of 1.25 stays below 2^15.
  const int32_t k = std::clamp(13 - std::ilogb(factor), 1, 30);
  NarrowRequantize result{p, k, std::vector<int16_t>(static_cast<size_t>(channels))};
  for (int16_t& m : result.multipliers) {
    m = static_cast<int16_t>(std::clamp(std::ldexp(factor * random_.Spread(), k), 1.0, 32767.0));
  }
  return result;
}

// Values of root mean square `from` (an accumulator or a product) to `to`, through sat16 with a
// reserve of 8 sigma.
NarrowRequantize Builder::NarrowTo(double from, double to, int32_t channels) {
  const int32_t p = std::max(0, std::ilogb(from / kInt16));
  return Narrow(to / std::ldexp(from, -p), p, channels);
}

WideRequantize Builder::Wide(double factor, int32_t channels) {
  const int32_t n = std::clamp(29 - std::ilogb(factor), 1, 62);
  WideRequantize result{n, std::vector<int32_t>(static_cast<size_t>(channels))};
  for (int32_t& m : result.multipliers) {
    m = static_cast<int32_t>(
        std::clamp(std::ldexp(factor * random_.Spread(), n), 1.0, 2147483647.0));
  }
  return result;
}

Norm Builder::MakeNorm(bool wide) {
  constexpr int32_t kFractionBits = 14;
  const double normalized =
      std::ldexp(1 / std::sqrt(static_cast<double>(o_.hidden)), kFractionBits);
  NarrowRequantize narrow = Narrow(kInt8 * Gain(wide) / normalized, 0, o_.hidden);
  return {kFractionBits, narrow.k, wide, std::move(narrow.multipliers)};
}

// Scores of two random rows have this root mean square; the softmax shall see 1.5 natural-log units
// of it.
ScoreScale Builder::Score() {
  const double score = kInt8 * kInt8 * std::sqrt(static_cast<double>(o_.head_dim));
  const double log2_per_unit = 1.5 * 1.442695 / score * 32768 * random_.Spread();
  ScoreScale s;
  s.d_max = static_cast<int32_t>(std::ceil(17 * 32768 / log2_per_unit));
  for (s.a = 0; s.a <= 15; ++s.a) {
    for (s.n = 30; s.n >= 1; --s.n) {
      const double c = std::round(std::ldexp(log2_per_unit, s.a + s.n));
      const double distance = std::ldexp(s.d_max, -s.a) + 1;
      if (c > 65535 || distance * c + std::ldexp(1, s.n - 1) >= 2147483647.0) continue;
      if (c < 256) break;  // too coarse: a larger a leaves room for more bits
      s.c = static_cast<int32_t>(c);
      return s;
    }
  }
  CHECK(false) << "no score scale for head_dim " << o_.head_dim;
  return s;
}

void Builder::Attention(uint32_t wide_sites, ModelLayer* layer) {
  const int32_t q = o_.heads * o_.head_dim, kv = o_.kv_heads * o_.head_dim;
  layer->attn_norm = MakeNorm(wide_sites & kWideAttnNorm);
  layer->qkv = Linear(q + 2 * kv, o_.hidden);
  const double acc =
      Accumulator(kInt8, o_.hidden);  // an int16 site's accumulator is divided by 256
  if (o_.qkv_bias) {
    const auto limit = static_cast<int32_t>(acc / 2);
    layer->qkv.bias.resize(static_cast<size_t>(layer->qkv.outputs));
    for (int32_t& b : layer->qkv.bias) b = random_.Between(-limit, limit);
  }
  const double rotated =
      kInt16 * (o_.qk_hadamard ? std::sqrt(static_cast<double>(o_.head_dim)) : 1);
  layer->q_before = NarrowTo(acc, kInt16, q);
  layer->q_after = NarrowTo(rotated, kInt8, q);
  layer->k_before = NarrowTo(acc, kInt16, kv);
  layer->k_after = NarrowTo(rotated, kInt8, kv);
  layer->v = NarrowTo(acc, kInt8, kv);
  for (int32_t head = 0; head < o_.heads; ++head) layer->scores.push_back(Score());
  // Attention gives 128 * (mean of v). The weights fall on some three keys, so the mean is about
  // half as large as v.
  layer->attn_out_wide = wide_sites & kWideAttnOut;
  layer->attn_out = Narrow(kInt8 * Gain(layer->attn_out_wide) / (128 * kInt8 / 2), 0, q);
  layer->o_proj = Linear(o_.hidden, q);
  layer->o_requantize =
      Wide(std::ldexp(kResidualStep, kResidualBits) / Accumulator(kInt8, q), o_.hidden);
}

void Builder::Mlp(uint32_t wide_sites, ModelLayer* layer) {
  layer->mlp_norm = MakeNorm(wide_sites & kWideMlpNorm);
  layer->gate_up = Linear(2 * o_.intermediate, o_.hidden);
  const double acc = Accumulator(kInt8, o_.hidden);
  layer->gate = NarrowTo(acc, kInt16, o_.intermediate);
  layer->up = NarrowTo(acc, kInt16, o_.intermediate);
  // The gate's root mean square stands for 1.5, in Q11 at the sigmoid table.
  const NarrowRequantize sigmoid = Narrow(1.5 * 2048 / kInt16, 0, 1);
  layer->sigmoid_multiplier = sigmoid.multipliers[0];
  layer->sigmoid_shift = sigmoid.k;
  // silu(g) is about half of g; one bit more than kInt16 needs, because products have long tails.
  const double product = kInt16 / 2 * kInt16;
  layer->product_shift = std::ilogb(product / kInt16) + 1;
  const double mixed = std::ldexp(product, -layer->product_shift) *
                       std::sqrt(static_cast<double>(o_.down_hadamard_block));
  layer->down_in_wide = wide_sites & kWideDownIn;
  layer->down_in = NarrowTo(mixed, kInt8 * Gain(layer->down_in_wide), o_.intermediate);
  layer->down_proj = Linear(o_.hidden, o_.intermediate);
  layer->down_requantize = Wide(
      std::ldexp(kResidualStep, kResidualBits) / Accumulator(kInt8, o_.intermediate), o_.hidden);
}

ModelLayer Builder::Layer(uint32_t wide_sites) {
  ModelLayer layer;
  Attention(wide_sites, &layer);
  Mlp(wide_sites, &layer);
  const size_t prefix_elements = static_cast<size_t>(o_.kv_heads) *
                                 static_cast<size_t>(o_.prefix_tokens) *
                                 static_cast<size_t>(o_.head_dim);
  // Keys partly beyond int8, as those of a first token are; values like the others, for attention
  // likes the prefix.
  for (size_t i = 0; i < prefix_elements; ++i) {
    layer.prefix_k.push_back(static_cast<int16_t>(random_.Between(-140, 140)));
    layer.prefix_v.push_back(static_cast<int16_t>(random_.Between(-60, 60)));
  }
  return layer;
}

void Builder::Rope(IntegerModel* model) {
  const int32_t half = o_.head_dim / 2;
  for (int32_t position = 0; position < o_.context; ++position) {
    for (int32_t i = 0; i < half; ++i) {
      const double angle = position * std::pow(10000.0, -static_cast<double>(i) / half);
      model->rope_cos.push_back(static_cast<int16_t>(std::lround(16384 * std::cos(angle))));
      model->rope_sin.push_back(static_cast<int16_t>(std::lround(16384 * std::sin(angle))));
    }
  }
}

IntegerModel Builder::Build() {
  IntegerModel model;
  ModelConfig& c = model.config;
  c.hidden_size = o_.hidden;
  c.intermediate_size = o_.intermediate;
  c.num_hidden_layers = o_.layers;
  c.num_attention_heads = o_.heads;
  c.num_key_value_heads = o_.kv_heads;
  c.head_dim = o_.head_dim;
  c.vocab_size = o_.vocab;
  c.max_position_embeddings = o_.context;
  c.residual_fraction_bits = kResidualBits;
  c.logit_fraction_bits = 16;
  c.norm_epsilon = static_cast<uint64_t>(168 * int64_t{o_.hidden});  // 1e-5 * hidden * 2^24
  c.down_hadamard_block = o_.down_hadamard_block;
  c.qk_hadamard = o_.qk_hadamard;
  if (o_.prefix_tokens > 0) model.prefix_token_ids.push_back(o_.vocab - 2);
  for (int32_t i = 1; i < o_.prefix_tokens; ++i) model.prefix_token_ids.push_back('a' + i);

  Rope(&model);
  model.embedding = Weights(int64_t{o_.vocab} * o_.hidden);
  model.embedding_requantize = Wide(std::ldexp(kResidualStart, kResidualBits) / kWeight, o_.vocab);
  for (int32_t i = 0; i < o_.layers; ++i) {
    model.layers.push_back(Layer(o_.wide_sites | (i % 2 == 1 ? o_.odd_layer_wide_sites : 0)));
  }
  model.final_norm = MakeNorm(o_.wide_sites & kWideFinalNorm);
  model.head = Linear(o_.vocab, o_.hidden);
  // Logits of two natural-log units: a distribution that is neither flat nor a point.
  model.head_requantize =
      Wide(std::ldexp(2, c.logit_fraction_bits) / Accumulator(kInt8, o_.hidden), o_.vocab);
  return model;
}

class TokenizerBuilder {
 public:
  explicit TokenizerBuilder(int32_t vocab) : vocab_(vocab) {
    CHECK_GE(vocab, 258);
    for (int byte = 0; byte < 256; ++byte)
      Add(std::string(1, static_cast<char>(byte)), TokenType::kNormal);
  }
  TokenizerSpec Build();

 private:
  void Add(std::string token, TokenType type) {
    ids_.try_emplace(token, static_cast<int32_t>(spec_.tokens.size()));
    spec_.tokens.push_back(std::move(token));
    spec_.types.push_back(type);
  }
  // Merges two known tokens into a new one, if there is room and it is new.
  void Merge(const std::string& left, const std::string& right) {
    const std::string joined = left + right;
    if (static_cast<int32_t>(spec_.tokens.size()) >= vocab_ - 2 || ids_.count(joined) != 0) return;
    const int32_t id = static_cast<int32_t>(spec_.tokens.size());
    spec_.merges.push_back({ids_.at(left), ids_.at(right), id});
    Add(joined, TokenType::kNormal);
  }
  void AddControl(const std::string& content) {
    AddedToken token;
    token.id = static_cast<int32_t>(spec_.tokens.size());
    token.content = content;
    token.special = true;
    spec_.added.push_back(token);
    Add(content, TokenType::kControl);
  }

  const int32_t vocab_;
  TokenizerSpec spec_;
  std::map<std::string, int32_t> ids_;
};

TokenizerSpec TokenizerBuilder::Build() {
  spec_.kind = TokenizerKind::kByteLevelBpe;
  spec_.pre_tokenizer = PreTokenizer::kGpt2;
  const char* const merges[][2] = {
      {"h", "e"},   {" ", "t"},  {"i", "n"}, {"e", "r"},  {"o", "n"},    {"a", "t"}, {"r", "e"},
      {" t", "he"}, {" ", "a"},  {"n", "d"}, {"e", "s"},  {"o", "r"},    {" ", "s"}, {" ", "o"},
      {"e", "n"},   {"i", "s"},  {"i", "t"}, {"in", "g"}, {"o", "u"},    {"l", "l"}, {" a", "nd"},
      {" o", "f"},  {" t", "o"}, {" ", "w"}, {"at", "i"}, {"ati", "on"}, {"l", "o"}, {"he", "llo"}};
  for (const auto& [left, right] : merges) {
    if (std::string(right) == "llo") Merge("ll", "o");
    Merge(left, right);
  }
  for (char left = 'a'; left <= 'z'; ++left) {
    for (char right = 'a'; right <= 'z'; ++right) {
      Merge(std::string(1, left), std::string(1, right));
    }
  }
  while (static_cast<int32_t>(spec_.tokens.size()) < vocab_ - 2) {
    Add(absl::StrCat("<unused", spec_.tokens.size(), ">"), TokenType::kUnused);
  }
  AddControl("<|im_start|>");
  AddControl("<|im_end|>");
  spec_.bos_id = vocab_ - 2;
  spec_.eos_ids = {vocab_ - 1};
  return spec_;
}

}  // namespace

IntegerModel MakeTestModel(const TestModelOptions& options) { return Builder(options).Build(); }

TokenizerSpec MakeTestTokenizer(int32_t vocab) { return TokenizerBuilder(vocab).Build(); }

Bundle MakeTestBundle(const TestModelOptions& options) {
  Bundle bundle;
  bundle.model = MakeTestModel(options);
  bundle.tokenizer = MakeTestTokenizer(options.vocab);
  bundle.chat_template =
      "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
      "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
  for (int32_t i = 0; i < options.layers; ++i) {
    bundle.sites.push_back({absl::StrCat("layers.", i, ".down_in"),
                            bundle.model.layers[i].down_in_wide ? 16 : 8, "channel", "0.0125"});
  }
  bundle.provenance_json = absl::StrCat("{\"test_model_seed\":", options.seed, ",\"note\":1.50}");
  return bundle;
}

}  // namespace fixpoint
