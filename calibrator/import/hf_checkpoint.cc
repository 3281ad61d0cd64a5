#include "calibrator/import/hf_checkpoint.h"

#include <limits>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "calibrator/import/compressed_tensors_reader.h"
#include "calibrator/import/json.h"
#include "calibrator/import/llama_weights.h"

namespace fixpoint {
namespace {

constexpr size_t kDepth = 64;
constexpr size_t kEosIdsMax = 64;

struct Architecture {
  absl::string_view name;  // architectures[0]
  absl::string_view model_type;
  absl::string_view ours;  // FloatConfig::architecture
};
constexpr Architecture kArchitectures[] = {
    {"LlamaForCausalLM", "llama", "llama"},
    {"MistralForCausalLM", "mistral", "llama"},
    {"Qwen2ForCausalLM", "qwen2", "qwen2"},
};

absl::Status Unsupported(const JsonObject& object, absl::string_view key,
                         absl::string_view message) {
  return absl::UnimplementedError(absl::StrCat(object.place(), ": ", key, ": ", message));
}

absl::string_view View(std::string_view text) {
  return absl::string_view(text.data(), text.size());
}

absl::StatusOr<int32_t> Size(const JsonObject& object, absl::string_view key,
                             std::optional<int64_t> fallback = {}) {
  ASSIGN_OR_RETURN(const std::optional<int64_t> found, object.FindInt(key));
  const std::optional<int64_t> value = found.has_value() ? found : fallback;
  if (!value.has_value()) return object.Error(key, "is missing");
  if (*value < 1 || *value > std::numeric_limits<int32_t>::max()) {
    return object.Error(key, absl::StrCat("is ", *value));
  }
  return static_cast<int32_t>(*value);
}

absl::StatusOr<const Architecture*> FindArchitecture(const JsonObject& root) {
  const std::optional<simdjson::dom::element> element = root.Find("architectures");
  simdjson::dom::array names;
  std::string_view name;
  if (!element.has_value() || element->get(names) || names.size() != 1 || names.at(0).get(name)) {
    return root.Error("architectures", "is not a list of one name");
  }
  for (const Architecture& known : kArchitectures) {
    if (known.name != View(name)) continue;
    ASSIGN_OR_RETURN(const std::optional<std::string> model_type, root.FindString("model_type"));
    if (model_type.has_value() && *model_type != known.model_type) {
      return Unsupported(
          root, "model_type",
          absl::StrCat("\"", absl::CHexEscape(*model_type), "\" beside architecture ", known.name));
    }
    return &known;
  }
  return Unsupported(root, "architectures",
                     absl::StrCat("\"", absl::CHexEscape(View(name)),
                                  "\" is not supported (LlamaForCausalLM, MistralForCausalLM, "
                                  "Qwen2ForCausalLM are)"));
}

// Sliding windows: Mistral uses one where the key is set, Qwen2 only with use_sliding_window, and
// newer files say it per layer in layer_types.
absl::Status RefuseSlidingWindow(const JsonObject& root, const Architecture& architecture,
                                 int32_t context) {
  ASSIGN_OR_RETURN(const std::optional<bool> use, root.FindBool("use_sliding_window"));
  if (use.value_or(false)) return Unsupported(root, "use_sliding_window", "true is not supported");
  ASSIGN_OR_RETURN(const std::optional<int64_t> window, root.FindInt("sliding_window"));
  if (architecture.model_type == "mistral" && window.has_value() && *window < context) {
    return Unsupported(root, "sliding_window",
                       absl::StrCat("a window of ", *window, " tokens in a context of ", context,
                                    " is not supported"));
  }
  const std::optional<simdjson::dom::element> layer_types = root.Find("layer_types");
  if (!layer_types.has_value()) return absl::OkStatus();
  simdjson::dom::array types;
  if (layer_types->get(types)) return root.Error("layer_types", "is not a list");
  for (const simdjson::dom::element item : types) {
    std::string_view type;
    if (item.get(type)) return root.Error("layer_types", "holds something else than strings");
    if (type != "full_attention") {
      return Unsupported(root, "layer_types",
                         absl::StrCat("\"", absl::CHexEscape(View(type)), "\" is not supported"));
    }
  }
  return absl::OkStatus();
}

// What would change the arithmetic of a Llama-like model.
absl::Status RefuseVariants(const JsonObject& root) {
  for (const absl::string_view key :
       {"attention_bias", "mlp_bias", "rope_interleaved", "use_qk_norm", "qk_norm", "qkv_bias",
        "no_bias", "is_encoder_decoder", "add_cross_attention"}) {
    ASSIGN_OR_RETURN(const std::optional<bool> value, root.FindBool(key));
    if (value.value_or(false)) return Unsupported(root, key, "true is not supported");
  }
  for (const absl::string_view key :
       {"compression_config", "num_experts", "num_local_experts", "final_logit_softcapping",
        "attn_logit_softcapping", "no_rope_layers", "text_config", "vision_config"}) {
    if (root.Find(key).has_value()) return Unsupported(root, key, "is not supported");
  }
  for (const absl::string_view key :
       {"partial_rotary_factor", "embedding_multiplier", "attention_multiplier",
        "residual_multiplier", "logits_scaling"}) {
    ASSIGN_OR_RETURN(const std::optional<double> value, root.FindDouble(key));
    if (value.value_or(1) != 1) {
      return Unsupported(root, key, absl::StrCat(*value, " is not supported"));
    }
  }
  for (const absl::string_view key : {"hidden_act", "hidden_activation"}) {
    ASSIGN_OR_RETURN(const std::optional<std::string> act, root.FindString(key));
    if (act.has_value() && *act != "silu" && *act != "swish") {  // two names of one function
      return Unsupported(
          root, key, absl::StrCat("\"", absl::CHexEscape(*act), "\" is not supported (silu is)"));
    }
  }
  return absl::OkStatus();
}

// rope_scaling or rope_parameters, apart from theta.
absl::StatusOr<RopeSpec> ParseScaling(const JsonObject& object) {
  static constexpr absl::string_view kKnown[] = {"type",
                                                 "rope_type",
                                                 "rope_theta",
                                                 "factor",
                                                 "partial_rotary_factor",
                                                 "original_max_position_embeddings",
                                                 "low_freq_factor",
                                                 "high_freq_factor"};
  for (const simdjson::dom::key_value_pair field : object.object()) {
    bool known = field.value.is_null();
    for (const absl::string_view key : kKnown) known |= key == View(field.key);
    if (!known) return Unsupported(object, absl::CHexEscape(View(field.key)), "is not understood");
  }
  ASSIGN_OR_RETURN(const std::optional<std::string> old_type, object.FindString("type"));
  ASSIGN_OR_RETURN(const std::optional<std::string> new_type, object.FindString("rope_type"));
  if (old_type.has_value() && new_type.has_value() && *old_type != *new_type) {
    return object.Error("rope_type", "contradicts type");
  }
  const std::string type = new_type.has_value() ? *new_type : old_type.value_or("default");
  ASSIGN_OR_RETURN(const std::optional<double> partial, object.FindDouble("partial_rotary_factor"));
  if (partial.value_or(1) != 1) {
    return Unsupported(object, "partial_rotary_factor",
                       absl::StrCat(*partial, " is not supported"));
  }
  RopeSpec rope;
  if (type == "default") return rope;
  if (type != "linear" && type != "llama3") {
    return Unsupported(object, "rope_type",
                       absl::StrCat("\"", absl::CHexEscape(type),
                                    "\" is not supported (default, linear and llama3 are)"));
  }
  const auto required = [&object](absl::string_view key) -> absl::StatusOr<double> {
    ASSIGN_OR_RETURN(const std::optional<double> value, object.FindDouble(key));
    if (!value.has_value()) return object.Error(key, "is missing");
    return *value;
  };
  ASSIGN_OR_RETURN(rope.factor, required("factor"));
  rope.scaling = RopeSpec::Scaling::kLinear;
  if (type == "linear") return rope;
  rope.scaling = RopeSpec::Scaling::kLlama3;
  ASSIGN_OR_RETURN(rope.low_frequency_factor, required("low_freq_factor"));
  ASSIGN_OR_RETURN(rope.high_frequency_factor, required("high_freq_factor"));
  ASSIGN_OR_RETURN(rope.original_context, required("original_max_position_embeddings"));
  return rope;
}

absl::StatusOr<RopeSpec> ParseRope(const JsonObject& root) {
  std::optional<RopeSpec> rope;
  ASSIGN_OR_RETURN(std::optional<double> theta, root.FindDouble("rope_theta"));
  for (const absl::string_view key : {"rope_parameters", "rope_scaling"}) {
    ASSIGN_OR_RETURN(const std::optional<JsonObject> object, root.FindObject(key));
    if (!object.has_value()) continue;
    ASSIGN_OR_RETURN(const RopeSpec parsed, ParseScaling(*object));
    if (rope.has_value() && *rope != parsed) return root.Error(key, "contradicts rope_parameters");
    rope = parsed;
    ASSIGN_OR_RETURN(const std::optional<double> inner, object->FindDouble("rope_theta"));
    if (!inner.has_value()) continue;
    if (theta.has_value() && *theta != *inner) {
      return root.Error(key, absl::StrCat("rope_theta ", *inner, " contradicts ", *theta));
    }
    theta = inner;
  }
  RopeSpec result = rope.value_or(RopeSpec());
  result.theta = theta.value_or(result.theta);
  RETURN_IF_ERROR(ValidateRope(result, root.place()));
  return result;
}

absl::StatusOr<std::vector<int32_t>> EosIds(const JsonObject& root) {
  const std::optional<simdjson::dom::element> element = root.Find("eos_token_id");
  std::vector<int32_t> ids;
  if (!element.has_value()) return ids;
  std::vector<simdjson::dom::element> items;
  simdjson::dom::array list;
  if (element->get(list)) {
    items.push_back(*element);
  } else {
    for (const simdjson::dom::element item : list) items.push_back(item);
  }
  if (items.size() > kEosIdsMax) {
    return root.Error("eos_token_id",
                      absl::StrCat(items.size(), " ids, the limit is ", kEosIdsMax));
  }
  for (const simdjson::dom::element item : items) {
    int64_t id = 0;
    if (item.get(id) || id < 0 || id > std::numeric_limits<int32_t>::max()) {
      return root.Error("eos_token_id", "is neither a token id nor a list of them");
    }
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

}  // namespace

absl::StatusOr<HfConfig> ParseHfConfig(absl::string_view text, const std::string& place) {
  ASSIGN_OR_RETURN(const JsonDocument document, JsonDocument::Parse(text, place, kDepth));
  const JsonObject& root = document.root();
  HfConfig result;
  FloatConfig& config = result.config;
  ASSIGN_OR_RETURN(const Architecture* architecture, FindArchitecture(root));
  config.architecture = std::string(architecture->ours);
  ASSIGN_OR_RETURN(config.hidden_size, Size(root, "hidden_size"));
  ASSIGN_OR_RETURN(config.intermediate_size, Size(root, "intermediate_size"));
  ASSIGN_OR_RETURN(config.num_hidden_layers, Size(root, "num_hidden_layers"));
  ASSIGN_OR_RETURN(config.num_attention_heads, Size(root, "num_attention_heads"));
  ASSIGN_OR_RETURN(config.num_key_value_heads,
                   Size(root, "num_key_value_heads", config.num_attention_heads));
  if (!root.Find("head_dim").has_value() && config.hidden_size % config.num_attention_heads != 0) {
    return root.Error("head_dim",
                      absl::StrCat("is missing and hidden_size ", config.hidden_size,
                                   " is no multiple of ", config.num_attention_heads, " heads"));
  }
  ASSIGN_OR_RETURN(config.head_dim,
                   Size(root, "head_dim", config.hidden_size / config.num_attention_heads));
  ASSIGN_OR_RETURN(config.vocab_size, Size(root, "vocab_size"));
  ASSIGN_OR_RETURN(config.max_position_embeddings, Size(root, "max_position_embeddings"));
  ASSIGN_OR_RETURN(const std::optional<double> eps, root.FindDouble("rms_norm_eps"));
  if (!eps.has_value()) return root.Error("rms_norm_eps", "is missing");
  config.rms_norm_eps = *eps;
  ASSIGN_OR_RETURN(const std::optional<bool> tied, root.FindBool("tie_word_embeddings"));
  config.tie_word_embeddings = tied.value_or(false);  // the default of all three architectures
  RETURN_IF_ERROR(ValidateFloatConfig(config, place));
  RETURN_IF_ERROR(RefuseVariants(root));
  RETURN_IF_ERROR(RefuseSlidingWindow(root, *architecture, config.max_position_embeddings));
  ASSIGN_OR_RETURN(const std::optional<JsonObject> quantization,
                   root.FindObject("quantization_config"));
  if (quantization.has_value()) {
    RETURN_IF_ERROR(CheckCompressedTensorsConfig(*quantization));
    result.compressed_tensors = true;
  }
  ASSIGN_OR_RETURN(result.rope, ParseRope(root));
  config.rope_theta = result.rope.theta;
  ASSIGN_OR_RETURN(result.eos_ids, EosIds(root));
  return result;
}

absl::StatusOr<std::vector<int32_t>> ParseHfEosIds(absl::string_view text,
                                                   const std::string& place) {
  ASSIGN_OR_RETURN(const JsonDocument document, JsonDocument::Parse(text, place, kDepth));
  return EosIds(document.root());
}

absl::StatusOr<std::string> ParseHfChatTemplate(absl::string_view text, const std::string& place) {
  ASSIGN_OR_RETURN(const JsonDocument document, JsonDocument::Parse(text, place, kDepth));
  const JsonObject& root = document.root();
  const std::optional<simdjson::dom::element> element = root.Find("chat_template");
  if (!element.has_value()) return std::string();
  std::string_view source;
  if (!element->get(source)) return std::string(source);
  simdjson::dom::array list;
  if (element->get(list)) return root.Error("chat_template", "is neither a string nor a list");
  for (const simdjson::dom::element item : list) {
    simdjson::dom::object object;
    if (item.get(object)) return root.Error("chat_template", "lists something else than objects");
    const JsonObject named(object, absl::StrCat(place, ": chat_template"));
    ASSIGN_OR_RETURN(const std::optional<std::string> name, named.FindString("name"));
    ASSIGN_OR_RETURN(std::optional<std::string> body, named.FindString("template"));
    if (name == "default" && body.has_value()) return *std::move(body);
  }
  return root.Error("chat_template", "lists no template named \"default\"");
}

}  // namespace fixpoint
