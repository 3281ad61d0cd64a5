#include "base/available_memory.h"

#include <algorithm>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/status_macros.h"

namespace fixpoint {
namespace {

constexpr uint64_t kMaxFileBytes = 1 << 20;

// The number behind `name` at the start of a line.
absl::StatusOr<int64_t> Field(const std::string& text, absl::string_view name,
                              const std::string& path) {
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    if (line.substr(0, name.size()) != name) continue;
    line.remove_prefix(name.size());
    const std::vector<absl::string_view> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    int64_t value = 0;
    if (!words.empty() && absl::SimpleAtoi(words[0], &value)) return value;
  }
  return absl::InvalidArgumentError(absl::StrCat(path, " has no number for '", name, "'"));
}

// What one cgroup folder has left; the largest number where it sets no limit.
absl::StatusOr<int64_t> CgroupBytes(const std::string& folder) {
  const absl::StatusOr<std::string> limit =
      ReadWholeFile(absl::StrCat(folder, "/memory.max"), kMaxFileBytes);
  // The root cgroup has no such file.
  if (!limit.ok() || limit->starts_with("max")) return INT64_MAX;
  int64_t most = 0, used = 0;
  ASSIGN_OR_RETURN(const std::string current,
                   ReadWholeFile(absl::StrCat(folder, "/memory.current"), kMaxFileBytes));
  if (!absl::SimpleAtoi(*limit, &most) || !absl::SimpleAtoi(current, &used)) {
    return absl::InvalidArgumentError(
        absl::StrCat(folder, ": memory.max or memory.current is no number"));
  }
  const std::string stat_path = absl::StrCat(folder, "/memory.stat");
  ASSIGN_OR_RETURN(const std::string stat, ReadWholeFile(stat_path, kMaxFileBytes));
  ASSIGN_OR_RETURN(const int64_t droppable, Field(stat, "inactive_file ", stat_path));
  return std::max<int64_t>(most - used + droppable, 0);
}

}  // namespace

absl::StatusOr<int64_t> AvailableMemoryBytes(const std::string& root) {
  const std::string meminfo = absl::StrCat(root, "/proc/meminfo");
  ASSIGN_OR_RETURN(const std::string text, ReadWholeFile(meminfo, kMaxFileBytes));
  ASSIGN_OR_RETURN(const int64_t kibibytes, Field(text, "MemAvailable:", meminfo));
  int64_t least = kibibytes * 1024;
  const absl::StatusOr<std::string> groups =
      ReadWholeFile(absl::StrCat(root, "/proc/self/cgroup"), kMaxFileBytes);
  if (!groups.ok()) return least;
  for (absl::string_view line : absl::StrSplit(*groups, '\n')) {
    constexpr absl::string_view kHierarchy = "0::/";
    if (line.substr(0, kHierarchy.size()) != kHierarchy) continue;
    // From this process' cgroup up: a parent may be smaller.
    std::string path(line.substr(kHierarchy.size()));
    while (true) {
      ASSIGN_OR_RETURN(const int64_t left,
                       CgroupBytes(absl::StrCat(root, "/sys/fs/cgroup/", path)));
      least = std::min(least, left);
      if (path.empty()) break;
      const size_t slash = path.rfind('/');
      path.resize(slash == std::string::npos ? 0 : slash);
    }
  }
  return least;
}

}  // namespace fixpoint
