// The --device flag: where the calibrator's matrix products run.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/thread_pool.h"
#include "calibrator/gemm.h"

namespace fixpoint {

// device: "cpu", or "cuda:N" with N from 0 (gemm_cuda.h, whose errors it passes on); anything else
// is INVALID_ARGUMENT. `pool` must outlive the result.
absl::StatusOr<std::unique_ptr<FloatGemm>> CreateGemm(const std::string& device, ThreadPool& pool);

}  // namespace fixpoint
