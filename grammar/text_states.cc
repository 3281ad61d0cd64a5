#include "grammar/text_states.h"

#include <algorithm>

namespace fixpoint {
namespace {

int32_t Depth(const CallStack* stack) { return stack == nullptr ? 0 : stack->depth; }

void Allow(absl::Span<const int32_t> tokens, std::vector<uint32_t>* mask) {
  for (const int32_t id : tokens) {
    (*mask)[static_cast<size_t>(id / 32)] |= uint32_t{1} << (id % 32);
  }
}

}  // namespace

TextStates::TextStates(const Automaton* automaton, const WalkLimits& limits)
    : automaton_(*automaton), limits_(limits) {
  start_ = Intern({{automaton_.start(), nullptr}});
}

const CallStack* TextStates::Push(int32_t state, const CallStack* parent) {
  const CallStack wanted = {state, Depth(parent) + 1, parent};
  const auto found = stack_set_.find(&wanted);
  if (found != stack_set_.end()) return *found;
  stacks_.push_back(wanted);
  stack_set_.insert(&stacks_.back());
  memory_bytes_ += sizeof(CallStack) + 2 * sizeof(void*);
  return &stacks_.back();
}

TextStates::State* TextStates::Intern(std::vector<Reading> readings) {
  const auto found = state_set_.find(readings);
  if (found != state_set_.end()) return *found;
  State& state = states_.emplace_back();
  state.readings = std::move(readings);
  state.may_end = std::any_of(state.readings.begin(), state.readings.end(), [&](const Reading& r) {
    return r.stack == nullptr && automaton_.IsAccepting(r.state);
  });
  state.next.resize(static_cast<size_t>(automaton_.num_classes()));
  state_set_.insert(&state);
  memory_bytes_ += sizeof(State) + state.readings.capacity() * sizeof(Reading) +
                   state.next.size() * sizeof(State*) + 2 * sizeof(void*);
  return &state;
}

TextStates::State* TextStates::Step(const State& state, int32_t byte_class) {
  arrived_.clear();
  for (const Reading& reading : state.readings) Read(reading, byte_class);
  return arrived_.empty() ? &dead_ : Intern(arrived_);
}

// The byte itself, then through each call that can begin with it. Rules do not enter themselves and
// the ways of entering are counted (kMaxEntries), so this ends soon.
void TextStates::Read(const Reading& reading, int32_t byte_class) {
  const int32_t next = automaton_.Next(reading.state, byte_class);
  if (next != Automaton::kNone) Arrive(next, reading.stack);
  for (const Automaton::CallEdge& call : automaton_.Calls(reading.state)) {
    if (!automaton_.CanBegin(call.rule, byte_class)) continue;
    // The way back must be open; whether the call's own way is, Arrive sees.
    if (Depth(reading.stack) + automaton_.Need(call.to) > kMaxNesting) continue;
    Read({call.start, Push(call.to, reading.stack)}, byte_class);
  }
}

void TextStates::Arrive(int32_t state, const CallStack* stack) {
  for (;;) {
    if (Depth(stack) + automaton_.Need(state) > kMaxNesting) return;
    // A finished call is its caller's next step.
    const bool returns = stack != nullptr && automaton_.IsAccepting(state);
    if (!returns || !automaton_.IsFinal(state)) {
      const Reading reading = {state, stack};
      if (static_cast<int32_t>(arrived_.size()) < kMaxReadings &&
          std::find(arrived_.begin(), arrived_.end(), reading) == arrived_.end()) {
        arrived_.push_back(reading);
      }
    }
    if (!returns) return;
    state = stack->state;
    stack = stack->parent;
  }
}

TextStates::State* TextStates::Import(const State& other) {
  std::vector<Reading> readings;
  std::vector<int32_t> open;
  for (const Reading& reading : other.readings) {
    open.clear();
    for (const CallStack* s = reading.stack; s != nullptr; s = s->parent) open.push_back(s->state);
    const CallStack* stack = nullptr;
    for (; !open.empty(); open.pop_back()) stack = Push(open.back(), stack);
    readings.push_back({reading.state, stack});
  }
  return Intern(std::move(readings));
}

const std::vector<uint32_t>& TextStates::Mask(State* state, const TokenTrie& trie) {
  if (!state->mask.empty()) return state->mask;
  std::vector<uint32_t> mask(static_cast<size_t>((trie.vocab_size() + 31) / 32));
  if (!WalkTokens(state, trie, &mask)) AllowSingleBytes(state, trie, &mask);
  state->mask = std::move(mask);
  memory_bytes_ += state->mask.size() * sizeof(uint32_t);
  return state->mask;
}

// False when it ended early.
bool TextStates::WalkTokens(State* state, const TokenTrie& trie, std::vector<uint32_t>* mask) {
  const absl::Span<const TokenTrie::Node> nodes = trie.nodes();
  std::vector<State*> path(static_cast<size_t>(trie.max_depth()) + 1);  // by depth
  path[0] = state;
  ++walks_;
  int32_t met = 0;
  size_t readings = 0;
  for (size_t i = 0; i + 1 < nodes.size();) {
    const TokenTrie::Node& node = nodes[i];
    State* const next = Next(path[node.depth - 1u], node.byte);
    if (next == nullptr) {
      i = node.behind;
      continue;
    }
    if (next->walk != walks_) {
      next->walk = walks_;
      ++met;
      readings += next->readings.size();
      if (met > limits_.states || readings > limits_.readings) return false;
    }
    Allow(trie.TokensAt(i), mask);
    path[node.depth] = next;
    ++i;
  }
  return true;
}

void TextStates::AllowSingleBytes(State* state, const TokenTrie& trie,
                                  std::vector<uint32_t>* mask) {
  const absl::Span<const TokenTrie::Node> nodes = trie.nodes();
  for (size_t i = 0; i + 1 < nodes.size(); i = nodes[i].behind) {
    if (Next(state, nodes[i].byte) != nullptr) Allow(trie.TokensAt(i), mask);
  }
}

}  // namespace fixpoint
