// What `eval` measured, and how it is shown.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "calibrator/window_statistics.h"

namespace fixpoint {

// The float model behind one prefix: what others are measured against.
struct EvalReference {
  // "own" (the bundle's prefix), "bos" (BOS alone, or nothing where there is no BOS), "none",
  // "ids" (given ones)
  std::string name;
  std::vector<int32_t> token_ids;
  std::string text;  // of the tokens, quoted
  double perplexity = 0;
};

// A model beside one reference; KL in nats a token.
struct EvalAgainst {
  std::string reference;  // EvalReference::name
  RelativePerplexity relative;
  double kl_mean = 0, kl_median = 0, kl_p99 = 0;
  double top1_agreement = 0;  // share in [0, 1]
};

struct EvalModel {
  // "integer", "simulation", "dynamic_rotated", "dynamic_plain"; the integer engine of the bundle
  // that is compared with: "against"; the first of two references, beside the second: "float"
  std::string name;
  double perplexity = 0;
  std::vector<EvalAgainst> against;  // the references in their order
};

struct EvalBundle {
  std::string path, digest;
  std::vector<int32_t> prefix_token_ids;
  std::string prefix_text;  // quoted
};

// The first bundle (a) and the one that it is compared with (b), over the same windows.
struct EvalComparison {
  PairedDifference log_ratio;  // of perplexity a over b
  struct Kl {
    std::string reference;
    PairedDifference difference;  // KL of a less KL of b
  };
  std::vector<Kl> kl;
  BootstrapOptions bootstrap;
};

struct EvalFigures {
  std::string text;
  int32_t windows = 0, window_tokens = 0, stride = 0;
  int64_t tokens = 0;               // that count, each once
  std::vector<EvalBundle> bundles;  // none, one, or the two that are compared
  std::vector<EvalReference> references;
  std::vector<EvalModel> models;
  std::optional<EvalComparison> comparison;
};

// One JSON object. Keys:
//   text, tokens, windows, window_tokens, stride
//   bundle, against_bundle: path, digest, prefix_token_ids
//   float_prefix, float, float_none, float_ids (the references own, bos, none, ids): perplexity,
//     token_ids, and `against` where the prefix itself moves the model; a prefix that is BOS alone
//     is written as both of the first two
//   integer, simulation, dynamic_rotated, dynamic_plain, against: perplexity; beside float
//     relative_percent, standard_error_percent, kl_mean, kl_median, kl_p99, top1_agreement against
//     the first reference, and the same for each reference by name in `against`
//   relative_percent, standard_error_percent, kl_mean, top1_agreement: those of `integer`, and
//     kl_bos_mean, its mean KL to float behind BOS alone
//   comparison: perplexity_ratio_percent, low_percent, high_percent, significant, verdict
//   ("better",
//     "worse", "no significant difference": of `integer` beside `against`), resamples, seed,
//     confidence, and by reference kl: difference, low, high, significant
std::string EvalToJson(const EvalFigures& figures);

// The same for people, without a newline at the end.
std::string EvalToText(const EvalFigures& figures);

}  // namespace fixpoint
