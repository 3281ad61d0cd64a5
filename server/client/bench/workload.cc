#include "server/client/bench/workload.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/check.h"
#include "base/status_macros.h"

namespace fixpoint::client {
namespace {

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15;
// Streams of random numbers beside those of requests, which are their numbers.
constexpr uint64_t kSharedStream = uint64_t{1} << 62;

// The finalizer of SplitMix64 (Steele, Lea, Flood 2014).
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

absl::Status BadLength(absl::string_view flag, absl::string_view text) {
  return absl::InvalidArgumentError(
      absl::StrCat(flag, ": '", text,
                   "' is not N, fixed:N, uniform:LEAST:MOST or "
                   "lognormal:MEDIAN:SIGMA[:LEAST:MOST] with lengths of 1 to 2^31"));
}

bool ReadLength(absl::string_view text, int64_t* out) {
  return absl::SimpleAtoi(text, out) && *out >= 1 && *out <= LengthDistribution::kNoBound;
}

}  // namespace

uint64_t KeyedRandom::Bits() {
  return Mix(Mix(Mix(seed_ + kGolden) + stream_ * kGolden) + ++draw_ * kGolden);
}

double KeyedRandom::Uniform() { return static_cast<double>(Bits() >> 11) * 0x1p-53; }

// The bias of a plain remainder is below bound / 2^64.
uint64_t KeyedRandom::Below(uint64_t bound) {
  CHECK_GE(bound, uint64_t{1});
  return Bits() % bound;
}

double KeyedRandom::Exponential() { return -std::log1p(-Uniform()); }

double KeyedRandom::Normal() {  // Box and Muller, one of the pair
  const double radius = std::sqrt(2 * Exponential());
  return radius * std::cos(2 * 3.14159265358979323846 * Uniform());
}

absl::StatusOr<LengthDistribution> LengthDistribution::Parse(absl::string_view flag,
                                                             absl::string_view text) {
  const std::vector<std::string> parts = absl::StrSplit(text, ':');
  LengthDistribution out;
  if (parts.size() == 1 || (parts[0] == "fixed" && parts.size() == 2)) {
    if (!ReadLength(parts.back(), &out.least)) return BadLength(flag, text);
    out.most = out.least;
    out.median = static_cast<double>(out.least);
    return out;
  }
  if (parts[0] == "uniform" && parts.size() == 3) {
    out.kind = Kind::kUniform;
    if (!ReadLength(parts[1], &out.least) || !ReadLength(parts[2], &out.most) ||
        out.least > out.most) {
      return BadLength(flag, text);
    }
    return out;
  }
  if (parts[0] == "lognormal" && (parts.size() == 3 || parts.size() == 5)) {
    out.kind = Kind::kLogNormal;
    out.most = kNoBound;
    const bool good =
        absl::SimpleAtod(parts[1], &out.median) && out.median >= 1 &&
        out.median <= static_cast<double>(kNoBound) && absl::SimpleAtod(parts[2], &out.sigma) &&
        out.sigma > 0 && out.sigma <= 10 &&
        (parts.size() == 3 || (ReadLength(parts[3], &out.least) &&
                               ReadLength(parts[4], &out.most) && out.least <= out.most));
    if (!good) return BadLength(flag, text);
    return out;
  }
  return BadLength(flag, text);
}

int64_t LengthDistribution::Draw(KeyedRandom* random) const {
  switch (kind) {
    case Kind::kFixed:
      return least;
    case Kind::kUniform:
      return least + static_cast<int64_t>(random->Below(static_cast<uint64_t>(most - least + 1)));
    case Kind::kLogNormal: {
      const double value = std::exp(std::log(median) + sigma * random->Normal());
      const double bounded =
          std::clamp(value, static_cast<double>(least), static_cast<double>(most));
      return static_cast<int64_t>(std::llround(bounded));
    }
  }
  return least;
}

std::string LengthDistribution::ToString() const {
  switch (kind) {
    case Kind::kFixed:
      return absl::StrCat("fixed:", least);
    case Kind::kUniform:
      return absl::StrCat("uniform:", least, ":", most);
    case Kind::kLogNormal:
      return absl::StrCat("lognormal:", median, ":", sigma, ":", least, ":", most);
  }
  return "";
}

absl::StatusOr<Workload> Workload::Create(WorkloadOptions options, Vocabulary vocabulary) {
  if (vocabulary.not_used.size() + 1 > vocabulary.size) {
    return absl::FailedPreconditionError(
        absl::StrCat("the model's ", vocabulary.size, " tokens are all control tokens"));
  }
  LengthDistribution& prompt = options.prompt_tokens;
  LengthDistribution& output = options.output_tokens;
  const int64_t context = vocabulary.max_context_tokens;
  const int64_t max_prompt = std::min(vocabulary.max_prompt_tokens, context - 1);
  using Kind = LengthDistribution::Kind;
  if (prompt.kind == Kind::kLogNormal) prompt.most = std::min(prompt.most, max_prompt);
  if (prompt.most > max_prompt || prompt.least > prompt.most) {
    return absl::InvalidArgumentError(absl::StrCat("prompts of up to ", prompt.most, " tokens (",
                                                   prompt.ToString(), "): the model takes ",
                                                   max_prompt));
  }
  const int64_t left = context - prompt.most;
  const bool room = output.kind == Kind::kLogNormal ? output.least <= left : output.most <= left;
  if (!room) {
    return absl::InvalidArgumentError(absl::StrCat("prompts of up to ", prompt.most,
                                                   " tokens and answers of up to ", output.most,
                                                   ": the model's context is ", context));
  }
  output.most = std::min(output.most, left);
  return Workload(std::move(options), std::move(vocabulary));
}

// Which requests share, are cancelled and how long they are does not depend on what the tokens are.
RequestSpec Workload::Get(uint64_t number) const {
  KeyedRandom random(options_.seed, number * 2);
  RequestSpec spec;
  const int64_t length = options_.prompt_tokens.Draw(&random);
  spec.max_tokens = static_cast<uint32_t>(options_.output_tokens.Draw(&random));
  spec.shared = random.Uniform() < options_.shared_share;
  const uint64_t which = random.Below(static_cast<uint64_t>(options_.shared_prefixes));
  if (random.Uniform() < options_.cancel_share) {
    spec.cancel_after = static_cast<int64_t>(random.Below(spec.max_tokens));
  }
  spec.prompt.reserve(static_cast<size_t>(length));
  if (spec.shared) {  // at least one token is the request's own
    const int64_t shared = std::min(options_.shared_tokens, length - 1);
    Fill(KeyedRandom(options_.seed, kSharedStream + which), shared, &spec.prompt);
  }
  Fill(KeyedRandom(options_.seed, number * 2 + 1), length, &spec.prompt);
  return spec;
}

void Workload::Fill(KeyedRandom random, int64_t length, std::vector<uint32_t>* prompt) const {
  const std::vector<uint32_t>& text = vocabulary_.text;
  uint64_t place = text.empty() ? 0 : random.Below(text.size());
  while (static_cast<int64_t>(prompt->size()) < length) {
    const uint32_t id = text.empty() ? static_cast<uint32_t>(random.Below(vocabulary_.size))
                                     : text[place++ % text.size()];
    const auto& avoid = vocabulary_.not_used;
    if (!text.empty() || std::find(avoid.begin(), avoid.end(), id) == avoid.end()) {
      prompt->push_back(id);
    }
  }
}

// The time t at which the expected number of arrivals, the integral of the rate, reaches the sum
// of unit exponentials: r t^2 / (2 ramp) while it rises, r (t - ramp / 2) behind.
double PoissonArrivals::Next() {
  expected_ += random_.Exponential();
  const double in_ramp = per_second_ * ramp_seconds_ / 2;
  if (expected_ < in_ramp) return std::sqrt(2 * ramp_seconds_ * expected_ / per_second_);
  return expected_ / per_second_ + ramp_seconds_ / 2;
}

}  // namespace fixpoint::client
