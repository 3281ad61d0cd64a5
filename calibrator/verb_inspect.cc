#include <algorithm>
#include <iostream>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/json_writer.h"
#include "base/status_macros.h"
#include "bundle/bundle.h"
#include "bundle/format.h"
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

std::string ToJson(const Bundle& b) {
  JsonWriter json;
  json.BeginObject();
  json.Field("digest", b.digest);
  json.Field("golden_digest", b.golden_digest);
  json.Field("file_bytes", b.file_bytes);
  json.Field("numerics_version", int64_t{kNumericsVersion});
  WriteConfig(b.model.config, &json);
  json.Key("prefix_token_ids");
  json.BeginArray();
  for (const int32_t id : b.model.prefix_token_ids) json.Int(id);
  json.EndArray();
  json.Key("sites");
  json.BeginArray();
  for (const SiteInfo& site : b.sites) {
    json.BeginObject();
    json.Field("name", site.name);
    json.Field("bits", site.bits);
    json.Field("granularity", site.granularity);
    json.Field("scale", site.scale);
    json.EndObject();
  }
  json.EndArray();
  json.Field("chat_template_bytes", static_cast<int64_t>(b.chat_template.size()));
  json.Key("provenance");
  json.Raw(b.provenance_json);
  json.EndObject();
  return json.Take();
}

std::string ToText(const Bundle& b) {
  const ModelConfig& c = b.model.config;
  std::vector<std::string> wide;
  for (const SiteInfo& site : b.sites) {
    if (site.bits == 16) wide.push_back(site.name);
  }
  std::string text;
  absl::StrAppendFormat(&text, "digest         %s\n", b.digest);
  absl::StrAppendFormat(&text, "golden digest  %s\n", b.golden_digest);
  absl::StrAppendFormat(&text, "size           %.1f MB, bundle version %d, numerics version %d\n",
                        static_cast<double>(b.file_bytes) / 1e6, kBundleVersion, kNumericsVersion);
  absl::StrAppendFormat(&text,
                        "model          %d layers, hidden %d, intermediate %d, %d heads (%d for K "
                        "and V) of %d, vocabulary %d\n",
                        c.num_hidden_layers, c.hidden_size, c.intermediate_size,
                        c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.vocab_size);
  absl::StrAppendFormat(&text, "context        %d tokens, prefix [%s]\n", c.max_position_embeddings,
                        absl::StrJoin(b.model.prefix_token_ids, ", "));
  absl::StrAppendFormat(&text, "rotations      down_proj block %d, q and k %s\n",
                        c.down_hadamard_block, c.qk_hadamard ? "Hadamard" : "plain");
  absl::StrAppendFormat(&text, "fixed point    residual 2^-%d, logits 2^-%d\n",
                        c.residual_fraction_bits, c.logit_fraction_bits);
  absl::StrAppendFormat(
      &text, "tokenizer      %d tokens, chat template %s\n", b.tokenizer.tokens.size(),
      b.chat_template.empty() ? "none" : absl::StrFormat("of %d bytes", b.chat_template.size()));
  absl::StrAppendFormat(&text, "int16 inputs   %s\n",
                        wide.empty() ? "none" : absl::StrJoin(wide, " "));
  absl::StrAppendFormat(&text, "provenance     %s\n", b.provenance_json);
  text.pop_back();
  return text;
}

}  // namespace

absl::Status RunInspect(const InspectFlags& flags) {
  ASSIGN_OR_RETURN(const Bundle bundle, ReadBundle(flags.bundle));
  std::cout << (flags.json ? ToJson(bundle) : ToText(bundle)) << "\n";
  return absl::OkStatus();
}

}  // namespace fixpoint
