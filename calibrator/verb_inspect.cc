#include <iostream>
#include <map>
#include <string>

#include "base/json_writer.h"
#include "base/status_macros.h"
#include "bundle/bundle.h"
#include "bundle/format.h"
#include "calibrator/bundle_description.h"
#include "calibrator/verbs.h"

namespace fixpoint {
namespace {

void WriteConfig(const ModelConfig& c, JsonWriter* json) {
  json->Key("config");
  json->BeginObject();
  json->Field("hidden_size", c.hidden_size);
  json->Field("intermediate_size", c.intermediate_size);
  json->Field("num_hidden_layers", c.num_hidden_layers);
  json->Field("num_attention_heads", c.num_attention_heads);
  json->Field("num_key_value_heads", c.num_key_value_heads);
  json->Field("head_dim", c.head_dim);
  json->Field("vocab_size", c.vocab_size);
  json->Field("max_position_embeddings", c.max_position_embeddings);
  json->Field("residual_fraction_bits", c.residual_fraction_bits);
  json->Field("logit_fraction_bits", c.logit_fraction_bits);
  json->Field("down_hadamard_block", c.down_hadamard_block);
  json->Field("qk_hadamard", c.qk_hadamard);
  json->EndObject();
}

void WriteIds(const char* key, const std::vector<int32_t>& ids, JsonWriter* json) {
  json->Key(key);
  json->BeginArray();
  for (const int32_t id : ids) json->Int(id);
  json->EndArray();
}

void WriteTokenizer(const Bundle& b, JsonWriter* json) {
  WriteIds("prefix_token_ids", b.model.prefix_token_ids, json);
  json->Key("prefix_tokens");
  json->BeginArray();
  for (const int32_t id : b.model.prefix_token_ids) {
    // Rows of padding have no token.
    const bool known = static_cast<size_t>(id) < b.tokenizer.tokens.size();
    json->String(known ? b.tokenizer.tokens[id] : "");
  }
  json->EndArray();
  json->Key("tokenizer");
  json->BeginObject();
  json->Field("kind", TokenizerName(b.tokenizer));
  json->Field("tokens", static_cast<int64_t>(b.tokenizer.tokens.size()));
  json->Field("bos_id", b.tokenizer.bos_id);
  WriteIds("eos_ids", b.tokenizer.eos_ids, json);
  json->EndObject();
}

void WriteSites(const Bundle& b, JsonWriter* json) {
  const std::map<std::string, double> saturated = SaturatedShares(b);
  json->Key("sites");
  json->BeginArray();
  for (const SiteInfo& site : b.sites) {
    json->BeginObject();
    json->Field("name", site.name);
    json->Field("bits", site.bits);
    json->Field("granularity", site.granularity);
    json->Field("scale", site.scale);
    const auto share = saturated.find(site.name);
    if (share != saturated.end()) json->Field("saturated_share", share->second);
    json->EndObject();
  }
  json->EndArray();
}

void WriteParts(const Bundle& b, JsonWriter* json) {
  json->Key("file_parts");
  json->BeginArray();
  for (const FilePart& part : FileParts(b)) {
    json->BeginObject();
    json->Field("name", part.name);
    json->Field("sections", part.sections);
    json->Field("bytes", part.bytes);
    json->EndObject();
  }
  json->EndArray();
}

std::string ToJson(const Bundle& b) {
  JsonWriter json;
  json.BeginObject();
  json.Field("digest", b.digest);
  json.Field("golden_digest", b.golden_digest);
  json.Field("file_bytes", b.file_bytes);
  json.Field("bundle_version", int64_t{kBundleVersion});
  json.Field("numerics_version", int64_t{kNumericsVersion});
  WriteConfig(b.model.config, &json);
  WriteTokenizer(b, &json);
  WriteSites(b, &json);
  WriteParts(b, &json);
  json.Field("chat_template_bytes", static_cast<int64_t>(b.chat_template.size()));
  json.Key("provenance");
  json.Raw(b.provenance_json);
  json.EndObject();
  return json.Take();
}

}  // namespace

absl::Status RunInspect(const InspectFlags& flags) {
  ASSIGN_OR_RETURN(const Bundle bundle, ReadBundle(flags.bundle));
  std::cout << (flags.json ? ToJson(bundle) : DescribeBundle(bundle, flags.bundle, flags.sites))
            << "\n";
  return absl::OkStatus();
}

}  // namespace fixpoint
