#include "calibrator/import/rope.h"

#include <cmath>
#include <numbers>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace fixpoint {
namespace {

double Llama3Frequency(const RopeSpec& rope, double frequency) {
  const double wavelength = 2 * std::numbers::pi / frequency;  // tokens
  if (wavelength < rope.original_context / rope.high_frequency_factor) return frequency;
  if (wavelength > rope.original_context / rope.low_frequency_factor)
    return frequency / rope.factor;
  const double kept = (rope.original_context / wavelength - rope.low_frequency_factor) /
                      (rope.high_frequency_factor - rope.low_frequency_factor);
  return frequency * ((1 - kept) / rope.factor + kept);
}

}  // namespace

absl::Status ValidateRope(const RopeSpec& rope, absl::string_view place) {
  const auto error = [place](absl::string_view what, double value) {
    return absl::InvalidArgumentError(absl::StrCat(place, ": ", what, " is ", value));
  };
  // Negated comparisons, so that NaN fails too.
  if (!(rope.theta > 1 && rope.theta <= 1e12))
    return error("RoPE base (limits 1 to 1e12)", rope.theta);
  if (rope.scaling == RopeSpec::Scaling::kNone) return absl::OkStatus();
  if (!(rope.factor >= 1 && rope.factor <= 1e6)) {
    return error("RoPE scaling factor (limits 1 to 1e6)", rope.factor);
  }
  if (rope.scaling == RopeSpec::Scaling::kLinear) return absl::OkStatus();
  if (!(rope.original_context >= 1 && rope.original_context <= 1e9)) {
    return error("original context of the RoPE scaling (limits 1 to 1e9)", rope.original_context);
  }
  if (!(rope.low_frequency_factor > 0)) {
    return error("low_freq_factor of the RoPE scaling (must exceed 0)", rope.low_frequency_factor);
  }
  if (!(rope.high_frequency_factor > rope.low_frequency_factor) ||
      !std::isfinite(rope.high_frequency_factor)) {
    return error("high_freq_factor of the RoPE scaling (must exceed low_freq_factor)",
                 rope.high_frequency_factor);
  }
  return absl::OkStatus();
}

std::vector<double> InverseFrequencies(const RopeSpec& rope, int32_t head_dim) {
  CHECK(head_dim > 0 && head_dim % 2 == 0) << head_dim;
  std::vector<double> frequencies(static_cast<size_t>(head_dim / 2));
  for (size_t i = 0; i < frequencies.size(); ++i) {
    double& frequency = frequencies[i];
    frequency = std::pow(rope.theta, -2.0 * static_cast<double>(i) / head_dim);
    if (rope.scaling == RopeSpec::Scaling::kLinear) frequency /= rope.factor;
    if (rope.scaling == RopeSpec::Scaling::kLlama3) frequency = Llama3Frequency(rope, frequency);
  }
  return frequencies;
}

}  // namespace fixpoint
