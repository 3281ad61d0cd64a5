#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/status_macros.h"

namespace fixpoint {
namespace {

constexpr uint64_t kPieceBytes = 1 << 20;
// Linux moves at most this much in one read or write; a bound below ssize_t's keeps the casts safe.
constexpr uint64_t kMaxTransferBytes = 1 << 30;

absl::Status SystemError(int error, absl::string_view action, const std::string& path) {
  return absl::ErrnoToStatus(error, absl::StrCat("cannot ", action, " '", path, "'"));
}

int OpenRetrying(const char* path, int flags, mode_t mode = 0) {
  int fd;
  do {
    fd = ::open(path, flags | O_CLOEXEC, mode);
  } while (fd < 0 && errno == EINTR);
  return fd;
}

// Closes a descriptor for reading: nothing can be lost by an error here.
class DescriptorCloser {
 public:
  explicit DescriptorCloser(int fd) : fd_(fd) {}
  DescriptorCloser(const DescriptorCloser&) = delete;
  ~DescriptorCloser() { ::close(fd_); }

 private:
  int fd_;
};

// Number of bytes read, fewer than asked only at the end of the file.
absl::StatusOr<uint64_t> ReadFully(int fd, const std::string& path, char* out, uint64_t num_bytes) {
  uint64_t done = 0;
  while (done < num_bytes) {
    const ssize_t n = ::read(fd, out + done, std::min(num_bytes - done, kMaxTransferBytes));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return SystemError(errno, "read", path);
    if (n == 0) break;
    done += static_cast<uint64_t>(n);
  }
  return done;
}

absl::Status TooLong(const std::string& path, uint64_t max_bytes) {
  return absl::OutOfRangeError(
      absl::StrCat("'", path, "' is longer than the limit of ", max_bytes, " bytes"));
}

std::string FolderOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

absl::StatusOr<std::string> ReadWholeFile(const std::string& path, uint64_t max_bytes) {
  const int fd = OpenRetrying(path.c_str(), O_RDONLY);
  if (fd < 0) return SystemError(errno, "open", path);
  const DescriptorCloser closer(fd);
  struct stat info;
  if (::fstat(fd, &info) != 0) return SystemError(errno, "stat", path);
  if (S_ISDIR(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat("'", path, "' is a directory"));
  }
  const bool regular = S_ISREG(info.st_mode) && info.st_size > 0;
  const uint64_t expected = regular ? static_cast<uint64_t>(info.st_size) : 0;
  if (expected > max_bytes) return TooLong(path, max_bytes);
  std::string contents;
  // One byte more than expected tells the end of the file from a file that is still growing.
  uint64_t piece = expected == 0 ? kPieceBytes : expected + 1;
  for (;;) {
    const size_t old_size = contents.size();
    contents.resize(old_size + piece);
    ASSIGN_OR_RETURN(const uint64_t n, ReadFully(fd, path, contents.data() + old_size, piece));
    contents.resize(old_size + n);
    if (contents.size() > max_bytes) return TooLong(path, max_bytes);
    if (n < piece) return contents;
    piece = kPieceBytes;
  }
}

absl::StatusOr<RandomAccessFile> RandomAccessFile::Open(const std::string& path) {
  // Without O_NONBLOCK the open of a pipe that has no writer would hang.
  const int fd = OpenRetrying(path.c_str(), O_RDONLY | O_NONBLOCK);
  if (fd < 0) return SystemError(errno, "open", path);
  RandomAccessFile file(path, fd, 0);
  struct stat info;
  if (::fstat(fd, &info) != 0) return SystemError(errno, "stat", path);
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat("'", path, "' is not a regular file"));
  }
  file.size_ = static_cast<uint64_t>(info.st_size);
  return file;
}

RandomAccessFile::RandomAccessFile(RandomAccessFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), size_(other.size_) {}

RandomAccessFile& RandomAccessFile::operator=(RandomAccessFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(size_, other.size_);
  return *this;
}

RandomAccessFile::~RandomAccessFile() {
  if (fd_ >= 0) ::close(fd_);
}

absl::Status RandomAccessFile::ReadAt(uint64_t offset, uint64_t num_bytes, void* out) const {
  if (offset > size_ || num_bytes > size_ - offset) {
    return absl::DataLossError(absl::StrCat("'", path_, "' has ", size_, " bytes; ", num_bytes,
                                            " bytes at offset ", offset, " are missing"));
  }
  uint64_t done = 0;
  while (done < num_bytes) {
    const ssize_t n =
        ::pread(fd_, static_cast<char*>(out) + done, std::min(num_bytes - done, kMaxTransferBytes),
                static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return SystemError(errno, "read", path_);
    if (n == 0) {
      return absl::DataLossError(absl::StrCat("'", path_, "' ended at offset ", offset + done,
                                              " while being read; it had ", size_,
                                              " bytes when opened"));
    }
    done += static_cast<uint64_t>(n);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> RandomAccessFile::ReadAll(uint64_t max_bytes) const {
  if (size_ > max_bytes) return TooLong(path_, max_bytes);
  std::string contents(size_, '\0');
  RETURN_IF_ERROR(ReadAt(0, size_, contents.data()));
  return contents;
}

absl::StatusOr<std::string> RandomAccessFile::Sha256Hex() const {
  std::string piece(std::min(size_, kPieceBytes), '\0');
  Sha256 sha;
  for (uint64_t offset = 0; offset < size_; offset += kPieceBytes) {
    const uint64_t n = std::min(kPieceBytes, size_ - offset);
    RETURN_IF_ERROR(ReadAt(offset, n, piece.data()));
    sha.Update(piece.data(), n);
  }
  return sha.FinishHex();
}

absl::StatusOr<AtomicFileWriter> AtomicFileWriter::Create(const std::string& path) {
  static std::atomic<uint32_t> counter{0};
  // A name may be taken by the leftover of a killed process that had our pid: try the next one.
  for (int attempt = 0; attempt < 1000; ++attempt) {
    std::string temporary = absl::StrCat(path, ".tmp.", ::getpid(), "-", counter.fetch_add(1));
    const int fd = OpenRetrying(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL, 0666);
    if (fd >= 0) return AtomicFileWriter(path, std::move(temporary), fd);
    if (errno != EEXIST) return SystemError(errno, "create", temporary);
  }
  return absl::AlreadyExistsError(
      absl::StrCat("cannot create a temporary file beside '", path, "': 1000 names are taken"));
}

AtomicFileWriter::AtomicFileWriter(AtomicFileWriter&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_path_(std::move(other.temporary_path_)),
      fd_(std::exchange(other.fd_, -1)),
      appended_bytes_(other.appended_bytes_) {}

AtomicFileWriter& AtomicFileWriter::operator=(AtomicFileWriter&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(temporary_path_, other.temporary_path_);
  std::swap(fd_, other.fd_);
  std::swap(appended_bytes_, other.appended_bytes_);
  return *this;
}

AtomicFileWriter::~AtomicFileWriter() { Discard(); }

void AtomicFileWriter::Discard() {
  if (fd_ < 0) return;
  ::close(fd_);
  fd_ = -1;
  ::unlink(temporary_path_.c_str());
}

absl::Status AtomicFileWriter::Append(const void* data, uint64_t num_bytes) {
  RETURN_IF_ERROR(WriteAt(appended_bytes_, data, num_bytes));
  appended_bytes_ += num_bytes;
  return absl::OkStatus();
}

absl::Status AtomicFileWriter::WriteAt(uint64_t offset, const void* data, uint64_t num_bytes) {
  if (fd_ < 0) {
    return absl::FailedPreconditionError(absl::StrCat("'", path_, "' is not open for writing"));
  }
  uint64_t done = 0;
  while (done < num_bytes) {
    const ssize_t n =
        ::pwrite(fd_, static_cast<const char*>(data) + done,
                 std::min(num_bytes - done, kMaxTransferBytes), static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      return SystemError(errno, absl::StrCat("write at offset ", offset + done, " of"),
                         temporary_path_);
    }
    done += static_cast<uint64_t>(n);
  }
  return absl::OkStatus();
}

absl::Status AtomicFileWriter::Commit() {
  if (fd_ < 0) {
    return absl::FailedPreconditionError(absl::StrCat("'", path_, "' is not open for writing"));
  }
  if (::fsync(fd_) != 0) {
    const int error = errno;
    Discard();
    return SystemError(error, "fsync", temporary_path_);
  }
  // Some file systems report a failed write only here.
  if (::close(std::exchange(fd_, -1)) != 0) {
    const int error = errno;
    ::unlink(temporary_path_.c_str());
    return SystemError(error, "close", temporary_path_);
  }
  if (::rename(temporary_path_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    ::unlink(temporary_path_.c_str());
    return SystemError(error, "rename a temporary file to", path_);
  }
  const std::string folder = FolderOf(path_);
  const int folder_fd = OpenRetrying(folder.c_str(), O_RDONLY | O_DIRECTORY);
  if (folder_fd < 0) return SystemError(errno, "open the folder", folder);
  const DescriptorCloser closer(folder_fd);
  if (::fsync(folder_fd) != 0) return SystemError(errno, "fsync the folder", folder);
  return absl::OkStatus();
}

absl::Status WriteFileAtomically(const std::string& path, absl::string_view contents) {
  ASSIGN_OR_RETURN(AtomicFileWriter writer, AtomicFileWriter::Create(path));
  RETURN_IF_ERROR(writer.Append(contents));
  return writer.Commit();
}

}  // namespace fixpoint
