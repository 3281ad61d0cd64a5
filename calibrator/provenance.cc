#include "calibrator/provenance.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/json_writer.h"
#include "base/status_macros.h"
#include "bundle/format.h"
#include "calibrator/import/json.h"
#include "calibrator/vector_loops.h"

namespace fixpoint {
namespace {

constexpr size_t kMaxProvenanceDepth = 16;

struct MethodField {
  const char* key;
  std::string Method::*member;
  std::vector<absl::string_view> values;
  bool Knows(absl::string_view value) const {
    return std::find(values.begin(), values.end(), value) != values.end();
  }
};
const MethodField kMethodFields[] = {
    {"objective", &Method::objective, {"none", "kl", "ce"}},
    {"granularity", &Method::granularity, {"tensor", "channel"}},
    {"vectors", &Method::vectors, {"gain", "folded"}},
    {"rounding", &Method::rounding, {"nearest", "gptq"}},
};

void WriteDoubles(const char* key, const std::vector<double>& values, JsonWriter* json) {
  json->Key(key);
  json->BeginArray();
  for (const double value : values) json->Double(value);
  json->EndArray();
}

// {"scale", "wide"} of each linear site and the scales of the heads, so that the simulation can be
// run again.
void WriteScales(const Scales& scales, JsonWriter* json) {
  static constexpr const char* kNames[] = {"attn_in", "o_in", "mlp_in", "down_in"};
  const auto site = [json](const char* name, const LinearSite& s) {
    json->Key(name);
    json->BeginObject();
    json->Field("scale", s.scale);
    json->Field("wide", s.wide);
    json->EndObject();
  };
  json->BeginObject();
  json->Key("layers");
  json->BeginArray();
  for (const LayerScales& layer : scales.layers) {
    json->BeginObject();
    for (int32_t i = 0; i < kLayerLinearSites; ++i)
      site(kNames[i], layer.linear(static_cast<LayerSite>(i)));
    WriteDoubles("q", layer.q, json);
    WriteDoubles("k", layer.k, json);
    WriteDoubles("v", layer.v, json);
    json->EndObject();
  }
  json->EndArray();
  site("head_in", scales.head_in);
  json->EndObject();
}

void WriteSource(const ProvenanceInput& in, JsonWriter* json) {
  json->Key("source");
  json->BeginObject();
  json->Field("name", in.source_name);
  json->Field("format", in.checkpoint->source_format);
  json->Field("types", in.checkpoint->source_types);
  json->Field("sha256", in.checkpoint->source_sha256);
  json->EndObject();
}

void WriteCorpus(const Corpus& corpus, JsonWriter* json) {
  json->Key("corpus");
  json->BeginObject();
  json->Field("source", corpus.source);
  json->Field("sha256", corpus.digest);
  json->Field("window_tokens", int64_t{corpus.train.tokens});
  json->Field("train_windows", int64_t{corpus.train.count()});
  json->Field("held_out_windows", int64_t{corpus.held_out.count()});
  json->EndObject();
}

void WriteSettings(const ProvenanceInput& in, JsonWriter* json) {
  json->Key("settings");
  json->BeginObject();
  json->Field("budget", in.settings->budget);
  json->Field("seed", in.settings->seed);
  for (const MethodField& field : kMethodFields) {
    const std::string& value = in.method.*field.member;
    CHECK(field.Knows(value)) << field.key << " '" << value << "'";
    json->Field(field.key, value);
  }
  json->Field("head_clip", in.head_clip);
  json->Key("rotation");
  json->BeginObject();
  json->Field("seed", in.settings->rotation.seed);
  json->Field("residual", in.settings->rotation.residual);
  json->Field("v_hadamard", in.settings->rotation.v_hadamard);
  json->Field("qk_hadamard", in.online.qk_hadamard);
  json->Field("down_hadamard_block", int64_t{in.online.down_block});
  json->EndObject();
  json->EndObject();
}

void WriteTraining(const TrainingSummary& t, JsonWriter* json) {
  json->Key("training");
  json->BeginObject();
  json->Field("scale_learning_rate", t.scale_learning_rate);
  json->Field("gain_learning_rate", t.gain_learning_rate);
  json->Field("steps", t.steps);
  json->Field("planned_steps", t.planned_steps);
  json->Field("best_step", t.best_step);
  json->Field("tokens", t.tokens);
  json->Field("step_windows", t.step_windows);
  json->Field("micro_batch_windows", t.micro_batch_windows);
  json->Field("window_tokens", t.window_tokens);
  json->Field("seed", t.seed);
  json->Field("stopped_by", t.stopped_by);
  json->Field("loss_first", t.loss_first);
  json->Field("loss_last", t.loss_last);
  json->Field("held_out_kl_before", t.held_out_kl_before);
  json->Field("held_out_kl_after", t.held_out_kl_after);
  json->Field("seconds", t.seconds);
  json->Field("tokens_per_second", t.tokens_per_second);
  json->Field("flops_per_second", t.flops_per_second);
  json->Field("peak_flops_per_second", t.peak_flops_per_second);
  if (t.control) {
    json->Key("float_control");
    json->BeginObject();
    json->Field("perplexity", t.control->perplexity);
    json->Field("relative_percent", t.control->relative_percent);
    json->Field("standard_error_percent", t.control->standard_error_percent);
    json->Field("gap_percent", t.control->gap_percent);
    json->EndObject();
  }
  json->EndObject();
}

void WriteSites(const SiteSearchResult& sites, JsonWriter* json) {
  json->Key("int16_sites");
  json->BeginObject();
  json->Field("kl_start", sites.kl_start);
  json->Field("kl_end", sites.kl_end);
  json->Field("doubled_work_share", sites.doubled_share);
  json->Field("stopped_by", sites.stop_reason);
  json->Key("chosen");
  json->BeginArray();
  for (const SiteChoice& choice : sites.chosen) {
    json->BeginObject();
    json->Field("site", choice.name);
    json->Field("work_share", choice.work_share);
    json->Field("kl_before", choice.kl_before);
    json->Field("kl_after", choice.kl_after);
    json->EndObject();
  }
  json->EndArray();
  json->EndObject();
}

void WriteFigures(const HeldOutFigures& figures, JsonWriter* json) {
  json->Key("held_out");
  json->BeginObject();
  json->Field("tokens", figures.tokens);
  json->Field("float_perplexity", figures.float_perplexity);
  for (const HeldOutFigures::Model& model : figures.models) {
    json->Key(model.name);
    json->BeginObject();
    json->Field("perplexity", model.perplexity);
    json->Field("relative_percent", model.relative.percent);
    json->Field("standard_error_percent", model.relative.standard_error_percent);
    json->Field("kl_mean", model.kl_mean);
    json->Field("top1_agreement", model.top1_agreement);
    json->EndObject();
  }
  json->EndObject();
}

void WriteRun(const ProvenanceInput& in, JsonWriter* json) {
  json->Key("saturated_share");
  json->BeginObject();
  for (const Saturation& saturation : in.saturation) json->Field(saturation.site, saturation.share);
  json->EndObject();
  json->Key("seconds");
  json->BeginObject();
  for (const Progress::Duration& duration : in.durations) {
    json->Field(duration.stage, std::round(duration.seconds * 10) / 10);
  }
  json->EndObject();
  json->Field("peak_memory_bytes", PeakMemoryBytes());
  json->Field("threads", in.threads);
  json->Field("float_products", in.bf16 ? "float32 and bf16" : "float32");
  json->Field("vector_loops", Vec().name);
}

}  // namespace

std::string WriteProvenance(const ProvenanceInput& in) {
  JsonWriter json;
  json.BeginObject();
  json.Field("calibrator", absl::StrCat("fixpoint-calibrate ", FIXPOINT_VERSION));
  json.Field("numerics_version", static_cast<int64_t>(kNumericsVersion));
  WriteSource(in, &json);
  WriteCorpus(*in.corpus, &json);
  WriteSettings(in, &json);
  WriteFigures(*in.figures, &json);
  if (in.training) WriteTraining(*in.training, &json);
  WriteSites(*in.sites, &json);
  WriteRun(in, &json);
  json.Key("scales");
  WriteScales(*in.scales, &json);
  json.EndObject();
  return json.Take();
}

namespace {

absl::StatusOr<double> RequireDouble(const JsonObject& object, absl::string_view key) {
  ASSIGN_OR_RETURN(const std::optional<double> value, object.FindDouble(key));
  if (!value) return object.Error(key, "is missing");
  return *value;
}

absl::StatusOr<bool> RequireBool(const JsonObject& object, absl::string_view key) {
  ASSIGN_OR_RETURN(const std::optional<bool> value, object.FindBool(key));
  if (!value) return object.Error(key, "is missing");
  return *value;
}

absl::StatusOr<int64_t> RequireInt(const JsonObject& object, absl::string_view key) {
  ASSIGN_OR_RETURN(const std::optional<int64_t> value, object.FindInt(key));
  if (!value) return object.Error(key, "is missing");
  return *value;
}

absl::StatusOr<std::string> RequireString(const JsonObject& object, absl::string_view key) {
  ASSIGN_OR_RETURN(const std::optional<std::string> value, object.FindString(key));
  if (!value) return object.Error(key, "is missing");
  return *value;
}

absl::StatusOr<JsonObject> RequireObject(const JsonObject& object, absl::string_view key) {
  ASSIGN_OR_RETURN(std::optional<JsonObject> value, object.FindObject(key));
  if (!value) return object.Error(key, "is missing");
  return *std::move(value);
}

absl::StatusOr<Method> ReadMethod(const JsonObject& settings) {
  Method method;
  for (const MethodField& field : kMethodFields) {
    ASSIGN_OR_RETURN(const std::optional<std::string> value, settings.FindString(field.key));
    if (!value) continue;
    if (!field.Knows(*value)) {
      return settings.Error(field.key, absl::StrCat("is '", *value, "', known are ",
                                                    absl::StrJoin(field.values, ", ")));
    }
    method.*field.member = *value;
  }
  return method;
}

absl::StatusOr<LinearSite> ReadSite(const JsonObject& parent, absl::string_view key) {
  ASSIGN_OR_RETURN(const JsonObject object, RequireObject(parent, key));
  LinearSite site;
  ASSIGN_OR_RETURN(site.scale, RequireDouble(object, "scale"));
  ASSIGN_OR_RETURN(site.wide, RequireBool(object, "wide"));
  if (!(site.scale > 0)) return object.Error("scale", "must be positive");
  return site;
}

absl::StatusOr<std::vector<double>> ReadDoubles(const JsonObject& object, absl::string_view key) {
  std::vector<double> values;
  const std::optional<simdjson::dom::element> element = object.Find(key);
  simdjson::dom::array array;
  if (!element || element->get_array().get(array) != simdjson::SUCCESS)
    return object.Error(key, "must be an array");
  for (const simdjson::dom::element item : array) {
    double value = 0;
    if (item.get_double().get(value) != simdjson::SUCCESS || !(value > 0)) {
      return object.Error(key, "must hold positive numbers");
    }
    values.push_back(value);
  }
  return values;
}

absl::StatusOr<Scales> ReadScales(const JsonObject& root) {
  ASSIGN_OR_RETURN(const JsonObject object, RequireObject(root, "scales"));
  Scales scales;
  ASSIGN_OR_RETURN(scales.head_in, ReadSite(object, "head_in"));
  const std::optional<simdjson::dom::element> element = object.Find("layers");
  simdjson::dom::array layers;
  if (!element || element->get_array().get(layers) != simdjson::SUCCESS)
    return object.Error("layers", "must be an array");
  for (const simdjson::dom::element item : layers) {
    simdjson::dom::object fields;
    if (item.get_object().get(fields) != simdjson::SUCCESS)
      return object.Error("layers", "must hold objects");
    const JsonObject layer(fields, absl::StrCat(object.place(), ".layers.", scales.layers.size()));
    LayerScales& s = scales.layers.emplace_back();
    ASSIGN_OR_RETURN(s.attn_in, ReadSite(layer, "attn_in"));
    ASSIGN_OR_RETURN(s.o_in, ReadSite(layer, "o_in"));
    ASSIGN_OR_RETURN(s.mlp_in, ReadSite(layer, "mlp_in"));
    ASSIGN_OR_RETURN(s.down_in, ReadSite(layer, "down_in"));
    ASSIGN_OR_RETURN(s.q, ReadDoubles(layer, "q"));
    ASSIGN_OR_RETURN(s.k, ReadDoubles(layer, "k"));
    ASSIGN_OR_RETURN(s.v, ReadDoubles(layer, "v"));
  }
  return scales;
}

}  // namespace

absl::StatusOr<ProvenanceSource> ReadProvenance(const std::string& json) {
  ASSIGN_OR_RETURN(const JsonDocument document,
                   JsonDocument::Parse(json, "provenance", kMaxProvenanceDepth));
  const JsonObject& root = document.root();
  ProvenanceSource result;
  ASSIGN_OR_RETURN(const JsonObject source, RequireObject(root, "source"));
  ASSIGN_OR_RETURN(result.name, RequireString(source, "name"));
  ASSIGN_OR_RETURN(result.sha256, RequireString(source, "sha256"));
  ASSIGN_OR_RETURN(const JsonObject settings, RequireObject(root, "settings"));
  ASSIGN_OR_RETURN(result.method, ReadMethod(settings));
  ASSIGN_OR_RETURN(const JsonObject rotation, RequireObject(settings, "rotation"));
  ASSIGN_OR_RETURN(const int64_t seed, RequireInt(rotation, "seed"));
  result.rotation.seed = static_cast<uint64_t>(seed);
  ASSIGN_OR_RETURN(result.rotation.residual, RequireBool(rotation, "residual"));
  ASSIGN_OR_RETURN(result.rotation.v_hadamard, RequireBool(rotation, "v_hadamard"));
  ASSIGN_OR_RETURN(result.rotation.qk_hadamard, RequireBool(rotation, "qk_hadamard"));
  ASSIGN_OR_RETURN(const int64_t block, RequireInt(rotation, "down_hadamard_block"));
  if (block < 1 || block > 65536) return rotation.Error("down_hadamard_block", "is out of range");
  result.rotation.max_down_block = static_cast<int32_t>(block);
  ASSIGN_OR_RETURN(result.scales, ReadScales(root));
  return result;
}

}  // namespace fixpoint
