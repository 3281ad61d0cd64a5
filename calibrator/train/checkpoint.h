// A training run on disk, so that a killed run goes on to the same result.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "calibrator/train/trainer.h"

namespace fixpoint {

// Little endian: "FPTRAIN1", the run's fingerprint (64 hexadecimal digits), counters, parameters,
// moments, best parameters, points, SHA-256 of all before it. Replaces an older file of the name
// only when it is complete.
absl::Status WriteCheckpoint(const std::string& path, const std::string& fingerprint,
                             const TrainState& state);

// NOT_FOUND without a file. FAILED_PRECONDITION when it belongs to another run: other model, text,
// settings or seed. DATA_LOSS when it is damaged. `parameters` is the number that the run has.
absl::StatusOr<TrainState> ReadCheckpoint(const std::string& path, const std::string& fingerprint,
                                          int64_t parameters);

}  // namespace fixpoint
