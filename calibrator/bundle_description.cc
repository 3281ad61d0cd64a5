#include "calibrator/bundle_description.h"

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "base/json_writer.h"
#include "bundle/format.h"
#include "bundle/sections.h"
#include "calibrator/import/json.h"
#include "text/tokenizer.h"

namespace fixpoint {
namespace {

constexpr size_t kMaxProvenanceDepth = 16;
constexpr size_t kWorstSites = 5;
constexpr size_t kLargestParts = 8;

// Part of the provenance; what is not there, or of another type, is absent.
class Part {
 public:
  explicit Part(std::optional<JsonObject> object) : object_(std::move(object)) {}

  explicit operator bool() const { return object_.has_value(); }
  Part In(absl::string_view key) const { return Part(Get(&JsonObject::FindObject, key)); }
  std::optional<std::string> Text(absl::string_view key) const {
    return Get(&JsonObject::FindString, key);
  }
  std::optional<double> Number(absl::string_view key) const {
    return Get(&JsonObject::FindDouble, key);
  }
  std::optional<bool> Flag(absl::string_view key) const { return Get(&JsonObject::FindBool, key); }

  // fn(key, value) for every member.
  template <typename F>
  void ForEach(F&& fn) const {
    if (!object_) return;
    for (const simdjson::dom::key_value_pair& field : object_->object())
      fn(std::string(field.key), field.value);
  }
  // fn(part) for every object of an array.
  template <typename F>
  void ForEachIn(absl::string_view key, F&& fn) const {
    const std::optional<simdjson::dom::element> element =
        object_ ? object_->Find(key) : std::nullopt;
    simdjson::dom::array array;
    if (!element || element->get_array().get(array) != simdjson::SUCCESS) return;
    for (const simdjson::dom::element item : array) {
      simdjson::dom::object object;
      if (item.get_object().get(object) == simdjson::SUCCESS)
        fn(Part(JsonObject(object, std::string(key))));
    }
  }

 private:
  template <typename T>
  std::optional<T> Get(absl::StatusOr<std::optional<T>> (JsonObject::*find)(absl::string_view)
                           const,
                       absl::string_view key) const {
    if (!object_) return std::nullopt;
    absl::StatusOr<std::optional<T>> found = ((*object_).*find)(key);
    return found.ok() ? *std::move(found) : std::nullopt;
  }

  std::optional<JsonObject> object_;
};

// Keeps the document that its parts point into.
class Provenance {
 public:
  explicit Provenance(const Bundle& bundle) {
    absl::StatusOr<JsonDocument> document =
        JsonDocument::Parse(bundle.provenance_json, "provenance", kMaxProvenanceDepth);
    if (document.ok()) document_.emplace(*std::move(document));
  }
  Part root() const {
    return Part(document_ ? std::optional<JsonObject>(document_->root()) : std::nullopt);
  }

 private:
  std::optional<JsonDocument> document_;
};

const char* PreTokenizerName(PreTokenizer kind) {
  switch (kind) {
    case PreTokenizer::kNone:
      return "no splitting";
    case PreTokenizer::kGpt2:
      return "GPT-2 splitting";
    case PreTokenizer::kSmolLm:
      return "SmolLM splitting";
    case PreTokenizer::kLlama3:
      return "Llama-3 splitting";
    case PreTokenizer::kQwen2:
      return "Qwen2 splitting";
  }
  return "unknown splitting";
}

std::string Megabytes(uint64_t bytes) {
  return absl::StrFormat("%.1f MB", static_cast<double>(bytes) / 1e6);
}

// "layers.12.qkv.weight" -> "layers.*.qkv.weight".
std::string WithoutLayer(const std::string& name) {
  constexpr absl::string_view kLayers = "layers.";
  if (!absl::StartsWith(name, kLayers)) return name;
  const size_t dot = name.find('.', kLayers.size());
  return dot == name.npos ? name : absl::StrCat(kLayers, "*", name.substr(dot));
}

class Describer {
 public:
  Describer(const Bundle& bundle, const std::string& path)
      : bundle_(bundle), path_(path), provenance_(bundle), root_(provenance_.root()) {}

  std::string Run(bool sites) {
    Identity();
    Model();
    Tokens();
    Method();
    Corpus();
    Figures();
    WideSites();
    Saturation();
    Sizes();
    RunOfTheCalibrator();
    if (sites) Sites();
    text_.pop_back();
    return std::move(text_);
  }

 private:
  template <typename... Args>
  void Line(absl::string_view name, const absl::FormatSpec<Args...>& format, const Args&... args) {
    absl::StrAppendFormat(&text_, "%-15s%s\n", name, absl::StrFormat(format, args...));
  }

  void Identity() {
    Line("bundle", "%s, %s", path_, Megabytes(bundle_.file_bytes));
    Line("digest", "%s", bundle_.digest);
    Line("golden digest", "%s", bundle_.golden_digest.empty() ? "none" : bundle_.golden_digest);
    Line("versions", "bundle %d, numerics %d, made by %s", kBundleVersion, kNumericsVersion,
         root_.Text("calibrator").value_or("another program than fixpoint-calibrate"));
    const Part source = root_.In("source");
    if (!source) return;
    Line("source", "%s (%s; %s)", source.Text("name").value_or("?"),
         source.Text("format").value_or("?"), source.Text("types").value_or("?"));
    Line("", "SHA-256 %s", source.Text("sha256").value_or("?"));
  }

  void Model() {
    const ModelConfig& c = bundle_.model.config;
    Line("model", "%d layers, hidden %d, intermediate %d, %d heads (%d for K and V) of %d",
         c.num_hidden_layers, c.hidden_size, c.intermediate_size, c.num_attention_heads,
         c.num_key_value_heads, c.head_dim);
    Line("context", "%d tokens", c.max_position_embeddings);
    Line("rotations", "down_proj %s, q and k %s",
         c.down_hadamard_block == 1 ? "plain" : absl::StrCat("Hadamard of ", c.down_hadamard_block),
         c.qk_hadamard ? "Hadamard" : "plain");
    Line("fixed point", "residual 2^-%d, logits 2^-%d", c.residual_fraction_bits,
         c.logit_fraction_bits);
  }

  void Tokens() {
    const TokenizerSpec& spec = bundle_.tokenizer;
    Line("tokenizer", "%s, %d tokens (%d rows)", TokenizerName(spec), spec.tokens.size(),
         bundle_.model.config.vocab_size);
    Line("", "BOS %s, ends at %s", spec.bos_id < 0 ? "none" : Quoted({spec.bos_id}),
         spec.eos_ids.empty() ? "nothing" : Quoted(spec.eos_ids));
    Line("template", "%s",
         bundle_.chat_template.empty()
             ? "none"
             : absl::StrFormat("chat template of %d bytes", bundle_.chat_template.size()));
    const std::vector<int32_t>& prefix = bundle_.model.prefix_token_ids;
    Line("prefix", "%s",
         prefix.empty()
             ? "none"
             : absl::StrCat(prefix.size(),
                            prefix.size() == 1 ? " token: " : " tokens: ", Quoted(prefix)));
  }

  std::string Quoted(const std::vector<int32_t>& ids) const {
    return absl::StrJoin(ids, ", ", [&](std::string* out, int32_t id) {
      const std::vector<std::string>& tokens = bundle_.tokenizer.tokens;
      const bool known = id >= 0 && static_cast<size_t>(id) < tokens.size();
      absl::StrAppend(out, id, " ", known ? JsonQuote(tokens[id]) : "(no text)");
    });
  }

  void Method() {
    const Part settings = root_.In("settings");
    if (!settings) return;
    const std::string objective = settings.Text("objective").value_or("none");
    const std::string granularity = settings.Text("granularity").value_or("tensor");
    std::string how = objective == "none" ? "untrained"
                      : objective == "kl" ? "trained, neutral track (KL to float)"
                      : objective == "ce" ? "trained, adapted track (next token)"
                                          : absl::StrCat("trained, objective ", objective);
    absl::StrAppend(&how, "; static, a scale per ", granularity);
    if (granularity == "channel")
      absl::StrAppend(&how, " (", settings.Text("vectors").value_or("gain"), ")");
    absl::StrAppend(&how, "; weights rounded: ", settings.Text("rounding").value_or("nearest"));
    Line("method", "%s", how);
    std::string line;
    if (const auto budget = settings.Number("budget"))
      absl::StrAppendFormat(&line, "budget %g %%, ", 100 * *budget);
    if (const auto seed = settings.Number("seed")) absl::StrAppendFormat(&line, "seed %g, ", *seed);
    if (const auto clip = settings.Text("head_clip"))
      absl::StrAppendFormat(&line, "q, k, v clipped by %s, ", *clip);
    if (!line.empty()) Line("", "%s", line.substr(0, line.size() - 2));
    Training();
  }

  void Training() {
    const Part training = root_.In("training");
    if (!training) return;
    Line("training", "%g steps (kept: %g) of %g planned, %g tokens, stopped by %s",
         training.Number("steps").value_or(0), training.Number("best_step").value_or(0),
         training.Number("planned_steps").value_or(0), training.Number("tokens").value_or(0),
         training.Text("stopped_by").value_or("?"));
    Line("", "held-out KL %.5f -> %.5f", training.Number("held_out_kl_before").value_or(0),
         training.Number("held_out_kl_after").value_or(0));
    const Part control = training.In("float_control");
    if (!control) return;
    Line("", "float control %+.2f %% over float; the integer engine %+.2f %% over the control",
         control.Number("relative_percent").value_or(0), control.Number("gap_percent").value_or(0));
  }

  void Corpus() {
    const Part corpus = root_.In("corpus");
    if (!corpus) return;
    Line("corpus", "%s, %g + %g windows of %g tokens (train, held out)",
         corpus.Text("source").value_or("?"), corpus.Number("train_windows").value_or(0),
         corpus.Number("held_out_windows").value_or(0), corpus.Number("window_tokens").value_or(0));
    Line("", "SHA-256 %s", corpus.Text("sha256").value_or("?"));
  }

  void Figures() {
    const Part held_out = root_.In("held_out");
    if (!held_out) return;
    Line("figures", "held-out text, %g tokens; float: perplexity %.4f",
         held_out.Number("tokens").value_or(0), held_out.Number("float_perplexity").value_or(0));
    absl::StrAppendFormat(&text_, "  %-24s %10s  %19s  %8s  %8s\n", "", "perplexity", "over float",
                          "KL", "top-1");
    held_out.ForEach([&](const std::string& name, simdjson::dom::element value) {
      simdjson::dom::object object;
      if (value.get_object().get(object) != simdjson::SUCCESS) return;
      const Part model(JsonObject(object, name));
      if (!model.Number("perplexity")) return;
      absl::StrAppendFormat(
          &text_, "  %-24s %10.4f  %+8.3f %% +- %.3f  %8.5f  %6.2f %%\n", name,
          *model.Number("perplexity"), model.Number("relative_percent").value_or(0),
          model.Number("standard_error_percent").value_or(0), model.Number("kl_mean").value_or(0),
          100 * model.Number("top1_agreement").value_or(0));
    });
  }

  // The list of the bundle's own sites is the truth; what each cost and bought is the maker's word.
  void WideSites() {
    std::vector<std::string> wide;
    for (const SiteInfo& site : bundle_.sites) {
      if (site.bits == 16) wide.push_back(site.name);
    }
    const Part search = root_.In("int16_sites");
    std::string cost;
    if (const auto share = search.Number("doubled_work_share")) {
      cost = absl::StrFormat("; they double %.1f %% of the layers' multiplications", 100 * *share);
    }
    if (const auto stop = search.Text("stopped_by"))
      absl::StrAppend(&cost, "; search stopped by ", *stop);
    Line("int16 inputs", "%d of %d sites%s", wide.size(), bundle_.sites.size(), cost);
    std::set<std::string> told;
    search.ForEachIn("chosen", [&](const Part& choice) {
      const std::string name = choice.Text("site").value_or("?");
      told.insert(name);
      absl::StrAppendFormat(&text_, "  %-24s KL %.5f -> %.5f for %.2f %% more work\n", name,
                            choice.Number("kl_before").value_or(0),
                            choice.Number("kl_after").value_or(0),
                            100 * choice.Number("work_share").value_or(0));
    });
    for (const std::string& name : wide) {
      if (told.count(name) == 0) absl::StrAppendFormat(&text_, "  %s\n", name);
    }
  }

  void Saturation() {
    const std::map<std::string, double> shares = SaturatedShares(bundle_);
    if (shares.empty()) return;
    std::vector<std::pair<std::string, double>> worst(shares.begin(), shares.end());
    std::stable_sort(worst.begin(), worst.end(),
                     [](const auto& a, const auto& b) { return a.second > b.second; });
    worst.resize(std::min(worst.size(), kWorstSites));
    Line("saturation",
         "share of values clipped on the calibration text, the worst of %d sites:", shares.size());
    for (const auto& [name, share] : worst)
      absl::StrAppendFormat(&text_, "  %-24s %.4f %%\n", name, 100 * share);
  }

  void Sizes() {
    const std::vector<FilePart> parts = FileParts(bundle_);
    Line("sizes", "of %s:", Megabytes(bundle_.file_bytes));
    uint64_t rest = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
      if (i >= kLargestParts) {
        rest += parts[i].bytes;
        continue;
      }
      absl::StrAppendFormat(&text_, "  %-32s %10s\n", parts[i].name, Megabytes(parts[i].bytes));
    }
    if (rest > 0) {
      absl::StrAppendFormat(&text_, "  %-32s %10s\n",
                            absl::StrCat(parts.size() - kLargestParts, " smaller ones"),
                            Megabytes(rest));
    }
  }

  void RunOfTheCalibrator() {
    double seconds = 0;
    root_.In("seconds").ForEach([&](const std::string&, simdjson::dom::element value) {
      double stage = 0;
      if (value.get_double().get(stage) == simdjson::SUCCESS) seconds += stage;
    });
    const std::optional<double> memory = root_.Number("peak_memory_bytes");
    if (seconds == 0 || !memory) return;
    Line("calibration", "%.0f s on %g threads, peak memory %.2f GiB", seconds,
         root_.Number("threads").value_or(0), *memory / (1 << 30));
  }

  void Sites() {
    const std::map<std::string, double> shares = SaturatedShares(bundle_);
    absl::StrAppendFormat(&text_, "\n%-24s %4s  %-11s %14s  %10s\n", "site", "bits", "granularity",
                          "scale", "saturated");
    for (const SiteInfo& site : bundle_.sites) {
      const auto share = shares.find(site.name);
      absl::StrAppendFormat(
          &text_, "%-24s %4d  %-11s %14s  %10s\n", site.name, site.bits, site.granularity,
          site.scale,
          share == shares.end() ? "-" : absl::StrFormat("%.4f %%", 100 * share->second));
    }
  }

  const Bundle& bundle_;
  const std::string& path_;
  const Provenance provenance_;
  const Part root_;
  std::string text_;
};

}  // namespace

std::vector<FilePart> FileParts(const Bundle& bundle) {
  std::set<std::string> present;
  VisitTensors(bundle.model,
               [&](const std::string& name, const auto& values, int64_t, int64_t, bool) {
                 if (!values.empty()) present.insert(name);
               });
  const std::vector<Section> sections =
      PlanSections(bundle.model, SerializeTokenizerSpec(bundle.tokenizer).size(),
                   [&](absl::string_view name) { return present.count(std::string(name)) > 0; });
  std::map<std::string, FilePart> by_name;
  uint64_t rest = bundle.file_bytes;
  for (const Section& section : sections) {
    const std::string name = WithoutLayer(section.name);
    FilePart& part = by_name[name];
    part.name = name;
    ++part.sections;
    part.bytes += section.bytes;
    rest -= section.bytes;
  }
  std::vector<FilePart> parts;
  for (auto& [name, part] : by_name) parts.push_back(std::move(part));
  parts.push_back({.name = "header, manifest and padding", .bytes = rest});
  std::stable_sort(parts.begin(), parts.end(),
                   [](const FilePart& a, const FilePart& b) { return a.bytes > b.bytes; });
  return parts;
}

std::map<std::string, double> SaturatedShares(const Bundle& bundle) {
  std::map<std::string, double> shares;
  const Provenance provenance(bundle);
  provenance.root()
      .In("saturated_share")
      .ForEach([&](const std::string& name, simdjson::dom::element value) {
        double share = 0;
        if (value.get_double().get(share) == simdjson::SUCCESS) shares[name] = share;
      });
  return shares;
}

std::string TokenizerName(const TokenizerSpec& spec) {
  if (spec.kind == TokenizerKind::kSentencePieceBpe) return "SentencePiece BPE";
  return absl::StrCat("byte-level BPE, ", PreTokenizerName(spec.pre_tokenizer));
}

std::string DescribeBundle(const Bundle& bundle, const std::string& path, bool sites) {
  return Describer(bundle, path).Run(sites);
}

}  // namespace fixpoint
