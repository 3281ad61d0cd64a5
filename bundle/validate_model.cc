#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "bundle/model.h"
#include "bundle/visit_scalars.h"
#include "kernels/ops.h"

namespace fixpoint {
namespace {

template <typename... Parts>
absl::Status Bad(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

// A visitor of scalars that keeps the first violation.
struct RangeCheck {
  std::string prefix;
  absl::Status status = absl::OkStatus();

  template <typename T>
  void operator()(absl::string_view name, const T& value, int64_t min, int64_t max) {
    if (!status.ok()) return;
    const bool below = std::is_signed_v<T> && static_cast<int64_t>(value) < min;
    const bool above = std::is_signed_v<T>
                           ? static_cast<int64_t>(value) > max
                           : static_cast<uint64_t>(value) > static_cast<uint64_t>(max);
    if (below || above) {
      status = Bad(prefix, name, " is ", value, ", allowed is ", min, " to ", max);
    }
  }
};

// What a tensor may hold, told by its name's last part and its type.
struct ValueRange {
  int64_t min, max;
};

bool EndsWith(absl::string_view name, absl::string_view suffix) {
  return name.size() >= suffix.size() && name.substr(name.size() - suffix.size()) == suffix;
}

template <typename T>
ValueRange RangeOf(absl::string_view name) {
  if (EndsWith(name, ".multiplier")) return {1, std::numeric_limits<T>::max()};
  if (name == "rope.cos" || name == "rope.sin") return {-(1 << 14), 1 << 14};
  // Weights and the prefix are symmetric: -128 would break the sign trick of AVX2, -32768 is never
  // written.
  return {-std::numeric_limits<T>::max(), std::numeric_limits<T>::max()};
}

template <typename T>
absl::Status CheckValues(const std::string& name, const std::vector<T>& values) {
  const ValueRange range = RangeOf<T>(name);
  const auto lowest = static_cast<T>(range.min), highest = static_cast<T>(range.max);
  const auto outside = [=](T value) { return value < lowest || value > highest; };
  const T* bad = nullptr;
  if constexpr (std::is_same_v<T, int8_t>) {
    // Only -128 is outside, and memchr looks for it at memory speed: this is most of the file.
    if (!values.empty()) {
      bad = static_cast<const T*>(std::memchr(values.data(), 0x80, values.size()));
    }
  } else if (const auto it = std::find_if(values.begin(), values.end(), outside);
             it != values.end()) {
    bad = &*it;
  }
  if (bad == nullptr) return absl::OkStatus();
  return Bad("tensor '", name, "': element ", bad - values.data(), " is ",
             static_cast<int64_t>(*bad), ", allowed is ", range.min, " to ", range.max);
}

absl::Status ValidateTensors(const IntegerModel& model) {
  absl::Status status;
  VisitTensors(model, [&](const std::string& name, const auto& values, int64_t rows,
                          int64_t columns, bool optional) {
    if (!status.ok() || (optional && values.empty())) return;
    const int64_t elements = rows * columns;
    if (static_cast<int64_t>(values.size()) != elements) {
      status = Bad("tensor '", name, "' has ", values.size(), " elements, its shape [", rows, ", ",
                   columns, "] needs ", elements);
      return;
    }
    status = CheckValues(name, values);
  });
  return status;
}

absl::Status ValidateLinear(const std::string& name, const LinearWeights& linear, int64_t outputs,
                            int64_t depth, bool wide) {
  if (linear.outputs != outputs || linear.depth != depth) {
    return Bad(name, " has shape [", linear.outputs, ", ", linear.depth, "], the config needs [",
               outputs, ", ", depth, "]");
  }
  // Largest |accumulator| without bias; hi of an int16 site reaches -128 and lo adds a 256th.
  const int64_t product_sum = (wide ? int64_t{128} : int64_t{127}) * 127 * depth;
  const int64_t accumulator = wide ? product_sum + ((product_sum + 128) >> 8) : product_sum;
  const int64_t limit = std::numeric_limits<int32_t>::max() - accumulator;
  for (size_t i = 0; i < linear.bias.size(); ++i) {
    if (std::abs(int64_t{linear.bias[i]}) > limit) {
      return Bad("tensor '", name, ".bias': element ", i, " is ", linear.bias[i],
                 ", allowed is up to ", limit, " in size at depth ", depth);
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateScores(const std::string& prefix, const ModelLayer& layer, int32_t heads) {
  if (static_cast<int64_t>(layer.scores.size()) != heads) {
    return Bad(prefix, "scores has ", layer.scores.size(), " entries for ", heads,
               " attention heads");
  }
  for (size_t head = 0; head < layer.scores.size(); ++head) {
    const ScoreScale& s = layer.scores[head];
    const std::string name = absl::StrCat(prefix, "scores.", head);
    RangeCheck check{absl::StrCat(name, ".")};
    VisitScoreScale(s, check);
    RETURN_IF_ERROR(check.status);
    const int64_t distance = s.a == 0 ? s.d_max : (int64_t{s.d_max} + (1 << (s.a - 1))) >> s.a;
    const int64_t product = distance * s.c + (int64_t{1} << (s.n - 1));
    if (product > std::numeric_limits<int32_t>::max()) {
      return Bad(name, ": rs(d_max, a) * c + 2^(n-1) is ", product, ", must be below 2^31");
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateLayer(const IntegerModel& model, size_t index) {
  const ModelConfig& c = model.config;
  const ModelLayer& layer = model.layers[index];
  const std::string prefix = absl::StrCat("layers.", index, ".");
  RangeCheck check{prefix};
  VisitLayerScalars(layer, check);
  RETURN_IF_ERROR(check.status);
  RETURN_IF_ERROR(ValidateScores(prefix, layer, c.num_attention_heads));
  const int64_t q = int64_t{c.num_attention_heads} * c.head_dim;
  const int64_t kv = int64_t{c.num_key_value_heads} * c.head_dim;
  RETURN_IF_ERROR(
      ValidateLinear(prefix + "qkv", layer.qkv, q + 2 * kv, c.hidden_size, layer.attn_norm.wide));
  RETURN_IF_ERROR(ValidateLinear(prefix + "gate_up", layer.gate_up,
                                 2 * int64_t{c.intermediate_size}, c.hidden_size,
                                 layer.mlp_norm.wide));
  RETURN_IF_ERROR(
      ValidateLinear(prefix + "o_proj", layer.o_proj, c.hidden_size, q, layer.attn_out_wide));
  RETURN_IF_ERROR(ValidateLinear(prefix + "down_proj", layer.down_proj, c.hidden_size,
                                 c.intermediate_size, layer.down_in_wide));
  // Biases that the file has no place for would be lost without a word.
  for (const auto& [name, linear] :
       {std::pair<const char*, const LinearWeights*>{"gate_up", &layer.gate_up},
        {"o_proj", &layer.o_proj},
        {"down_proj", &layer.down_proj}}) {
    if (!linear->bias.empty()) return Bad(prefix, name, " has a bias, only qkv may have one");
  }
  return absl::OkStatus();
}

absl::Status ValidatePrefix(const IntegerModel& model) {
  const ModelConfig& c = model.config;
  const auto count = static_cast<int64_t>(model.prefix_token_ids.size());
  if (count > kMaxPrefixTokens) {
    return Bad("prefix_token_ids has ", count, " tokens, allowed is up to ", kMaxPrefixTokens);
  }
  if (count >= c.max_position_embeddings) {
    return Bad("prefix_token_ids has ", count, " tokens and max_position_embeddings is ",
               c.max_position_embeddings, ": no position is left");
  }
  for (const int32_t id : model.prefix_token_ids) {
    if (id < 0 || id >= c.vocab_size) {
      return Bad("prefix_token_ids holds ", id, ", the vocabulary has ", c.vocab_size, " tokens");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateConfig(const ModelConfig& c) {
  RangeCheck check{"config."};
  VisitConfig(c, check);
  RETURN_IF_ERROR(check.status);
  if (c.head_dim % 16 != 0) {
    return Bad("config.head_dim is ", c.head_dim, ", must be a multiple of 16");
  }
  if (c.num_attention_heads % c.num_key_value_heads != 0) {
    return Bad("config.num_attention_heads is ", c.num_attention_heads,
               ", must be a multiple of num_key_value_heads, ", c.num_key_value_heads);
  }
  if (const int64_t q = int64_t{c.num_attention_heads} * c.head_dim; q > kMaxDepth) {
    return Bad("config.num_attention_heads * head_dim is ", q, ", allowed is up to ", kMaxDepth);
  }
  const auto block = static_cast<uint32_t>(c.down_hadamard_block);
  if (!std::has_single_bit(block) || c.intermediate_size % c.down_hadamard_block != 0) {
    return Bad("config.down_hadamard_block is ", c.down_hadamard_block,
               ", must be a power of two that divides intermediate_size, ", c.intermediate_size);
  }
  if (c.qk_hadamard && !std::has_single_bit(static_cast<uint32_t>(c.head_dim))) {
    return Bad("config.qk_hadamard needs a head_dim that is a power of two, it is ", c.head_dim);
  }
  return absl::OkStatus();
}

absl::Status ValidateModel(const IntegerModel& model) {
  const ModelConfig& c = model.config;
  RETURN_IF_ERROR(ValidateConfig(c));
  RETURN_IF_ERROR(ValidatePrefix(model));
  if (static_cast<int64_t>(model.layers.size()) != c.num_hidden_layers) {
    return Bad("layers has ", model.layers.size(), " entries, config.num_hidden_layers is ",
               c.num_hidden_layers);
  }
  RangeCheck check;
  VisitModelScalars(model, check);
  RETURN_IF_ERROR(check.status);
  for (size_t i = 0; i < model.layers.size(); ++i) RETURN_IF_ERROR(ValidateLayer(model, i));
  RETURN_IF_ERROR(
      ValidateLinear("head", model.head, c.vocab_size, c.hidden_size, model.final_norm.wide));
  if (!model.head.bias.empty()) return Bad("head has a bias, only qkv may have one");
  return ValidateTensors(model);
}

}  // namespace fixpoint
