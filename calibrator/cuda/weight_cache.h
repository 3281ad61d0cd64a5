// Which weights have a copy on a device: a cache of bounded size that drops what was used longest
// ago.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "calibrator/gemm.h"

namespace fixpoint {

// Where copies live. Pointers are the device's and are never read by the cache.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  // RESOURCE_EXHAUSTED when there is not enough memory.
  virtual absl::StatusOr<void*> Allocate(int64_t bytes) = 0;
  virtual void Free(void* memory) = 0;
};

// An operand in the host's memory. Whoever changes it has to Clear the cache.
struct WeightKey {
  const void* w = nullptr;
  GemmType type = GemmType::kFloat32;
  int64_t outputs = 0, depth = 0;
  int64_t stride = 0;         // of the operand
  int64_t device_stride = 0;  // of the copy: the same operand may be wanted in two layouts
  bool by_depth = false;

  friend bool operator==(const WeightKey&, const WeightKey&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const WeightKey& k) {
    return H::combine(std::move(h), k.w, k.type, k.outputs, k.depth, k.stride, k.device_stride,
                      k.by_depth);
  }
};

// Not thread-safe.
class WeightCache {
 public:
  // Holds at most `budget_bytes`. `memory` must outlive the cache.
  WeightCache(int64_t budget_bytes, DeviceMemory& memory)
      : budget_bytes_(budget_bytes), memory_(memory) {}
  WeightCache(const WeightCache&) = delete;
  WeightCache& operator=(const WeightCache&) = delete;
  ~WeightCache() { Clear(); }

  bool Fits(int64_t bytes) const { return bytes <= budget_bytes_; }
  // The copy, which counts as used now; null when there is none.
  void* Find(const WeightKey& key);
  // Memory for a new copy, for the caller to fill. Drops old copies to stay within the budget, and
  // more of them while the device has no memory left; its error then. Requires Fits(bytes) and that
  // the key has no copy.
  absl::StatusOr<void*> Insert(const WeightKey& key, int64_t bytes);
  // Drops one copy, which must exist: its filling failed.
  void Erase(const WeightKey& key);
  void Clear();

  int64_t size_bytes() const { return size_bytes_; }
  size_t count() const { return entries_.size(); }

 private:
  struct Entry {
    WeightKey key;
    void* memory = nullptr;
    int64_t bytes = 0;
  };

  void EraseOldest() { Erase(by_use_.back().key); }

  const int64_t budget_bytes_;
  DeviceMemory& memory_;
  int64_t size_bytes_ = 0;
  std::list<Entry> by_use_;  // last used first
  absl::flat_hash_map<WeightKey, std::list<Entry>::iterator> entries_;
};

}  // namespace fixpoint
