#include "bundle/manifest.h"

#include <simdjson.h>

#include <algorithm>
#include <set>
#include <type_traits>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/json_writer.h"
#include "base/status_macros.h"
#include "bundle/format.h"
#include "bundle/strict_json.h"
#include "bundle/visit_scalars.h"

namespace fixpoint {
namespace {

constexpr size_t kMaxSites = 1 << 16;
constexpr size_t kMaxSiteText = 256;

// Visitor of scalars: writes each as a field.
struct FieldWriter {
  JsonWriter* json;
  template <typename T>
  void operator()(absl::string_view name, const T& value, int64_t, int64_t) {
    json->Field(name, value);
  }
};

// Visitor of scalars: reads each from an object, keeping the first error. Ranges are
// ValidateModel's business.
struct FieldReader {
  StrictObject* object;
  absl::Status status = absl::OkStatus();
  template <typename T>
  void operator()(absl::string_view name, T& value, int64_t, int64_t) {
    if (status.ok()) status = object->Read(name, &value);
  }
};

void WriteLayers(const IntegerModel& model, JsonWriter* json) {
  json->Key("layers");
  json->BeginArray();
  for (const ModelLayer& layer : model.layers) {
    json->BeginObject();
    VisitLayerScalars(layer, FieldWriter{json});
    json->Key("scores");
    json->BeginArray();
    for (const ScoreScale& score : layer.scores) {
      json->BeginObject();
      VisitScoreScale(score, FieldWriter{json});
      json->EndObject();
    }
    json->EndArray();
    json->EndObject();
  }
  json->EndArray();
}

void WriteSites(const std::vector<SiteInfo>& sites, JsonWriter* json) {
  json->Key("sites");
  json->BeginArray();
  for (const SiteInfo& site : sites) {
    json->BeginObject();
    json->Field("name", site.name);
    json->Field("bits", site.bits);
    json->Field("granularity", site.granularity);
    json->Field("scale", site.scale);
    json->EndObject();
  }
  json->EndArray();
}

void WriteSections(const std::vector<Section>& sections, JsonWriter* json) {
  json->Key("sections");
  json->BeginArray();
  for (const Section& section : sections) {
    json->BeginObject();
    json->Field("name", section.name);
    json->Field("dtype", section.dtype);
    json->Field("rows", section.rows);
    json->Field("columns", section.columns);
    json->Field("offset", section.offset);
    json->Field("bytes", section.bytes);
    json->EndObject();
  }
  json->EndArray();
}

absl::Status ReadVersions(StrictObject* root) {
  uint32_t version = 0, numerics_version = 0;
  RETURN_IF_ERROR(root->Read("format_version", &version));
  RETURN_IF_ERROR(root->Read("numerics_version", &numerics_version));
  if (version != kBundleVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        "format version is ", version, ", this program reads version ", kBundleVersion));
  }
  if (numerics_version != kNumericsVersion) {
    return absl::FailedPreconditionError(absl::StrCat("numerics version is ", numerics_version,
                                                      ", this program computes by version ",
                                                      kNumericsVersion));
  }
  return absl::OkStatus();
}

absl::Status ReadConfig(StrictObject* root, ModelConfig* config) {
  ASSIGN_OR_RETURN(const simdjson::dom::element element, root->Get("config"));
  ASSIGN_OR_RETURN(StrictObject object, StrictObject::Open(element, "config"));
  FieldReader reader{&object};
  VisitConfig(*config, reader);
  RETURN_IF_ERROR(reader.status);
  RETURN_IF_ERROR(object.Finish());
  return ValidateConfig(*config);
}

absl::Status ReadPrefixTokens(StrictObject* root, std::vector<int32_t>* ids) {
  ASSIGN_OR_RETURN(const simdjson::dom::array array, root->Array("prefix_token_ids"));
  for (const simdjson::dom::element element : array) {
    if (ids->size() == kMaxPrefixTokens) {
      return absl::InvalidArgumentError(
          absl::StrCat("'prefix_token_ids' has more than ", kMaxPrefixTokens, " tokens"));
    }
    int32_t id = 0;
    RETURN_IF_ERROR(StrictObject::ReadElement(element, "prefix_token_ids", &id));
    ids->push_back(id);
  }
  return absl::OkStatus();
}

absl::Status ReadScores(StrictObject* object, int32_t heads, std::vector<ScoreScale>* scores) {
  ASSIGN_OR_RETURN(const simdjson::dom::array array, object->Array("scores"));
  const std::string path = object->PathOf("scores");
  for (const simdjson::dom::element element : array) {
    ASSIGN_OR_RETURN(StrictObject item,
                     StrictObject::Open(element, absl::StrCat(path, ".", scores->size())));
    FieldReader reader{&item};
    VisitScoreScale(scores->emplace_back(), reader);
    RETURN_IF_ERROR(reader.status);
    RETURN_IF_ERROR(item.Finish());
  }
  if (static_cast<int64_t>(scores->size()) != heads) {
    return absl::InvalidArgumentError(absl::StrCat("'", path, "' has ", scores->size(),
                                                   " entries for ", heads, " attention heads"));
  }
  return absl::OkStatus();
}

absl::Status ReadLayers(StrictObject* root, IntegerModel* model) {
  ASSIGN_OR_RETURN(const simdjson::dom::array array, root->Array("layers"));
  for (const simdjson::dom::element element : array) {
    ASSIGN_OR_RETURN(StrictObject object,
                     StrictObject::Open(element, absl::StrCat("layers.", model->layers.size())));
    ModelLayer& layer = model->layers.emplace_back();
    FieldReader reader{&object};
    VisitLayerScalars(layer, reader);
    RETURN_IF_ERROR(reader.status);
    RETURN_IF_ERROR(ReadScores(&object, model->config.num_attention_heads, &layer.scores));
    RETURN_IF_ERROR(object.Finish());
  }
  if (static_cast<int64_t>(model->layers.size()) != model->config.num_hidden_layers) {
    return absl::InvalidArgumentError(absl::StrCat("'layers' has ", model->layers.size(),
                                                   " entries, num_hidden_layers is ",
                                                   model->config.num_hidden_layers));
  }
  return absl::OkStatus();
}

void SetLinearShapes(IntegerModel* model) {
  const ModelConfig& c = model->config;
  const int32_t q = c.num_attention_heads * c.head_dim;
  const int32_t kv = c.num_key_value_heads * c.head_dim;
  const auto set = [](LinearWeights* linear, int32_t outputs, int32_t depth) {
    linear->outputs = outputs;
    linear->depth = depth;
  };
  for (ModelLayer& layer : model->layers) {
    set(&layer.qkv, q + 2 * kv, c.hidden_size);
    set(&layer.o_proj, c.hidden_size, q);
    set(&layer.gate_up, 2 * c.intermediate_size, c.hidden_size);
    set(&layer.down_proj, c.hidden_size, c.intermediate_size);
  }
  set(&model->head, c.vocab_size, c.hidden_size);
}

absl::Status CheckSite(const SiteInfo& site, const std::string& path) {
  const auto bad = [&](absl::string_view key, absl::string_view value, absl::string_view allowed) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", path, ".", key, "' is '", value, "', allowed is ", allowed));
  };
  if (site.name.empty() || site.name.size() > kMaxSiteText) {
    return bad("name", site.name, absl::StrCat("1 to ", kMaxSiteText, " bytes"));
  }
  if (site.bits != 8 && site.bits != 16) return bad("bits", absl::StrCat(site.bits), "8 or 16");
  if (site.granularity != "tensor" && site.granularity != "head" && site.granularity != "channel") {
    return bad("granularity", site.granularity, "tensor, head or channel");
  }
  if (site.scale.empty() || site.scale.size() > kMaxSiteText ||
      site.scale.find_first_not_of("0123456789.e+-") != std::string::npos) {
    return bad("scale", site.scale, "a decimal number");
  }
  return absl::OkStatus();
}

absl::Status ReadSites(StrictObject* root, std::vector<SiteInfo>* sites) {
  ASSIGN_OR_RETURN(const simdjson::dom::array array, root->Array("sites"));
  for (const simdjson::dom::element element : array) {
    const std::string path = absl::StrCat("sites.", sites->size());
    if (sites->size() == kMaxSites) {
      return absl::InvalidArgumentError(
          absl::StrCat("'sites' has more than ", kMaxSites, " entries"));
    }
    ASSIGN_OR_RETURN(StrictObject object, StrictObject::Open(element, path));
    SiteInfo& site = sites->emplace_back();
    RETURN_IF_ERROR(object.Read("name", &site.name));
    RETURN_IF_ERROR(object.Read("bits", &site.bits));
    RETURN_IF_ERROR(object.Read("granularity", &site.granularity));
    RETURN_IF_ERROR(object.Read("scale", &site.scale));
    RETURN_IF_ERROR(object.Finish());
    RETURN_IF_ERROR(CheckSite(site, path));
  }
  return absl::OkStatus();
}

absl::Status ReadTexts(StrictObject* root, Bundle* bundle) {
  RETURN_IF_ERROR(root->Read("golden_digest", &bundle->golden_digest));
  if (!bundle->golden_digest.empty() && !IsSha256Hex(bundle->golden_digest)) {
    return absl::InvalidArgumentError(
        absl::StrCat("'golden_digest' is '", bundle->golden_digest,
                     "', allowed is nothing or 64 lower-case hexadecimal digits"));
  }
  return root->Read("chat_template", &bundle->chat_template);
}

// The text of the provenance object exactly as it stands in the file: numbers keep their spelling.
// `json` has been parsed before, so it is valid.
absl::StatusOr<std::string> ProvenanceText(const simdjson::padded_string& json) {
  simdjson::ondemand::parser parser;
  simdjson::ondemand::document document;
  simdjson::ondemand::object object;
  std::string_view text;
  if (parser.allocate(json.size(), kMaxManifestDepth) != simdjson::SUCCESS ||
      parser.iterate(json).get(document) != simdjson::SUCCESS ||
      document.find_field("provenance").get_object().get(object) != simdjson::SUCCESS ||
      object.raw_json().get(text) != simdjson::SUCCESS) {
    return absl::InvalidArgumentError("'provenance' must be an object");
  }
  // simdjson counts the white space behind the object as part of it.
  return std::string(
      absl::StripTrailingAsciiWhitespace(absl::string_view(text.data(), text.size())));
}

absl::Status ReadSections(StrictObject* root, std::vector<Section>* sections) {
  ASSIGN_OR_RETURN(const simdjson::dom::array array, root->Array("sections"));
  for (const simdjson::dom::element element : array) {
    if (sections->size() == kMaxSections) {
      return absl::InvalidArgumentError(
          absl::StrCat("'sections' has more than ", kMaxSections, " entries"));
    }
    ASSIGN_OR_RETURN(StrictObject object,
                     StrictObject::Open(element, absl::StrCat("sections.", sections->size())));
    Section& section = sections->emplace_back();
    RETURN_IF_ERROR(object.Read("name", &section.name));
    RETURN_IF_ERROR(object.Read("dtype", &section.dtype));
    RETURN_IF_ERROR(object.Read("rows", &section.rows));
    RETURN_IF_ERROR(object.Read("columns", &section.columns));
    RETURN_IF_ERROR(object.Read("offset", &section.offset));
    RETURN_IF_ERROR(object.Read("bytes", &section.bytes));
    RETURN_IF_ERROR(object.Finish());
  }
  return absl::OkStatus();
}

std::string Describe(const Section& s) {
  return absl::StrCat("'", s.name, "' ", s.dtype, " [", s.rows, ", ", s.columns, "], ", s.bytes,
                      " bytes at ", s.offset);
}

// The table holds nothing that the config does not determine, except which optional tensors are
// there and the tokenizer's length; so it is compared with a plan instead of being trusted.
absl::Status CheckSections(const IntegerModel& model, const std::vector<Section>& sections) {
  std::set<absl::string_view> names;
  for (const Section& section : sections) names.insert(section.name);
  const uint64_t tokenizer_bytes = sections.empty() ? 0 : sections.back().bytes;
  if (tokenizer_bytes > kMaxTokenizerBytes) {
    return absl::InvalidArgumentError(absl::StrCat("section '", sections.back().name, "' has ",
                                                   tokenizer_bytes, " bytes, allowed is up to ",
                                                   kMaxTokenizerBytes));
  }
  const std::vector<Section> plan =
      PlanSections(model, tokenizer_bytes,
                   [&](absl::string_view name) { return names.find(name) != names.end(); });
  for (size_t i = 0; i < std::max(plan.size(), sections.size()); ++i) {
    if (i < plan.size() && i < sections.size() && plan[i] == sections[i]) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("section ", i, " is ", i < sections.size() ? Describe(sections[i]) : "missing",
                     ", expected ", i < plan.size() ? Describe(plan[i]) : "none"));
  }
  return absl::OkStatus();
}

absl::Status ParseInto(simdjson::dom::element document, const simdjson::padded_string& json,
                       Bundle* bundle, std::vector<Section>* sections) {
  ASSIGN_OR_RETURN(StrictObject root, StrictObject::Open(document, ""));
  RETURN_IF_ERROR(ReadVersions(&root));
  IntegerModel& model = bundle->model;
  RETURN_IF_ERROR(ReadConfig(&root, &model.config));
  RETURN_IF_ERROR(ReadPrefixTokens(&root, &model.prefix_token_ids));
  RETURN_IF_ERROR(ReadLayers(&root, &model));
  FieldReader reader{&root};
  VisitModelScalars(model, reader);
  RETURN_IF_ERROR(reader.status);
  SetLinearShapes(&model);
  RETURN_IF_ERROR(ReadTexts(&root, bundle));
  RETURN_IF_ERROR(ReadSites(&root, &bundle->sites));
  RETURN_IF_ERROR(root.Get("provenance").status());
  ASSIGN_OR_RETURN(bundle->provenance_json, ProvenanceText(json));
  RETURN_IF_ERROR(ReadSections(&root, sections));
  RETURN_IF_ERROR(root.Finish());
  return CheckSections(model, *sections);
}

}  // namespace

absl::StatusOr<std::string> SerializeManifest(const Bundle& bundle,
                                              const std::vector<Section>& sections) {
  for (const absl::string_view text :
       {absl::string_view(bundle.chat_template), absl::string_view(bundle.provenance_json)}) {
    if (!simdjson::validate_utf8(text.data(), text.size())) {
      return absl::InvalidArgumentError("chat_template and provenance must be valid UTF-8");
    }
  }
  JsonWriter json;
  json.BeginObject();
  json.Field("format_version", kBundleVersion);
  json.Field("numerics_version", kNumericsVersion);
  json.Key("config");
  json.BeginObject();
  VisitConfig(bundle.model.config, FieldWriter{&json});
  json.EndObject();
  json.Key("prefix_token_ids");
  json.BeginArray();
  for (const int32_t id : bundle.model.prefix_token_ids) json.Int(id);
  json.EndArray();
  VisitModelScalars(bundle.model, FieldWriter{&json});
  WriteLayers(bundle.model, &json);
  json.Field("golden_digest", bundle.golden_digest);
  json.Field("chat_template", bundle.chat_template);
  WriteSites(bundle.sites, &json);
  json.Key("provenance");
  json.Raw(bundle.provenance_json);
  WriteSections(sections, &json);
  json.EndObject();
  std::string text = json.Take();
  if (text.size() > kMaxManifestBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the manifest has ", text.size(),
                                                   " bytes, allowed is up to ", kMaxManifestBytes));
  }
  Bundle parsed;
  std::vector<Section> parsed_sections;
  RETURN_IF_ERROR(Annotate(ParseManifest(text, &parsed, &parsed_sections), "manifest"));
  // Raw text could otherwise close its object early and smuggle other keys in.
  if (parsed.provenance_json != bundle.provenance_json) {
    return absl::InvalidArgumentError("manifest: 'provenance' must be exactly one JSON object");
  }
  return text;
}

absl::Status ParseManifest(absl::string_view text, Bundle* bundle, std::vector<Section>* sections) {
  if (text.size() > kMaxManifestBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("it has ", text.size(), " bytes, allowed is up to ", kMaxManifestBytes));
  }
  const simdjson::padded_string json(text.data(), text.size());
  simdjson::dom::parser parser;
  simdjson::dom::element document;
  simdjson::error_code error = parser.allocate(json.size(), kMaxManifestDepth);
  if (error == simdjson::SUCCESS) error = parser.parse(json).get(document);
  if (error != simdjson::SUCCESS) {
    return absl::InvalidArgumentError(
        absl::StrCat("it is not valid JSON: ", simdjson::error_message(error)));
  }
  return ParseInto(document, json, bundle, sections);
}

}  // namespace fixpoint
