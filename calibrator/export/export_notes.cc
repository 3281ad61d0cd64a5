#include "calibrator/export/export_notes.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace fixpoint {
namespace {

std::string SiteNames(const std::vector<SiteId>& ids, const ExportNotes& notes) {
  const int32_t layers = notes.bundle->model.config.num_hidden_layers;
  return absl::StrJoin(ids, ", ", [layers](std::string* out, const SiteId& id) {
    out->append(SiteName(id, layers));
  });
}

void AddPrefix(const ExportNotes& notes, std::vector<std::string>* say) {
  const std::vector<int32_t>& prefix = notes.bundle->model.prefix_token_ids;
  if (!prefix.empty()) {
    say->push_back(absl::StrCat(
        "The prefix (token ids ", absl::StrJoin(prefix, ", "),
        "): the bundle keeps its keys and values; here the prompt has to begin with those tokens, "
        "and they pass through the rounded layers like any other."));
  }
  if (!notes.first_tokens.empty()) {
    say->push_back(
        absl::StrCat("Figures are for text behind the token ", notes.first_tokens[0],
                     notes.bundle->tokenizer.add_bos
                         ? ", which the tokenizer puts in front."
                         : ", which the tokenizer does not add by itself: prompts must begin "
                           "with it."));
  }
}

void AddSites(const ExportNotes& notes, std::vector<std::string>* say) {
  const int32_t block = notes.bundle->model.config.down_hadamard_block;
  if (block > 1) {
    say->push_back(absl::StrCat(
        "The Hadamard transform over blocks of ", block,
        " in front of down_proj, which must run online: down_proj is in the plain basis, its "
        "weights were rounded anew and its input scales measured anew."));
  }
  if (!notes.wide_sites.empty()) {
    say->push_back(absl::StrCat("int16 inputs (", SiteNames(notes.wide_sites, notes), "): ",
                                notes.wide_in_bf16 ? "their linear layers are in bf16 here."
                                                   : "int8 here, as --ignore none asks."));
  }
  if (!notes.chosen.empty()) {
    std::vector<SiteId> ids;
    for (const SiteCost& cost : notes.chosen) ids.push_back({cost.layer, cost.site});
    say->push_back(absl::StrCat(
        "Linear layers kept in bf16 because int8 costs too much there without prefix and "
        "transform: ",
        SiteNames(ids, notes), "."));
  }
}

void AddGains(const ExportNotes& notes, std::vector<std::string>* say) {
  if (notes.gains == GainUse::kLeftOut) {
    say->push_back(absl::StrFormat(
        "Trained gains: left out, because the checkpoint is closer to float without them (KL "
        "%.5f, with them %.5f).",
        notes.kl_without_gains, notes.kl_with_gains));
    return;
  }
  if (notes.gains == GainUse::kNone) return;
  say->push_back(
      "Trained gains of o_in and down_in as vectors of their own: they are in the columns of "
      "o_proj "
      "and down_proj, which were rounded anew.");
  if (notes.dropped_head_gains) {
    say->push_back(
        "Trained gains of q and k, which act behind RoPE: left out, so that attention differs "
        "slightly from the bundle's.");
  }
}

}  // namespace

std::vector<std::string> NotCarried(const ExportNotes& notes) {
  std::vector<std::string> say;
  AddPrefix(notes, &say);
  AddSites(notes, &say);
  AddGains(notes, &say);
  if (notes.provenance->method.rounding != "nearest") {
    say.push_back(absl::StrCat(
        "Weights of down_proj", notes.gains == GainUse::kKept ? " and o_proj" : "", " rounded by ",
        notes.provenance->method.rounding, ": here they are rounded to nearest."));
  }
  say.push_back(
      "Integer norms, softmax and residual stream, int8 q, k, v and KV cache, int8 embedding and "
      "head: these run in bf16 here.");
  say.push_back(
      "The bundle's exact reproducibility: servers add in float, so bits depend on the device and "
      "the batch.");
  return say;
}

std::string FiguresText(const ExportNotes& notes) {
  const ExportFigures& f = notes.figures;
  std::string text = absl::StrFormat(
      "Simulated on %d held-out tokens (%s) with bf16 inputs and a float residual stream, without "
      "the server:\n\n| model | perplexity | KL to float | top-1 agreement |\n| --- | --- | --- | "
      "--- |\n",
      f.tokens, notes.text_source == "files" ? "of the corpus" : "written by the model");
  const bool adapted = f.float_perplexity != notes.source_perplexity;
  absl::StrAppendFormat(&text, "| float source | %.3f | | |\n", notes.source_perplexity);
  if (adapted) {
    absl::StrAppendFormat(
        &text,
        "| **float with the trained gains**, what follows is measured against it | %.3f | | |\n",
        f.float_perplexity);
  }
  const auto line = [&](const char* name, const ExportFigures& e) {
    absl::StrAppendFormat(&text, "| %s | %.3f (%+.2f %% +- %.2f) | %.4f | %.2f %% |\n", name,
                          e.perplexity, e.relative.percent, e.relative.standard_error_percent,
                          e.kl_mean, 100 * e.top1_agreement);
  };
  if (!notes.chosen.empty()) line("with every possible layer int8", notes.all_quantized);
  line("**this checkpoint**", f);
  absl::StrAppendFormat(&text, "\n%.1f %% of the layers' multiplications are int8.\n",
                        100 * notes.int8_share);
  return text;
}

}  // namespace fixpoint
