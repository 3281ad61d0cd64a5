#include "engine/prefix_cache.h"

#include <algorithm>

#include "base/check.h"

namespace fixpoint {
namespace {

// Below, equal to or above 0 as a comes before, is or comes behind b.
int Compare(absl::Span<const int32_t> a, absl::Span<const int32_t> b) {
  const auto [at_a, at_b] = std::mismatch(a.begin(), a.end(), b.begin());  // of equal length
  if (at_a == a.end()) return 0;
  return *at_a < *at_b ? -1 : 1;
}

}  // namespace

PrefixCache::PrefixCache(int32_t num_blocks, int32_t block_tokens, const TokenSource* source)
    : block_tokens_(block_tokens), source_(source), pool_(num_blocks), index_(Less{this}) {
  CHECK_GE(block_tokens, 1);
  nodes_.resize(static_cast<size_t>(num_blocks));
  if (source == nullptr) return;
  tokens_.resize(static_cast<size_t>(num_blocks) * static_cast<size_t>(block_tokens));
}

bool PrefixCache::Less::operator()(int32_t a, int32_t b) const {
  return (*this)(a, cache->KeyOf(b));
}

bool PrefixCache::Less::operator()(int32_t a, const Key& b) const {
  const Key key = cache->KeyOf(a);
  if (key.parent != b.parent) return key.parent < b.parent;
  if (const int order = key.salt.compare(b.salt); order != 0) return order < 0;
  return Compare(key.tokens, b.tokens) < 0;
}

bool PrefixCache::Less::operator()(const Key& a, int32_t b) const {
  const Key key = cache->KeyOf(b);
  if (a.parent != key.parent) return a.parent < key.parent;
  if (const int order = a.salt.compare(key.salt); order != 0) return order < 0;
  return Compare(a.tokens, key.tokens) < 0;
}

absl::Span<const int32_t> PrefixCache::TokensOf(int32_t block) const {
  const size_t size = static_cast<size_t>(block_tokens_);
  return absl::MakeConstSpan(tokens_).subspan(static_cast<size_t>(block) * size, size);
}

PrefixCache::Key PrefixCache::KeyFor(SequenceId id, size_t index, int32_t parent) const {
  const size_t size = static_cast<size_t>(block_tokens_);
  const absl::Span<const int32_t> tokens = source_->Tokens(id);
  CHECK_GE(tokens.size(), (index + 1) * size) << "tokens of sequence " << id;
  return {.parent = parent,
          .salt = parent == kNoParent ? source_->Salt(id) : absl::string_view(),
          .tokens = tokens.subspan(index * size, size)};
}

void PrefixCache::Find(SequenceId id, absl::Span<const int32_t> chain, int32_t most,
                       std::vector<int32_t>* found) const {
  int32_t parent = chain.empty() ? kNoParent : chain.back();
  CHECK(parent == kNoParent || cached(parent)) << "block " << parent;
  for (size_t i = 0; i < static_cast<size_t>(std::max(most, 0)); ++i) {
    const auto next = index_.find(KeyFor(id, chain.size() + i, parent));
    if (next == index_.end()) return;
    parent = *next;
    found->push_back(parent);
  }
}

int32_t PrefixCache::Store(SequenceId id, absl::Span<const int32_t> chain, int32_t block) {
  const int32_t parent = chain.empty() ? kNoParent : chain.back();
  CHECK(parent == kNoParent || cached(parent)) << "block " << parent;
  CHECK(!cached(block)) << "block " << block;
  CHECK_EQ(pool_.references(block), 1) << "block " << block;
  const Key key = KeyFor(id, chain.size(), parent);
  if (const auto same = index_.find(key); same != index_.end()) {
    const int32_t first = *same;
    RetainOne(first);
    ReleaseOne(block);
    return first;
  }
  std::copy(key.tokens.begin(), key.tokens.end(),
            tokens_.begin() + static_cast<std::ptrdiff_t>(block) * block_tokens_);
  node(block) = {.cached = true, .parent = parent, .salt = std::string(key.salt)};
  if (parent != kNoParent) ++node(parent).children;
  index_.insert(block);
  pool_.Keep(block);
  return block;
}

bool PrefixCache::Allocate(int32_t count, std::vector<int32_t>* blocks) {
  if (count > pool_.available_count()) return false;
  while (pool_.free_count() < count) EvictOne();
  return pool_.Allocate(count, blocks);
}

void PrefixCache::Retain(absl::Span<const int32_t> blocks) {
  for (const int32_t block : blocks) RetainOne(block);
}

void PrefixCache::Release(absl::Span<const int32_t> blocks) {
  for (size_t i = blocks.size(); i > 0; --i) ReleaseOne(blocks[i - 1]);
}

void PrefixCache::RetainOne(int32_t block) {
  if (pool_.idle(block)) idle_.erase({node(block).left_at, block});
  pool_.Retain(block);
}

void PrefixCache::ReleaseOne(int32_t block) {
  if (!pool_.Release(block)) return;
  node(block).left_at = ++clock_;
  idle_.insert({node(block).left_at, block});
}

void PrefixCache::EvictOne() {
  CHECK(!idle_.empty());
  const int32_t block = idle_.begin()->second;
  CHECK_EQ(node(block).children, 0) << "block " << block;
  idle_.erase(idle_.begin());
  index_.erase(block);
  if (const int32_t parent = node(block).parent; parent != kNoParent) --node(parent).children;
  node(block) = Node();
  pool_.Drop(block);
  ++evicted_count_;
}

}  // namespace fixpoint
