#include <csignal>
#include <filesystem>
#include <iostream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/file.h"
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
    for (const HeldOutFigures::Model& m : f.models) {
      if (m.name != name) continue;
      progress.Say(
          absl::StrFormat("  %-34s perplexity %8.3f (%+.2f %% +- %.2f)  KL %.5f  top-1 %.2f %%",
                          what, m.perplexity, m.relative.percent, m.relative.standard_error_percent,
                          m.kl_mean, 100 * m.top1_agreement));
    }
  };
  progress.Say(absl::StrFormat(
      "held-out text, %d tokens, against float (perplexity %.3f):", f.tokens, f.float_perplexity));
  line("int8 weights alone", "int8_weights");
  line("dynamic per token, plain basis", "dynamic_plain");
  line("dynamic per token, rotated basis", "dynamic_rotated");
  line("static, untrained, every input int8", "static_int8");
  line("static, untrained, int16 inputs", "untrained");
  line("float control", "float_control");
  line("static, as shipped, simulation", "static");
  line("integer engine", "integer");
  for (const SiteChoice& site : result.sites.chosen) {
    progress.Say(absl::StrFormat("  int16 at %-20s KL %.5f -> %.5f for %.2f %% more work",
                                 site.name, site.kl_before, site.kl_after, 100 * site.work_share));
  }
  progress.Say(absl::StrFormat(
      "  int16 inputs double %.1f %% of the layers' multiplications (stopped by: %s)",
      100 * result.sites.doubled_share, result.sites.stop_reason));
}

StopSignal g_stop;

// The first interrupt ends a training with its best so far; the second, or one outside a training,
// ends the process.
extern "C" void OnInterrupt(int signal) {
  if (g_stop.armed.load() && !g_stop.requested.exchange(true)) return;
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

absl::StatusOr<CalibrationSettings> SettingsOf(const CalibrateFlags& flags) {
  CalibrationSettings settings;
  // An adapted model is compared with its float control, whose distance int16 inputs halve.
  ASSIGN_OR_RETURN(settings.budget,
                   ParseBudget(flags.budget.value_or(flags.objective == "ce" ? "0.3%" : "1%")));
  settings.corpus_files = flags.corpus;
  settings.seed = flags.seed;
  settings.rotation.seed = flags.seed;
  settings.training = flags.training;
  settings.training.seed = flags.seed;
  settings.training.objective = flags.objective == "kl"   ? Objective::kKl
                                : flags.objective == "ce" ? Objective::kCe
                                                          : Objective::kNone;
  // A prefix that carries away the outliers stands in for int16 inputs, and pays to be trained
  // then.
  settings.training.prefix_rate =
      flags.prefix_rate.value_or(flags.int16_inputs == "none" ? 1e-2 : 0);
  settings.training.gain_rate = flags.gain_rate.value_or(flags.objective == "ce" ? 5e-3 : 1e-3);
  settings.training.granularity =
      flags.granularity == "tensor" ? Granularity::kTensor : Granularity::kChannel;
  settings.training.vectors = flags.vectors == "folded" ? Vectors::kFolded : Vectors::kGain;
  settings.gptq = flags.rounding == "gptq";
  settings.int16_inputs = flags.int16_inputs == "auto";
  settings.prefix_search = !flags.no_prefix_search;
  settings.checkpoint_path =
      flags.checkpoint.empty() ? absl::StrCat(flags.output, ".checkpoint") : flags.checkpoint;
  settings.checkpoint_seconds = flags.checkpoint_seconds;
  settings.resume = flags.resume;
  settings.device = flags.device;
  return settings;
}

absl::Status Calibrate(const CalibrateFlags& flags, const CalibrationSettings& settings,
                       Progress& progress, size_t import_stage, size_t write_stage) {
  ASSIGN_OR_RETURN(const int threads, ResolveThreads(flags.threads));
  const std::string report =
      flags.report.empty() ? absl::StrCat(flags.output, ".report.html") : flags.report;
  RETURN_IF_ERROR(CheckOutput(flags.output));
  RETURN_IF_ERROR(CheckOutput(report));
  RETURN_IF_ERROR(CheckOutput(settings.checkpoint_path));
  progress.Enter(import_stage);
  ASSIGN_OR_RETURN(Checkpoint checkpoint,
                   ImportCheckpoint(flags.model, [&](std::string_view stage, double fraction) {
                     progress.Update(fraction, absl::string_view(stage.data(), stage.size()));
                   }));
  ThreadPool pool(threads);
  std::signal(SIGINT, OnInterrupt);
  ASSIGN_OR_RETURN(const CalibrationResult result,
                   Calibrate(std::move(checkpoint), BaseName(flags.model), settings, pool, progress,
                             import_stage + 1, g_stop));
  progress.Enter(write_stage);
  ASSIGN_OR_RETURN(const std::string digest, WriteBundle(result.bundle, flags.output));
  RETURN_IF_ERROR(WriteFileAtomically(report, WriteReport(result.report)));
  const bool interrupted = result.training && result.training->stopped_by == "interrupted";
  if (!interrupted) {
    for (const char* suffix : {"", ".control"}) {
      std::error_code ignored;  // usually there is none
      std::filesystem::remove(settings.checkpoint_path + suffix, ignored);
    }
  }
  SayFigures(result, progress);
  progress.Say(absl::StrFormat(
      "%s and %s written in %.0f s, peak memory %.2f GiB, golden digest %s", flags.output, report,
      progress.elapsed_seconds(), static_cast<double>(PeakMemoryBytes()) / (1 << 30),
      result.bundle.golden_digest));
  if (interrupted) {
    progress.Say(absl::StrFormat("training was stopped: --resume goes on from %s",
                                 settings.checkpoint_path));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RunCalibrate(const CalibrateFlags& flags) {
  ASSIGN_OR_RETURN(const CalibrationSettings settings, SettingsOf(flags));
  if (flags.skip_existing) {
    // A damaged one is made anew: that is what the caller wants to have at the end.
    const absl::StatusOr<Bundle> existing = ReadBundle(flags.output);
    if (existing.ok() && !existing->golden_digest.empty()) {
      std::cerr << absl::StrFormat("%s is there already, golden digest %s: nothing to do\n",
                                   flags.output, existing->golden_digest);
      return absl::OkStatus();
    }
  }
  std::vector<Progress::Stage> stages = {{"import", 4}};
  for (Progress::Stage& stage : CalibrationStages(settings)) stages.push_back(std::move(stage));
  stages.push_back({"write", 2});
  const size_t write_stage = stages.size() - 1;
  const std::unique_ptr<Progress> progress = CreateProgress(flags.progress, std::move(stages));
  const absl::Status status = Calibrate(flags, settings, *progress, 0, write_stage);
  progress->Finish();
  return status;
}

}  // namespace fixpoint
