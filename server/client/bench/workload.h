// What a load generator asks: a function of seed and request number alone, so that two runs, or two
// servers, get the same requests whatever the timing. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "fixpoint/v1/generation.pb.h"

namespace fixpoint::client {

// Random numbers by key: the same for the same (seed, stream, draw), on every platform.
class KeyedRandom {
 public:
  KeyedRandom(uint64_t seed, uint64_t stream) : seed_(seed), stream_(stream) {}
  uint64_t Bits();
  double Uniform();                // [0, 1)
  uint64_t Below(uint64_t bound);  // [0, bound), bound >= 1
  double Exponential();            // mean 1
  double Normal();                 // mean 0, deviation 1

 private:
  uint64_t seed_;
  uint64_t stream_;
  uint64_t draw_ = 0;
};

// A number of tokens.
struct LengthDistribution {
  enum class Kind { kFixed, kUniform, kLogNormal };
  Kind kind = Kind::kFixed;
  double median = 0;  // kFixed: the length itself
  double sigma = 0;   // kLogNormal: deviation of the logarithm
  int64_t least = 1;
  int64_t most = 1;  // kLogNormal without bounds: kNoBound

  static constexpr int64_t kNoBound = int64_t{1} << 31;

  // "128" or "fixed:128", "uniform:16:512", "lognormal:MEDIAN:SIGMA[:LEAST:MOST]". Lengths are 1
  // to 2^31, sigma is above 0 and at most 10. INVALID_ARGUMENT names `flag`.
  static absl::StatusOr<LengthDistribution> Parse(absl::string_view flag, absl::string_view text);
  // kLogNormal: values outside its bounds are moved to them.
  int64_t Draw(KeyedRandom* random) const;
  std::string ToString() const;
};

struct WorkloadOptions {
  uint64_t seed = 0;
  LengthDistribution prompt_tokens;
  LengthDistribution output_tokens;
  double shared_share = 0;      // of requests that begin with a shared prefix
  int64_t shared_tokens = 0;    // its length
  int64_t shared_prefixes = 1;  // how many different ones there are
  double cancel_share = 0;      // of requests that are left before their end
};

// What the prompts are made of.
struct Vocabulary {
  uint32_t size = 0;
  std::vector<uint32_t> not_used;  // end and begin of sequence
  std::vector<uint32_t> text;      // prompts are pieces of it; empty: random tokens
  int64_t max_prompt_tokens = 0;
  int64_t max_context_tokens = 0;
};

struct RequestSpec {
  std::vector<uint32_t> prompt;
  uint32_t max_tokens = 1;
  bool shared = false;
  int64_t cancel_after = -1;  // leave after so many tokens (0: at `started`); -1: stay
};

// Thread-safe.
class Workload {
 public:
  // INVALID_ARGUMENT when lengths that the distributions can give do not fit the model; lognormal
  // ones are limited to what fits.
  static absl::StatusOr<Workload> Create(WorkloadOptions options, Vocabulary vocabulary);

  RequestSpec Get(uint64_t number) const;

 private:
  Workload(WorkloadOptions options, Vocabulary vocabulary)
      : options_(std::move(options)), vocabulary_(std::move(vocabulary)) {}
  // Appends tokens until `prompt` has `length`.
  void Fill(KeyedRandom random, int64_t length, std::vector<uint32_t>* prompt) const;

  WorkloadOptions options_;
  Vocabulary vocabulary_;
};

// Arrival times of an open loop: a Poisson process whose rate rises linearly from 0 to `per_second`
// over `ramp_seconds` and then stays. Not thread-safe.
class PoissonArrivals {
 public:
  PoissonArrivals(uint64_t seed, double per_second, double ramp_seconds)
      : random_(seed, ~uint64_t{0}), per_second_(per_second), ramp_seconds_(ramp_seconds) {}
  // Seconds from the start, rising.
  double Next();

 private:
  KeyedRandom random_;
  const double per_second_;
  const double ramp_seconds_;
  double expected_ = 0;  // arrivals up to now, by the rate
};

}  // namespace fixpoint::client
