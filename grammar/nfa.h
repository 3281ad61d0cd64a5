// A grammar while it is built: rules, each a nondeterministic automaton over bytes whose edges may
// also call a rule (read one text of it). Emitters of regular expressions and schemas share it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "grammar/code_points.h"
#include "grammar/limits.h"

namespace fixpoint {

struct NfaByteEdge {
  uint8_t low = 0;
  uint8_t high = 0;  // included
  int32_t to = 0;
};

struct NfaCallEdge {
  int32_t rule = 0;
  int32_t to = 0;
};

struct NfaState {
  std::vector<NfaByteEdge> bytes;
  std::vector<NfaCallEdge> calls;
  std::vector<int32_t> silent;
};

struct NfaRule {
  int32_t start = 0;
  int32_t end = 0;
  std::string name;  // for errors
};

// Once a limit is reached nothing is added any more (indices are then 0) and status() says which
// one it was; emitters look at full() in loops whose length the caller's text chooses.
class Nfa {
 public:
  int32_t AddRule(std::string name);  // with its start and end, not yet connected
  int32_t AddState();

  void Byte(int32_t from, uint8_t low, uint8_t high, int32_t to);
  void Silent(int32_t from, int32_t to);
  void Call(int32_t from, int32_t rule, int32_t to);
  void Sequence(int32_t from, const Utf8Sequence& sequence, int32_t to);

  // These make the state behind what they add and return it.
  int32_t Literal(int32_t from, absl::string_view bytes);
  int32_t Set(int32_t from, const CodePointSet& set);
  int32_t Digits(int32_t from, uint8_t low, uint8_t high);  // one byte '0' + low .. '0' + high
  int32_t CallThen(int32_t from, int32_t rule);

  bool full() const { return !status_.ok(); }
  const absl::Status& status() const { return status_; }

  const std::vector<NfaState>& states() const { return states_; }
  const std::vector<NfaRule>& rules() const { return rules_; }
  const NfaRule& rule(int32_t index) const { return rules_[static_cast<size_t>(index)]; }

 private:
  NfaState& State(int32_t index) { return states_[static_cast<size_t>(index)]; }
  bool CountEdge();

  std::vector<NfaState> states_;
  std::vector<NfaRule> rules_;
  int32_t edges_ = 0;
  absl::Status status_;
};

}  // namespace fixpoint
