#include "engine/kv_block_pool.h"

#include <numeric>

#include "base/check.h"

namespace fixpoint {

KvBlockPool::KvBlockPool(int32_t total) {
  CHECK_GE(total, 0);
  blocks_.resize(static_cast<size_t>(total));
  free_.resize(static_cast<size_t>(total));
  std::iota(free_.rbegin(), free_.rend(), 0);
}

size_t KvBlockPool::Index(int32_t block) const {
  CHECK(block >= 0 && block < total()) << "block " << block << " of " << total();
  return static_cast<size_t>(block);
}

int32_t KvBlockPool::references(int32_t block) const { return blocks_[Index(block)].references; }

bool KvBlockPool::idle(int32_t block) const {
  const Block& at = blocks_[Index(block)];
  return at.kept && at.references == 0;
}

bool KvBlockPool::Allocate(int32_t count, std::vector<int32_t>* blocks) {
  CHECK_GE(count, 0);
  if (count > free_count()) return false;
  for (int32_t i = 0; i < count; ++i) {
    const int32_t block = free_.back();
    free_.pop_back();
    blocks_[Index(block)].references = 1;
    blocks->push_back(block);
  }
  return true;
}

void KvBlockPool::Retain(int32_t block) {
  if (idle(block)) --idle_count_;
  CHECK(references(block) >= 1 || blocks_[Index(block)].kept) << "block " << block << " is free";
  ++blocks_[Index(block)].references;
}

bool KvBlockPool::Release(int32_t block) {
  CHECK_GE(references(block), 1) << "block " << block << " is not used";
  if (--blocks_[Index(block)].references > 0) return false;
  if (blocks_[Index(block)].kept) {
    ++idle_count_;
    return true;
  }
  free_.push_back(block);
  return false;
}

void KvBlockPool::Keep(int32_t block) {
  CHECK_GE(references(block), 1) << "block " << block << " is not used";
  blocks_[Index(block)].kept = true;
}

void KvBlockPool::Drop(int32_t block) {
  CHECK(idle(block)) << "block " << block << " is not idle";
  blocks_[Index(block)].kept = false;
  --idle_count_;
  free_.push_back(block);
}

}  // namespace fixpoint
