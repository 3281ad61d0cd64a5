// What people are told about an export: on stderr, in its README.md and in its metadata.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bundle/bundle.h"
#include "calibrator/export/ignored_sites.h"
#include "calibrator/provenance.h"
#include "calibrator/site_search.h"

namespace fixpoint {

enum class GainUse {
  kNone,     // the bundle has none
  kKept,     // carried over
  kLeftOut,  // the checkpoint is closer to float without them
};

struct ExportNotes {
  const Bundle* bundle = nullptr;
  const ProvenanceSource* provenance = nullptr;
  std::vector<int32_t> first_tokens;  // BOS, in front of every measured window
  GainUse gains = GainUse::kNone;
  double kl_with_gains = 0, kl_without_gains = 0;  // when gains are kLeftOut
  bool dropped_head_gains = false;                 // of q and k
  std::vector<SiteId> wide_sites;                  // int16 in the bundle
  bool wide_in_bf16 = true;
  std::vector<SiteCost> chosen;  // in bf16 for the budget
  ExportFigures figures, all_quantized;
  double source_perplexity = 0;
  std::string text_source;
  double int8_share = 0;
};

// One sentence for each thing of the bundle that the format has no place for.
std::vector<std::string> NotCarried(const ExportNotes& notes);

// The measured figures as Markdown.
std::string FiguresText(const ExportNotes& notes);

}  // namespace fixpoint
