#include "server/calibration_cache.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "bundle/bundle.h"
#include "bundle/format.h"
#include "server/child_process.h"
#include "server/log.h"

namespace fixpoint {
namespace {

namespace fs = std::filesystem;

constexpr char kBundleSuffix[] = ".fixpoint";

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// The checkpoint's files, sorted: the file itself, or the regular files of a directory (hidden ones
// are not part of a model).
absl::StatusOr<std::vector<fs::path>> CheckpointFiles(const std::string& path) {
  std::vector<fs::path> files;
  std::error_code error;
  if (!fs::is_directory(path, error)) return std::vector<fs::path>{path};
  for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    if (it->path().filename().string().front() == '.') continue;
    if (it->is_regular_file(error)) files.push_back(it->path());
  }
  if (error) return absl::InternalError(absl::StrCat("cannot list ", path, ": ", error.message()));
  std::sort(files.begin(), files.end());
  return files;
}

absl::StatusOr<std::string> CalibratorProgram() {
  std::string program = Environment("FIXPOINT_CALIBRATE");
  if (program.empty()) {
    std::error_code error;
    const fs::path self = fs::read_symlink("/proc/self/exe", error);
    if (error)
      return absl::InternalError(absl::StrCat("cannot find the own program: ", error.message()));
    program = (self.parent_path() / "fixpoint-calibrate").string();
  }
  if (access(program.c_str(), X_OK) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("a checkpoint needs the calibrator, but there is no program ", program,
                     "; set FIXPOINT_CALIBRATE or give a .fixpoint bundle"));
  }
  return program;
}

}  // namespace

absl::StatusOr<ModelKind> ClassifyModel(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status))
    return absl::NotFoundError(absl::StrCat(path, ": no such file or directory"));
  if (fs::is_directory(status)) return ModelKind::kCheckpoint;
  if (LooksLikeBundle(path) || absl::EndsWith(path, kBundleSuffix)) return ModelKind::kBundle;
  ASSIGN_OR_RETURN(const RandomAccessFile file, RandomAccessFile::Open(path));
  char magic[4] = {};
  if (file.size() >= sizeof(magic)) RETURN_IF_ERROR(file.ReadAt(0, sizeof(magic), magic));
  if (absl::string_view(magic, sizeof(magic)) == "GGUF") return ModelKind::kCheckpoint;
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": neither a bundle, a GGUF file nor a directory"));
}

absl::StatusOr<std::string> CheckpointDigest(const std::string& path) {
  ASSIGN_OR_RETURN(const std::vector<fs::path> files, CheckpointFiles(path));
  Sha256 digest;
  digest.Update(absl::StrCat("bundle version ", kBundleVersion, ", numerics version ",
                             kNumericsVersion, "\n"));
  for (const fs::path& name : files) {
    ASSIGN_OR_RETURN(const RandomAccessFile file, RandomAccessFile::Open(name.string()));
    ASSIGN_OR_RETURN(const std::string contents, file.Sha256Hex());
    // The name of a single file does not matter, those inside a directory do.
    digest.Update(
        absl::StrCat(files.size() == 1 ? "" : name.filename().string(), "\n", contents, "\n"));
  }
  return digest.FinishHex();
}

absl::StatusOr<std::string> CacheFolder() {
  if (const std::string folder = Environment("FIXPOINT_CACHE"); !folder.empty()) return folder;
  if (const std::string cache = Environment("XDG_CACHE_HOME"); !cache.empty())
    return cache + "/fixpoint";
  if (const std::string home = Environment("HOME"); !home.empty()) return home + "/.cache/fixpoint";
  return absl::FailedPreconditionError("no folder for calibrated bundles: set FIXPOINT_CACHE");
}

absl::StatusOr<std::string> BundleOfCheckpoint(const CalibrationRequest& request,
                                               bool ignore_cached, const StopSignal& stop) {
  ASSIGN_OR_RETURN(const std::string folder, CacheFolder());
  ASSIGN_OR_RETURN(const std::string digest, CheckpointDigest(request.checkpoint));
  const std::string bundle = absl::StrCat(folder, "/", digest, kBundleSuffix);
  if (!ignore_cached && LooksLikeBundle(bundle)) {
    LogLine(LogLevel::kInfo, "calibration_cached").Add("source_digest", digest).Write();
    return bundle;
  }
  ASSIGN_OR_RETURN(const std::string program, CalibratorProgram());
  std::error_code error;
  fs::create_directories(folder, error);
  if (error)
    return absl::UnavailableError(absl::StrCat("cannot create ", folder, ": ", error.message()));
  std::vector<std::string> arguments = {program, request.checkpoint, "-o",
                                        bundle,  "--progress",       request.progress};
  if (request.threads > 0) {
    arguments.push_back("--threads");
    arguments.push_back(absl::StrCat(request.threads));
  }
  LogLine(LogLevel::kInfo, "calibration_started").Add("source_digest", digest).Write();
  RETURN_IF_ERROR(RunChild(arguments, stop));
  return bundle;
}

}  // namespace fixpoint
