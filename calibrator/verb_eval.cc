#include <algorithm>
#include <cstdint>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/json_writer.h"
#include "base/status_macros.h"
#include "bundle/bundle.h"
#include "calibrator/corpus.h"
#include "calibrator/eval_figures.h"
#include "calibrator/evaluate.h"
#include "calibrator/float_side.h"
#include "calibrator/import/checkpoint.h"
#include "calibrator/prefix.h"
#include "calibrator/provenance.h"
#include "calibrator/tokenizer_difference.h"
#include "calibrator/verbs.h"

namespace fixpoint {
namespace {

constexpr int32_t kStepTokens = 128;
constexpr int32_t kDefaultWindow = 1024;

// A bundle and its engine.
struct Loaded {
  std::string path;
  Bundle bundle;  // the engine takes the model out of it
  std::unique_ptr<CpuExecutor> executor;
  std::optional<ExecutorLogits> logits;
};

class Eval {
 public:
  Eval(const EvalFlags& flags, Progress& progress, ThreadPool& pool)
      : flags_(flags), progress_(progress), pool_(pool) {}

  absl::StatusOr<EvalFigures> Run() {
    progress_.Enter(0);
    RETURN_IF_ERROR(LoadBundles());
    if (!flags_.source.empty() && bundles_.empty()) RETURN_IF_ERROR(LoadSource());
    RETURN_IF_ERROR(ChooseReferences());
    RETURN_IF_ERROR(ReadText());
    if (!flags_.source.empty() && !bundles_.empty()) RETURN_IF_ERROR(LoadSource());
    RETURN_IF_ERROR(AddModels());
    progress_.Enter(1);
    RETURN_IF_ERROR(MeasureAll());
    return std::move(figures_);
  }

  // What a bundle of this calibrator was made of; nothing for one of another maker.
  std::string SourceHint() const {
    if (bundles_.empty()) return "";
    const absl::StatusOr<ProvenanceSource> source =
        ReadProvenance(bundles_[0]->bundle.provenance_json);
    if (!source.ok()) return "";
    return absl::StrCat("figures against float need --source: ", source->name, ", SHA-256 ",
                        source->sha256);
  }

 private:
  absl::Status LoadBundles() {
    for (const std::string& path : {flags_.bundle, flags_.against}) {
      if (path.empty()) continue;
      Loaded& loaded = *bundles_.emplace_back(std::make_unique<Loaded>());
      loaded.path = path;
      ASSIGN_OR_RETURN(loaded.bundle, ReadBundle(path, pool_.thread_count()));
    }
    if (bundles_.empty()) return absl::OkStatus();
    const ModelConfig& config = bundles_[0]->bundle.model.config;
    vocab_size_ = config.vocab_size;
    context_ = config.max_position_embeddings;
    ASSIGN_OR_RETURN(tokenizer_, Tokenizer::Create(bundles_[0]->bundle.tokenizer));
    if (bundles_.size() > 1) RETURN_IF_ERROR(CheckComparable());
    for (const std::unique_ptr<Loaded>& loaded : bundles_) {
      const std::vector<int32_t>& ids = loaded->bundle.model.prefix_token_ids;
      figures_.bundles.push_back(
          {loaded->path, loaded->bundle.digest, ids, JsonQuote(tokenizer_->Decode(ids, false))});
    }
    return absl::OkStatus();
  }

  absl::Status CheckComparable() {
    const Bundle& a = bundles_[0]->bundle;
    const Bundle& b = bundles_[1]->bundle;
    const auto refuse = [&](const std::string& why) {
      return absl::InvalidArgumentError(
          absl::StrCat(flags_.bundle, " and ", flags_.against, " cannot be compared: ", why));
    };
    if (a.model.config.vocab_size != b.model.config.vocab_size) {
      return refuse(absl::StrCat("vocabularies of ", a.model.config.vocab_size, " and ",
                                 b.model.config.vocab_size, " tokens"));
    }
    const std::string difference = TokenizerDifference(a.tokenizer, b.tokenizer);
    if (!difference.empty()) return refuse(absl::StrCat("different tokenizers: ", difference));
    context_ = std::min(context_, b.model.config.max_position_embeddings);
    return absl::OkStatus();
  }

  absl::Status LoadSource() {
    std::vector<ProvenanceSource> provenance;
    for (const std::unique_ptr<Loaded>& loaded : bundles_) {
      absl::StatusOr<ProvenanceSource> read = ReadProvenance(loaded->bundle.provenance_json);
      if (!read.ok()) return Annotate(read.status(), loaded->path);
      provenance.push_back(*std::move(read));
    }
    ASSIGN_OR_RETURN(Checkpoint checkpoint,
                     ImportCheckpoint(flags_.source, [&](std::string_view, double fraction) {
                       progress_.Update(fraction, "source");
                     }));
    if (bundles_.empty()) {
      vocab_size_ = checkpoint.model.config.vocab_size;
      context_ = checkpoint.model.config.max_position_embeddings;
      ASSIGN_OR_RETURN(tokenizer_, Tokenizer::Create(checkpoint.tokenizer));
    }
    source_.emplace(std::move(checkpoint), pool_);
    for (size_t i = 0; i < bundles_.size(); ++i) {
      RETURN_IF_ERROR(
          source_->CheckSourceOf(bundles_[i]->bundle, provenance[i], bundles_[i]->path));
    }
    if (!provenance.empty()) provenance_ = std::move(provenance[0]);
    return absl::OkStatus();
  }

  // What float is measured behind. Without a source the list only bounds the window.
  absl::Status ChooseReferences() {
    const std::vector<int32_t> bos = BosAlone(*tokenizer_);
    const auto add = [&](std::string name, const std::vector<int32_t>& ids) {
      references_.push_back({std::move(name), ids, JsonQuote(tokenizer_->Decode(ids, false))});
    };
    // Two bundles are measured against the same references, so a prefix must be that of both.
    const bool have_own =
        bundles_.size() == 1 || (bundles_.size() == 2 && figures_.bundles[0].prefix_token_ids ==
                                                             figures_.bundles[1].prefix_token_ids);
    const std::string& wanted = flags_.prefix;
    if (wanted == "own" && !have_own) {
      return absl::InvalidArgumentError(
          bundles_.empty() ? "--prefix own is the prefix of a bundle, and there is none"
                           : "--prefix own: the two bundles have different prefixes");
    }
    if (wanted == "bos" && bos.empty()) {
      return absl::InvalidArgumentError(
          "--prefix bos: the tokenizer has no beginning-of-sequence token");
    }
    if ((wanted.empty() || wanted == "own") && have_own) {
      const std::vector<int32_t>& own = figures_.bundles[0].prefix_token_ids;
      add(own == bos ? "bos" : "own", own);
    }
    const bool has_bos = !references_.empty() && references_[0].name == "bos";
    if ((wanted.empty() || wanted == "bos") && !has_bos) add("bos", bos);
    if (wanted == "none") add("none", {});
    if (!references_.empty()) return absl::OkStatus();
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids, ParseIds(wanted));
    add("ids", ids);
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<int32_t>> ParseIds(const std::string& text) const {
    std::vector<int32_t> ids;
    for (const absl::string_view part : absl::StrSplit(text, ',')) {
      int32_t id = 0;
      if (!absl::SimpleAtoi(part, &id)) {
        return absl::InvalidArgumentError(
            absl::StrCat("--prefix '", text, "': must be own, bos, none or token ids such as 1,2"));
      }
      if (id < 0 || id >= vocab_size_) {
        return absl::InvalidArgumentError(
            absl::StrCat("--prefix: token ", id, " is outside the vocabulary of ", vocab_size_));
      }
      ids.push_back(id);
    }
    return ids;
  }

  absl::Status ReadText() {
    size_t longest = 0;
    for (const EvalBundle& bundle : figures_.bundles)
      longest = std::max(longest, bundle.prefix_token_ids.size());
    if (!flags_.source.empty()) {
      for (const EvalReference& reference : references_)
        longest = std::max(longest, reference.token_ids.size());
    }
    const int64_t room = context_ - static_cast<int64_t>(longest);
    const int64_t window =
        flags_.window == 0 ? std::min<int64_t>(kDefaultWindow, room) : flags_.window;
    if (window < 2 || window > room) {
      return absl::InvalidArgumentError(absl::StrCat("--window ", window, ": must be in [2, ", room,
                                                     "] for this model and prefix"));
    }
    if (flags_.stride < 0 || flags_.stride > window) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--stride ", flags_.stride, ": must be in [1, ", window, "], the window, or 0 for it"));
    }
    ASSIGN_OR_RETURN(windows_, ReadTextWindows(flags_.text, *tokenizer_,
                                               {.tokens = static_cast<int32_t>(window),
                                                .stride = flags_.stride,
                                                .limit = flags_.limit}));
    figures_.text = flags_.text;
    figures_.windows = windows_.count();
    figures_.window_tokens = windows_.tokens;
    figures_.stride = windows_.stride == 0 ? windows_.tokens : windows_.stride;
    for (int32_t i = 0; i < windows_.count(); ++i)
      figures_.tokens += windows_.tokens - windows_.first_scored(i);
    if (windows_.tokens < window) {
      progress_.Say(absl::StrCat(flags_.text, " has ", windows_.tokens,
                                 " tokens: one window of that length instead of ", window));
    }
    return absl::OkStatus();
  }

  // References first, then everything that is measured against them.
  absl::Status AddModels() {
    if (source_) {
      figures_.references = references_;
      for (const EvalReference& reference : references_)
        sources_.push_back(&source_->Float(reference.token_ids));
      if (references_.size() > 1) AddModel("float", sources_[0], /*first_reference=*/1);
    }
    // Before the engine takes the bundle's model.
    LogitSource* simulation = nullptr;
    if (flags_.simulation) {
      ASSIGN_OR_RETURN(simulation, source_->Simulation(bundles_[0]->bundle, provenance_));
    }
    for (const std::unique_ptr<Loaded>& loaded : bundles_) {
      RETURN_IF_ERROR(StartEngine(*loaded));
      AddModel(loaded == bundles_[0] ? "integer" : "against", &*loaded->logits);
    }
    if (simulation != nullptr) AddModel("simulation", simulation);
    if (!flags_.dynamic) return absl::OkStatus();
    const std::vector<int32_t>& prefix = references_[0].token_ids;
    AddModel("dynamic_rotated", &source_->Dynamic(provenance_.rotation, prefix));
    AddModel("dynamic_plain", &source_->Dynamic(kPlainBasis, prefix));
    return absl::OkStatus();
  }

  void AddModel(std::string name, LogitSource* source, size_t first_reference = 0) {
    const auto known = std::find(sources_.begin(), sources_.end(), source);
    const int32_t index = static_cast<int32_t>(known - sources_.begin());
    if (known == sources_.end()) sources_.push_back(source);
    for (size_t r = first_reference; r < figures_.references.size(); ++r)
      pairs_.push_back({.teacher = static_cast<int32_t>(r), .model = index});
    figures_.models.push_back({.name = std::move(name)});
    model_sources_.push_back(index);
  }

  absl::Status StartEngine(Loaded& loaded) {
    CpuExecutorOptions options;
    options.threads = pool_.thread_count();
    options.max_step_tokens = options.max_step_logits = kStepTokens;
    options.kv_cache_bytes =
        KvBlockBytes(loaded.bundle.model.config) * (windows_.tokens / kKvBlockTokens + 1);
    ASSIGN_OR_RETURN(loaded.executor, CpuExecutor::Create(std::move(loaded.bundle.model), options));
    loaded.logits.emplace(*loaded.executor);
    return absl::OkStatus();
  }

  absl::Status MeasureAll() {
    ASSIGN_OR_RETURN(const Measurement measured,
                     Measure(sources_, pairs_, windows_, pool_, [&](int32_t done) {
                       progress_.Update(static_cast<double>(done) / windows_.count(),
                                        absl::StrCat("window ", done, " of ", windows_.count()));
                     }));
    const std::vector<double> weights = windows_.PredictionCounts();
    for (size_t r = 0; r < figures_.references.size(); ++r)
      figures_.references[r].perplexity = Perplexity(measured.loss[r], weights);
    for (size_t m = 0; m < figures_.models.size(); ++m) {
      EvalModel& model = figures_.models[m];
      const int32_t source = model_sources_[m];
      model.perplexity = Perplexity(measured.loss[source], weights);
      for (size_t p = 0; p < pairs_.size(); ++p) {
        if (pairs_[p].model != source) continue;
        const Divergence& d = measured.divergence[p];
        const int32_t teacher = pairs_[p].teacher;
        model.against.push_back(
            {.reference = figures_.references[teacher].name,
             .relative = RelativeTo(measured.loss[teacher], measured.loss[source], weights),
             .kl_mean = d.kl_mean,
             .kl_median = Percentile(d.token_kl, 0.5),
             .kl_p99 = Percentile(d.token_kl, 0.99),
             .top1_agreement = d.top1_agreement});
      }
    }
    if (bundles_.size() == 2) CompareBundles(measured, weights);
    return absl::OkStatus();
  }

  int32_t SourceOf(const std::string& name) const {
    for (size_t m = 0; m < figures_.models.size(); ++m) {
      if (figures_.models[m].name == name) return model_sources_[m];
    }
    return -1;
  }

  void CompareBundles(const Measurement& measured, const std::vector<double>& weights) {
    EvalComparison& comparison = figures_.comparison.emplace();
    const int32_t a = SourceOf("integer"), b = SourceOf("against");
    comparison.log_ratio =
        PairedBootstrap(measured.loss[b], measured.loss[a], weights, comparison.bootstrap);
    std::vector<double> tokens(windows_.count());
    for (int32_t w = 0; w < windows_.count(); ++w)
      tokens[w] = windows_.tokens - windows_.first_scored(w);
    for (size_t r = 0; r < figures_.references.size(); ++r) {
      const auto kl = [&](int32_t model) -> const std::vector<double>& {
        size_t p = 0;
        while (pairs_[p].model != model || pairs_[p].teacher != static_cast<int32_t>(r)) ++p;
        return measured.divergence[p].window_kl;
      };
      comparison.kl.push_back({figures_.references[r].name,
                               PairedBootstrap(kl(b), kl(a), tokens, comparison.bootstrap)});
    }
  }

  const EvalFlags& flags_;
  Progress& progress_;
  ThreadPool& pool_;
  std::vector<std::unique_ptr<Loaded>> bundles_;
  std::unique_ptr<Tokenizer> tokenizer_;
  int32_t vocab_size_ = 0, context_ = 0;
  std::optional<FloatSide> source_;
  ProvenanceSource provenance_;  // of the first bundle; without one the default rotation
  std::vector<EvalReference> references_;
  Windows windows_;
  EvalFigures figures_;
  std::vector<LogitSource*> sources_;   // the references, then the others
  std::vector<int32_t> model_sources_;  // of each of figures_.models
  std::vector<TeacherAndModel> pairs_;
};

absl::Status CheckFlags(const EvalFlags& flags) {
  const auto refuse = [](absl::string_view message) { return absl::InvalidArgumentError(message); };
  if (flags.limit < 0)
    return refuse(absl::StrCat("--limit ", flags.limit, ": must not be negative"));
  if (flags.float_alone) {
    if (!flags.bundle.empty() || !flags.against.empty() || flags.simulation)
      return refuse("--float measures the source alone: no bundle, --against or --simulation");
    if (flags.source.empty()) return refuse("--float needs --source");
    return absl::OkStatus();
  }
  if (flags.bundle.empty()) return refuse("which bundle? or --float with --source");
  const std::pair<bool, const char*> need_source[] = {{flags.simulation, "--simulation"},
                                                      {flags.dynamic, "--dynamic"},
                                                      {!flags.prefix.empty(), "--prefix"}};
  for (const auto& [given, name] : need_source) {
    if (given && flags.source.empty()) return refuse(absl::StrCat(name, " needs --source"));
  }
  if (!flags.against.empty() && (flags.simulation || flags.dynamic))
    return refuse("--against compares integer engines: no --simulation or --dynamic");
  return absl::OkStatus();
}

}  // namespace

absl::Status RunEval(const EvalFlags& flags) {
  ASSIGN_OR_RETURN(const int threads, ResolveThreads(flags.threads));
  RETURN_IF_ERROR(CheckFlags(flags));
  ThreadPool pool(threads);
  const std::unique_ptr<Progress> progress =
      CreateProgress(flags.progress, {{"load", 5}, {"measure", 100}});
  Eval eval(flags, *progress, pool);
  const absl::StatusOr<EvalFigures> figures = eval.Run();
  progress->Finish();
  RETURN_IF_ERROR(figures.status());
  const std::string hint = flags.source.empty() ? eval.SourceHint() : "";
  if (!hint.empty()) std::cerr << hint << "\n";
  std::cout << (flags.json ? EvalToJson(*figures) : EvalToText(*figures)) << "\n";
  return absl::OkStatus();
}

}  // namespace fixpoint
