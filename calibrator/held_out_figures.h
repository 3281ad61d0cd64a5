// What a calibration measures on its held-out text, all of it against the float model behind the
// start token that every text has (or behind nothing where the model has none).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/thread_pool.h"
#include "calibrator/evaluate.h"

namespace fixpoint {

struct HeldOutFigures {
  struct Model {
    std::string name;
    double perplexity = 0;
    RelativePerplexity relative;  // over float
    double kl_mean = 0;
    double top1_agreement = 0;
  };
  int64_t tokens = 0;
  double float_perplexity = 0;
  // In the order in which they were measured: "dynamic_plain", "dynamic_rotated", "int8_weights",
  // "static_int8", "untrained", "float_control" (adapted models), "static", "integer",
  // "float_prefix" (where the bundle's prefix is longer than the start token).
  std::vector<Model> models;

  // CHECK: it was measured.
  const Model& Find(const std::string& name) const;
  // Null if it was not.
  const Model* FindOrNull(const std::string& name) const;
  // Measures `source` against `teacher` and appends it.
  absl::Status Add(const std::string& name, LogitSource& teacher, LogitSource& source,
                   const Windows& held_out, ThreadPool& pool);
};

}  // namespace fixpoint
