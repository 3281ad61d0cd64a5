#include "calibrator/cuda/weight_cache.h"

#include "base/check.h"

namespace fixpoint {

void* WeightCache::Find(const WeightKey& key) {
  const auto found = entries_.find(key);
  if (found == entries_.end()) return nullptr;
  by_use_.splice(by_use_.begin(), by_use_, found->second);
  return found->second->memory;
}

absl::StatusOr<void*> WeightCache::Insert(const WeightKey& key, int64_t bytes) {
  CHECK(Fits(bytes)) << bytes << " bytes in a cache of " << budget_bytes_;
  CHECK(!entries_.contains(key)) << "weights at " << key.w << " have a copy";
  while (size_bytes_ + bytes > budget_bytes_) EraseOldest();
  absl::StatusOr<void*> memory = memory_.Allocate(bytes);
  while (absl::IsResourceExhausted(memory.status()) && !by_use_.empty()) {
    EraseOldest();
    memory = memory_.Allocate(bytes);
  }
  if (!memory.ok()) return memory.status();
  by_use_.push_front({key, *memory, bytes});
  entries_.emplace(key, by_use_.begin());
  size_bytes_ += bytes;
  return *memory;
}

void WeightCache::Erase(const WeightKey& key) {
  const auto found = entries_.find(key);
  CHECK(found != entries_.end()) << "no copy of weights at " << key.w;
  const auto entry = found->second;
  entries_.erase(found);
  memory_.Free(entry->memory);
  size_bytes_ -= entry->bytes;
  by_use_.erase(entry);
}

void WeightCache::Clear() {
  while (!by_use_.empty()) EraseOldest();
}

}  // namespace fixpoint
