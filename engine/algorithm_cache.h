// The file of --cuda-algorithm-cache: which of cuBLASLt's algorithms were the fastest on this
// device, so that the next start need not time them again. It is no more than a hint: whatever it
// says is checked for right bits before it is used (engine/matmul_tuner.h).
//
// Text, one line each: a title with the format's version; the device (anything that makes an
// algorithm another's: GPU, multiprocessors, driver, cuBLASLt); a shape and its algorithm in
// hexadecimal, sorted; the checksum of all lines before.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/cuda_matmul.h"

namespace fixpoint {

// cublasLtMatmulAlgo_t, which NVIDIA allows to be stored for the same version of cuBLAS.
using MatmulAlgorithm = std::array<uint64_t, 8>;

inline constexpr size_t kMaxCachedAlgorithms = 16384;  // 3 MB of text

class AlgorithmCache {
 public:
  // `device` is one line.
  explicit AlgorithmCache(std::string device) : device_(std::move(device)) {}

  // Replaces everything by what `text` says. FAILED_PRECONDITION for another device's,
  // DATA_LOSS, naming the line, for anything else that Text does not write; nothing is left then.
  absl::Status Parse(absl::string_view text);
  std::string Text() const;

  // Parse of a file. NOT_FOUND when there is none.
  absl::Status Read(const std::string& path);
  // Through a temporary file beside it, so that a reader finds the old file or the new one.
  absl::Status Write(const std::string& path) const;

  // Valid until the next change; null when there is none.
  const MatmulAlgorithm* Find(const MatmulShape& shape) const;
  // Beyond kMaxCachedAlgorithms shapes everything older is dropped.
  void Put(const MatmulShape& shape, const MatmulAlgorithm& algorithm);
  void Forget(const MatmulShape& shape);
  // Whether it differs from what was read or written last.
  bool changed() const { return changed_; }
  size_t size() const { return algorithms_.size(); }

 private:
  std::string device_;
  std::map<MatmulShape, MatmulAlgorithm> algorithms_;
  mutable bool changed_ = false;
};

}  // namespace fixpoint
