#include <filesystem>
#include <iostream>
#include <utility>

#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "bundle/bundle.h"
#include "calibrator/import/checkpoint.h"
#include "calibrator/pipeline.h"
#include "calibrator/verbs.h"

namespace fixpoint {
namespace {

// The base name, also of "dir/" and of "..".
std::string BaseName(const std::string& path) {
  std::error_code error;
  const std::filesystem::path full = std::filesystem::weakly_canonical(path, error);
  const std::string name = (error ? std::filesystem::path(path) : full).filename().string();
  return name.empty() ? path : name;
}

// A destination that cannot be written should not be found out after minutes of work.
absl::Status CheckOutput(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s is a directory; -o wants the name of a file", path));
  }
  const std::filesystem::path parent = std::filesystem::absolute(path, error).parent_path();
  if (!std::filesystem::is_directory(parent, error)) {
    return absl::NotFoundError(absl::StrFormat("the folder of %s does not exist", path));
  }
  return absl::OkStatus();
}

void SayFigures(const CalibrationResult& result, Progress& progress) {
  const HeldOutFigures& f = result.figures;
  const auto line = [&](const char* what, const char* name) {
    const HeldOutFigures::Model& m = f.Find(name);
    progress.Say(absl::StrFormat(
        "  %-34s perplexity %8.3f (%+.2f %% +- %.2f)  KL %.5f  top-1 %.2f %%", what, m.perplexity,
        m.relative.percent, m.relative.standard_error_percent, m.kl_mean, 100 * m.top1_agreement));
  };
  progress.Say(absl::StrFormat(
      "held-out text, %d tokens, against float behind the same prefix (perplexity %.3f):", f.tokens,
      f.float_prefix_perplexity));
  line("int8 weights alone", "int8_weights");
  line("static, every input int8", "static_int8");
  line(absl::StrFormat("static, %d inputs int16", result.sites.chosen.size()).c_str(), "static");
  line("integer engine", "integer");
  for (const SiteChoice& site : result.sites.chosen) {
    progress.Say(absl::StrFormat("  int16 at %-20s KL %.5f -> %.5f for %.2f %% more work",
                                 site.name, site.kl_before, site.kl_after, 100 * site.work_share));
  }
  progress.Say(absl::StrFormat(
      "  int16 inputs double %.1f %% of the layers' multiplications (stopped by: %s)",
      100 * result.sites.doubled_share, result.sites.stop_reason));
}

absl::Status Calibrate(const CalibrateFlags& flags, Progress& progress, size_t import_stage,
                       size_t write_stage) {
  ASSIGN_OR_RETURN(const int threads, ResolveThreads(flags.threads));
  CalibrationSettings settings;
  ASSIGN_OR_RETURN(settings.budget, ParseBudget(flags.budget));
  settings.corpus_files = flags.corpus;
  settings.seed = flags.seed;
  settings.rotation.seed = flags.seed;
  RETURN_IF_ERROR(CheckOutput(flags.output));
  progress.Enter(import_stage);
  ASSIGN_OR_RETURN(Checkpoint checkpoint,
                   ImportCheckpoint(flags.model, [&](std::string_view stage, double fraction) {
                     progress.Update(fraction, absl::string_view(stage.data(), stage.size()));
                   }));
  ThreadPool pool(threads);
  ASSIGN_OR_RETURN(const CalibrationResult result,
                   Calibrate(std::move(checkpoint), BaseName(flags.model), settings, pool, progress,
                             import_stage + 1));
  progress.Enter(write_stage);
  ASSIGN_OR_RETURN(const std::string digest, WriteBundle(result.bundle, flags.output));
  SayFigures(result, progress);
  progress.Say(absl::StrFormat("%s written in %.0f s, peak memory %.2f GiB, golden digest %s",
                               flags.output, progress.elapsed_seconds(),
                               static_cast<double>(PeakMemoryBytes()) / (1 << 30),
                               result.bundle.golden_digest));
  return absl::OkStatus();
}

}  // namespace

absl::Status RunCalibrate(const CalibrateFlags& flags) {
  std::vector<Progress::Stage> stages = {{"import", 4}};
  for (Progress::Stage& stage : CalibrationStages()) stages.push_back(std::move(stage));
  stages.push_back({"write", 2});
  const size_t write_stage = stages.size() - 1;
  const std::unique_ptr<Progress> progress = CreateProgress(flags.progress, std::move(stages));
  const absl::Status status = Calibrate(flags, *progress, 0, write_stage);
  progress->Finish();
  return status;
}

}  // namespace fixpoint
