// Who uses which KV block. Ids and counts only: the memory belongs to the executor.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace fixpoint {

// Blocks 0 .. total - 1 with reference counts, so that sequences can share full blocks of a common
// prefix. One thread at a time. Misuse (a count below zero, an id out of range) is a CHECK failure.
class KvBlockPool {
 public:
  explicit KvBlockPool(int32_t total);

  int32_t total() const { return static_cast<int32_t>(references_.size()); }
  int32_t free_count() const { return static_cast<int32_t>(free_.size()); }
  int32_t used_count() const { return total() - free_count(); }
  int32_t references(int32_t block) const;

  // Appends `count` blocks, each with one reference. False, and nothing is done, when fewer are
  // free. The block that was released last comes first: its memory is likely still in a cache.
  bool Allocate(int32_t count, std::vector<int32_t>* blocks);
  // One more reference to a block in use.
  void Retain(int32_t block);
  // One reference less; at none the block is free.
  void Release(int32_t block);
  void Release(absl::Span<const int32_t> blocks);

 private:
  std::vector<int32_t> references_;
  std::vector<int32_t> free_;  // the back is handed out next
};

}  // namespace fixpoint
