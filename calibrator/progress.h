// How far a long command is: a bar on stderr, JSON lines on stdout, or nothing.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fixpoint {

enum class ProgressKind { kBar, kJson, kNone };

// One thread at a time.
class Progress {
 public:
  // `weight`: rough share of the whole duration; only the ETA depends on it.
  struct Stage {
    std::string name;
    double weight = 1;
  };

  virtual ~Progress() = default;
  // Begins stage `index` of those given at the start; earlier stages count as done.
  void Enter(size_t index);
  // Share of the current stage that is done, 0 to 1; `detail` is a short text such as "site 3 of
  // 41".
  void Update(double fraction, absl::string_view detail = "");
  // A line for the user that stays: a measured figure, a warning.
  virtual void Say(absl::string_view line) = 0;
  // One step of training: a line of its own in JSON, part of the bar's text otherwise.
  struct TrainingStep {
    int64_t step = 0, tokens = 0;
    double loss = 0, gradient_norm = 0, rate = 0;
    double held_out = -1;  // negative: not measured
  };
  virtual void Training(const TrainingStep&) {}
  // All is done (or given up): leaves the terminal clean. Called by the destructor's owner at the
  // end.
  virtual void Finish() = 0;

  // Of all stages, in the order in which they were entered.
  struct Duration {
    std::string stage;
    double seconds = 0;
  };
  std::vector<Duration> Durations() const;
  double elapsed_seconds() const { return Since(start_); }

 protected:
  struct State {
    size_t index = 0;
    std::string stage;
    double fraction = 0;
    std::string detail;
    double total_fraction = 0;
    double elapsed_seconds = 0;
    double eta_seconds = -1;  // negative: unknown yet
  };
  using Clock = std::chrono::steady_clock;

  Progress(std::vector<Stage> stages, double min_interval_seconds)
      : stages_(std::move(stages)), min_interval_seconds_(min_interval_seconds) {}
  virtual void Show(const State& state) = 0;
  const std::vector<Stage>& stages() const { return stages_; }

 private:
  static double Since(Clock::time_point t) {
    return std::chrono::duration<double>(Clock::now() - t).count();
  }
  void Report(bool force);

  const std::vector<Stage> stages_;
  const double min_interval_seconds_;
  const Clock::time_point start_ = Clock::now();
  Clock::time_point last_shown_ = {};
  size_t index_ = 0;
  double fraction_ = 0;
  std::string detail_;
  std::vector<std::pair<size_t, Clock::time_point>> entered_;
};

std::unique_ptr<Progress> CreateProgress(ProgressKind kind, std::vector<Progress::Stage> stages);
// "bar", "json" or "none".
absl::StatusOr<ProgressKind> ParseProgressKind(const std::string& name);

// Largest resident memory of this process so far.
int64_t PeakMemoryBytes();

}  // namespace fixpoint
