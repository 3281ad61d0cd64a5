#include "calibrator/import/gguf_checkpoint.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "calibrator/import/rope.h"

namespace fixpoint {
namespace {

constexpr char kRopeFactors[] = "rope_freqs.weight";

// Keys of the architecture that are read below, or that say nothing about the arithmetic.
constexpr absl::string_view kKnownKeys[] = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.causal",
    "expert_count",
    "expert_used_count",
    "tensor_data_layout",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
};

// Reads {arch}.KEY with the file and the key in every message.
class ArchKeys {
 public:
  ArchKeys(const GgufFile& gguf, std::string architecture)
      : gguf_(gguf), prefix_(absl::StrCat(architecture, ".")) {}

  std::string Full(absl::string_view key) const { return absl::StrCat(prefix_, key); }
  std::string Place(absl::string_view key) const {
    return absl::StrCat(gguf_.file().path(), ": metadata key ", prefix_, key);
  }

  absl::StatusOr<int32_t> Size(absl::string_view key, std::optional<int64_t> fallback = {}) const {
    ASSIGN_OR_RETURN(const std::optional<int64_t> found, gguf_.FindInt(Full(key)));
    const std::optional<int64_t> value = found.has_value() ? found : fallback;
    if (!value.has_value())
      return absl::InvalidArgumentError(absl::StrCat(Place(key), " is missing"));
    if (*value < 1 || *value > std::numeric_limits<int32_t>::max()) {
      return absl::InvalidArgumentError(absl::StrCat(Place(key), " is ", *value));
    }
    return static_cast<int32_t>(*value);
  }

  // UNIMPLEMENTED unless the integer is absent or one of the two values that mean "not in use".
  absl::Status RefuseUnless(absl::string_view key, int64_t a, int64_t b) const {
    ASSIGN_OR_RETURN(const std::optional<int64_t> value, gguf_.FindInt(Full(key)));
    if (!value.has_value() || *value == a || *value == b) return absl::OkStatus();
    return absl::UnimplementedError(absl::StrCat(Place(key), ": ", *value, " is not supported"));
  }

  absl::Status RefuseUnknown() const {
    for (const std::string& key : gguf_.keys()) {
      if (!absl::StartsWith(key, prefix_)) continue;
      const absl::string_view rest = absl::string_view(key).substr(prefix_.size());
      if (std::find(std::begin(kKnownKeys), std::end(kKnownKeys), rest) == std::end(kKnownKeys)) {
        return absl::UnimplementedError(
            absl::StrCat(Place(absl::CHexEscape(rest)), ": is not understood"));
      }
    }
    return absl::OkStatus();
  }

  const GgufFile& gguf() const { return gguf_; }

 private:
  const GgufFile& gguf_;
  std::string prefix_;
};

const TensorInfo* FindTensor(const GgufFile& gguf, absl::string_view name) {
  for (const TensorInfo& info : gguf.tensors()) {
    if (info.name == name) return &info;
  }
  return nullptr;
}

absl::Status RefuseGeneral(const GgufFile& gguf) {
  const std::string& path = gguf.file().path();
  ASSIGN_OR_RETURN(const std::string* type, gguf.FindString("general.type"));
  if (type != nullptr && *type != "model") {
    return absl::UnimplementedError(absl::StrCat(path, ": metadata key general.type: \"",
                                                 absl::CHexEscape(*type), "\" is not \"model\""));
  }
  ASSIGN_OR_RETURN(const std::optional<int64_t> splits, gguf.FindInt("split.count"));
  if (splits.value_or(1) > 1) {
    return absl::UnimplementedError(absl::StrCat(path, ": metadata key split.count: ", *splits,
                                                 " files; merge them into one first"));
  }
  ASSIGN_OR_RETURN(const std::optional<int64_t> version,
                   gguf.FindInt("general.quantization_version"));
  if (version.value_or(2) != 2) {
    return absl::UnimplementedError(absl::StrCat(
        path, ": metadata key general.quantization_version: ", *version, ", only 2 is supported"));
  }
  return absl::OkStatus();
}

// What would change the attention: windows that can bite, experts, non-causal masks, values wider
// than keys.
absl::Status RefuseVariants(const ArchKeys& keys, const FloatConfig& config) {
  RETURN_IF_ERROR(keys.RefuseUnknown());
  RETURN_IF_ERROR(keys.RefuseUnless("expert_count", 0, 0));
  RETURN_IF_ERROR(keys.RefuseUnless("expert_used_count", 0, 0));
  RETURN_IF_ERROR(keys.RefuseUnless("attention.value_length", config.head_dim, config.head_dim));
  RETURN_IF_ERROR(keys.RefuseUnless("rope.dimension_count", config.head_dim, config.head_dim));
  ASSIGN_OR_RETURN(const std::string* layout,
                   keys.gguf().FindString(keys.Full("tensor_data_layout")));
  if (layout != nullptr && *layout != "Meta AI original pth") {  // the layout that llama always has
    return absl::UnimplementedError(absl::StrCat(keys.Place("tensor_data_layout"), ": \"",
                                                 absl::CHexEscape(*layout), "\" is not supported"));
  }
  ASSIGN_OR_RETURN(const std::optional<bool> causal,
                   keys.gguf().FindBool(keys.Full("attention.causal")));
  if (!causal.value_or(true)) {
    return absl::UnimplementedError(
        absl::StrCat(keys.Place("attention.causal"), ": false is not supported"));
  }
  ASSIGN_OR_RETURN(const std::optional<int64_t> window,
                   keys.gguf().FindInt(keys.Full("attention.sliding_window")));
  if (window.value_or(0) != 0 && *window < config.max_position_embeddings) {
    return absl::UnimplementedError(absl::StrCat(
        keys.Place("attention.sliding_window"), ": a window of ", *window,
        " tokens in a context of ", config.max_position_embeddings, " is not supported"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<FloatConfig> ParseGgufConfig(const GgufFile& gguf) {
  const std::string& path = gguf.file().path();
  RETURN_IF_ERROR(RefuseGeneral(gguf));
  ASSIGN_OR_RETURN(const std::string* architecture, gguf.FindString("general.architecture"));
  if (architecture == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": metadata key general.architecture is missing"));
  }
  if (*architecture != "llama" && *architecture != "qwen2") {
    return absl::UnimplementedError(absl::StrCat(path, ": metadata key general.architecture: \"",
                                                 absl::CHexEscape(*architecture),
                                                 "\" is not supported (llama and qwen2 are)"));
  }
  const ArchKeys keys(gguf, *architecture);
  FloatConfig config;
  config.architecture = *architecture;
  ASSIGN_OR_RETURN(config.num_hidden_layers, keys.Size("block_count"));
  ASSIGN_OR_RETURN(config.max_position_embeddings, keys.Size("context_length"));
  ASSIGN_OR_RETURN(config.hidden_size, keys.Size("embedding_length"));
  ASSIGN_OR_RETURN(config.intermediate_size, keys.Size("feed_forward_length"));
  ASSIGN_OR_RETURN(config.num_attention_heads, keys.Size("attention.head_count"));
  ASSIGN_OR_RETURN(config.num_key_value_heads,
                   keys.Size("attention.head_count_kv", config.num_attention_heads));
  if (!gguf.Has(keys.Full("attention.key_length")) &&
      config.hidden_size % config.num_attention_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        keys.Place("attention.key_length"), " is missing and embedding_length ", config.hidden_size,
        " is no multiple of ", config.num_attention_heads, " heads"));
  }
  ASSIGN_OR_RETURN(config.head_dim, keys.Size("attention.key_length",
                                              config.hidden_size / config.num_attention_heads));
  ASSIGN_OR_RETURN(const std::optional<double> eps,
                   gguf.FindDouble(keys.Full("attention.layer_norm_rms_epsilon")));
  if (!eps.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat(keys.Place("attention.layer_norm_rms_epsilon"), " is missing"));
  }
  config.rms_norm_eps = *eps;
  ASSIGN_OR_RETURN(const std::optional<double> theta, gguf.FindDouble(keys.Full("rope.freq_base")));
  config.rope_theta = theta.value_or(RopeSpec().theta);
  const TensorInfo* embedding = FindTensor(gguf, "token_embd.weight");
  if (embedding == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": tensor token_embd.weight is missing"));
  }
  ASSIGN_OR_RETURN(config.vocab_size, keys.Size("vocab_size", embedding->shape.front()));
  config.tie_word_embeddings = FindTensor(gguf, "output.weight") == nullptr;
  RETURN_IF_ERROR(ValidateFloatConfig(config, path));
  RETURN_IF_ERROR(RefuseVariants(keys, config));
  return config;
}

absl::StatusOr<std::vector<double>> ParseGgufRope(const GgufFile& gguf, const FloatConfig& config) {
  const ArchKeys keys(gguf, config.architecture);
  RopeSpec rope;
  rope.theta = config.rope_theta;
  ASSIGN_OR_RETURN(const std::string* type, gguf.FindString(keys.Full("rope.scaling.type")));
  ASSIGN_OR_RETURN(const std::optional<double> factor,
                   gguf.FindDouble(keys.Full("rope.scaling.factor")));
  ASSIGN_OR_RETURN(const std::optional<double> old_factor,
                   gguf.FindDouble(keys.Full("rope.scale_linear")));
  if (type != nullptr && *type != "none" && *type != "linear") {
    return absl::UnimplementedError(absl::StrCat(keys.Place("rope.scaling.type"), ": \"",
                                                 absl::CHexEscape(*type),
                                                 "\" is not supported (none and linear are)"));
  }
  if (factor.has_value() && old_factor.has_value() && *factor != *old_factor) {
    return absl::InvalidArgumentError(absl::StrCat(keys.Place("rope.scaling.factor"), ": ", *factor,
                                                   " contradicts rope.scale_linear ", *old_factor));
  }
  if (type == nullptr || *type == "linear") {
    rope.factor = factor.has_value() ? *factor : old_factor.value_or(1);
    rope.scaling = RopeSpec::Scaling::kLinear;
  }
  RETURN_IF_ERROR(ValidateRope(rope, gguf.file().path()));
  std::vector<double> frequencies = InverseFrequencies(rope, config.head_dim);

  const TensorInfo* factors = FindTensor(gguf, kRopeFactors);
  if (factors == nullptr) return frequencies;
  const std::vector<int64_t> wanted = {config.head_dim / 2};
  const std::string place = absl::StrCat(gguf.file().path(), ": tensor ", kRopeFactors);
  if (factors->shape != wanted) {
    return absl::InvalidArgumentError(absl::StrCat(place, " has shape ", ShapeText(factors->shape),
                                                   ", the configuration asks for ",
                                                   ShapeText(wanted)));
  }
  std::vector<float> divisors(frequencies.size());
  const size_t index = static_cast<size_t>(factors - gguf.tensors().data());
  RETURN_IF_ERROR(gguf.Read(index, absl::MakeSpan(divisors)));
  for (size_t i = 0; i < frequencies.size(); ++i) {
    if (!(divisors[i] >= 1e-3f && divisors[i] <= 1e6f)) {
      return absl::InvalidArgumentError(absl::StrCat(place, ": factor ", i, " is ", divisors[i],
                                                     ", the limits are 0.001 and 1e6"));
    }
    frequencies[i] /= static_cast<double>(divisors[i]);
  }
  return frequencies;
}

absl::StatusOr<std::string> ParseGgufChatTemplate(const GgufFile& gguf) {
  ASSIGN_OR_RETURN(const std::string* text, gguf.FindString("tokenizer.chat_template"));
  return text == nullptr ? std::string() : *text;
}

}  // namespace fixpoint
