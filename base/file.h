// Files with every error kept: each Status names the file, what was tried and the system's reason.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace fixpoint {

// Everything up to end of file. Pipes and devices work too. More than max_bytes is OUT_OF_RANGE and
// reads no further.
absl::StatusOr<std::string> ReadWholeFile(const std::string& path, uint64_t max_bytes);

// One open regular file, read by position. pread into owned memory, never mmap: a file cut under a
// mapping is SIGBUS. Movable; reading is thread-safe.
class RandomAccessFile {
 public:
  // NOT_FOUND, or INVALID_ARGUMENT for a directory or a pipe.
  static absl::StatusOr<RandomAccessFile> Open(const std::string& path);

  RandomAccessFile(RandomAccessFile&& other) noexcept;
  RandomAccessFile& operator=(RandomAccessFile&& other) noexcept;
  RandomAccessFile(const RandomAccessFile&) = delete;
  RandomAccessFile& operator=(const RandomAccessFile&) = delete;
  ~RandomAccessFile();

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }  // in bytes, when opened

  // Fills `out` with bytes [offset, offset + num_bytes). A range behind the end, or a file that
  // became shorter since Open, is DATA_LOSS with the numbers.
  absl::Status ReadAt(uint64_t offset, uint64_t num_bytes, void* out) const;

  // The whole file, refused with OUT_OF_RANGE before any allocation when longer than max_bytes.
  absl::StatusOr<std::string> ReadAll(uint64_t max_bytes) const;

  // Lower-case hexadecimal SHA-256 of the whole file, read in pieces of 1 MiB.
  absl::StatusOr<std::string> Sha256Hex() const;

 private:
  RandomAccessFile(std::string path, int fd, uint64_t size)
      : path_(std::move(path)), fd_(fd), size_(size) {}

  std::string path_;
  int fd_ = -1;
  uint64_t size_ = 0;
};

// Writes a file that appears under its name only when complete. Until Commit an older file of that
// name is untouched; an object destroyed before Commit removes its temporary file
// ("<path>.tmp.<pid>-<n>", in the same folder). A process killed in between leaves that temporary
// file and nothing else. One thread at a time. Movable.
class AtomicFileWriter {
 public:
  static absl::StatusOr<AtomicFileWriter> Create(const std::string& path);

  AtomicFileWriter(AtomicFileWriter&& other) noexcept;
  AtomicFileWriter& operator=(AtomicFileWriter&& other) noexcept;
  AtomicFileWriter(const AtomicFileWriter&) = delete;
  AtomicFileWriter& operator=(const AtomicFileWriter&) = delete;
  ~AtomicFileWriter();

  // Adds bytes at the end of what Append wrote so far.
  absl::Status Append(const void* data, uint64_t num_bytes);
  absl::Status Append(absl::string_view text) { return Append(text.data(), text.size()); }
  // Overwrites bytes anywhere, without moving the end that Append uses.
  absl::Status WriteAt(uint64_t offset, const void* data, uint64_t num_bytes);
  uint64_t appended_bytes() const { return appended_bytes_; }

  // fsync, rename over `path`, fsync of the folder. After an error nothing more can be written; the
  // old file is intact except when only the folder's fsync failed: then the new file is in place
  // but may not survive a power cut.
  absl::Status Commit();

 private:
  AtomicFileWriter(std::string path, std::string temporary_path, int fd)
      : path_(std::move(path)), temporary_path_(std::move(temporary_path)), fd_(fd) {}
  void Discard();

  std::string path_;
  std::string temporary_path_;
  int fd_ = -1;  // -1 once committed, discarded or moved from
  uint64_t appended_bytes_ = 0;
};

// One call for small files: Create, Append, Commit.
absl::Status WriteFileAtomically(const std::string& path, absl::string_view contents);

}  // namespace fixpoint
