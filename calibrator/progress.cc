#include "calibrator/progress.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "base/json_writer.h"

namespace fixpoint {
namespace {

constexpr int kBarCells = 24;

std::string Clocked(double seconds) {
  const int64_t s = static_cast<int64_t>(seconds + 0.5);
  return absl::StrFormat("%d:%02d", s / 60, s % 60);
}

// One line that is rewritten on a terminal; elsewhere a line per stage.
class BarProgress : public Progress {
 public:
  explicit BarProgress(std::vector<Stage> stages)
      : Progress(std::move(stages), 0.1), terminal_(isatty(STDERR_FILENO)) {}

  void Say(absl::string_view line) override {
    Erase();
    std::fprintf(stderr, "%s\n", std::string(line).c_str());
  }

  void Finish() override {
    Erase();
    std::fflush(stderr);
  }

 private:
  void Show(const State& s) override {
    if (!terminal_) {
      if (s.index + 1 == shown_) return;
      shown_ = s.index + 1;
      std::fprintf(stderr, "[%d/%d] %s\n", static_cast<int>(s.index + 1),
                   static_cast<int>(stages().size()), s.stage.c_str());
      return;
    }
    const int full = static_cast<int>(s.total_fraction * kBarCells);
    std::string bar(static_cast<size_t>(full), '#');
    bar.resize(kBarCells, '.');
    std::string line = absl::StrFormat("[%s] %3.0f %%  %d/%d %s", bar, 100 * s.total_fraction,
                                       s.index + 1, stages().size(), s.stage);
    if (!s.detail.empty()) absl::StrAppend(&line, " (", s.detail, ")");
    absl::StrAppend(&line, "  ", Clocked(s.elapsed_seconds));
    if (s.eta_seconds >= 0) absl::StrAppend(&line, ", about ", Clocked(s.eta_seconds), " left");
    std::fprintf(stderr, "\r%s\x1b[K", line.c_str());
    std::fflush(stderr);
    drawn_ = true;
  }

  void Erase() {
    if (drawn_) std::fprintf(stderr, "\r\x1b[K");
    drawn_ = false;
  }

  const bool terminal_;
  bool drawn_ = false;
  size_t shown_ = 0;
};

class JsonProgress : public Progress {
 public:
  explicit JsonProgress(std::vector<Stage> stages) : Progress(std::move(stages), 0.5) {}

  void Say(absl::string_view line) override {
    JsonWriter json;
    json.BeginObject();
    json.Field("message", line);
    json.EndObject();
    Print(&json);
  }

  void Training(const TrainingStep& t) override {
    JsonWriter json;
    json.BeginObject();
    json.Field("step", t.step);
    json.Field("tokens", t.tokens);
    json.Field("loss", t.loss);
    json.Field("gradient_norm", t.gradient_norm);
    json.Field("rate", t.rate);
    if (t.held_out >= 0) json.Field("held_out", t.held_out);
    json.EndObject();
    Print(&json);
  }

  void Finish() override {}

 private:
  void Show(const State& s) override {
    JsonWriter json;
    json.BeginObject();
    json.Field("stage", s.stage);
    json.Field("stage_index", static_cast<int64_t>(s.index));
    json.Field("stages", static_cast<int64_t>(stages().size()));
    json.Field("stage_fraction", s.fraction);
    json.Field("fraction", s.total_fraction);
    json.Field("elapsed_seconds", s.elapsed_seconds);
    if (s.eta_seconds >= 0) json.Field("eta_seconds", s.eta_seconds);
    if (!s.detail.empty()) json.Field("detail", s.detail);
    json.EndObject();
    Print(&json);
  }

  static void Print(JsonWriter* json) {
    std::printf("%s\n", json->Take().c_str());
    std::fflush(stdout);
  }
};

class NoProgress : public Progress {
 public:
  explicit NoProgress(std::vector<Stage> stages) : Progress(std::move(stages), 1e9) {}
  void Say(absl::string_view) override {}
  void Finish() override {}

 private:
  void Show(const State&) override {}
};

}  // namespace

void Progress::Enter(size_t index) {
  CHECK_LT(index, stages_.size());
  index_ = index;
  fraction_ = 0;
  detail_.clear();
  entered_.emplace_back(index, Clock::now());
  Report(/*force=*/true);
}

void Progress::Update(double fraction, absl::string_view detail) {
  fraction_ = std::clamp(fraction, 0.0, 1.0);
  detail_ = std::string(detail);
  Report(/*force=*/false);
}

void Progress::Report(bool force) {
  if (!force && Since(last_shown_) < min_interval_seconds_) return;
  last_shown_ = Clock::now();
  double all = 0;
  double done = 0;
  for (size_t i = 0; i < stages_.size(); ++i) {
    all += stages_[i].weight;
    done += stages_[i].weight * (i < index_ ? 1 : i == index_ ? fraction_ : 0);
  }
  State state{
      .index = index_, .stage = stages_[index_].name, .fraction = fraction_, .detail = detail_};
  state.total_fraction = all > 0 ? done / all : 0;
  state.elapsed_seconds = elapsed_seconds();
  if (state.total_fraction > 0.02) {
    state.eta_seconds = state.elapsed_seconds * (1 - state.total_fraction) / state.total_fraction;
  }
  Show(state);
}

std::vector<Progress::Duration> Progress::Durations() const {
  std::vector<Duration> durations;
  for (size_t i = 0; i < entered_.size(); ++i) {
    const Clock::time_point end = i + 1 < entered_.size() ? entered_[i + 1].second : Clock::now();
    durations.push_back({stages_[entered_[i].first].name,
                         std::chrono::duration<double>(end - entered_[i].second).count()});
  }
  return durations;
}

std::unique_ptr<Progress> CreateProgress(ProgressKind kind, std::vector<Progress::Stage> stages) {
  if (kind == ProgressKind::kBar) return std::make_unique<BarProgress>(std::move(stages));
  if (kind == ProgressKind::kJson) return std::make_unique<JsonProgress>(std::move(stages));
  return std::make_unique<NoProgress>(std::move(stages));
}

absl::StatusOr<ProgressKind> ParseProgressKind(const std::string& name) {
  if (name == "bar") return ProgressKind::kBar;
  if (name == "json") return ProgressKind::kJson;
  if (name == "none") return ProgressKind::kNone;
  return absl::InvalidArgumentError(
      absl::StrCat("--progress is bar, json or none, not '", name, "'"));
}

int64_t PeakMemoryBytes() {
  rusage usage{};
  return getrusage(RUSAGE_SELF, &usage) == 0 ? int64_t{usage.ru_maxrss} * 1024 : 0;
}

}  // namespace fixpoint
