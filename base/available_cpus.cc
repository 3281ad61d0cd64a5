#include "base/available_cpus.h"

#include <sched.h>

#include <algorithm>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/cgroup.h"
#include "base/file.h"

namespace fixpoint {
namespace {

constexpr uint64_t kMaxFileBytes = 4096;

// "QUOTA PERIOD" in microseconds; "max" (v2) and -1 (v1) are no limit.
std::string QuotaAndPeriod(const CgroupFolder& folder) {
  if (folder.unified) {
    return ReadWholeFile(absl::StrCat(folder.path, "/cpu.max"), kMaxFileBytes).value_or("");
  }
  return absl::StrCat(
      ReadWholeFile(absl::StrCat(folder.path, "/cpu.cfs_quota_us"), kMaxFileBytes).value_or(""),
      " ",
      ReadWholeFile(absl::StrCat(folder.path, "/cpu.cfs_period_us"), kMaxFileBytes).value_or(""));
}

}  // namespace

int AvailableCpuCount(const std::string& root) {
  cpu_set_t allowed;
  int64_t count = sched_getaffinity(0, sizeof(allowed), &allowed) == 0 ? CPU_COUNT(&allowed) : 1;
  for (const CgroupFolder& folder : CgroupFolders("cpu", root)) {
    const std::string text = QuotaAndPeriod(folder);
    const std::vector<absl::string_view> words =
        absl::StrSplit(text, absl::ByAnyChar(" \n"), absl::SkipEmpty());
    int64_t quota = 0, period = 0;
    if (words.size() == 2 && absl::SimpleAtoi(words[0], &quota) &&
        absl::SimpleAtoi(words[1], &period) && quota > 0 && period > 0) {
      count = std::min(count, quota / period);
    }
  }
  return static_cast<int>(std::max<int64_t>(count, 1));
}

}  // namespace fixpoint
