#include "server/stop_matcher.h"

#include <algorithm>

#include "base/check.h"

namespace fixpoint {

StopMatcher::StopMatcher(const std::vector<std::string>& strings) {
  for (const std::string& text : strings) {
    CHECK(!text.empty());
    Automaton automaton{.text = text, .border = std::vector<uint32_t>(text.size(), 0)};
    uint32_t length = 0;
    for (size_t i = 1; i < text.size(); ++i) {
      while (length > 0 && text[i] != text[length]) length = automaton.border[length - 1];
      if (text[i] == text[length]) ++length;
      automaton.border[i] = length;
    }
    automata_.push_back(std::move(automaton));
  }
}

int32_t StopMatcher::Push(char byte) {
  int32_t found = -1;
  for (size_t i = 0; i < automata_.size(); ++i) {
    Automaton& automaton = automata_[i];
    while (automaton.matched > 0 && automaton.text[automaton.matched] != byte) {
      automaton.matched = automaton.border[automaton.matched - 1];
    }
    if (automaton.text[automaton.matched] == byte) ++automaton.matched;
    if (automaton.matched < automaton.text.size()) continue;
    if (found < 0 || automaton.text.size() > automata_[found].text.size())
      found = static_cast<int32_t>(i);
  }
  return found;
}

size_t StopMatcher::held_bytes() const {
  size_t held = 0;
  for (const Automaton& automaton : automata_) held = std::max<size_t>(held, automaton.matched);
  return held;
}

}  // namespace fixpoint
