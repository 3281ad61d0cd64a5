// The wire's decimals as the integers of engine/sampling_params.h: the one place where they are
// converted, each to nearest, halves away from zero.
#pragma once

#include "absl/status/status.h"
#include "engine/sampling_params.h"
#include "fixpoint/v1/generation.pb.h"

namespace fixpoint {

inline constexpr double kMinTemperature = 0.01;
inline constexpr double kMaxTemperature = 100.0;
inline constexpr double kMaxPenalty = 2.0;  // presence and frequency; and -kMaxPenalty
inline constexpr double kMinRepetitionPenalty = 0.01;
inline constexpr double kMaxRepetitionPenalty = 100.0;
inline constexpr int kMaxLogitBias = 1024;
inline constexpr double kMaxBias = 100.0;  // and -kMaxBias

// INVALID_ARGUMENT naming field, limit and value.
absl::Status ParseSampling(const v1::Sampling& wire, int32_t vocab_size, SamplingParams* sampling,
                           LogitAdjustment* adjust);

}  // namespace fixpoint
