#include <algorithm>
#include <iostream>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/json_writer.h"
#include "base/status_macros.h"
#include "bundle/bundle.h"
#include "calibrator/corpus.h"
#include "calibrator/evaluate.h"
#include "calibrator/import/checkpoint.h"
#include "calibrator/prefix.h"
#include "calibrator/provenance.h"
#include "calibrator/rotate.h"
#include "calibrator/verbs.h"

namespace fixpoint {
namespace {

constexpr int32_t kStepTokens = 128;

// What was measured; the optional parts need the source.
struct Figures {
  int64_t tokens = 0;
  int32_t windows = 0;
  double integer_perplexity = 0;
  struct Float {
    double perplexity = 0, prefix_perplexity = 0, kl_mean = 0, kl_bos_mean = 0, top1_agreement = 0;
    RelativePerplexity relative;
  };
  std::optional<Float> against_float;
  struct Simulation {
    double perplexity = 0, kl_mean = 0, top1_agreement = 0;
    RelativePerplexity relative;
  };
  std::optional<Simulation> simulation;
};

class Eval {
 public:
  Eval(const EvalFlags& flags, Progress& progress, ThreadPool& pool)
      : flags_(flags), progress_(progress), pool_(pool), gemm_(CreateCpuGemm(pool)) {}

  absl::StatusOr<Figures> Run() {
    progress_.Enter(0);
    RETURN_IF_ERROR(LoadBundle());
    if (!flags_.source.empty()) RETURN_IF_ERROR(LoadSource());
    CpuExecutorOptions options;
    options.threads = pool_.thread_count();
    options.max_step_tokens = options.max_step_logits = kStepTokens;
    options.kv_cache_bytes =
        KvBlockBytes(bundle_.model.config) * (flags_.window / kKvBlockTokens + 1);
    ASSIGN_OR_RETURN(executor_, CpuExecutor::Create(std::move(bundle_.model), options));
    progress_.Enter(1);
    Figures figures;
    figures.tokens = static_cast<int64_t>(windows_.token_ids.size());
    figures.windows = windows_.count();
    if (flags_.source.empty())
      RETURN_IF_ERROR(MeasureAlone(&figures));
    else
      RETURN_IF_ERROR(MeasureAgainstFloat(&figures));
    return figures;
  }

 private:
  absl::Status LoadBundle() {
    ASSIGN_OR_RETURN(bundle_, ReadBundle(flags_.bundle, pool_.thread_count()));
    ASSIGN_OR_RETURN(tokenizer_, Tokenizer::Create(bundle_.tokenizer));
    const int32_t room = bundle_.model.config.max_position_embeddings -
                         static_cast<int32_t>(bundle_.model.prefix_token_ids.size());
    if (flags_.window < 2 || flags_.window > room) {
      return absl::InvalidArgumentError(
          absl::StrCat("--window ", flags_.window, ": must be in [2, ", room, "] for this bundle"));
    }
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids, TokenizeFile(flags_.text, *tokenizer_));
    windows_ = CutWindows(ids, flags_.window, flags_.limit);
    if (windows_.count() == 0) {
      return absl::InvalidArgumentError(absl::StrCat(flags_.text, ": ", ids.size(),
                                                     " tokens, not one window of ", flags_.window));
    }
    prefix_ids_ = bundle_.model.prefix_token_ids;
    return absl::OkStatus();
  }

  absl::Status LoadSource() {
    ASSIGN_OR_RETURN(const ProvenanceSource provenance, ReadProvenance(bundle_.provenance_json));
    ASSIGN_OR_RETURN(Checkpoint checkpoint,
                     ImportCheckpoint(flags_.source, [&](std::string_view, double fraction) {
                       progress_.Update(fraction, "source");
                     }));
    if (checkpoint.source_sha256 != provenance.sha256) {
      return absl::InvalidArgumentError(
          absl::StrCat(flags_.source, " (SHA-256 ", checkpoint.source_sha256,
                       ") is not the source of this bundle: that is ", provenance.name,
                       " (SHA-256 ", provenance.sha256, ")"));
    }
    source_ = std::move(checkpoint.model);
    if (!flags_.simulation) return absl::OkStatus();
    if (provenance.scales.layers.size() != source_.layers.size()) {
      return absl::InvalidArgumentError("provenance: scales of another number of layers");
    }
    rotated_ = source_;
    FoldAndRotate(rotated_, provenance.rotation, *gemm_, pool_);
    scales_ = provenance.scales;
    simulation_model_ = MakeIntegerForwardModel(bundle_.model, rotated_, *gemm_, pool_);
    simulation_.emplace(simulation_model_, *gemm_, pool_);
    // K and V of the prefix in the rotated basis.
    const ForwardModel model =
        MakeForwardModel(rotated_, simulation_model_.online, WeightKind::kFloat32, *gemm_, pool_);
    simulation_prefix_ = FloatForward(model, *gemm_, pool_).ComputePrefix(prefix_ids_);
    return absl::OkStatus();
  }

  std::function<void(int32_t)> Report(const char* what) {
    return [this, what](int32_t done) {
      progress_.Update(static_cast<double>(done) / windows_.count(),
                       absl::StrCat(what, ", window ", done, " of ", windows_.count()));
    };
  }

  absl::Status MeasureAlone(Figures* figures) {
    ExecutorLogits integer(*executor_);
    ASSIGN_OR_RETURN(const std::vector<double> loss,
                     WindowLosses(integer, windows_, pool_, Report("integer")));
    figures->integer_perplexity = Perplexity(loss);
    return absl::OkStatus();
  }

  absl::Status MeasureAgainstFloat(Figures* figures) {
    const ForwardModel model = MakeForwardModel(source_, {}, WeightKind::kFloat32, *gemm_, pool_);
    FloatForward forward(model, *gemm_, pool_);
    const FloatPrefix prefix = forward.ComputePrefix(prefix_ids_);
    ForwardLogits reference(forward, {.prefix = &prefix});
    ExecutorLogits integer(*executor_);
    std::vector<LogitSource*> models = {&integer};
    std::optional<ForwardLogits> simulated;
    if (simulation_) {
      simulated.emplace(*simulation_,
                        ForwardOptions{.prefix = &simulation_prefix_, .scales = &scales_});
      models.push_back(&*simulated);
    }
    ASSIGN_OR_RETURN(const std::vector<Comparison> result,
                     Compare(reference, models, windows_, pool_, Report("float and integer")));
    figures->integer_perplexity = Perplexity(result[0].loss);
    Figures::Float& against = figures->against_float.emplace();
    against.prefix_perplexity = against.perplexity = Perplexity(result[0].teacher_loss);
    against.relative = RelativeTo(result[0].teacher_loss, result[0].loss);
    against.kl_mean = against.kl_bos_mean = result[0].kl_mean;
    against.top1_agreement = result[0].top1_agreement;
    if (simulated) {
      figures->simulation =
          Figures::Simulation{.perplexity = Perplexity(result[1].loss),
                              .kl_mean = result[1].kl_mean,
                              .top1_agreement = result[1].top1_agreement,
                              .relative = RelativeTo(result[1].teacher_loss, result[1].loss)};
    }
    const std::vector<int32_t> bos = BosAlone(*tokenizer_);
    if (bos == prefix_ids_) return absl::OkStatus();
    const FloatPrefix bos_prefix = forward.ComputePrefix(bos);
    ForwardLogits bos_reference(forward, {.prefix = &bos_prefix});
    ASSIGN_OR_RETURN(
        const std::vector<Comparison> bos_result,
        Compare(bos_reference, {&integer}, windows_, pool_, Report("float behind BOS alone")));
    against.perplexity = Perplexity(bos_result[0].teacher_loss);
    against.kl_bos_mean = bos_result[0].kl_mean;
    return absl::OkStatus();
  }

  const EvalFlags& flags_;
  Progress& progress_;
  ThreadPool& pool_;
  const std::unique_ptr<FloatGemm> gemm_;
  Bundle bundle_;
  std::unique_ptr<Tokenizer> tokenizer_;
  Windows windows_;
  std::vector<int32_t> prefix_ids_;
  FloatModel source_;
  std::unique_ptr<CpuExecutor> executor_;
  // For --simulation.
  FloatModel rotated_;
  Scales scales_;
  ForwardModel simulation_model_;
  std::optional<FloatForward> simulation_;
  FloatPrefix simulation_prefix_;
};

void WritePerplexity(const char* key, double value, JsonWriter* json) {
  json->Key(key);
  json->BeginObject();
  json->Field("perplexity", value);
  json->EndObject();
}

std::string ToJson(const Figures& f) {
  JsonWriter json;
  json.BeginObject();
  json.Field("tokens", f.tokens);
  json.Field("windows", f.windows);
  if (f.against_float) {
    WritePerplexity("float", f.against_float->perplexity, &json);
    WritePerplexity("float_prefix", f.against_float->prefix_perplexity, &json);
  }
  WritePerplexity("integer", f.integer_perplexity, &json);
  if (f.against_float) {
    json.Field("relative_percent", f.against_float->relative.percent);
    json.Field("standard_error_percent", f.against_float->relative.standard_error_percent);
    json.Field("kl_mean", f.against_float->kl_mean);
    json.Field("top1_agreement", f.against_float->top1_agreement);
    json.Field("kl_bos_mean", f.against_float->kl_bos_mean);
  }
  if (f.simulation) {
    json.Key("simulation");
    json.BeginObject();
    json.Field("perplexity", f.simulation->perplexity);
    json.Field("relative_percent", f.simulation->relative.percent);
    json.Field("standard_error_percent", f.simulation->relative.standard_error_percent);
    json.Field("kl_mean", f.simulation->kl_mean);
    json.Field("top1_agreement", f.simulation->top1_agreement);
    json.EndObject();
  }
  json.EndObject();
  return json.Take();
}

std::string ToText(const Figures& f) {
  std::string text = absl::StrFormat("%d windows, %d tokens\n", f.windows, f.tokens);
  const auto line = [&](const char* name, double perplexity) {
    absl::StrAppendFormat(&text, "%-24s perplexity %9.4f", name, perplexity);
  };
  const auto figures = [&](const RelativePerplexity& relative, double kl, double top1) {
    absl::StrAppendFormat(&text, "  %+.3f %% +- %.3f  KL %.5f  top-1 %.2f %%\n", relative.percent,
                          relative.standard_error_percent, kl, 100 * top1);
  };
  if (f.against_float) {
    line("float", f.against_float->perplexity);
    text += "\n";
    line("float behind the prefix", f.against_float->prefix_perplexity);
    text += "\n";
  }
  line("integer", f.integer_perplexity);
  if (!f.against_float) return text;
  figures(f.against_float->relative, f.against_float->kl_mean, f.against_float->top1_agreement);
  if (f.simulation) {
    line("simulation", f.simulation->perplexity);
    figures(f.simulation->relative, f.simulation->kl_mean, f.simulation->top1_agreement);
  }
  absl::StrAppendFormat(&text, "KL to float behind BOS alone: %.5f\n",
                        f.against_float->kl_bos_mean);
  text.pop_back();
  return text;
}

// Tells which source a bundle was made of; a bundle of another maker has no such record, which is
// no reason to fail.
void HintAtSource(const std::string& bundle_path) {
  const absl::StatusOr<Bundle> bundle = ReadBundle(bundle_path);
  if (!bundle.ok()) return;
  const absl::StatusOr<ProvenanceSource> source = ReadProvenance(bundle->provenance_json);
  if (!source.ok()) return;
  std::cerr << "figures against float need --source: " << source->name << ", SHA-256 "
            << source->sha256 << "\n";
}

}  // namespace

absl::Status RunEval(const EvalFlags& flags) {
  ASSIGN_OR_RETURN(const int threads, ResolveThreads(flags.threads));
  if (flags.limit < 0)
    return absl::InvalidArgumentError(
        absl::StrCat("--limit ", flags.limit, ": must not be negative"));
  if (flags.simulation && flags.source.empty())
    return absl::InvalidArgumentError("--simulation needs --source");
  ThreadPool pool(threads);
  const std::unique_ptr<Progress> progress =
      CreateProgress(flags.progress, {{"load", 5}, {"measure", 100}});
  const absl::StatusOr<Figures> figures = Eval(flags, *progress, pool).Run();
  progress->Finish();
  RETURN_IF_ERROR(figures.status());
  if (flags.source.empty()) HintAtSource(flags.bundle);
  std::cout << (flags.json ? ToJson(*figures) : ToText(*figures)) << "\n";
  return absl::OkStatus();
}

}  // namespace fixpoint
