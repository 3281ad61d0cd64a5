// The verbs of fixpoint-calibrate, one file each. Results go to stdout, everything else to stderr.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "calibrator/progress.h"
#include "calibrator/train/trainer.h"
#include "text/tokenizer.h"

namespace fixpoint {

struct CalibrateFlags {
  std::string model, output;
  std::vector<std::string> corpus;
  std::optional<std::string> budget;  // "1%", "0.5 %", 0.01; none: 1 %, or 0.3 % for "ce"
  uint64_t seed = 0;
  int threads = 0;  // 0: every CPU that the process may use
  ProgressKind progress = ProgressKind::kBar;
  std::string objective = "kl";         // "kl", "ce", "none"
  std::string granularity = "channel";  // "tensor", "channel"
  std::string vectors = "gain";         // "gain", "folded"
  std::string rounding = "gptq";        // "gptq", "nearest"
  std::string int16_inputs = "auto";    // "auto", "none"
  TrainOptions training;                // steps, rates and batches; the rest is set from the above
  std::optional<double> gain_rate;      // none: 0.001, or 0.005 for "ce"
  std::optional<double> prefix_rate;    // none: 0, or 0.01 where every input is int8
  bool no_prefix_search = false;
  std::string report;      // empty: OUTPUT.report.html
  std::string checkpoint;  // empty: OUTPUT.checkpoint
  double checkpoint_seconds = 60;
  bool resume = false;
  bool skip_existing = false;  // a whole bundle under `output` is left as it is
  std::string device = "cpu";
};
absl::Status RunCalibrate(const CalibrateFlags& flags);

struct EvalFlags {
  std::string bundle, text;
  std::string source;   // empty: the integer engine alone
  std::string against;  // another bundle to compare with
  // What float is measured behind: "own", "bos", "none" or token ids such as "1,2"; empty: own and
  // bos. Needs source.
  std::string prefix;
  int32_t window = 0;  // tokens; 0: 1024, or all that the model has room for
  int32_t stride = 0;  // tokens from one window to the next; 0: window
  int32_t limit = 0;   // windows, evenly spread; 0: all
  bool json = false;
  bool simulation = false;   // needs source
  bool dynamic = false;      // needs source
  bool float_alone = false;  // the source without a bundle
  int threads = 0;
  ProgressKind progress = ProgressKind::kBar;
};
absl::Status RunEval(const EvalFlags& flags);

struct VerifyFlags {
  std::string bundle;
  bool json = false;
  int threads = 0;
  int32_t chunk = 0;  // prefill tokens at once; 0: as many as fit
};
// DATA_LOSS when the digest is not the one stored in the bundle.
absl::Status RunVerify(const VerifyFlags& flags);

struct TokenizeFlags {
  std::string model;
  std::string file = "-";  // "-": stdin
  bool special = false;
  bool json = false;
};
absl::Status RunTokenize(const TokenizeFlags& flags);

struct RenderFlags {
  std::string model;            // bundle, checkpoint, or a file ending in .jinja
  std::string messages, tools;  // JSON files; tools may be empty
  bool no_generation_prompt = false;
};
absl::Status RunRender(const RenderFlags& flags);

struct InspectFlags {
  std::string bundle;
  bool json = false;
  bool sites = false;  // list every site
};
absl::Status RunInspect(const InspectFlags& flags);

struct ExportFlags {
  std::string bundle, source, output;
  std::string to = "compressed-tensors";
  std::vector<std::string> corpus;
  std::string ignore = "auto";  // or "none"
  std::string budget = "1%";
  uint64_t seed = 0;
  bool json = false;
  int threads = 0;
  ProgressKind progress = ProgressKind::kBar;
};
// In verb_export.cc, which is part of the program and not of the calibrator's library.
absl::Status RunExport(const ExportFlags& flags);

// --threads: 0 means all CPUs; INVALID_ARGUMENT outside [0, 1024].
absl::StatusOr<int> ResolveThreads(int threads);

// "1%" or "0.01" as a fraction in [0, 1].
absl::StatusOr<double> ParseBudget(const std::string& text);

struct TextModel {
  std::unique_ptr<Tokenizer> tokenizer;
  std::string chat_template;
};
// Tokenizer and chat template of a bundle or of anything that the importer knows.
absl::StatusOr<TextModel> LoadTextModel(const std::string& path);

}  // namespace fixpoint
