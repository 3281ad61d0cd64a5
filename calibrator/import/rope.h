// The rotation frequencies of a checkpoint, with its RoPE scaling folded in.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace fixpoint {

struct RopeSpec {
  enum class Scaling { kNone, kLinear, kLlama3 };
  double theta = 10'000;  // what both formats mean where the key is absent
  Scaling scaling = Scaling::kNone;
  double factor = 1;  // kLinear, kLlama3
  // kLlama3: wavelengths above original_context / low_frequency_factor are stretched by `factor`,
  // those below original_context / high_frequency_factor are kept, between them the frequency is
  // interpolated.
  double low_frequency_factor = 0;
  double high_frequency_factor = 0;
  double original_context = 0;  // tokens

  friend bool operator==(const RopeSpec&, const RopeSpec&) = default;
};

// INVALID_ARGUMENT naming the value that is out of range; `place` begins the message.
absl::Status ValidateRope(const RopeSpec& rope, absl::string_view place);

// Radians per token of pair i, theta^(-2 i / head_dim) scaled: [head_dim / 2]. Requires an even
// head_dim > 0 and a valid spec.
std::vector<double> InverseFrequencies(const RopeSpec& rope, int32_t head_dim);

}  // namespace fixpoint
