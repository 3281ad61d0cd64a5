// A folder that appears under its name only when complete.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace fixpoint {

// Files are written into `path()`, a new sibling "<target>.tmp.<pid>-<n>"; Commit renames it to the
// target. Destroyed before, it removes what it made; a killed process leaves that sibling and
// nothing else. Movable.
class NewFolder {
 public:
  // The target must not exist, or be an empty folder. ALREADY_EXISTS, NOT_FOUND (no parent) and
  // what mkdir says, each naming the target. Creates nothing when it fails.
  static absl::StatusOr<NewFolder> Create(const std::string& target);
  // The checks of Create without making anything: a mistake should not be found out after minutes.
  static absl::Status Check(const std::string& target);

  NewFolder(NewFolder&& other) noexcept;
  NewFolder& operator=(NewFolder&&) = delete;
  NewFolder(const NewFolder&) = delete;
  ~NewFolder();

  const std::string& path() const { return path_; }

  // fsync of the folder, rename, fsync of the parent. The target may have come into being since
  // Create: then it is left alone and the new folder removed.
  absl::Status Commit();

 private:
  NewFolder(std::string target, std::string path)
      : target_(std::move(target)), path_(std::move(path)) {}

  std::string target_;
  std::string path_;  // empty: committed or moved from
};

}  // namespace fixpoint
