// Latencies in bounded memory.
#pragma once

#include <cstdint>
#include <vector>

namespace fixpoint::client {

// Counts durations in buckets whose width is 1/128 of their value or less: a percentile is at most
// 0.8 % above the true one. Below 128 ns exact; from kMaxNanos (about 9 hours) on all the same.
// Not thread-safe.
class LatencyHistogram {
 public:
  static constexpr int64_t kMaxNanos = int64_t{1} << 45;

  // Negative durations (there are none on a steady clock) count as 0.
  void Add(int64_t nanos);
  void Merge(const LatencyHistogram& other);

  uint64_t count() const { return count_; }
  // The smallest bound that at least `share` (0 to 1) of all are not above: nearest rank, the upper
  // end of its bucket, never above the maximum. 0 when empty.
  int64_t Percentile(double share) const;
  int64_t max() const { return max_; }
  double mean() const { return count_ == 0 ? 0 : sum_ / static_cast<double>(count_); }

 private:
  std::vector<uint32_t> buckets_;  // as many as the largest value so far needs
  uint64_t count_ = 0;
  int64_t max_ = 0;
  double sum_ = 0;
};

}  // namespace fixpoint::client
