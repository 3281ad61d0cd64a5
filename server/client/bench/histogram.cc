#include "server/client/bench/histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace fixpoint::client {
namespace {

// Values below 2^7 have a bucket each; above, each octave has 2^7.
constexpr int kBits = 7;
constexpr uint64_t kSteps = uint64_t{1} << kBits;

size_t BucketOf(uint64_t value) {
  if (value < kSteps) return value;
  const int shift = std::bit_width(value) - 1 - kBits;
  return static_cast<size_t>((static_cast<uint64_t>(shift) + 1) * kSteps +
                             ((value >> shift) - kSteps));
}

// The largest value of the bucket.
int64_t UpperEnd(size_t bucket) {
  if (bucket < kSteps) return static_cast<int64_t>(bucket);
  const uint64_t shift = bucket / kSteps - 1;
  return static_cast<int64_t>(((kSteps + bucket % kSteps + 1) << shift) - 1);
}

}  // namespace

void LatencyHistogram::Add(int64_t nanos) {
  const int64_t value = std::clamp<int64_t>(nanos, 0, kMaxNanos);
  const size_t bucket = BucketOf(static_cast<uint64_t>(value));
  if (bucket >= buckets_.size()) buckets_.resize(bucket + 1);
  ++buckets_[bucket];
  ++count_;
  max_ = std::max(max_, value);
  sum_ += static_cast<double>(value);
}

void LatencyHistogram::Merge(const LatencyHistogram& other) {
  if (other.buckets_.size() > buckets_.size()) buckets_.resize(other.buckets_.size());
  for (size_t i = 0; i < other.buckets_.size(); ++i) buckets_[i] += other.buckets_[i];
  count_ += other.count_;
  max_ = std::max(max_, other.max_);
  sum_ += other.sum_;
}

int64_t LatencyHistogram::Percentile(double share) const {
  if (count_ == 0) return 0;
  const double rank = std::ceil(std::clamp(share, 0.0, 1.0) * static_cast<double>(count_));
  const uint64_t wanted = std::max<uint64_t>(1, static_cast<uint64_t>(rank));
  uint64_t seen = 0;
  for (size_t i = 0; i < buckets_.size(); ++i) {
    seen += buckets_[i];
    if (seen >= wanted) return std::min(UpperEnd(i), max_);
  }
  return max_;
}

}  // namespace fixpoint::client
