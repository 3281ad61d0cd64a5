// Fills memory from a bundle file while checking both kinds of checksum.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "base/digest.h"
#include "base/file.h"
#include "base/thread_pool.h"

namespace fixpoint {

// A stretch of the file and where its bytes go. Pieces follow each other without gaps from offset
// 0.
struct FilePiece {
  uint64_t offset = 0;
  uint64_t bytes = 0;
  std::byte* data = nullptr;  // null: padding that must be zero, at most kSectionAlign bytes
  bool loaded = false;        // `data` holds the bytes already
};

// Reads all pieces by chunks. Threads take chunks in turn, read them straight to where they belong
// and compare XXH3 while the bytes are in the cache; thread 0 feeds finished chunks to SHA-256 in
// file order and takes chunks too whenever the next one is not ready. So reading, XXH3 and SHA-256
// overlap and one thread alone works as well.
class ChunkVerifier {
 public:
  // chunk_hashes[i] belongs to bytes [i * kChunkBytes, ...) of what the pieces cover. All arguments
  // must outlive the object.
  ChunkVerifier(const RandomAccessFile& file, absl::Span<const FilePiece> pieces,
                absl::Span<const uint64_t> chunk_hashes);

  // Ends early at the first damage. OK does not mean that the SHA-256 fits: the caller compares
  // sha()'s digest.
  absl::Status Run(ThreadPool* pool);

  // After Run: all bytes of the pieces are in it.
  Sha256& sha() { return sha_; }
  // After an error of Run: the damaged chunk's bytes in the file.
  uint64_t failed_begin() const;
  uint64_t failed_end() const;

 private:
  enum State : uint8_t { kWaiting, kReady };
  static constexpr size_t kNone = ~size_t{0};

  uint64_t ChunkEnd(size_t chunk) const;
  // visit(data, bytes) for each part of the chunk, in order; reading them first if `read`.
  template <typename Visit>
  absl::Status VisitChunk(size_t chunk, bool read, Visit&& visit) const;
  bool TakeAndCheckOne();
  void Fail(size_t chunk, absl::Status status);
  void HashInOrder();

  const RandomAccessFile& file_;
  const absl::Span<const FilePiece> pieces_;
  const absl::Span<const uint64_t> chunk_hashes_;
  const uint64_t total_bytes_;
  std::unique_ptr<std::atomic<uint8_t>[]> states_;  // State of each chunk
  std::atomic<size_t> next_chunk_{0};
  std::atomic<bool> failed_{false};
  Sha256 sha_;  // thread 0 only

  std::mutex mutex_;  // guards the two below
  size_t failed_chunk_ = kNone;
  absl::Status status_;
};

}  // namespace fixpoint
