// A grammar ready to run: one deterministic automaton per rule, with calls between rules. What is
// left to run time is the stack of calls and, where alternatives begin alike, more than one
// reading.
//
// No dead ends: every state kept here can be finished with bytes that the vocabulary has as single
// tokens, inside kMaxNesting calls (see `need`).
#pragma once

#include <bitset>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "grammar/nfa.h"

namespace fixpoint {

using ByteSet = std::bitset<256>;

// Immutable and thread-safe once built.
class Automaton {
 public:
  struct CallEdge {
    int32_t start = 0;  // first state of the rule that is called
    int32_t rule = 0;
    int32_t to = 0;
  };

  // The texts of `root` that consist of `available` bytes. Errors: a limit of grammar/limits.h, no
  // finite text, a rule that enters itself without reading a byte.
  static absl::StatusOr<Automaton> Build(const Nfa& nfa, int32_t root, const ByteSet& available);

  int32_t start() const { return start_; }
  int32_t num_states() const { return static_cast<int32_t>(accepting_.size()); }

  // Bytes that no edge tells apart share a class.
  int32_t num_classes() const { return num_classes_; }
  int32_t ClassOf(uint8_t byte) const { return class_of_[byte]; }

  // kNone: no edge.
  static constexpr int32_t kNone = -1;
  int32_t Next(int32_t state, int32_t byte_class) const {
    return table_[static_cast<size_t>(state) * static_cast<size_t>(num_classes_) +
                  static_cast<size_t>(byte_class)];
  }
  absl::Span<const CallEdge> Calls(int32_t state) const {
    return calls_[static_cast<size_t>(state)];
  }
  bool IsAccepting(int32_t state) const { return accepting_[static_cast<size_t>(state)] != 0; }
  // Nothing leads out of the state.
  bool IsFinal(int32_t state) const { return final_[static_cast<size_t>(state)] != 0; }
  // How many calls must at least nest inside each other from here to the rule's end.
  int32_t Need(int32_t state) const { return need_[static_cast<size_t>(state)]; }
  // A text of the rule can begin with the class.
  bool CanBegin(int32_t rule, int32_t byte_class) const {
    return first_[static_cast<size_t>(rule)][static_cast<size_t>(byte_class)];
  }

  size_t memory_bytes() const;

 private:
  friend class AutomatonBuilder;
  Automaton() = default;

  int32_t start_ = 0;
  int32_t num_classes_ = 0;
  uint8_t class_of_[256] = {};
  std::vector<int32_t> table_;  // [state, class]
  std::vector<std::vector<CallEdge>> calls_;
  std::vector<uint8_t> accepting_;
  std::vector<uint8_t> final_;
  std::vector<int32_t> need_;
  std::vector<std::bitset<256>> first_;  // by rule, of classes
};

}  // namespace fixpoint
