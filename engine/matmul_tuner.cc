#include "engine/matmul_tuner.h"

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace fixpoint {

absl::StatusOr<std::optional<MatmulAlgorithm>> MatmulTuner::Choose(const CudaMatmul& matmul) {
  shape_ = ShapeOf(matmul);
  RETURN_IF_ERROR(trials_.Begin(matmul));
  if (const MatmulAlgorithm* remembered = cache_.Find(shape_)) {
    ASSIGN_OR_RETURN(const bool right, Right(*remembered));
    if (right) return *remembered;
  }
  ASSIGN_OR_RETURN(const std::optional<MatmulAlgorithm> fastest, Fastest());
  if (fastest.has_value()) {
    cache_.Put(shape_, *fastest);
  } else {
    cache_.Forget(shape_);
    log_(absl::StrCat("cuBLASLt has no right algorithm for the int8 product ", Describe(shape_),
                      ": it runs on our own kernel"));
  }
  return fastest;
}

absl::StatusOr<std::optional<MatmulAlgorithm>> MatmulTuner::Fastest() {
  const absl::StatusOr<std::vector<MatmulAlgorithm>> candidates =
      trials_.Candidates(kMatmulCandidates);
  if (absl::IsUnimplemented(candidates.status())) return std::optional<MatmulAlgorithm>();
  RETURN_IF_ERROR(candidates.status());
  std::optional<MatmulAlgorithm> fastest;
  double least = 0;
  for (const MatmulAlgorithm& candidate : *candidates) {
    ASSIGN_OR_RETURN(const bool right, Right(candidate));
    if (!right) continue;
    const absl::StatusOr<double> seconds = trials_.Seconds(candidate);
    if (absl::IsUnimplemented(seconds.status())) continue;
    RETURN_IF_ERROR(Annotate(seconds.status(), What(candidate)));
    if (fastest.has_value() && *seconds >= least) continue;
    fastest = candidate;
    least = *seconds;
  }
  return fastest;
}

absl::StatusOr<bool> MatmulTuner::Right(const MatmulAlgorithm& algorithm) {
  const absl::Status status = trials_.Check(algorithm);
  if (status.ok()) return true;
  if (!absl::IsDataLoss(status) && !absl::IsUnimplemented(status)) {
    return Annotate(status, What(algorithm));
  }
  log_(absl::StrCat(absl::IsDataLoss(status) ? "WRONG BITS of " : "", What(algorithm), ": ",
                    status.message(), "; left out"));
  return false;
}

std::string MatmulTuner::What(const MatmulAlgorithm& algorithm) const {
  return absl::StrCat("cuBLASLt's algorithm ", trials_.Name(algorithm), " for the int8 product ",
                      Describe(shape_));
}

}  // namespace fixpoint
