#include "engine/kv_block_pool.h"

#include <numeric>

#include "base/check.h"

namespace fixpoint {

KvBlockPool::KvBlockPool(int32_t total) {
  CHECK_GE(total, 0);
  references_.resize(static_cast<size_t>(total), 0);
  free_.resize(static_cast<size_t>(total));
  std::iota(free_.rbegin(), free_.rend(), 0);
}

int32_t KvBlockPool::references(int32_t block) const {
  CHECK(block >= 0 && block < total()) << "block " << block << " of " << total();
  return references_[static_cast<size_t>(block)];
}

bool KvBlockPool::Allocate(int32_t count, std::vector<int32_t>* blocks) {
  CHECK_GE(count, 0);
  if (count > free_count()) return false;
  for (int32_t i = 0; i < count; ++i) {
    const int32_t block = free_.back();
    free_.pop_back();
    references_[static_cast<size_t>(block)] = 1;
    blocks->push_back(block);
  }
  return true;
}

void KvBlockPool::Retain(int32_t block) {
  CHECK_GE(references(block), 1) << "block " << block << " is free";
  ++references_[static_cast<size_t>(block)];
}

void KvBlockPool::Release(int32_t block) {
  CHECK_GE(references(block), 1) << "block " << block << " is free";
  if (--references_[static_cast<size_t>(block)] == 0) free_.push_back(block);
}

void KvBlockPool::Release(absl::Span<const int32_t> blocks) {
  for (const int32_t block : blocks) Release(block);
}

}  // namespace fixpoint
