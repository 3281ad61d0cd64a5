// Full KV blocks kept under the tokens that they hold, so that a sequence which begins with the
// same tokens need not compute them again.
//
// The cache is a forest. A node is a full block: its block_tokens token ids, and its parent, the
// block of the tokens before them; a first block has the salt instead of a parent. Equal (salt,
// tokens from position 0) therefore means the same node and nothing else does: keys are compared in
// full, no hash is involved. K and V depend on those tokens alone, so a node's contents are the
// same bits whoever computed them.
//
// References. A sequence that refers to a node refers to all nodes above it, and leaves the deepest
// one first. So below an idle node everything is idle and was left earlier. Eviction takes the node
// that was left longest ago, which therefore never has children: they could not be reached any
// more, or worse, would be taken for children of the block's next contents.
//
// The scheduler decides when to look up and what to store, by sequence and block index; token
// values stay behind TokenSource and this class.
// Memory: block_tokens ids and one salt a block at most. One thread at a time.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/kv_block_pool.h"

namespace fixpoint {

using SequenceId = int64_t;

// Where the cache finds the tokens of a sequence that was queued and is not removed yet.
class TokenSource {
 public:
  virtual ~TokenSource() = default;
  // From position 0; at least those whose K and V have been computed and, for a sequence that is
  // to be prefilled, all known ones.
  virtual absl::Span<const int32_t> Tokens(SequenceId id) const = 0;
  // Nodes of different salts never meet. Any bytes; the caller bounds their number.
  virtual absl::string_view Salt(SequenceId id) const = 0;
};

class PrefixCache {
 public:
  // The source must outlive the cache; without one (null) Find and Store must not be called.
  PrefixCache(int32_t num_blocks, int32_t block_tokens, const TokenSource* source);
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  const KvBlockPool& pool() const { return pool_; }
  bool cached(int32_t block) const { return node(block).cached; }
  int32_t cached_count() const { return static_cast<int32_t>(index_.size()); }
  int64_t evicted_count() const { return evicted_count_; }

  // Appends the longest chain of nodes that continues the sequence's first chain.size() blocks, at
  // most `most` of them. `chain`: the nodes of those first blocks. No references are taken: Retain
  // the result before anything is allocated.
  void Find(SequenceId id, absl::Span<const int32_t> chain, int32_t most,
            std::vector<int32_t>* found) const;

  // The sequence's block `chain.size()` has been filled, in `block`, which it owns alone. Returns
  // the node of these tokens: `block` itself, or the one that was there before; then the reference
  // to `block` was exchanged for one to that.
  int32_t Store(SequenceId id, absl::Span<const int32_t> chain, int32_t block);

  // Appends `count` blocks with one reference each, evicting as many idle ones as that takes.
  // False, and nothing is done, when fewer are available.
  bool Allocate(int32_t count, std::vector<int32_t>* blocks);
  void Retain(absl::Span<const int32_t> blocks);
  // Gives back one reference to each, in the order of a block table. The last ones count as left
  // first.
  void Release(absl::Span<const int32_t> blocks);

 private:
  static constexpr int32_t kNoParent = -1;

  struct Node {
    bool cached = false;
    int32_t parent = kNoParent;
    int32_t children = 0;  // none when it is evicted, which is checked
    int64_t left_at = 0;   // when its last user left, on clock_
    std::string salt;      // of a node without parent
  };
  struct Key {
    int32_t parent;
    absl::string_view salt;  // empty where there is a parent
    absl::Span<const int32_t> tokens;
  };
  struct Less {
    using is_transparent = void;
    const PrefixCache* cache;
    bool operator()(int32_t a, int32_t b) const;
    bool operator()(int32_t a, const Key& b) const;
    bool operator()(const Key& a, int32_t b) const;
  };

  const Node& node(int32_t block) const { return nodes_[static_cast<size_t>(block)]; }
  Node& node(int32_t block) { return nodes_[static_cast<size_t>(block)]; }
  absl::Span<const int32_t> TokensOf(int32_t block) const;
  Key KeyOf(int32_t block) const { return {node(block).parent, node(block).salt, TokensOf(block)}; }
  Key KeyFor(SequenceId id, size_t index, int32_t parent) const;
  void RetainOne(int32_t block);
  void ReleaseOne(int32_t block);
  void EvictOne();

  const int32_t block_tokens_;
  const TokenSource* const source_;
  KvBlockPool pool_;
  std::vector<Node> nodes_;      // by block
  std::vector<int32_t> tokens_;  // [block][block_tokens]
  std::set<int32_t, Less> index_;
  std::set<std::pair<int64_t, int32_t>> idle_;  // left_at, block
  int64_t clock_ = 0;
  int64_t evicted_count_ = 0;
};

}  // namespace fixpoint
