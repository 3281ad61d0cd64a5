#include "calibrator/train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "base/status_macros.h"
#include "calibrator/random.h"
#include "calibrator/vector_loops.h"

namespace fixpoint {
namespace {

constexpr int32_t kLogitRows = 128;
// A loss so many times the first one's running mean is no noise any more.
constexpr double kDivergedLoss = 4;
// Held-out loss that far above the start is not coming back under a falling rate.
constexpr double kDivergedHeldOut = 2;

}  // namespace

Trainer::Trainer(const TrainOptions& options, Model model)
    : options_(options), model_(std::move(model)) {
  CHECK(options_.objective != Objective::kNone && options_.steps > 0);
  CHECK(options_.objective == Objective::kCe || model_.teacher != nullptr);
  student_logits_.resize(int64_t{kLogitRows} * model_.vocab_size);
  if (options_.objective == Objective::kKl) teacher_logits_.resize(student_logits_.size());
  SetRates();
}

void Trainer::SetRates() {
  const ParameterLayout& layout = *model_.layout;
  rates_.assign(layout.size(), 0);
  const bool channel = options_.granularity == Granularity::kChannel;
  const bool gain = channel && options_.vectors == Vectors::kGain;
  layout.ForEachPiece([&](ParameterLayout::Kind kind, int64_t begin, int64_t count) {
    double rate = 0;
    switch (kind) {
      case ParameterLayout::Kind::kScale:
        rate = options_.round ? options_.scale_rate : 0;
        break;
      case ParameterLayout::Kind::kLinearGain:
        rate = channel ? options_.gain_rate : 0;
        break;
      case ParameterLayout::Kind::kHeadGain:
        rate = gain ? options_.gain_rate : 0;
        break;
      case ParameterLayout::Kind::kPrefix:
        return;  // below: needs the values
    }
    std::fill_n(rates_.begin() + begin, count, static_cast<float>(rate));
  });
  if (options_.prefix_rate == 0 || model_.prefix->size() == 0) return;
  for (int32_t layer = 0; layer < layout.layers(); ++layer) {
    float* to = rates_.data() + layout.Prefix(layer);
    for (const std::vector<float>* values :
         {&model_.prefix->layers[layer].k, &model_.prefix->layers[layer].v}) {
      double squares = 0;
      for (const float x : *values) squares += static_cast<double>(x) * x;
      const double rms = std::sqrt(squares / static_cast<double>(values->size()));
      to = std::fill_n(to, values->size(), static_cast<float>(options_.prefix_rate * rms));
    }
  }
}

// Windows of a step: each epoch goes through all of them in an order of its own.
std::vector<int32_t> Trainer::Batch(int64_t step) const {
  const int64_t count = model_.windows->count();
  std::vector<int32_t> order(count);
  std::vector<int32_t> batch;
  int64_t shuffled_epoch = -1;
  for (int64_t i = 0; i < options_.batch_windows; ++i) {
    const int64_t position = step * options_.batch_windows + i;
    const int64_t epoch = position / count;
    if (epoch != shuffled_epoch) {
      std::iota(order.begin(), order.end(), 0);
      Random random(options_.seed, 1000 + static_cast<uint64_t>(epoch));
      for (int64_t j = count - 1; j > 0; --j) std::swap(order[j], order[random.Below(j + 1)]);
      shuffled_epoch = epoch;
    }
    batch.push_back(order[position % count]);
  }
  return batch;
}

// Loss of one row, and its gradient in place of the student's logits.
void Trainer::LossRow(const float* teacher, float* student, int32_t target, double weight,
                      double* loss) {
  const int64_t n = model_.vocab_size;
  if (options_.objective == Objective::kKl) {
    const RowComparison row = Vec().compare_rows(teacher, student, n);
    *loss = row.kl;
    Vec().softmax_difference(teacher, student, n, static_cast<float>(row.log_sum_a),
                             static_cast<float>(row.log_sum_b), static_cast<float>(weight),
                             student);
    return;
  }
  if (target < 0) {
    *loss = 0;
    std::fill_n(student, n, 0.0f);
    return;
  }
  int32_t argmax = 0;
  const double log_sum = Vec().log_sum_exp(student, n, &argmax);
  *loss = log_sum - student[target];
  Vec().softmax_difference(nullptr, student, n, 0, static_cast<float>(log_sum),
                           static_cast<float>(weight), student);
  student[target] -= static_cast<float>(weight);
}

// Adds the gradient of `weight` * the sum of the windows' token losses; returns that sum, weighted.
double Trainer::AddWindows(const std::vector<int32_t>& windows, size_t first, size_t count,
                           double weight, const Scales& scales, const FloatPrefix& prefix) {
  const int32_t tokens = model_.windows->tokens;
  std::vector<int32_t> ids;
  for (size_t i = 0; i < count; ++i) {
    const int32_t* window = model_.windows->window(windows[first + i]);
    ids.insert(ids.end(), window, window + tokens);
  }
  BackwardPass& pass = *model_.pass;
  const bool folded =
      options_.granularity == Granularity::kChannel && options_.vectors == Vectors::kFolded;
  pass.Forward(
      {.token_ids = ids.data(), .sequences = static_cast<int32_t>(count), .tokens = tokens},
      {.prefix = &prefix, .scales = &scales, .round = options_.round, .precise_activations = false},
      folded);
  double total = 0;
  for (size_t i = 0; i < count; ++i) {
    for (int32_t begin = 0; begin < tokens; begin += kLogitRows) {
      const int32_t end = std::min(tokens, begin + kLogitRows);
      const int64_t row = static_cast<int64_t>(i) * tokens + begin;
      pass.Logits(row, row + end - begin, student_logits_.data());
      if (model_.teacher && options_.objective == Objective::kKl)
        model_.teacher->Logits(windows[first + i], begin, end, teacher_logits_.data());
      std::vector<double> losses(end - begin);
      model_.pool->ParallelFor(end - begin, 4, [&](int64_t from, int64_t to, int) {
        for (int64_t r = from; r < to; ++r) {
          const int64_t token = row + r;
          const bool last = begin + r + 1 == tokens;
          LossRow(
              teacher_logits_.empty() ? nullptr : teacher_logits_.data() + r * model_.vocab_size,
              student_logits_.data() + r * model_.vocab_size, last ? -1 : ids[token + 1], weight,
              &losses[r]);
        }
      });
      total += std::accumulate(losses.begin(), losses.end(), 0.0);
      pass.AddLogitGradient(row, row + end - begin, student_logits_.data());
    }
  }
  pass.Backward();
  return total * weight;
}

double Trainer::Step(const TrainState& state) {
  const Scales scales = MoveScales(*model_.base, *model_.layout, state.parameters);
  const FloatPrefix prefix = MovePrefix(*model_.prefix, *model_.layout, state.parameters);
  if (model_.refold) model_.refold(scales);
  const std::vector<int32_t> batch = Batch(state.step);
  std::vector<double>& gradient = model_.pass->gradient();
  std::fill(gradient.begin(), gradient.end(), 0.0);
  const int32_t scored =
      model_.windows->tokens - (options_.objective == Objective::kCe ? 1 : 0);  // of a window
  const double weight = 1.0 / (static_cast<double>(batch.size()) * scored);
  double loss = 0;
  for (size_t first = 0; first < batch.size(); first += options_.micro_windows) {
    const size_t count = std::min<size_t>(options_.micro_windows, batch.size() - first);
    loss += AddWindows(batch, first, count, weight, scales, prefix);
  }
  return loss;
}

absl::StatusOr<double> Trainer::Judge(const std::vector<float>& parameters) {
  const Scales scales = MoveScales(*model_.base, *model_.layout, parameters);
  if (model_.refold) model_.refold(scales);
  return model_.judge(scales, MovePrefix(*model_.prefix, *model_.layout, parameters));
}

absl::StatusOr<TrainResult> Trainer::Run(TrainState state, const std::atomic<bool>& stop) {
  const auto start = std::chrono::steady_clock::now();
  TrainResult result;
  if (state.parameters.empty()) {
    state.parameters.assign(model_.layout->size(), 0.0f);
    ASSIGN_OR_RETURN(state.first_held_out, Judge(state.parameters));
    state.best_held_out = state.first_held_out;
    state.best_parameters = state.parameters;
    state.average = state.parameters;
  }
  CHECK_EQ(static_cast<int64_t>(state.parameters.size()), model_.layout->size());
  const int32_t tokens_per_step = options_.batch_windows * model_.windows->tokens;
  result.stop_reason = "steps";
  while (state.step < options_.steps) {
    if (stop.load(std::memory_order_relaxed)) {
      result.stop_reason = "interrupted";
      break;
    }
    if (state.looks_since_best >= options_.patience) {
      result.stop_reason = "patience";
      break;
    }
    TrainPoint point;
    point.loss = Step(state);
    std::vector<double>& gradient = model_.pass->gradient();
    point.gradient_norm = ClipNorm(rates_, options_.clip_norm, &gradient);
    if (!std::isfinite(point.loss) || !std::isfinite(point.gradient_norm) ||
        (!state.points.empty() && point.loss > kDivergedLoss * state.points.front().loss)) {
      result.stop_reason = "diverged";
      break;
    }
    point.rate = CosineRate(state.step, options_.steps, options_.warmup_steps);
    AdamStep(gradient, rates_, point.rate, &state.adam, &state.parameters);
    for (size_t i = 0; i < state.average.size(); ++i) {
      state.average[i] = static_cast<float>(options_.average_decay * state.average[i] +
                                            (1 - options_.average_decay) * state.parameters[i]);
    }
    point.step = ++state.step;
    point.tokens = state.step * tokens_per_step;
    result.tokens += tokens_per_step;
    if (state.step % options_.judge_every == 0 || state.step == options_.steps) {
      ASSIGN_OR_RETURN(point.held_out, Judge(state.average));
      ++state.looks_since_best;
      if (point.held_out < state.best_held_out) {
        state.best_held_out = point.held_out;
        state.best_parameters = state.average;
        state.best_step = state.step;
        state.looks_since_best = 0;
      } else if (!(point.held_out < kDivergedHeldOut * state.first_held_out)) {
        state.points.push_back(point);
        result.stop_reason = "diverged";
        break;
      }
    }
    state.points.push_back(point);
    if (model_.after_step) model_.after_step(state, point);
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  result.state = std::move(state);
  return result;
}

}  // namespace fixpoint
