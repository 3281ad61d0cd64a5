#include "grammar/nfa.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace fixpoint {

int32_t Nfa::AddRule(std::string name) {
  if (full()) return 0;
  if (static_cast<int32_t>(rules_.size()) >= kMaxRules) {
    status_.Update(absl::InvalidArgumentError(
        absl::StrCat("the grammar has more than ", kMaxRules, " rules")));
    return 0;
  }
  const int32_t start = AddState();
  constexpr size_t kLongestName = 200;
  rules_.push_back({start, AddState(), name.substr(0, kLongestName)});
  return static_cast<int32_t>(rules_.size()) - 1;
}

int32_t Nfa::AddState() {
  if (full()) return 0;
  if (static_cast<int32_t>(states_.size()) >= kMaxNfaStates) {
    status_.Update(absl::InvalidArgumentError(
        absl::StrCat("the grammar needs more than ", kMaxNfaStates,
                     " states: too many or too large alternatives, repetitions or lengths")));
    return 0;
  }
  states_.emplace_back();
  return static_cast<int32_t>(states_.size()) - 1;
}

bool Nfa::CountEdge() {
  if (full()) return false;
  if (edges_ >= kMaxNfaEdges) {
    status_.Update(absl::InvalidArgumentError(
        absl::StrCat("the grammar needs more than ", kMaxNfaEdges,
                     " edges: too many or too large alternatives, repetitions or lengths")));
    return false;
  }
  ++edges_;
  return true;
}

void Nfa::Byte(int32_t from, uint8_t low, uint8_t high, int32_t to) {
  if (CountEdge()) State(from).bytes.push_back({low, high, to});
}

void Nfa::Silent(int32_t from, int32_t to) {
  if (CountEdge()) State(from).silent.push_back(to);
}

void Nfa::Call(int32_t from, int32_t rule, int32_t to) {
  if (CountEdge()) State(from).calls.push_back({rule, to});
}

void Nfa::Sequence(int32_t from, const Utf8Sequence& sequence, int32_t to) {
  for (int32_t i = 0; i < sequence.length; ++i) {
    const int32_t next = i + 1 == sequence.length ? to : AddState();
    Byte(from, sequence.low[i], sequence.high[i], next);
    from = next;
  }
}

int32_t Nfa::Literal(int32_t from, absl::string_view bytes) {
  for (const char c : bytes) {
    const int32_t next = AddState();
    Byte(from, static_cast<uint8_t>(c), static_cast<uint8_t>(c), next);
    from = next;
  }
  return from;
}

int32_t Nfa::Set(int32_t from, const CodePointSet& set) {
  const int32_t to = AddState();
  for (const CodePointRange& range : set.ranges()) {
    for (const Utf8Sequence& sequence : Utf8Sequences(range)) Sequence(from, sequence, to);
  }
  return to;
}

int32_t Nfa::Digits(int32_t from, uint8_t low, uint8_t high) {
  const int32_t to = AddState();
  Byte(from, static_cast<uint8_t>('0' + low), static_cast<uint8_t>('0' + high), to);
  return to;
}

int32_t Nfa::CallThen(int32_t from, int32_t rule) {
  const int32_t to = AddState();
  Call(from, rule, to);
  return to;
}

}  // namespace fixpoint
