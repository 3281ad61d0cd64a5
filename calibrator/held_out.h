// The held-out mean KL of many similar static models against one float teacher.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "calibrator/evaluate.h"
#include "calibrator/float_forward.h"
#include "calibrator/site_search.h"

namespace fixpoint {

// Keeps the residual streams of the base scales: a measurement starts at the first layer whose
// scales differ from the base's, which halves the work of a site search.
class HeldOutMeasurer : public SiteMeasurer {
 public:
  // All must outlive it. `teacher` is asked in each measurement: CachedLogits. `student` has int8
  // weights and runs behind `prefix`.
  HeldOutMeasurer(LogitSource& teacher, FloatForward& student, const FloatConfig& config,
                  const FloatPrefix& prefix, const Windows& windows, ThreadPool& pool)
      : teacher_(teacher),
        student_(student),
        config_(config),
        prefix_(prefix),
        windows_(windows),
        pool_(pool) {}

  absl::Status SetBase(const Scales& scales) override;
  absl::StatusOr<double> Measure(const Scales& scales) override;

 private:
  class Student;

  absl::StatusOr<double> Run(const Scales& scales, bool record, int32_t first_layer);
  int32_t FirstDifference(const Scales& scales) const;

  LogitSource& teacher_;
  FloatForward& student_;
  const FloatConfig& config_;
  const FloatPrefix& prefix_;
  const Windows& windows_;
  ThreadPool& pool_;
  Scales base_;
  double base_kl_ = 0;
  std::vector<LayerCheckpoints> checkpoints_;  // of each batch, with the base scales
};

}  // namespace fixpoint
