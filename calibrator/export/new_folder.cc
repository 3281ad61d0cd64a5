#include "calibrator/export/new_folder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace fixpoint {
namespace {

namespace fs = std::filesystem;

absl::Status SystemError(const std::string& path, absl::string_view what, int error) {
  return absl::ErrnoToStatus(error, absl::StrCat(path, ": ", what));
}

// "a/b/" names the same folder as "a/b", but has no file name.
std::string WithoutTrailingSlash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

absl::Status SyncFolder(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return SystemError(path, "open", errno);
  const int result = ::fsync(fd);
  const int error = errno;
  ::close(fd);
  return result == 0 ? absl::OkStatus() : SystemError(path, "fsync", error);
}

std::string ParentOf(const std::string& target) {
  const std::string parent = fs::path(target).parent_path().string();
  return parent.empty() ? "." : parent;
}

}  // namespace

absl::Status NewFolder::Check(const std::string& given) {
  const std::string target = WithoutTrailingSlash(given);
  if (target.empty()) return absl::InvalidArgumentError("the name of the new folder is empty");
  std::error_code error;
  const fs::file_status status = fs::symlink_status(target, error);
  if (status.type() == fs::file_type::directory) {
    const bool empty = fs::is_empty(target, error);
    if (error) return SystemError(target, "cannot be read", error.value());
    if (!empty) {
      return absl::AlreadyExistsError(
          absl::StrCat(target, ": exists and is not empty; give a new folder"));
    }
  } else if (status.type() != fs::file_type::not_found) {
    return absl::AlreadyExistsError(absl::StrCat(target, ": exists and is no folder"));
  }
  const std::string parent = ParentOf(target);
  if (!fs::is_directory(parent, error))
    return absl::NotFoundError(absl::StrCat(target, ": the folder ", parent, " does not exist"));
  if (::access(parent.c_str(), W_OK | X_OK) != 0)
    return SystemError(target, absl::StrCat("the folder ", parent, " cannot be written"), errno);
  return absl::OkStatus();
}

absl::StatusOr<NewFolder> NewFolder::Create(const std::string& given) {
  RETURN_IF_ERROR(Check(given));
  const std::string target = WithoutTrailingSlash(given);
  static std::atomic<int> counter = 0;
  std::string path = absl::StrCat(target, ".tmp.", ::getpid(), "-", counter.fetch_add(1));
  if (::mkdir(path.c_str(), 0777) != 0) return SystemError(path, "mkdir", errno);
  return NewFolder(target, std::move(path));
}

NewFolder::NewFolder(NewFolder&& other) noexcept
    : target_(std::move(other.target_)), path_(std::exchange(other.path_, {})) {}

NewFolder::~NewFolder() {
  if (path_.empty()) return;
  std::error_code error;  // nothing more can be done about a folder that cannot be removed
  fs::remove_all(path_, error);
}

absl::Status NewFolder::Commit() {
  RETURN_IF_ERROR(SyncFolder(path_));
  // Replaces an empty folder, and nothing else.
  if (::rename(path_.c_str(), target_.c_str()) != 0)
    return SystemError(target_, absl::StrCat("rename of ", path_), errno);
  path_.clear();
  return SyncFolder(ParentOf(target_));
}

}  // namespace fixpoint
