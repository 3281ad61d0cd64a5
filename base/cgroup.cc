#include "base/cgroup.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"

namespace fixpoint {
namespace {

constexpr uint64_t kMaxFileBytes = 1 << 20;

// `path` below `mount` and each of its parents.
void AddUpwards(const std::string& mount, std::string path, bool unified,
                std::vector<CgroupFolder>* folders) {
  while (true) {
    folders->push_back({absl::StrCat(mount, path), unified});
    if (path.empty()) return;
    path.resize(path.rfind('/'));
  }
}

}  // namespace

std::vector<CgroupFolder> CgroupFolders(const std::string& controller, const std::string& root) {
  std::vector<CgroupFolder> folders;
  const absl::StatusOr<std::string> groups =
      ReadWholeFile(absl::StrCat(root, "/proc/self/cgroup"), kMaxFileBytes);
  if (!groups.ok()) return folders;
  // HIERARCHY:CONTROLLER[,CONTROLLER...]:/PATH; v2 is hierarchy 0 and names no controllers.
  for (absl::string_view line : absl::StrSplit(*groups, '\n')) {
    const std::vector<absl::string_view> fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3 || fields[2].empty() || fields[2][0] != '/') continue;
    const std::string path(fields[2] == "/" ? "" : fields[2]);
    const std::vector<absl::string_view> controllers = absl::StrSplit(fields[1], ',');
    const bool unified = fields[0] == "0" && fields[1].empty();
    if (unified) {
      AddUpwards(absl::StrCat(root, "/sys/fs/cgroup"), path, true, &folders);
    } else if (std::find(controllers.begin(), controllers.end(), controller) != controllers.end()) {
      AddUpwards(absl::StrCat(root, "/sys/fs/cgroup/", controller), path, false, &folders);
    }
  }
  return folders;
}

}  // namespace fixpoint
