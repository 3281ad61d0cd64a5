// Byte-pair merging: joins the adjacent pair of lowest rank, leftmost first, until no pair can be
// joined. O(n log n) for n symbols, whatever they are.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"

namespace fixpoint {

// Work done, for tests that bound it by counting instead of by wall time.
struct EncodeWork {
  int64_t characters_scanned = 0;  // by the pre-tokenizer
  int64_t trie_steps = 0;          // of the added-token matcher
  int64_t pair_lookups = 0;        // "can these two be joined, and at what rank"
  int64_t heap_operations = 0;  // pushes and pops of merge candidates; each costs O(log n) at worst
};

// One symbol: a token id over the bytes [begin, end) of the text that is merged.
struct BpeSymbol {
  int32_t id;
  uint32_t begin;
  uint32_t end;
};

struct BpeJoin {
  int32_t rank;    // lower joins first
  int32_t joined;  // id of the joined token
};

// Answers whether `left` and the `right` that follows it can be joined.
using BpePairLookup =
    absl::FunctionRef<bool(const BpeSymbol& left, const BpeSymbol& right, BpeJoin* join)>;

// Merges *symbols in place, which hold fewer than 2^31 adjacent symbols. Thread-safe when `lookup`
// is.
void MergePairs(BpePairLookup lookup, std::vector<BpeSymbol>* symbols, EncodeWork* work);

}  // namespace fixpoint
