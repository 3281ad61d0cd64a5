// The states of a text under a grammar, made as they are met: where each reading of the text stands
// and what is on its stack of calls. States that were met before are found again, with their steps
// and their token masks.
#pragma once

#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/types/span.h"
#include "grammar/automaton.h"
#include "grammar/token_trie.h"

namespace fixpoint {

// Calls that are open, the innermost on top. Equal stacks of one TextStates are one object.
struct CallStack {
  int32_t state = 0;                  // where the caller goes on
  int32_t depth = 0;                  // calls, this one included
  const CallStack* parent = nullptr;  // null: the root's own
};

struct Reading {
  int32_t state = 0;
  const CallStack* stack = nullptr;
  bool operator==(const Reading& other) const {
    return state == other.state && stack == other.stack;
  }
  template <typename H>
  friend H AbslHashValue(H h, const Reading& r) {
    return H::combine(std::move(h), r.state, r.stack);
  }
};

// Not thread-safe. Grows with use; the owner makes a new one when memory_bytes() is too much.
class TextStates {
 public:
  struct State {
    std::vector<Reading> readings;
    bool may_end = false;
    std::vector<State*> next;    // by class; null: not known yet
    std::vector<uint32_t> mask;  // empty: not known yet
    uint64_t walk = 0;           // the last walk over the tokens that met it
  };

  // How much of the vocabulary's beginnings one mask may look into: states met, and their readings.
  struct WalkLimits {
    int32_t states = 2048;
    size_t readings = 16384;
  };

  // `automaton` must outlive this.
  explicit TextStates(const Automaton* automaton) : TextStates(automaton, WalkLimits{}) {}
  TextStates(const Automaton* automaton, const WalkLimits& limits);
  TextStates(const TextStates&) = delete;
  TextStates& operator=(const TextStates&) = delete;

  State* Start() { return start_; }
  // Null when no text goes on that way.
  State* Next(State* state, uint8_t byte) {
    State*& next = state->next[static_cast<size_t>(automaton_.ClassOf(byte))];
    if (next == nullptr) next = Step(*state, automaton_.ClassOf(byte));
    return next == &dead_ ? nullptr : next;
  }
  // The state of another object of the same automaton, in this one.
  State* Import(const State& other);

  // Bits of the tokens (of the trie, as TokenConstraint has them) whose bytes may come next. The
  // work is bounded: a state from which more is in reach than WalkLimits gets the tokens in the
  // order of their bytes up to there, and every single byte. That depends on the state alone, not
  // on what was met before.
  const std::vector<uint32_t>& Mask(State* state, const TokenTrie& trie);

  size_t memory_bytes() const { return memory_bytes_; }

 private:
  struct StackHash {
    size_t operator()(const CallStack* s) const {
      return absl::Hash<std::pair<int32_t, const CallStack*>>()({s->state, s->parent});
    }
  };
  struct StackEqual {
    bool operator()(const CallStack* a, const CallStack* b) const {
      return a->state == b->state && a->parent == b->parent;
    }
  };
  struct StateHash {
    using is_transparent = void;
    size_t operator()(const std::vector<Reading>& r) const {
      return absl::Hash<std::vector<Reading>>()(r);
    }
    size_t operator()(const State* s) const { return (*this)(s->readings); }
  };
  struct StateEqual {
    using is_transparent = void;
    bool operator()(const State* a, const State* b) const { return a->readings == b->readings; }
    bool operator()(const State* a, const std::vector<Reading>& b) const {
      return a->readings == b;
    }
    bool operator()(const std::vector<Reading>& a, const State* b) const {
      return a == b->readings;
    }
  };

  State* Step(const State& state, int32_t byte_class);
  void Read(const Reading& reading, int32_t byte_class);
  void Arrive(int32_t state, const CallStack* stack);
  const CallStack* Push(int32_t state, const CallStack* parent);
  State* Intern(std::vector<Reading> readings);
  bool WalkTokens(State* state, const TokenTrie& trie, std::vector<uint32_t>* mask);
  void AllowSingleBytes(State* state, const TokenTrie& trie, std::vector<uint32_t>* mask);

  const Automaton& automaton_;
  const WalkLimits limits_;
  std::deque<CallStack> stacks_;
  std::deque<State> states_;
  absl::flat_hash_set<const CallStack*, StackHash, StackEqual> stack_set_;
  absl::flat_hash_set<State*, StateHash, StateEqual> state_set_;
  State dead_;
  State* start_;
  size_t memory_bytes_ = 0;
  uint64_t walks_ = 0;
  std::vector<Reading> arrived_;  // of the step being made
};

}  // namespace fixpoint
