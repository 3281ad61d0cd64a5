// Which of cuBLASLt's algorithms a product takes: each candidate has to give our own kernel's bits
// before it is timed, and the fastest is kept. The device is behind an interface, so that the
// choice is tested where there is none.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/algorithm_cache.h"
#include "engine/cuda_matmul.h"

namespace fixpoint {

// Takes one line about something that an operator should know.
using MatmulLog = std::function<void(const std::string& line)>;

inline constexpr int kMatmulCandidates = 12;  // cuBLASLt's order is an estimate

// The products of a device. A status UNIMPLEMENTED is about the algorithm or shape alone; any other
// error (but DATA_LOSS of Check) means that the device is lost.
class MatmulTrials {
 public:
  virtual ~MatmulTrials() = default;
  // Puts random data in place of `matmul.x` and works out the right result. The calls below are
  // about this product until the next Begin.
  virtual absl::Status Begin(const CudaMatmul& matmul) = 0;
  // At most `most` algorithms, the likeliest first.
  virtual absl::StatusOr<std::vector<MatmulAlgorithm>> Candidates(int most) = 0;
  // Runs the product once. DATA_LOSS names the first element that is not the right one.
  virtual absl::Status Check(const MatmulAlgorithm& algorithm) = 0;
  // Seconds that one product takes: median of several, after a warm-up.
  virtual absl::StatusOr<double> Seconds(const MatmulAlgorithm& algorithm) = 0;
  // For log lines.
  virtual std::string Name(const MatmulAlgorithm& algorithm) const = 0;
};

class MatmulTuner {
 public:
  // All outlive it.
  MatmulTuner(MatmulTrials& trials, AlgorithmCache& cache, const MatmulLog& log)
      : trials_(trials), cache_(cache), log_(log) {}

  // The algorithm for `matmul`: the cache's if it passes the check, else the fastest candidate,
  // which then goes into the cache. Nothing when cuBLASLt has none that is right. Every algorithm
  // with wrong bits is logged. Errors are the device's; those of a trial name the algorithm.
  absl::StatusOr<std::optional<MatmulAlgorithm>> Choose(const CudaMatmul& matmul);

 private:
  // Whether it may be used; why not goes to the log.
  absl::StatusOr<bool> Right(const MatmulAlgorithm& algorithm);
  absl::StatusOr<std::optional<MatmulAlgorithm>> Fastest();
  // Algorithm and shape, for log lines and errors.
  std::string What(const MatmulAlgorithm& algorithm) const;

  MatmulTrials& trials_;
  AlgorithmCache& cache_;
  const MatmulLog& log_;
  MatmulShape shape_;  // at hand
};

}  // namespace fixpoint
