#include "server/parse_sampling.h"

#include <algorithm>
#include <cmath>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "server/field_checks.h"

namespace fixpoint {
namespace {

// NaN fails every comparison, so the condition is written to be true for good values only.
absl::StatusOr<int32_t> Q16(absl::string_view field, double value, double least, double most) {
  if (!(value >= least && value <= most)) {
    return OutOfRange(field, absl::StrCat(least, " to ", most), absl::StrCat(value));
  }
  return static_cast<int32_t>(std::llround(value * 65536.0));
}

absl::Status ParseFilters(const v1::Sampling& wire, int32_t vocab_size, SamplingParams* out) {
  const double temperature = wire.temperature();
  if (temperature != 0) {
    if (!(temperature >= kMinTemperature && temperature <= kMaxTemperature)) {
      return OutOfRange("sampling.temperature",
                        absl::StrCat("0 or ", kMinTemperature, " to ", kMaxTemperature),
                        absl::StrCat(temperature));
    }
    out->inverse_temperature_q16 = static_cast<uint32_t>(std::llround(65536.0 / temperature));
  }
  if (wire.top_k() > static_cast<uint32_t>(vocab_size)) {
    return OutOfRange("sampling.top_k", absl::StrCat("0 to vocab_size ", vocab_size),
                      absl::StrCat(wire.top_k()));
  }
  out->top_k = static_cast<int32_t>(wire.top_k());
  if (wire.has_top_p()) {
    ASSIGN_OR_RETURN(out->top_p_q16, Q16("sampling.top_p", wire.top_p(), 1 / 65536.0, 1));
  }
  if (wire.has_min_p()) {
    ASSIGN_OR_RETURN(out->min_p_q16, Q16("sampling.min_p", wire.min_p(), 0, 1));
  }
  out->seed = wire.seed();
  return absl::OkStatus();
}

absl::Status ParseBias(const v1::Sampling& wire, int32_t vocab_size, LogitAdjustment* out) {
  if (wire.logit_bias_size() > kMaxLogitBias) {
    return OutOfRange("sampling.logit_bias", absl::StrCat("at most ", kMaxLogitBias, " tokens"),
                      absl::StrCat(wire.logit_bias_size(), " tokens"));
  }
  for (int i = 0; i < wire.logit_bias_size(); ++i) {
    const v1::LogitBias& bias = wire.logit_bias(i);
    const std::string field = absl::StrCat("sampling.logit_bias[", i, "]");
    if (bias.token_id() >= static_cast<uint32_t>(vocab_size)) {
      return OutOfRange(field + ".token_id", absl::StrCat("below vocab_size ", vocab_size),
                        absl::StrCat(bias.token_id()));
    }
    ASSIGN_OR_RETURN(const int32_t value, Q16(field + ".bias", bias.bias(), -kMaxBias, kMaxBias));
    out->bias_q16.emplace_back(static_cast<int32_t>(bias.token_id()), value);
  }
  std::sort(out->bias_q16.begin(), out->bias_q16.end());
  for (size_t i = 1; i < out->bias_q16.size(); ++i) {
    if (out->bias_q16[i].first != out->bias_q16[i - 1].first) continue;
    return OutOfRange("sampling.logit_bias", "each token once",
                      absl::StrCat("token ", out->bias_q16[i].first, " twice"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ParseSampling(const v1::Sampling& wire, int32_t vocab_size, SamplingParams* sampling,
                           LogitAdjustment* adjust) {
  RETURN_IF_ERROR(ParseFilters(wire, vocab_size, sampling));
  ASSIGN_OR_RETURN(adjust->presence_q16, Q16("sampling.presence_penalty", wire.presence_penalty(),
                                             -kMaxPenalty, kMaxPenalty));
  ASSIGN_OR_RETURN(adjust->frequency_q16, Q16("sampling.frequency_penalty",
                                              wire.frequency_penalty(), -kMaxPenalty, kMaxPenalty));
  if (wire.has_repetition_penalty()) {
    ASSIGN_OR_RETURN(adjust->repetition_q16,
                     Q16("sampling.repetition_penalty", wire.repetition_penalty(),
                         kMinRepetitionPenalty, kMaxRepetitionPenalty));
  }
  return ParseBias(wire, vocab_size, adjust);
}

}  // namespace fixpoint
