// Owned raw memory for kernels.
#pragma once

#include <cstddef>
#include <new>
#include <utility>

namespace fixpoint {

// Bytes aligned to 64 (a cache line, an AVX-512 register), not initialised: pages that nobody
// touches cost nothing, and the thread that writes first decides on which memory node they lie.
// Movable; a moved-from buffer is empty.
class AlignedBuffer {
 public:
  static constexpr size_t kAlignment = 64;

  AlignedBuffer() = default;
  // Throws std::bad_alloc as operator new does. The caller has bounded `size_bytes`.
  explicit AlignedBuffer(size_t size_bytes)
      : data_(size_bytes == 0 ? nullptr
                              : static_cast<std::byte*>(
                                    ::operator new (size_bytes, std::align_val_t{kAlignment}))),
        size_bytes_(size_bytes) {}
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_bytes_(std::exchange(other.size_bytes_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_bytes_, other.size_bytes_);
    return *this;
  }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  ~AlignedBuffer() { ::operator delete (data_, std::align_val_t{kAlignment}); }

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  size_t size_bytes() const { return size_bytes_; }
  bool empty() const { return size_bytes_ == 0; }

  // Asks the kernel for huge pages (2 MiB on x86: fewer TLB misses where weights stream through)
  // in the whole of them that the buffer covers. Before the first write; without effect where the
  // kernel gives none (transparent_hugepage "never") or the buffer is smaller.
  void AdviseHugePages();

  // The start of the buffer seen as elements of an integer type.
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  size_t size_bytes_ = 0;
};

}  // namespace fixpoint
