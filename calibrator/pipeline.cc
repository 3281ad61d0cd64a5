#include "calibrator/pipeline.h"

#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "bundle/bundle.h"
#include "calibrator/calibration_text.h"
#include "calibrator/collect_statistics.h"
#include "calibrator/evaluate.h"
#include "calibrator/float_forward.h"
#include "calibrator/float_side.h"
#include "calibrator/gemm_device.h"
#include "calibrator/held_out.h"
#include "calibrator/integer_weights.h"
#include "calibrator/prefix.h"
#include "calibrator/prefix_search.h"
#include "calibrator/product_peak.h"
#include "calibrator/provenance.h"
#include "calibrator/quantize.h"
#include "calibrator/ranges.h"
#include "calibrator/report_data.h"
#include "calibrator/samples.h"
#include "calibrator/site_list.h"
#include "calibrator/train/fingerprint.h"
#include "calibrator/train/training_run.h"
#include "calibrator/vector_loops.h"
#include "calibrator/weight_rounding.h"
#include "engine/golden.h"

namespace fixpoint {
namespace {

constexpr int32_t kStepTokens = 128;    // of the engine when it is measured
constexpr int32_t kMomentWindows = 64;  // of text for GPTQ

enum Stage : size_t {
  kText,
  kRotate,
  kStatistics,
  kScales,
  kSites,
  kWeights,
  kTrain,
  kControl,
  kQuantize,
  kVerify,
  kNumStages
};

class Calibration {
 public:
  Calibration(Checkpoint checkpoint, std::string source_name, const CalibrationSettings& settings,
              std::unique_ptr<FloatGemm> gemm, ThreadPool& pool, Progress& progress,
              size_t first_stage, StopSignal& stop)
      : checkpoint_(std::move(checkpoint)),
        source_name_(std::move(source_name)),
        settings_(settings),
        pool_(pool),
        progress_(progress),
        first_stage_(first_stage),
        stop_(stop),
        gemm_(std::move(gemm)) {}

  absl::StatusOr<CalibrationResult> Run() {
    RETURN_IF_ERROR(TakeText());
    RETURN_IF_ERROR(Rotate());
    RETURN_IF_ERROR(ChoosePrefixTokens());
    TakeFirstStatistics();
    RETURN_IF_ERROR(ChooseScalesAndSites());
    RETURN_IF_ERROR(RoundWeightsAgain());
    RETURN_IF_ERROR(Train());
    RETURN_IF_ERROR(TrainControl());
    RETURN_IF_ERROR(Quantize());
    RETURN_IF_ERROR(Verify());
    return Finish();
  }

 private:
  void Enter(Stage stage) { progress_.Enter(first_stage_ + stage); }
  FloatModel& model() { return checkpoint_.model; }
  const FloatModel& rotated() const { return checkpoint_.model; }
  const FloatConfig& config() const { return checkpoint_.model.config; }
  bool trains() const { return settings_.training.objective != Objective::kNone; }
  Scales& scales() { return sites_.scales; }
  const Scales& scales() const { return sites_.scales; }
  // What float is measured behind: BOS, or the control token with which every chat starts.
  std::vector<int32_t> StartTokens() const {
    return ChoosePrefix(*tokenizer_, checkpoint_.chat_template);
  }

  // Text, and what the float model says about the held-out part: the measure of everything. Gains
  // are folded and nothing is turned yet, so that the usual dynamic quantization can be measured in
  // the basis in which others run it.
  absl::Status TakeText() {
    Enter(kText);
    ASSIGN_OR_RETURN(tokenizer_, Tokenizer::Create(checkpoint_.tokenizer));
    const OnlineTransforms plain = FoldAndRotate(model(), kPlainBasis, *gemm_, pool_);
    const ForwardModel float_model =
        MakeForwardModel(rotated(), plain, WeightKind::kFloat32, *gemm_, pool_);
    FloatForward float_forward(float_model, *gemm_, pool_);
    const FloatPrefix prefix = float_forward.ComputePrefix(StartTokens());
    if (prefix.size() == 0)
      progress_.Say("the model has no beginning-of-sequence token: calibrating without a prefix");
    ASSIGN_OR_RETURN(corpus_, TakeCalibrationText({.settings = &settings_,
                                                   .tokenizer = tokenizer_.get(),
                                                   .chat_template = checkpoint_.chat_template,
                                                   .model = &rotated(),
                                                   .online = plain,
                                                   .prefix = &prefix},
                                                  *gemm_, pool_, [&](double share) {
                                                    progress_.Update(0.8 * share,
                                                                     "written by the model");
                                                  }));
    ForwardLogits reference(float_forward, {.prefix = &prefix});
    ASSIGN_OR_RETURN(teacher_, CachedLogits::Create(reference, corpus_.held_out, pool_));
    progress_.Update(0.9);
    const ForwardModel int8 = MakeForwardModel(rotated(), plain, WeightKind::kInt8, *gemm_, pool_);
    FloatForward dynamic(int8, *gemm_, pool_);
    return Measure("dynamic_plain", dynamic, {.prefix = &prefix, .dynamic_int8 = true});
  }

  absl::Status Rotate() {
    Enter(kRotate);
    online_ = FoldAndRotate(model(), settings_.rotation, *gemm_, pool_);
    float_model_ = MakeForwardModel(rotated(), online_, WeightKind::kFloat32, *gemm_, pool_);
    float_forward_.emplace(float_model_, *gemm_, pool_);
    prefix_ = teacher_prefix_ = float_forward_->ComputePrefix(StartTokens());
    weights_ = RoundWeights(rotated(), nullptr, pool_);
    student_model_ = MakeIntegerForwardModel(weights_, rotated(), online_, *gemm_, pool_);
    student_.emplace(student_model_, *gemm_, pool_);
    RETURN_IF_ERROR(
        Measure("dynamic_rotated", *student_, {.prefix = &teacher_prefix_, .dynamic_int8 = true}));
    return Measure("int8_weights", *student_, {.prefix = &teacher_prefix_});
  }

  // A longer prefix is kept if it brings the model closer to float behind BOS alone.
  absl::Status ChoosePrefixTokens() {
    if (!settings_.prefix_search) return absl::OkStatus();
    progress_.Update(0.5, "prefix");
    PrefixSearchInput input{.tokenizer = tokenizer_.get(),
                            .chat_template = checkpoint_.chat_template,
                            .start = &prefix_,
                            .train = &corpus_.train,
                            .held_out = &corpus_.held_out,
                            .teacher = teacher_.get(),
                            .allow_int16 = settings_.int16_inputs};
    ASSIGN_OR_RETURN(prefix_search_,
                     SearchPrefix(input, *float_forward_, *student_, pool_, [&](double share) {
                       progress_.Update(0.5 + 0.5 * share, "prefix");
                     }));
    const PrefixCandidate& best = prefix_search_.candidates[prefix_search_.best];
    if (best.token_ids != prefix_.token_ids)
      prefix_ = float_forward_->ComputePrefix(best.token_ids);
    return absl::OkStatus();
  }

  Statistics TakeStatistics(const Scales* gains) {
    const Windows text = EvenWindows(corpus_.train, settings_.statistics_windows);
    return CollectStatistics(*student_, config(), prefix_, gains, text, pool_,
                             [&](double share) { progress_.Update(share, "statistics"); });
  }

  void TakeFirstStatistics() {
    Enter(kStatistics);
    statistics_ = first_statistics_ = TakeStatistics(nullptr);
  }

  absl::Status ChooseScalesAndSites() {
    Enter(kScales);
    HeldOutMeasurer measurer(*teacher_, *student_, config(), prefix_, corpus_.held_out, pool_);
    // Both rules for q, k and v, judged by what they do to the model.
    const Scales by_max = ChooseScales(statistics_, HeadClip::kMax);
    const Scales by_mse = ChooseScales(statistics_, HeadClip::kMse);
    ASSIGN_OR_RETURN(const double kl_max, measurer.Measure(by_max));
    ASSIGN_OR_RETURN(const double kl_mse, measurer.Measure(by_mse));
    head_clip_ = kl_mse < kl_max ? "mse" : "max";
    const Scales narrow = kl_mse < kl_max ? by_mse : by_max;
    RETURN_IF_ERROR(Measure("static_int8", *student_, {.prefix = &prefix_, .scales = &narrow}));

    Enter(kSites);
    if (settings_.int16_inputs) {
      ASSIGN_OR_RETURN(sites_, SearchWideSites(config(), statistics_, narrow, SiteOptions(),
                                               measurer, SiteProgress()));
    } else {
      sites_.scales = narrow;
      sites_.stop_reason = "off";
    }
    RETURN_IF_ERROR(Measure("untrained", *student_, {.prefix = &prefix_, .scales = &scales()}));
    untrained_ = scales();
    const auto progress = [&](double share) { progress_.Update(share, "clips"); };
    return RefineScales(config(), statistics_, {}, measurer, &scales(), progress).status();
  }

  SiteSearchOptions SiteOptions() const {
    SiteSearchOptions options = settings_.sites;
    options.kl_target = KlTarget(settings_.budget);
    return options;
  }

  std::function<void(int32_t, int32_t)> SiteProgress() {
    return [this](int32_t done, int32_t usual) {
      progress_.Update(static_cast<double>(done) / usual, absl::StrCat("measurement ", done + 1));
    };
  }

  // GPTQ with the inputs that the scales give; kept if the held-out KL falls.
  absl::Status RoundWeightsAgain() {
    Enter(kWeights);
    const bool folded = trains() && settings_.training.granularity == Granularity::kChannel &&
                        settings_.training.vectors == Vectors::kFolded;
    // Folded gains round weights again at each step, and to nearest.
    if (!settings_.gptq || folded) return absl::OkStatus();
    HeldOutMeasurer measurer(*teacher_, *student_, config(), prefix_, corpus_.held_out, pool_);
    ASSIGN_OR_RETURN(const double kl_nearest, measurer.Measure(scales()));
    const Windows text = EvenWindows(corpus_.train, kMomentWindows);
    const WeightRoundingInput input{.rotated = &rotated(),
                                    .online = online_,
                                    .scales = &scales(),
                                    .prefix = &prefix_,
                                    .windows = &text,
                                    .gptq = {}};
    ASSIGN_OR_RETURN(IntegerWeights rounded,
                     RoundWithStaticInputs(
                         input, *gemm_, pool_, [&](double share) { progress_.Update(share); },
                         [&](const std::string& line) { progress_.Say(line); }));
    std::swap(weights_, rounded);
    ReplaceStudentWeights();
    ASSIGN_OR_RETURN(const double kl_gptq, measurer.Measure(scales()));
    progress_.Say(absl::StrFormat("weights to nearest: KL %.5f, with second moments: %.5f",
                                  kl_nearest, kl_gptq));
    if (kl_gptq < kl_nearest) {
      rounding_ = "gptq";
      return absl::OkStatus();
    }
    std::swap(weights_, rounded);
    ReplaceStudentWeights();
    return absl::OkStatus();
  }

  void ReplaceStudentWeights() {
    gemm_->ForgetWeights();
    for (size_t i = 0; i < weights_.layers.size(); ++i)
      ReplaceLayer(weights_.layers[i], &student_model_.layers[i], pool_);
    ReplaceLinear(weights_.head, &student_model_.head, pool_);
  }

  TrainingRunInput TrainingInput() {
    return {.rotated = &rotated(),
            .online = online_,
            .student = &student_model_,
            .weights = &weights_,
            .base = &scales(),
            .prefix = &prefix_,
            .teacher_prefix = &teacher_prefix_,
            .train = &corpus_.train,
            .held_out = &corpus_.held_out,
            .held_out_teacher = teacher_.get(),
            .checkpoint_seconds = settings_.checkpoint_seconds,
            .resume = settings_.resume};
  }

  absl::StatusOr<TrainingRunResult> RunOne(TrainingRunInput input, const TrainOptions& options,
                                           const char* what) {
    if (!settings_.checkpoint_path.empty())
      input.checkpoint_path =
          absl::StrCat(settings_.checkpoint_path, options.round ? "" : ".control");
    input.fingerprint = TrainingFingerprint({.source_sha256 = checkpoint_.source_sha256,
                                             .corpus = &corpus_,
                                             .settings = &settings_,
                                             .options = options,
                                             .rounding = rounding_,
                                             .prefix_token_ids = prefix_.token_ids,
                                             .vector_loops = Vec().name,
                                             .bf16 = gemm_->fast_bf16()});
    stop_.armed = true;
    auto result = RunTraining(
        input, options, *gemm_, pool_, stop_.requested,
        [&](const std::string& line) { progress_.Say(line); },
        [&](double share, const TrainPoint& point, const std::string& detail) {
          progress_.Update(share, absl::StrCat(what, detail));
          if (point.step == 0) return;  // the teacher's part
          progress_.Training({.step = point.step,
                              .tokens = point.tokens,
                              .loss = point.loss,
                              .gradient_norm = point.gradient_norm,
                              .rate = point.rate,
                              .held_out = point.held_out});
        });
    stop_.armed = false;
    return result;
  }

  absl::Status Train() {
    Enter(kTrain);
    if (!trains()) return absl::OkStatus();
    ASSIGN_OR_RETURN(training_, RunOne(TrainingInput(), settings_.training, ""));
    scales() = training_->scales;
    prefix_ = training_->prefix;
    const TrainState& state = training_->details.state;
    if (settings_.device == "cpu") product_peak_ = MeasureProductPeak(gemm_->fast_bf16(), pool_);
    progress_.Say(absl::StrFormat(
        "trained %d steps (%s), best after %d: held-out %.5f -> %.5f, %.0f tokens/s%s", state.step,
        training_->details.stop_reason, state.best_step, state.first_held_out, state.best_held_out,
        training_->tokens_per_second, ShareOfPeak()));
    statistics_ = TakeStatistics(&scales());
    if (!settings_.int16_inputs || settings_.training.objective != Objective::kKl)
      return absl::OkStatus();
    // The sites again, with trained scales.
    HeldOutMeasurer measurer(*teacher_, *student_, config(), prefix_, corpus_.held_out, pool_);
    RETURN_IF_ERROR(DropWideSites(config(), statistics_, SiteOptions(), measurer, &sites_));
    if (sites_.kl_end <= KlTarget(settings_.budget)) return absl::OkStatus();
    ASSIGN_OR_RETURN(SiteSearchResult more,
                     SearchWideSites(config(), statistics_, sites_.scales, SiteOptions(), measurer,
                                     SiteProgress()));
    more.chosen.insert(more.chosen.begin(), sites_.chosen.begin(), sites_.chosen.end());
    more.kl_start = sites_.kl_start;
    sites_ = std::move(more);
    return absl::OkStatus();
  }

  std::string ShareOfPeak() const {
    if (product_peak_ == 0) return "";
    return absl::StrFormat(", %.2f of %.2f TFLOP/s in %s products (%.0f %%)",
                           training_->flops_per_second / 1e12, product_peak_ / 1e12,
                           gemm_->fast_bf16() ? "bf16" : "float32",
                           100 * training_->flops_per_second / product_peak_);
  }

  // The adapted model's share of float training: the same gains in float, same text, same steps.
  absl::Status TrainControl() {
    Enter(kControl);
    if (settings_.training.objective != Objective::kCe) return absl::OkStatus();
    TrainOptions options = settings_.training;
    options.round = false;
    const Scales base = untrained_;
    TrainingRunInput input = TrainingInput();
    input.base = &base;
    const FloatPrefix start = float_forward_->ComputePrefix(prefix_.token_ids);
    input.prefix = &start;
    ASSIGN_OR_RETURN(const TrainingRunResult control, RunOne(input, options, "float control: "));
    return Measure("float_control", *float_forward_,
                   {.prefix = &control.prefix, .scales = &control.scales, .round = false});
  }

  absl::Status Quantize() {
    Enter(kQuantize);
    ASSIGN_OR_RETURN(bundle_.model,
                     QuantizeModel(rotated(), weights_, scales(), statistics_.ranges, prefix_,
                                   online_.down_block, online_.qk_hadamard, pool_));
    return ValidateModel(bundle_.model);
  }

  absl::Status Verify() {
    Enter(kVerify);
    RETURN_IF_ERROR(Measure("static", *student_, {.prefix = &prefix_, .scales = &scales()}));
    CpuExecutorOptions options;
    options.threads = pool_.thread_count();
    options.max_step_tokens = options.max_step_logits = kStepTokens;
    options.kv_cache_bytes =
        KvBlockBytes(bundle_.model.config) * (corpus_.held_out.tokens / kKvBlockTokens + 1);
    ASSIGN_OR_RETURN(const std::unique_ptr<CpuExecutor> executor,
                     CpuExecutor::Create(bundle_.model, options));
    absl::StatusOr<std::string> digest;
    RunOnFreshThread([&] { digest = GoldenDigest(*executor, GoldenPrompts(*tokenizer_)); });
    ASSIGN_OR_RETURN(bundle_.golden_digest, std::move(digest));
    progress_.Update(0.4);
    ExecutorLogits integer(*executor);
    RETURN_IF_ERROR(Measure("integer", integer));
    if (prefix_.token_ids != StartTokens()) {
      const FloatPrefix own = float_forward_->ComputePrefix(prefix_.token_ids);
      RETURN_IF_ERROR(Measure("float_prefix", *float_forward_, {.prefix = &own}));
    }
    progress_.Update(0.8);
    ASSIGN_OR_RETURN(samples_, WriteSamples({.tokenizer = tokenizer_.get(),
                                             .chat_template = checkpoint_.chat_template,
                                             .float_prefix = &teacher_prefix_,
                                             .integer_prefix = &prefix_,
                                             .float_forward = &*float_forward_,
                                             .executor = executor.get()}));
    return absl::OkStatus();
  }

  absl::Status Measure(const char* name, FloatForward& forward, const ForwardOptions& options) {
    ForwardLogits source(forward, options);
    return Measure(name, source);
  }

  absl::Status Measure(const char* name, LogitSource& source) {
    return figures_.Add(name, *teacher_, source, corpus_.held_out, pool_);
  }

  CalibrationResult Finish() {
    bundle_.tokenizer = checkpoint_.tokenizer;
    bundle_.chat_template = checkpoint_.chat_template;
    if (training_) {
      summary_ = Summarize(*training_, settings_.training, corpus_.train.tokens, figures_);
      summary_->peak_flops_per_second = product_peak_;
    }
    bundle_.sites = ListSites(config(), scales());
    ProvenanceInput input{.checkpoint = &checkpoint_,
                          .source_name = source_name_,
                          .settings = &settings_,
                          .corpus = &corpus_,
                          .scales = &scales(),
                          .online = online_,
                          .head_clip = head_clip_,
                          .method = DescribeMethod(settings_.training, rounding_),
                          .training = summary_ ? &*summary_ : nullptr,
                          .sites = &sites_,
                          .figures = &figures_,
                          .saturation = SaturatedShares(config(), scales(), statistics_),
                          .durations = progress_.Durations(),
                          .threads = pool_.thread_count(),
                          .bf16 = gemm_->fast_bf16()};
    bundle_.provenance_json = WriteProvenance(input);
    ReportInput report{.provenance = &input,
                       .tokenizer = tokenizer_.get(),
                       .bundle = &bundle_,
                       .untrained = &untrained_,
                       .before = &first_statistics_,
                       .after = &statistics_,
                       .training = training_ ? &*training_ : nullptr,
                       .prefix_search = &prefix_search_,
                       .samples = &samples_};
    return {.bundle = std::move(bundle_),
            .report = MakeReport(report),
            .figures = std::move(figures_),
            .sites = std::move(sites_),
            .training = std::move(summary_)};
  }

  Checkpoint checkpoint_;  // the model is folded and rotated in place
  const std::string source_name_;
  const CalibrationSettings& settings_;
  ThreadPool& pool_;
  Progress& progress_;
  const size_t first_stage_;
  StopSignal& stop_;
  const std::unique_ptr<FloatGemm> gemm_;
  std::unique_ptr<Tokenizer> tokenizer_;
  Corpus corpus_;
  std::unique_ptr<CachedLogits> teacher_;  // float behind BOS alone, on the held-out text

  OnlineTransforms online_;
  ForwardModel float_model_;
  std::optional<FloatForward> float_forward_;
  FloatPrefix teacher_prefix_, prefix_;
  PrefixSearchResult prefix_search_;
  IntegerWeights weights_;
  ForwardModel student_model_;  // of weights_
  std::optional<FloatForward> student_;
  Statistics first_statistics_, statistics_;
  std::string head_clip_;
  SiteSearchResult sites_;  // with the scales at hand
  Scales untrained_;
  std::string rounding_ = "nearest";
  std::optional<TrainingRunResult> training_;
  double product_peak_ = 0;  // of this machine, in operations a second; 0: not measured
  std::optional<TrainingSummary> summary_;
  HeldOutFigures figures_;
  std::vector<ReportSample> samples_;
  Bundle bundle_;
};

}  // namespace

std::vector<Progress::Stage> CalibrationStages(const CalibrationSettings& settings) {
  // Rough seconds for SmolLM2-135M on two cores.
  const double step = settings.training.objective == Objective::kNone
                          ? 0
                          : 2.5 * settings.training.batch_windows / 4.0 * settings.training.steps;
  const double control = settings.training.objective == Objective::kCe ? step : 0;
  return {{"text", settings.corpus_files.empty() ? 240.0 : 45.0},
          {"rotate", settings.prefix_search ? 60.0 : 20.0},
          {"statistics", 30},
          {"scales", 10},
          {"int16 sites", settings.int16_inputs ? 120.0 : 30.0},
          {"weights", settings.gptq ? 60.0 : 1.0},
          {"train", step > 0 ? 90 + step : 1},
          {"float control", control},
          {"quantize", 6},
          {"verify", 25}};
}

absl::StatusOr<CalibrationResult> Calibrate(Checkpoint checkpoint, const std::string& source_name,
                                            const CalibrationSettings& settings, ThreadPool& pool,
                                            Progress& progress, size_t first_stage,
                                            StopSignal& stop) {
  ASSIGN_OR_RETURN(std::unique_ptr<FloatGemm> gemm, CreateGemm(settings.device, pool));
  return Calibration(std::move(checkpoint), source_name, settings, std::move(gemm), pool, progress,
                     first_stage, stop)
      .Run();
}

}  // namespace fixpoint
