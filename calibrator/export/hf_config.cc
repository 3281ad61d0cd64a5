#include "calibrator/export/hf_config.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/json_writer.h"
#include "base/status_macros.h"
#include "calibrator/import/json.h"
#include "calibrator/import/rope.h"

namespace fixpoint {
namespace {

constexpr size_t kDepth = 64;

// Symmetric int8. The readers forbid keys that they do not know; older ones know fewer.
void WriteArgs(const char* key, const char* strategy, JsonWriter* json) {
  json->Key(key);
  json->BeginObject();
  json->Field("num_bits", 8);
  json->Field("type", "int");
  json->Field("symmetric", true);
  json->Field("strategy", strategy);
  json->Field("dynamic", false);
  json->EndObject();
}

void WriteNull(const char* key, JsonWriter* json) {
  json->Key(key);
  json->Null();
}

// What replaces keys of the source: transformers 4 reads torch_dtype, transformers 5 dtype.
constexpr absl::string_view kReplaced[] = {
    "tie_word_embeddings", "torch_dtype",   "dtype",
    "quantization_config", "_name_or_path", "transformers_version"};

void WriteOurs(absl::string_view quantization, JsonWriter* json) {
  json->Field("tie_word_embeddings", false);
  json->Field("torch_dtype", "bfloat16");
  json->Field("dtype", "bfloat16");
  json->Key("quantization_config");
  json->Raw(quantization);
}

void WriteEosIds(const std::vector<int32_t>& ids, JsonWriter* json) {
  json->Key("eos_token_id");
  if (ids.size() == 1) return json->Int(ids[0]);
  json->BeginArray();
  for (const int32_t id : ids) json->Int(id);
  json->EndArray();
}

void WriteSpecialIds(const TokenizerSpec& tokenizer, JsonWriter* json) {
  if (tokenizer.bos_id >= 0) json->Field("bos_token_id", tokenizer.bos_id);
  if (!tokenizer.eos_ids.empty()) WriteEosIds(tokenizer.eos_ids, json);
}

bool Equal(const std::vector<double>& a, const std::vector<double>& b) {
  // GGUF files hold the divisors in float32.
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](double x, double y) {
           return std::abs(x - y) <= 1e-6 * std::abs(y);
         });
}

absl::StatusOr<RopeSpec> RecogniseRope(const FloatModel& model) {
  RopeSpec rope;
  rope.theta = model.config.rope_theta;
  const std::vector<double>& wanted = model.rope_inverse_frequency;
  const int32_t head_dim = model.config.head_dim;
  const std::vector<double> plain = InverseFrequencies(rope, head_dim);
  if (Equal(wanted, plain)) return rope;
  // The lowest frequency is divided by the factor, whichever the scaling is.
  rope.factor = wanted.empty() ? 1 : plain.back() / wanted.back();
  // Published factors have few digits; float32 has added some.
  const double rounded = std::round(rope.factor * 1000) / 1000;
  if (std::abs(rounded - rope.factor) <= 1e-5 * rounded) rope.factor = rounded;
  rope.scaling = RopeSpec::Scaling::kLinear;
  if (Equal(wanted, InverseFrequencies(rope, head_dim))) return rope;
  rope.scaling = RopeSpec::Scaling::kLlama3;
  rope.low_frequency_factor = 1;
  rope.high_frequency_factor = 4;
  rope.original_context = 8192;
  if (Equal(wanted, InverseFrequencies(rope, head_dim))) return rope;
  return absl::UnimplementedError(absl::StrCat("the RoPE frequencies of the source (base ",
                                               rope.theta, ", lowest divided by ", rope.factor,
                                               ") have no form in config.json"));
}

void WriteRope(const RopeSpec& rope, JsonWriter* json) {
  json->Field("rope_theta", rope.theta);
  if (rope.scaling == RopeSpec::Scaling::kNone) return WriteNull("rope_scaling", json);
  const bool llama3 = rope.scaling == RopeSpec::Scaling::kLlama3;
  json->Key("rope_scaling");
  json->BeginObject();
  json->Field("rope_type", llama3 ? "llama3" : "linear");
  json->Field("factor", rope.factor);
  if (llama3) {
    json->Field("low_freq_factor", rope.low_frequency_factor);
    json->Field("high_freq_factor", rope.high_frequency_factor);
    json->Field("original_max_position_embeddings", static_cast<int64_t>(rope.original_context));
  }
  json->EndObject();
}

}  // namespace

std::string QuantizationConfigJson(const std::vector<std::string>& ignored) {
  JsonWriter json;
  json.BeginObject();
  json.Field("quant_method", "compressed-tensors");
  json.Field("format", "int-quantized");
  json.Field("quantization_status", "compressed");
  WriteNull("global_compression_ratio", &json);
  WriteNull("kv_cache_scheme", &json);
  json.Key("ignore");
  json.BeginArray();
  for (const std::string& name : ignored) json.String(name);
  json.EndArray();
  json.Key("config_groups");
  json.BeginObject();
  json.Key("group_0");
  json.BeginObject();
  json.Key("targets");
  json.BeginArray();
  json.String("Linear");
  json.EndArray();
  WriteNull("output_activations", &json);
  WriteArgs("weights", "channel", &json);
  WriteArgs("input_activations", "tensor", &json);
  json.EndObject();
  json.EndObject();
  json.EndObject();
  return json.Take();
}

absl::StatusOr<std::string> ConfigFromOriginal(absl::string_view original, const std::string& place,
                                               absl::string_view quantization) {
  ASSIGN_OR_RETURN(const JsonDocument document, JsonDocument::Parse(original, place, kDepth));
  JsonWriter json;
  json.BeginObject();
  for (const simdjson::dom::key_value_pair field : document.root().object()) {
    const absl::string_view key(field.key.data(), field.key.size());
    if (std::find(std::begin(kReplaced), std::end(kReplaced), key) != std::end(kReplaced)) continue;
    json.Key(key);
    json.Raw(simdjson::minify(field.value));
  }
  WriteOurs(quantization, &json);
  json.EndObject();
  return json.Take();
}

absl::StatusOr<std::string> ConfigFromModel(const FloatModel& model, const TokenizerSpec& tokenizer,
                                            absl::string_view quantization) {
  const FloatConfig& c = model.config;
  const bool qwen2 = c.architecture == "qwen2";
  ASSIGN_OR_RETURN(const RopeSpec rope, RecogniseRope(model));
  JsonWriter json;
  json.BeginObject();
  json.Key("architectures");
  json.BeginArray();
  json.String(qwen2 ? "Qwen2ForCausalLM" : "LlamaForCausalLM");
  json.EndArray();
  json.Field("model_type", qwen2 ? "qwen2" : "llama");
  json.Field("hidden_size", c.hidden_size);
  json.Field("intermediate_size", c.intermediate_size);
  json.Field("num_hidden_layers", c.num_hidden_layers);
  json.Field("num_attention_heads", c.num_attention_heads);
  json.Field("num_key_value_heads", c.num_key_value_heads);
  json.Field("head_dim", c.head_dim);
  json.Field("vocab_size", c.vocab_size);
  json.Field("max_position_embeddings", c.max_position_embeddings);
  json.Field("rms_norm_eps", c.rms_norm_eps);
  json.Field("hidden_act", "silu");
  if (qwen2) {
    json.Field("use_sliding_window", false);
  } else {
    json.Field("attention_bias", false);
    json.Field("mlp_bias", false);
  }
  json.Field("attention_dropout", 0.0);
  json.Field("initializer_range", 0.02);
  json.Field("use_cache", true);
  WriteRope(rope, &json);
  WriteSpecialIds(tokenizer, &json);
  WriteOurs(quantization, &json);
  json.EndObject();
  return json.Take();
}

std::string GenerationConfigJson(const TokenizerSpec& tokenizer) {
  JsonWriter json;
  json.BeginObject();
  WriteSpecialIds(tokenizer, &json);
  json.EndObject();
  return json.Take();
}

}  // namespace fixpoint
