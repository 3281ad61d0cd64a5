// What one rendering may still use up.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace fixpoint {

// Every node evaluated and every item touched is a step; so are 64 bytes of string made or read,
// which bounds memory as well.
class Budget {
 public:
  Budget(int64_t max_steps, int max_depth)
      : max_steps_(max_steps), steps_left_(max_steps), max_depth_(max_depth) {}

  absl::Status Charge(int64_t steps) {
    steps_left_ -= steps;
    return Check();
  }
  absl::Status ChargeBytes(size_t bytes) { return Charge(1 + static_cast<int64_t>(bytes / 64)); }
  // For code that counts down by itself; Check() then says whether it went too far.
  int64_t* steps_left() { return &steps_left_; }
  absl::Status Check() const {
    if (steps_left_ >= 0) return absl::OkStatus();
    return absl::ResourceExhaustedError(
        absl::StrCat("chat template takes over ", max_steps_, " steps"));
  }
  int max_depth() const { return max_depth_; }

 private:
  int64_t max_steps_;
  int64_t steps_left_;
  int max_depth_;
};

}  // namespace fixpoint
