// How much memory this process can still take.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace fixpoint {

// Bytes: the smallest of what the machine has left (MemAvailable of /proc/meminfo) and what each
// cgroup above this process has left (its limit less what it uses, file pages that can be dropped
// counted as left). A cgroup without a limit, or no cgroup, sets none. An error names the file of
// the kernel that does not read. `root` is the place of proc and sys, for tests.
absl::StatusOr<int64_t> AvailableMemoryBytes(const std::string& root = "/");

}  // namespace fixpoint
