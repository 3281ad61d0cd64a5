// Finds the first of several strings in text that comes in pieces.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fixpoint {

// One Knuth-Morris-Pratt automaton a string: a few bytes of memory for each byte of a string and
// amortised constant time for each byte of text and string, whatever they hold. (An Aho-Corasick
// table would save little for four strings and cost a megabyte a request.) Which string is found
// depends on the bytes alone, never on how they were cut into pieces: the one that ends first, and
// of those that end at the same byte the longest. Not thread-safe.
class StopMatcher {
 public:
  // No string may be empty. No strings: nothing is ever found.
  explicit StopMatcher(const std::vector<std::string>& strings);

  // Takes one more byte. Returns the index of the string that ends with it, or -1. Requires that
  // none was found before.
  int32_t Push(char byte);

  // How many of the last bytes may be the beginning of a string.
  size_t held_bytes() const;

 private:
  struct Automaton {
    std::string text;
    std::vector<uint32_t>
        border;  // border[i]: length of the longest proper prefix of text[0..i] that also ends it
    uint32_t matched = 0;  // bytes of `text` that the last bytes equal
  };
  std::vector<Automaton> automata_;
};

}  // namespace fixpoint
