#include "calibrator/export/exporter.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "bundle/bundle.h"
#include "calibrator/bundle_scales.h"
#include "calibrator/export/compressed_tensors.h"
#include "calibrator/export/export_notes.h"
#include "calibrator/export/new_folder.h"
#include "calibrator/export/static_simulation.h"
#include "calibrator/generate.h"
#include "calibrator/import/checkpoint.h"
#include "calibrator/prefix.h"
#include "calibrator/provenance.h"

namespace fixpoint {
namespace {

constexpr int64_t kMaxCachedLogitBytes = 1 << 30;

enum Stage : size_t { kImport, kText, kFloat, kStatistics, kChoose, kWrite };

std::string BaseName(const std::string& path) {
  std::error_code error;
  const std::filesystem::path full = std::filesystem::weakly_canonical(path, error);
  const std::string name = (error ? std::filesystem::path(path) : full).filename().string();
  return name.empty() ? path : name;
}

// `first` in front of every window: servers see it as an ordinary token.
Windows Behind(const std::vector<int32_t>& first, const Windows& text) {
  Windows windows;
  windows.tokens = text.tokens + static_cast<int32_t>(first.size());
  for (int32_t i = 0; i < text.count(); ++i) {
    windows.token_ids.insert(windows.token_ids.end(), first.begin(), first.end());
    windows.token_ids.insert(windows.token_ids.end(), text.window(i), text.window(i) + text.tokens);
  }
  return windows;
}

// A way to export: with the bundle's gains or without them.
struct Variant {
  ExportModel model;
  bool dropped_head_gains = false;
};

class Exporter {
 public:
  Exporter(const ExportSettings& settings, ThreadPool& pool, Progress& progress)
      : settings_(settings), pool_(pool), progress_(progress), gemm_(CreateCpuGemm(pool)) {}

  absl::StatusOr<ExportResult> Run() {
    RETURN_IF_ERROR(NewFolder::Check(settings_.output));
    RETURN_IF_ERROR(Load());
    RETURN_IF_ERROR(TakeText());
    RETURN_IF_ERROR(MeasureSource());
    RETURN_IF_ERROR(ChooseVariant());
    RETURN_IF_ERROR(ChooseSites());
    RETURN_IF_ERROR(Write());
    return std::move(result_);
  }

 private:
  const FloatConfig& config() const { return checkpoint_.model.config; }

  absl::Status Load() {
    progress_.Enter(kImport);
    ASSIGN_OR_RETURN(bundle_, ReadBundle(settings_.bundle, pool_.thread_count()));
    absl::StatusOr<ProvenanceSource> provenance = ReadProvenance(bundle_.provenance_json);
    if (!provenance.ok()) return Annotate(provenance.status(), settings_.bundle);
    provenance_ = *std::move(provenance);
    ASSIGN_OR_RETURN(checkpoint_,
                     ImportCheckpoint(settings_.source, [&](std::string_view, double fraction) {
                       progress_.Update(fraction, "source");
                     }));
    if (checkpoint_.source_sha256 != provenance_.sha256) {
      return absl::InvalidArgumentError(
          absl::StrCat(settings_.source, " (SHA-256 ", checkpoint_.source_sha256,
                       ") is not the source of this bundle: that is ", provenance_.name,
                       " (SHA-256 ", provenance_.sha256, ")"));
    }
    if (provenance_.scales.layers.size() != checkpoint_.model.layers.size()) {
      return absl::InvalidArgumentError(absl::StrCat(
          settings_.bundle, ": provenance: scales of ", provenance_.scales.layers.size(),
          " layers, the source has ", checkpoint_.model.layers.size()));
    }
    ASSIGN_OR_RETURN(tokenizer_, Tokenizer::Create(checkpoint_.tokenizer));
    notes_.bundle = &bundle_;
    notes_.provenance = &provenance_;
    notes_.first_tokens = BosAlone(*tokenizer_);
    return ReadIntegers();
  }

  // The bundle's weights and, where it was trained by channel, its gains, which are in its
  // multipliers alone.
  absl::Status ReadIntegers() {
    const bool folded = provenance_.method.vectors == "folded";
    gain_kind_ = folded ? GainKind::kFolded : GainKind::kGain;
    has_gains_ = provenance_.method.granularity == "channel";
    gain_scales_ = provenance_.scales;
    FloatModel rotated = checkpoint_.model;
    FoldAndRotate(rotated, provenance_.rotation, *gemm_, pool_);
    ASSIGN_OR_RETURN(integers_, WeightsOfBundle(bundle_.model, rotated, provenance_.scales,
                                                has_gains_ && folded, pool_));
    if (!has_gains_) return absl::OkStatus();
    ASSIGN_OR_RETURN(gain_scales_, ScalesOfBundle(bundle_.model, provenance_.scales, integers_));
    return absl::OkStatus();
  }

  // Gains of the adapted objective are the bundle's function; others only help to round.
  bool adapted() const {
    return has_gains_ && gain_kind_ == GainKind::kGain && provenance_.method.objective == "ce";
  }

  absl::Status TakeText() {
    progress_.Enter(kText);
    if (!settings_.corpus_files.empty()) {
      ASSIGN_OR_RETURN(corpus_,
                       ReadCorpus(settings_.corpus_files, *tokenizer_, settings_.file_windows));
    } else {
      corpus_ = WriteOwnText();
    }
    const int64_t longest =
        int64_t{corpus_.train.tokens} + static_cast<int64_t>(notes_.first_tokens.size());
    if (longest > config().max_position_embeddings) {
      return absl::InvalidArgumentError(
          absl::StrCat("the model has room for ", config().max_position_embeddings,
                       " tokens, calibration windows have ", longest));
    }
    // The float model's logits are kept: a large vocabulary gets fewer held-out windows.
    const int64_t window_bytes = longest * config().vocab_size * 2;
    const int64_t windows =
        std::clamp<int64_t>(kMaxCachedLogitBytes / window_bytes, 1, corpus_.held_out.count());
    corpus_.held_out.token_ids.resize(static_cast<size_t>(windows * corpus_.held_out.tokens));
    held_out_ = Behind(notes_.first_tokens, corpus_.held_out);
    corpus_.train = EvenWindows(corpus_.train, settings_.statistics_windows);
    notes_.text_source = corpus_.source;
    return absl::OkStatus();
  }

  Corpus WriteOwnText() {
    const CorpusLimits& limits = settings_.own_windows;
    const ForwardModel exact =
        MakeForwardModel(checkpoint_.model, {}, WeightKind::kFloat32, *gemm_, pool_);
    const FloatPrefix prefix =
        FloatForward(exact, *gemm_, pool_).ComputePrefix(notes_.first_tokens);
    const ForwardModel model =
        MakeForwardModel(checkpoint_.model, {}, WeightKind::kBf16, *gemm_, pool_);
    FloatForward forward(model, *gemm_, pool_);
    const std::vector<Opening> openings =
        ChooseOpenings(*tokenizer_, checkpoint_.chat_template, notes_.first_tokens,
                       limits.max_train + limits.max_held_out, settings_.seed);
    const GenerateOptions options{.tokens = kCorpusWindowTokens,
                                  .seed = settings_.seed,
                                  .control_ids = ControlIds(*tokenizer_)};
    Corpus corpus = SplitWindows(
        GenerateWindows(forward, config(), prefix, openings, options, pool_,
                        [&](double share) { progress_.Update(share, "written by the model"); }),
        limits);
    corpus.source = "self-generated";
    return corpus;
  }

  // The source is the yardstick, unless the bundle was adapted away from it.
  absl::Status MeasureSource() {
    progress_.Enter(kFloat);
    const ForwardModel source =
        MakeForwardModel(checkpoint_.model, {}, WeightKind::kFloat32, *gemm_, pool_);
    FloatForward forward(source, *gemm_, pool_);
    if (adapted()) {
      ForwardLogits logits(forward, ForwardOptions());
      ASSIGN_OR_RETURN(const std::vector<double> loss, WindowLosses(logits, held_out_, pool_));
      notes_.source_perplexity = Perplexity(loss);
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(yardstick_, ExportYardstick::Create(forward, held_out_, pool_));
    return absl::OkStatus();
  }

  // Neutral gains may help here too or not: they were trained for a model with a prefix, with int8
  // q, k and v and with gains of q and k, which are left out. So both ways are measured, with
  // down_proj, which has no int8 form in common, in bf16.
  absl::Status ChooseVariant() {
    progress_.Enter(kStatistics);
    if (!has_gains_ || gain_kind_ == GainKind::kFolded || adapted()) {
      notes_.gains = has_gains_ ? GainUse::kKept : GainUse::kNone;
      ASSIGN_OR_RETURN(variant_, Prepare(std::move(checkpoint_.model), gain_scales_));
      return absl::OkStatus();
    }
    ASSIGN_OR_RETURN(variant_, Prepare(checkpoint_.model, gain_scales_));
    ASSIGN_OR_RETURN(notes_.kl_with_gains, KlWithoutDown(variant_.model));
    ASSIGN_OR_RETURN(Variant plain, Prepare(std::move(checkpoint_.model), provenance_.scales));
    ASSIGN_OR_RETURN(notes_.kl_without_gains, KlWithoutDown(plain.model));
    notes_.gains =
        notes_.kl_without_gains <= notes_.kl_with_gains ? GainUse::kLeftOut : GainUse::kKept;
    if (notes_.gains == GainUse::kLeftOut) variant_ = std::move(plain);
    return absl::OkStatus();
  }

  absl::StatusOr<Variant> Prepare(FloatModel source, const Scales& scales) {
    Variant variant;
    FloatModel carried = CarryOver(std::move(source), provenance_.rotation, scales, gain_kind_,
                                   *gemm_, pool_, &variant.dropped_head_gains);
    if (adapted()) {
      const ForwardModel exact = MakeForwardModel(carried, {}, WeightKind::kFloat32, *gemm_, pool_);
      FloatForward forward(exact, *gemm_, pool_);
      ASSIGN_OR_RETURN(yardstick_, ExportYardstick::Create(forward, held_out_, pool_));
    }
    const Statistics statistics = TakeStatistics(carried);
    variant.model = RoundExport(std::move(carried), pool_);
    variant.model.sites = ChooseExportSites(scales, statistics);
    KeepBundleIntegers(integers_, scales, gain_kind_, &variant.model);
    return variant;
  }

  // The model is as it was afterwards.
  absl::StatusOr<double> KlWithoutDown(ExportModel& model) {
    const auto sites = model.sites;
    for (auto& layer : model.sites)
      layer[static_cast<int32_t>(LayerSite::kDownIn)].quantized = false;
    StaticSimulation simulation(model, *gemm_, pool_);
    const absl::StatusOr<ExportFigures> figures = yardstick_->Measure(simulation);
    model.sites = sites;
    RETURN_IF_ERROR(figures.status());
    return figures->kl_mean;
  }

  // The first token of a sequence and, behind BOS, the one after it draw attention and are far
  // larger than any other: they get no say in the scales.
  Statistics TakeStatistics(const FloatModel& carried) {
    const ForwardModel exact = MakeForwardModel(carried, {}, WeightKind::kFloat32, *gemm_, pool_);
    FloatForward prefix_forward(exact, *gemm_, pool_);
    const ForwardModel model = MakeForwardModel(carried, {}, WeightKind::kBf16, *gemm_, pool_);
    FloatForward forward(model, *gemm_, pool_);
    StatisticsCollector collector(config(), pool_.thread_count());
    const Windows& text = corpus_.train;
    for (int32_t i = 0; i < text.count(); ++i) {
      progress_.Update(static_cast<double>(i) / text.count());
      std::vector<int32_t> leading = notes_.first_tokens;
      leading.push_back(text.window(i)[0]);
      const FloatPrefix prefix = prefix_forward.ComputePrefix(leading);
      ForwardOptions options = StaticSimulation::Options();
      options.prefix = &prefix;
      options.statistics = &collector;
      forward.Run({.token_ids = text.window(i) + 1, .sequences = 1, .tokens = text.tokens - 1},
                  options);
    }
    return collector.Result();
  }

  absl::Status ChooseSites() {
    progress_.Enter(kChoose);
    ExportModel& model = variant_.model;
    notes_.dropped_head_gains = variant_.dropped_head_gains;
    notes_.wide_in_bf16 = settings_.ignore == IgnorePolicy::kAuto;
    for (size_t layer = 0; layer < model.sites.size(); ++layer) {
      for (int32_t site = 0; site < kLayerLinearSites; ++site) {
        if (model.sites[layer][site].quantized) continue;
        notes_.wide_sites.push_back({static_cast<int32_t>(layer), static_cast<LayerSite>(site)});
        if (!notes_.wide_in_bf16) model.sites[layer][site].quantized = true;
      }
    }
    StaticSimulation simulation(model, *gemm_, pool_);
    if (settings_.ignore == IgnorePolicy::kNone) {
      ASSIGN_OR_RETURN(notes_.figures, yardstick_->Measure(simulation));
      notes_.all_quantized = notes_.figures;
    } else {
      ASSIGN_OR_RETURN(IgnoredSites ignored,
                       ChooseIgnoredSites(model, simulation, *yardstick_, settings_.budget,
                                          [&](double share, const std::string& what) {
                                            progress_.Update(share, what);
                                          }));
      notes_.figures = ignored.figures;
      notes_.all_quantized = ignored.all_quantized;
      notes_.chosen = std::move(ignored.ignored);
    }
    if (!adapted()) notes_.source_perplexity = notes_.figures.float_perplexity;
    notes_.int8_share = Int8Share(model);
    return absl::OkStatus();
  }

  static double Int8Share(const ExportModel& model) {
    double all = 0, int8 = 0;
    for (size_t layer = 0; layer < model.sites.size(); ++layer) {
      for (int32_t i = 0; i < kExportLinears; ++i) {
        const double work = static_cast<double>(model.integers[layer][i].values.size());
        all += work;
        if (model.sites[layer][static_cast<int32_t>(kExportLinearList[i].site)].quantized)
          int8 += work;
      }
    }
    return int8 / all;
  }

  absl::Status Write() {
    progress_.Enter(kWrite);
    result_.figures = notes_.figures;
    result_.all_quantized = notes_.all_quantized;
    result_.source_perplexity = notes_.source_perplexity;
    result_.text_source = notes_.text_source;
    result_.ignored = IgnoredModules(variant_.model);
    result_.chosen = notes_.chosen;
    result_.not_carried = NotCarried(notes_);
    result_.int8_share = notes_.int8_share;
    std::error_code error;
    const bool directory = std::filesystem::is_directory(settings_.source, error);
    const CompressedTensorsFiles files{.model = &variant_.model,
                                       .tokenizer = &checkpoint_.tokenizer,
                                       .chat_template = checkpoint_.chat_template,
                                       .source_directory = directory ? settings_.source : "",
                                       .source_name = provenance_.name,
                                       .source_sha256 = provenance_.sha256,
                                       .bundle_name = BaseName(settings_.bundle),
                                       .bundle_digest = bundle_.digest,
                                       .figures = FiguresText(notes_),
                                       .not_carried = result_.not_carried};
    ASSIGN_OR_RETURN(NewFolder folder, NewFolder::Create(settings_.output));
    ASSIGN_OR_RETURN(result_.bytes, WriteCompressedTensors(files, folder.path()));
    return folder.Commit();
  }

  const ExportSettings& settings_;
  ThreadPool& pool_;
  Progress& progress_;
  const std::unique_ptr<FloatGemm> gemm_;
  Bundle bundle_;
  ProvenanceSource provenance_;
  Checkpoint checkpoint_;  // its weights are gone after ChooseVariant
  std::unique_ptr<Tokenizer> tokenizer_;
  IntegerWeights integers_;  // of the bundle
  Scales gain_scales_;       // provenance_.scales, with gains where there are any
  bool has_gains_ = false;
  GainKind gain_kind_ = GainKind::kGain;
  Corpus corpus_;
  Windows held_out_;  // behind the first tokens
  std::optional<ExportYardstick> yardstick_;
  Variant variant_;
  ExportNotes notes_;
  ExportResult result_;
};

}  // namespace

std::vector<Progress::Stage> ExportStages() {
  return {{"import", 4},      {"text", 10},   {"float", 10},
          {"statistics", 25}, {"choose", 60}, {"write", 4}};
}

absl::StatusOr<ExportResult> ExportCompressedTensors(const ExportSettings& settings,
                                                     ThreadPool& pool, Progress& progress) {
  return Exporter(settings, pool, progress).Run();
}

}  // namespace fixpoint
