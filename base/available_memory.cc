#include "base/available_memory.h"

#include <algorithm>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/cgroup.h"
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

struct MemoryFiles {
  const char* limit;
  const char* used;
  const char* droppable;  // line of memory.stat
};
constexpr MemoryFiles kUnified = {"memory.max", "memory.current", "inactive_file "};
constexpr MemoryFiles kFirstVersion = {"memory.limit_in_bytes", "memory.usage_in_bytes",
                                       "total_inactive_file "};

// What one cgroup folder has left; the largest number where it sets no limit (the first version
// then has a limit near it).
absl::StatusOr<int64_t> CgroupBytes(const CgroupFolder& folder) {
  const MemoryFiles& files = folder.unified ? kUnified : kFirstVersion;
  const absl::StatusOr<std::string> limit =
      ReadWholeFile(absl::StrCat(folder.path, "/", files.limit), kMaxFileBytes);
  // The root cgroup of v2 has no such file.
  if (!limit.ok() || limit->starts_with("max")) return INT64_MAX;
  int64_t most = 0, used = 0;
  ASSIGN_OR_RETURN(const std::string current,
                   ReadWholeFile(absl::StrCat(folder.path, "/", files.used), kMaxFileBytes));
  if (!absl::SimpleAtoi(*limit, &most) || !absl::SimpleAtoi(current, &used)) {
    return absl::InvalidArgumentError(
        absl::StrCat(folder.path, ": ", files.limit, " or ", files.used, " is no number"));
  }
  const std::string stat_path = absl::StrCat(folder.path, "/memory.stat");
  ASSIGN_OR_RETURN(const std::string stat, ReadWholeFile(stat_path, kMaxFileBytes));
  ASSIGN_OR_RETURN(const int64_t droppable, Field(stat, files.droppable, stat_path));
  return std::max<int64_t>(most - used + droppable, 0);
}

}  // namespace

absl::StatusOr<int64_t> AvailableMemoryBytes(const std::string& root) {
  const std::string meminfo = absl::StrCat(root, "/proc/meminfo");
  ASSIGN_OR_RETURN(const std::string text, ReadWholeFile(meminfo, kMaxFileBytes));
  ASSIGN_OR_RETURN(const int64_t kibibytes, Field(text, "MemAvailable:", meminfo));
  int64_t least = kibibytes * 1024;
  for (const CgroupFolder& folder : CgroupFolders("memory", root)) {
    ASSIGN_OR_RETURN(const int64_t left, CgroupBytes(folder));
    least = std::min(least, left);
  }
  return least;
}

}  // namespace fixpoint
