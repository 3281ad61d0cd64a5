#include "calibrator/train/optimizer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace fixpoint {

void AdamStep(const std::vector<double>& gradient, const std::vector<float>& rates, double factor,
              AdamState* state, std::vector<float>* parameters) {
  constexpr double kFirst = 0.9, kSecond = 0.99, kEpsilon = 1e-8;
  state->first.resize(gradient.size());
  state->second.resize(gradient.size());
  ++state->steps;
  const double first_bias = 1 - std::pow(kFirst, static_cast<double>(state->steps));
  const double second_bias = 1 - std::pow(kSecond, static_cast<double>(state->steps));
  for (size_t i = 0; i < gradient.size(); ++i) {
    if (rates[i] == 0) continue;
    const double g = gradient[i];
    const double first = kFirst * state->first[i] + (1 - kFirst) * g;
    const double second = kSecond * state->second[i] + (1 - kSecond) * g * g;
    state->first[i] = static_cast<float>(first);
    state->second[i] = static_cast<float>(second);
    const double direction = (first / first_bias) / (std::sqrt(second / second_bias) + kEpsilon);
    (*parameters)[i] -= static_cast<float>(factor * rates[i] * direction);
  }
}

double ClipNorm(const std::vector<float>& rates, double limit, std::vector<double>* gradient) {
  double squares = 0;
  for (size_t i = 0; i < gradient->size(); ++i) {
    if (rates[i] == 0) (*gradient)[i] = 0;
    squares += (*gradient)[i] * (*gradient)[i];
  }
  const double norm = std::sqrt(squares);
  if (norm > limit) {
    for (double& g : *gradient) g *= limit / norm;
  }
  return norm;
}

double CosineRate(int64_t step, int64_t steps, int64_t warmup) {
  const double rise =
      std::min(1.0, static_cast<double>(step + 1) / static_cast<double>(warmup + 1));
  const double share = static_cast<double>(step) / static_cast<double>(std::max<int64_t>(1, steps));
  return rise * (0.02 + 0.98 * 0.5 * (1 + std::cos(std::numbers::pi * std::min(1.0, share))));
}

}  // namespace fixpoint
