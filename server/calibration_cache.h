// A server that is given a checkpoint: calibrates it once and keeps the bundle.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "server/stop_signal.h"

namespace fixpoint {

enum class ModelKind { kBundle, kCheckpoint };

// What `path` is: a bundle (magic, or named *.fixpoint), or a checkpoint (GGUF file, directory).
// NOT_FOUND or INVALID_ARGUMENT naming the path otherwise.
absl::StatusOr<ModelKind> ClassifyModel(const std::string& path);

// Hexadecimal SHA-256 over names and contents of the checkpoint's files and the numerics version:
// the name under which its bundle is kept. Reads everything once (about a second a gigabyte).
absl::StatusOr<std::string> CheckpointDigest(const std::string& path);

// $FIXPOINT_CACHE, else $XDG_CACHE_HOME/fixpoint, else ~/.cache/fixpoint. FAILED_PRECONDITION when
// none of them is set.
absl::StatusOr<std::string> CacheFolder();

struct CalibrationRequest {
  std::string checkpoint;
  std::string progress =
      "json";       // bar, json or none: handed to the calibrator, which writes to our stderr
  int threads = 0;  // 0: the calibrator's default
};

// Path of the checkpoint's bundle in the cache; runs fixpoint-calibrate (beside our own program, or
// $FIXPOINT_CALIBRATE) when there is none yet. CANCELLED when `stop` fires meanwhile.
absl::StatusOr<std::string> BundleOfCheckpoint(const CalibrationRequest& request,
                                               bool ignore_cached, const StopSignal& stop);

}  // namespace fixpoint
