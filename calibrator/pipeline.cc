#include "calibrator/pipeline.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "base/digest.h"
#include "base/status_macros.h"
#include "bundle/bundle.h"
#include "calibrator/evaluate.h"
#include "calibrator/float_forward.h"
#include "calibrator/generate.h"
#include "calibrator/held_out.h"
#include "calibrator/prefix.h"
#include "calibrator/provenance.h"
#include "calibrator/quantize.h"
#include "engine/golden.h"

namespace fixpoint {
namespace {

constexpr int64_t kBatchTokens = 2048;
constexpr int64_t kLogitRows = 128;
constexpr int64_t kMaxCachedLogitBytes = 1 << 30;

enum Stage : size_t {
  kRotate,
  kText,
  kStatistics,
  kScales,
  kSites,
  kQuantize,
  kVerify,
  kNumStages
};

class Calibration {
 public:
  Calibration(Checkpoint checkpoint, std::string source_name, const CalibrationSettings& settings,
              ThreadPool& pool, Progress& progress, size_t first_stage)
      : checkpoint_(std::move(checkpoint)),
        source_name_(std::move(source_name)),
        settings_(settings),
        pool_(pool),
        progress_(progress),
        first_stage_(first_stage),
        gemm_(CreateCpuGemm(pool)) {}

  absl::StatusOr<CalibrationResult> Run() {
    RETURN_IF_ERROR(Rotate());
    RETURN_IF_ERROR(TakeText());
    TakeStatistics();
    RETURN_IF_ERROR(ChooseScalesAndSites());
    RETURN_IF_ERROR(Quantize());
    RETURN_IF_ERROR(Verify());
    return Finish();
  }

 private:
  void Enter(Stage stage) { progress_.Enter(first_stage_ + stage); }
  const FloatModel& rotated() const { return checkpoint_.model; }
  const FloatConfig& config() const { return checkpoint_.model.config; }

  absl::Status Rotate() {
    Enter(kRotate);
    ASSIGN_OR_RETURN(tokenizer_, Tokenizer::Create(checkpoint_.tokenizer));
    online_ = FoldAndRotate(checkpoint_.model, settings_.rotation, *gemm_, pool_);
    float_model_ = MakeForwardModel(rotated(), online_, WeightKind::kFloat32, *gemm_, pool_);
    float_forward_.emplace(float_model_, *gemm_, pool_);
    prefix_ = float_forward_->ComputePrefix(ChoosePrefix(*tokenizer_, checkpoint_.chat_template));
    if (prefix_.size() == 0)
      progress_.Say("the model has no beginning-of-sequence token: calibrating without a prefix");
    return absl::OkStatus();
  }

  absl::Status TakeText() {
    Enter(kText);
    if (!settings_.corpus_files.empty()) {
      ASSIGN_OR_RETURN(corpus_,
                       ReadCorpus(settings_.corpus_files, *tokenizer_, settings_.file_windows));
    } else {
      corpus_ = WriteOwnText();
    }
    const int32_t room = config().max_position_embeddings - prefix_.size();
    if (corpus_.train.tokens > room) {
      return absl::InvalidArgumentError(absl::StrCat("the model has room for ", room,
                                                     " tokens, calibration windows have ",
                                                     corpus_.train.tokens));
    }
    // Teachers' logits are kept: a large vocabulary gets fewer held-out windows.
    const int64_t window_bytes = int64_t{corpus_.held_out.tokens} * config().vocab_size * 2;
    const int64_t windows =
        std::clamp<int64_t>(kMaxCachedLogitBytes / window_bytes, 1, corpus_.held_out.count());
    corpus_.held_out.token_ids.resize(windows * corpus_.held_out.tokens);
    return absl::OkStatus();
  }

  Corpus WriteOwnText() {
    const CorpusLimits& limits = settings_.own_windows;
    const ForwardModel model =
        MakeForwardModel(rotated(), online_, WeightKind::kBf16, *gemm_, pool_);
    FloatForward forward(model, *gemm_, pool_);
    const std::vector<Opening> openings =
        ChooseOpenings(*tokenizer_, checkpoint_.chat_template, prefix_.token_ids,
                       limits.max_train + limits.max_held_out, settings_.seed);
    const GenerateOptions options{.tokens = kCorpusWindowTokens,
                                  .seed = settings_.seed,
                                  .control_ids = ControlIds(*tokenizer_)};
    const Windows all =
        GenerateWindows(forward, config(), prefix_, openings, options, pool_,
                        [&](double share) { progress_.Update(share, "written by the model"); });
    Corpus corpus = SplitWindows(all, limits);
    corpus.source = "self-generated";
    Sha256 digest;
    digest.Update(all.token_ids.data(), all.token_ids.size() * sizeof(int32_t));
    corpus.digest = digest.FinishHex();
    return corpus;
  }

  // Histograms and ranges with int8 weights and float activations.
  void TakeStatistics() {
    Enter(kStatistics);
    weights_model_ = MakeForwardModel(rotated(), online_, WeightKind::kInt8, *gemm_, pool_);
    weights_forward_.emplace(weights_model_, *gemm_, pool_);
    StatisticsCollector collector(config(), pool_.thread_count());
    const ForwardOptions options{
        .prefix = &prefix_, .precise_activations = false, .statistics = &collector};
    const Windows& text = corpus_.train;
    const int32_t step = static_cast<int32_t>(std::max<int64_t>(1, kBatchTokens / text.tokens));
    std::vector<float> logits(kLogitRows * config().vocab_size);
    for (int32_t first = 0; first < text.count(); first += step) {
      progress_.Update(static_cast<double>(first) / text.count());
      const int32_t count = std::min(step, text.count() - first);
      weights_forward_->Run(
          {.token_ids = text.window(first), .sequences = count, .tokens = text.tokens}, options);
      const int64_t rows = int64_t{count} * text.tokens;
      for (int64_t row = 0; row < rows; row += kLogitRows) {
        weights_forward_->Logits(row, std::min(rows, row + kLogitRows), logits.data());
      }
    }
    statistics_ = collector.Result();
  }

  absl::Status ChooseScalesAndSites() {
    Enter(kScales);
    ForwardLogits reference(*float_forward_, {.prefix = &prefix_});
    ASSIGN_OR_RETURN(const std::unique_ptr<HeldOutMeasurer> measurer,
                     HeldOutMeasurer::Create(reference, *weights_forward_, config(), prefix_,
                                             corpus_.held_out, pool_));
    progress_.Update(0.6);
    // Both rules for q, k and v, judged by what they do to the model.
    const Scales by_max = ChooseScales(statistics_, HeadClip::kMax);
    const Scales by_mse = ChooseScales(statistics_, HeadClip::kMse);
    ASSIGN_OR_RETURN(const double kl_max, measurer->Measure(by_max));
    ASSIGN_OR_RETURN(const double kl_mse, measurer->Measure(by_mse));
    head_clip_ = kl_mse < kl_max ? "mse" : "max";
    narrow_ = kl_mse < kl_max ? by_mse : by_max;

    Enter(kSites);
    SiteSearchOptions options = settings_.sites;
    options.kl_target = KlTarget(settings_.budget);
    ASSIGN_OR_RETURN(sites_, SearchWideSites(config(), statistics_, narrow_, options, *measurer,
                                             [&](int32_t done, int32_t usual) {
                                               progress_.Update(
                                                   static_cast<double>(done) / usual,
                                                   absl::StrCat("measurement ", done + 1));
                                             }));
    weights_forward_.reset();
    weights_model_ = {};
    return absl::OkStatus();
  }

  absl::Status Quantize() {
    Enter(kQuantize);
    ASSIGN_OR_RETURN(QuantizedModel quantized,
                     QuantizeModel(rotated(), sites_.scales, statistics_.ranges, prefix_,
                                   online_.down_block, online_.qk_hadamard, pool_));
    bundle_.model = std::move(quantized.model);
    return ValidateModel(bundle_.model);
  }

  absl::Status Verify() {
    Enter(kVerify);
    simulation_model_ = MakeIntegerForwardModel(bundle_.model, rotated(), *gemm_, pool_);
    FloatForward simulation(simulation_model_, *gemm_, pool_);
    CpuExecutorOptions options;
    options.threads = pool_.thread_count();
    options.max_step_tokens = options.max_step_logits = static_cast<int32_t>(kLogitRows);
    options.kv_cache_bytes =
        KvBlockBytes(bundle_.model.config) * (corpus_.held_out.tokens / kKvBlockTokens + 1);
    ASSIGN_OR_RETURN(const std::unique_ptr<CpuExecutor> executor,
                     CpuExecutor::Create(bundle_.model, options));
    absl::StatusOr<std::string> digest;
    RunOnFreshThread([&] { digest = GoldenDigest(*executor, GoldenPrompts(*tokenizer_)); });
    ASSIGN_OR_RETURN(bundle_.golden_digest, std::move(digest));
    return MeasureHeldOut(simulation, *executor);
  }

  absl::Status MeasureHeldOut(FloatForward& simulation, CpuExecutor& executor) {
    ForwardLogits reference(*float_forward_, {.prefix = &prefix_});
    // One after the other on the same forward pass: each is its own comparison.
    ForwardLogits int8_weights(simulation, {.prefix = &prefix_});
    ForwardLogits static_int8(simulation, {.prefix = &prefix_, .scales = &narrow_});
    ForwardLogits with_sites(simulation, {.prefix = &prefix_, .scales = &sites_.scales});
    ExecutorLogits integer(executor);
    const std::pair<const char*, LogitSource*> models[] = {{"int8_weights", &int8_weights},
                                                           {"static_int8", &static_int8},
                                                           {"static", &with_sites},
                                                           {"integer", &integer}};
    ASSIGN_OR_RETURN(const std::unique_ptr<CachedLogits> teacher,
                     CachedLogits::Create(reference, corpus_.held_out, pool_));
    figures_.tokens = static_cast<int64_t>(corpus_.held_out.token_ids.size());
    for (const auto& [name, source] : models) {
      progress_.Update(0.2 + 0.15 * static_cast<double>(figures_.models.size()), name);
      ASSIGN_OR_RETURN(const std::vector<Comparison> result,
                       Compare(*teacher, {source}, corpus_.held_out, pool_));
      figures_.float_prefix_perplexity = Perplexity(result[0].teacher_loss);
      figures_.models.push_back({.name = name,
                                 .perplexity = Perplexity(result[0].loss),
                                 .relative = RelativeTo(result[0].teacher_loss, result[0].loss),
                                 .kl_mean = result[0].kl_mean,
                                 .top1_agreement = result[0].top1_agreement});
    }
    const std::vector<int32_t> bos = BosAlone(*tokenizer_);
    figures_.float_bos_perplexity = figures_.float_prefix_perplexity;
    figures_.integer_kl_bos_mean = figures_.Find("integer").kl_mean;
    if (bos == prefix_.token_ids) return absl::OkStatus();
    const FloatPrefix bos_prefix = float_forward_->ComputePrefix(bos);
    ForwardLogits bos_reference(*float_forward_, {.prefix = &bos_prefix});
    ASSIGN_OR_RETURN(const std::vector<Comparison> result,
                     Compare(bos_reference, {&integer}, corpus_.held_out, pool_));
    figures_.float_bos_perplexity = Perplexity(result[0].teacher_loss);
    figures_.integer_kl_bos_mean = result[0].kl_mean;
    return absl::OkStatus();
  }

  CalibrationResult Finish() {
    bundle_.tokenizer = checkpoint_.tokenizer;
    bundle_.chat_template = checkpoint_.chat_template;
    ProvenanceInput input{.checkpoint = &checkpoint_,
                          .source_name = source_name_,
                          .settings = &settings_,
                          .corpus = &corpus_,
                          .scales = &sites_.scales,
                          .online = online_,
                          .head_clip = head_clip_,
                          .sites = &sites_,
                          .figures = &figures_,
                          .durations = progress_.Durations(),
                          .threads = pool_.thread_count(),
                          .bf16 = gemm_->fast_bf16()};
    DescribeSites(&input);
    bundle_.provenance_json = WriteProvenance(input);
    return {
        .bundle = std::move(bundle_), .figures = std::move(figures_), .sites = std::move(sites_)};
  }

  // The bundle's list of sites, and how much of the calibration text saturates at each.
  void DescribeSites(ProvenanceInput* input) {
    const auto add = [&](const std::string& name, const LinearSite& site,
                         const MagnitudeHistogram& histogram) {
      bundle_.sites.push_back({.name = name,
                               .bits = site.wide ? 16 : 8,
                               .granularity = "tensor",
                               .scale = absl::StrFormat("%.9g", site.scale)});
      input->saturation.push_back({name, histogram.ShareAbove(127.5 * site.scale)});
    };
    const auto add_heads = [&](const std::string& name, const std::vector<double>& scales) {
      bundle_.sites.push_back(
          {.name = name,
           .bits = 8,
           .granularity = "head",
           .scale = absl::StrFormat("%.9g", *std::max_element(scales.begin(), scales.end()))});
    };
    const int32_t layers = config().num_hidden_layers;
    for (int32_t i = 0; i < layers; ++i) {
      const LayerScales& s = sites_.scales.layers[i];
      for (int32_t j = 0; j < kLayerLinearSites; ++j) {
        const LayerSite site = static_cast<LayerSite>(j);
        add(SiteName({i, site}, layers), s.linear(site), statistics_.layers[i].linear[j]);
      }
      add_heads(absl::StrCat("layers.", i, ".q"), s.q);
      add_heads(absl::StrCat("layers.", i, ".k"), s.k);
      add_heads(absl::StrCat("layers.", i, ".v"), s.v);
    }
    add("head_in", sites_.scales.head_in, statistics_.head_in);
  }

  Checkpoint checkpoint_;  // the model is rotated in place
  const std::string source_name_;
  const CalibrationSettings& settings_;
  ThreadPool& pool_;
  Progress& progress_;
  const size_t first_stage_;
  const std::unique_ptr<FloatGemm> gemm_;
  std::unique_ptr<Tokenizer> tokenizer_;

  OnlineTransforms online_;
  ForwardModel float_model_;
  std::optional<FloatForward> float_forward_;
  FloatPrefix prefix_;
  Corpus corpus_;
  ForwardModel weights_model_;  // int8 weights, for statistics and search
  std::optional<FloatForward> weights_forward_;
  Statistics statistics_;
  std::string head_clip_;
  Scales narrow_;  // all sites int8
  SiteSearchResult sites_;
  ForwardModel simulation_model_;
  HeldOutFigures figures_;
  Bundle bundle_;
};

}  // namespace

double KlTarget(double budget) { return 1.2 * std::log1p(budget); }

std::vector<Progress::Stage> CalibrationStages() {
  return {{"rotate", 3},       {"text", 25},    {"statistics", 12}, {"scales", 8},
          {"int16 sites", 80}, {"quantize", 6}, {"verify", 25}};
}

const HeldOutFigures::Model& HeldOutFigures::Find(const std::string& name) const {
  const auto found = std::find_if(models.begin(), models.end(),
                                  [&](const Model& model) { return model.name == name; });
  CHECK(found != models.end()) << name;
  return *found;
}

absl::StatusOr<CalibrationResult> Calibrate(Checkpoint checkpoint, const std::string& source_name,
                                            const CalibrationSettings& settings, ThreadPool& pool,
                                            Progress& progress, size_t first_stage) {
  return Calibration(std::move(checkpoint), source_name, settings, pool, progress, first_stage)
      .Run();
}

}  // namespace fixpoint
