#include "engine/tensor_parallel.h"

#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"

namespace fixpoint {
namespace {

struct Range {
  int64_t begin = 0, count = 0;
};

// Part `rank` of `all` equal parts.
Range Part(int64_t size, int32_t rank, int32_t degree) {
  return {size / degree * rank, size / degree};
}

template <typename T>
std::vector<T> Slice(const std::vector<T>& values, Range range) {
  const auto first = values.begin() + range.begin;
  return std::vector<T>(first, first + range.count);
}

NarrowRequantize Slice(const NarrowRequantize& r, Range range) {
  return {r.p, r.k, Slice(r.multipliers, range)};
}

// Ranges of the outputs, one behind the other.
LinearWeights Rows(const LinearWeights& linear, absl::Span<const Range> ranges) {
  LinearWeights result{.depth = linear.depth};
  for (const Range& range : ranges) {
    const auto weights = linear.weights.begin() + range.begin * linear.depth;
    result.weights.insert(result.weights.end(), weights, weights + range.count * linear.depth);
    if (!linear.bias.empty()) {
      const auto bias = linear.bias.begin() + range.begin;
      result.bias.insert(result.bias.end(), bias, bias + range.count);
    }
    result.outputs += static_cast<int32_t>(range.count);
  }
  return result;
}

// A range of the depth. The bias belongs to the sum over all parts.
LinearWeights Columns(const LinearWeights& linear, Range range) {
  LinearWeights result{
      .outputs = linear.outputs, .depth = static_cast<int32_t>(range.count), .bias = linear.bias};
  result.weights.resize(static_cast<size_t>(linear.outputs * range.count));
  for (int64_t row = 0; row < linear.outputs; ++row) {
    std::memcpy(result.weights.data() + row * range.count,
                linear.weights.data() + row * linear.depth + range.begin,
                static_cast<size_t>(range.count));
  }
  return result;
}

ModelLayer ShardLayer(const ModelLayer& l, const ModelConfig& c, int64_t prefix_tokens,
                      int32_t rank, int32_t degree) {
  const int64_t q_width = int64_t{c.num_attention_heads} * c.head_dim;
  const int64_t kv_width = int64_t{c.num_key_value_heads} * c.head_dim;
  const Range q = Part(q_width, rank, degree), kv = Part(kv_width, rank, degree);
  const Range channels = Part(c.intermediate_size, rank, degree);
  const Range prefix = {kv.begin * prefix_tokens, kv.count * prefix_tokens};
  ModelLayer s;
  s.attn_norm = l.attn_norm;
  s.qkv =
      Rows(l.qkv, {q, {q_width + kv.begin, kv.count}, {q_width + kv_width + kv.begin, kv.count}});
  s.q_before = Slice(l.q_before, q);
  s.q_after = Slice(l.q_after, q);
  s.k_before = Slice(l.k_before, kv);
  s.k_after = Slice(l.k_after, kv);
  s.v = Slice(l.v, kv);
  s.scores = Slice(l.scores, Part(c.num_attention_heads, rank, degree));
  s.attn_out = Slice(l.attn_out, q);
  s.attn_out_wide = l.attn_out_wide;
  s.o_proj = Columns(l.o_proj, q);
  s.o_requantize = l.o_requantize;
  s.mlp_norm = l.mlp_norm;
  s.gate_up = Rows(l.gate_up, {channels, {c.intermediate_size + channels.begin, channels.count}});
  s.gate = Slice(l.gate, channels);
  s.up = Slice(l.up, channels);
  s.sigmoid_multiplier = l.sigmoid_multiplier;
  s.sigmoid_shift = l.sigmoid_shift;
  s.product_shift = l.product_shift;
  s.down_in = Slice(l.down_in, channels);
  s.down_in_wide = l.down_in_wide;
  s.down_proj = Columns(l.down_proj, channels);
  s.down_requantize = l.down_requantize;
  s.prefix_k = Slice(l.prefix_k, prefix);
  s.prefix_v = Slice(l.prefix_v, prefix);
  return s;
}

absl::Status CheckDivides(absl::string_view what, int64_t size, int32_t degree) {
  if (size % degree == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("tensor parallelism of ", degree, ": ", what,
                                                 " is ", size, ", no multiple of ", degree));
}

}  // namespace

absl::Status CheckTensorParallel(const ModelConfig& config, int32_t degree) {
  if (degree < 1 || degree > kMaxTensorParallel || (degree & (degree - 1)) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor parallelism of ", degree, ": must be 1, 2, 4 or 8"));
  }
  if (absl::Status status = CheckDivides("num_key_value_heads", config.num_key_value_heads, degree);
      !status.ok()) {
    return status;
  }
  return CheckDivides(absl::StrCat("intermediate_size ", config.intermediate_size,
                                   " in Hadamard blocks of ", config.down_hadamard_block),
                      config.intermediate_size / config.down_hadamard_block, degree);
}

IntegerModel ShardModel(const IntegerModel& model, int32_t rank, int32_t degree) {
  const ModelConfig& c = model.config;
  const int64_t first = FirstOfVocabulary(c.vocab_size, rank, degree);
  const Range vocab = {first, FirstOfVocabulary(c.vocab_size, rank + 1, degree) - first};
  IntegerModel shard;
  shard.config = c;
  shard.config.num_attention_heads /= degree;
  shard.config.num_key_value_heads /= degree;
  shard.config.intermediate_size /= degree;
  shard.config.vocab_size = static_cast<int32_t>(vocab.count);
  shard.prefix_token_ids = model.prefix_token_ids;
  shard.rope_cos = model.rope_cos;
  shard.rope_sin = model.rope_sin;
  shard.embedding = model.embedding;
  shard.embedding_requantize = model.embedding_requantize;
  for (const ModelLayer& layer : model.layers) {
    shard.layers.push_back(
        ShardLayer(layer, c, static_cast<int64_t>(model.prefix_token_ids.size()), rank, degree));
  }
  shard.final_norm = model.final_norm;
  shard.head = Rows(model.head, {vocab});
  shard.head_requantize = {model.head_requantize.n,
                           Slice(model.head_requantize.multipliers, vocab)};
  return shard;
}

}  // namespace fixpoint
