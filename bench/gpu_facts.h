// What a GPU is, what its datasheet promises, and the copy bandwidth that it shows.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fixpoint {

struct GpuFacts {
  std::string name;  // as the driver says it
  int64_t multiprocessors = 0, l2_bytes = 0, memory_bytes = 0;
  int driver = 0;  // 13000: CUDA 13.0
};
absl::StatusOr<GpuFacts> ReadGpuFacts(int index);

// Bytes read and written a second by copies of 1 GiB inside the device's memory.
absl::StatusOr<double> MeasureCopyBytesPerSecond(int index);

struct Datasheet {
  const char* name;     // part of the driver's name
  double bandwidth_gb;  // GB/s of its memory
  double int8_tops;     // dense
};
// The most specific row for a driver's name; nothing for cards that are not in the table.
std::optional<Datasheet> DatasheetOf(absl::string_view name);

}  // namespace fixpoint
