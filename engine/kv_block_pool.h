// Who uses which KV block. Ids and counts only: the memory belongs to the executor.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace fixpoint {

// Blocks 0 .. total - 1 with reference counts, so that sequences can share full blocks of a common
// prefix. A block is
//   used  one or more sequences refer to it,
//   idle  nobody does, but it was marked by Keep: its contents are still worth something,
//   free  anything else.
// One thread at a time. Misuse (a count below zero, an id out of range) is a CHECK failure.
class KvBlockPool {
 public:
  explicit KvBlockPool(int32_t total);

  int32_t total() const { return static_cast<int32_t>(blocks_.size()); }
  int32_t free_count() const { return static_cast<int32_t>(free_.size()); }
  int32_t idle_count() const { return idle_count_; }
  int32_t used_count() const { return total() - free_count() - idle_count(); }
  // What can be handed out without taking anything from a sequence.
  int32_t available_count() const { return free_count() + idle_count(); }
  int32_t references(int32_t block) const;
  bool idle(int32_t block) const;

  // Appends `count` blocks, each with one reference. False, and nothing is done, when fewer are
  // free. The block that was freed last comes first: its memory is likely still in a cache.
  bool Allocate(int32_t count, std::vector<int32_t>* blocks);
  // One more reference to a block that is used or idle.
  void Retain(int32_t block);
  // One reference less; at none the block is idle (true) or free (false). False as well while
  // others use it.
  bool Release(int32_t block);
  // From now on the block, which is used, becomes idle instead of free.
  void Keep(int32_t block);
  // Frees an idle block.
  void Drop(int32_t block);

 private:
  struct Block {
    int32_t references = 0;
    bool kept = false;
  };
  size_t Index(int32_t block) const;  // checked

  std::vector<Block> blocks_;
  std::vector<int32_t> free_;  // the back is handed out next
  int32_t idle_count_ = 0;
};

}  // namespace fixpoint
