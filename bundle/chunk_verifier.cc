#include "bundle/chunk_verifier.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status_macros.h"
#include "bundle/format.h"

namespace fixpoint {
namespace {

constexpr std::byte kZeros[kSectionAlign] = {};

uint64_t TotalBytes(absl::Span<const FilePiece> pieces) {
  return pieces.empty() ? 0 : pieces.back().offset + pieces.back().bytes;
}

absl::Status ReadPadding(const RandomAccessFile& file, uint64_t offset, uint64_t bytes) {
  std::byte padding[kSectionAlign];
  RETURN_IF_ERROR(file.ReadAt(offset, bytes, padding));
  if (std::any_of(padding, padding + bytes, [](std::byte b) { return b != std::byte{0}; })) {
    return absl::DataLossError(absl::StrCat("padding at offset ", offset, " is not zero"));
  }
  return absl::OkStatus();
}

}  // namespace

ChunkVerifier::ChunkVerifier(const RandomAccessFile& file, absl::Span<const FilePiece> pieces,
                             absl::Span<const uint64_t> chunk_hashes)
    : file_(file),
      pieces_(pieces),
      chunk_hashes_(chunk_hashes),
      total_bytes_(TotalBytes(pieces)),
      states_(std::make_unique<std::atomic<uint8_t>[]>(chunk_hashes.size())) {
  CHECK_EQ(chunk_hashes.size(), (total_bytes_ + kChunkBytes - 1) / kChunkBytes);
}

uint64_t ChunkVerifier::ChunkEnd(size_t chunk) const {
  return std::min(total_bytes_, (chunk + 1) * kChunkBytes);
}
uint64_t ChunkVerifier::failed_begin() const { return failed_chunk_ * kChunkBytes; }
uint64_t ChunkVerifier::failed_end() const { return ChunkEnd(failed_chunk_); }

template <typename Visit>
absl::Status ChunkVerifier::VisitChunk(size_t chunk, bool read, Visit&& visit) const {
  uint64_t offset = chunk * kChunkBytes;
  const uint64_t end = ChunkEnd(chunk);
  // The last piece that starts at or before the chunk.
  auto piece =
      std::upper_bound(pieces_.begin(), pieces_.end(), offset,
                       [](uint64_t value, const FilePiece& p) { return value < p.offset; }) -
      1;
  for (; offset < end; ++piece) {
    const uint64_t skip = offset - piece->offset;
    const uint64_t bytes = std::min(piece->bytes - skip, end - offset);
    if (piece->data == nullptr) {
      if (read) RETURN_IF_ERROR(ReadPadding(file_, offset, bytes));
      visit(kZeros, bytes);
    } else {
      if (read && !piece->loaded) {
        RETURN_IF_ERROR(file_.ReadAt(offset, bytes, piece->data + skip));
      }
      visit(piece->data + skip, bytes);
    }
    offset += bytes;
  }
  return absl::OkStatus();
}

void ChunkVerifier::Fail(size_t chunk, absl::Status status) {
  std::lock_guard<std::mutex> lock(mutex_);
  // Chunks are taken in order and finished once taken, so the lowest damaged one is always seen:
  // the message is the same for any number of threads.
  if (chunk < failed_chunk_) {
    failed_chunk_ = chunk;
    status_ = std::move(status);
  }
  failed_.store(true, std::memory_order_relaxed);
}

bool ChunkVerifier::TakeAndCheckOne() {
  if (failed_.load(std::memory_order_relaxed)) return false;
  const size_t chunk = next_chunk_.fetch_add(1, std::memory_order_relaxed);
  if (chunk >= chunk_hashes_.size()) return false;
  Xxh3Stream hash;
  const absl::Status status = VisitChunk(
      chunk, true, [&](const std::byte* data, uint64_t bytes) { hash.Update(data, bytes); });
  if (!status.ok()) {
    Fail(chunk, status);
  } else if (hash.Digest() != chunk_hashes_[chunk]) {
    Fail(chunk, absl::DataLossError(absl::StrCat("the checksum of chunk ", chunk, " (bytes ",
                                                 chunk * kChunkBytes, " to ", ChunkEnd(chunk),
                                                 ") does not fit")));
  }
  states_[chunk].store(kReady, std::memory_order_release);
  states_[chunk].notify_one();
  return true;
}

void ChunkVerifier::HashInOrder() {
  for (size_t chunk = 0; chunk < chunk_hashes_.size(); ++chunk) {
    while (states_[chunk].load(std::memory_order_acquire) == kWaiting) {
      if (TakeAndCheckOne()) continue;
      if (failed_.load(std::memory_order_relaxed)) return;
      // All chunks are taken, and who took this one will finish it.
      states_[chunk].wait(kWaiting, std::memory_order_acquire);
    }
    if (failed_.load(std::memory_order_relaxed)) return;
    // Nothing is read here, so nothing can fail.
    CHECK(VisitChunk(chunk, false, [&](const std::byte* data, uint64_t bytes) {
            sha_.Update(data, bytes);
          }).ok());
  }
}

absl::Status ChunkVerifier::Run(ThreadPool* pool) {
  pool->Run([this](int thread_index, int) {
    if (thread_index == 0) {
      HashInOrder();
    } else {
      while (TakeAndCheckOne()) {
      }
    }
  });
  return status_;
}

}  // namespace fixpoint
