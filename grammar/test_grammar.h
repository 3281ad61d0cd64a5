// What tests of this folder share: a small vocabulary, matching by bytes, walks under a mask.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/check.h"
#include "grammar/automaton.h"
#include "grammar/constraint_factory.h"
#include "grammar/regex.h"
#include "grammar/text_states.h"
#include "text/test_tokenizers.h"

namespace fixpoint {

// 256 bytes, pieces of JSON and of words, one control token, end of sequence.
inline std::unique_ptr<Tokenizer> SmallTokenizer() {
  TokenizerSpec spec = ByteLevelSpec({"\"}",          "\": ",
                                      "\":",          "\",",
                                      "{\"",          "true",
                                      "false",        "null",
                                      "}}",           "[[",
                                      "]]",           "],",
                                      ", \"",         "abc",
                                      "name",         "the ",
                                      "ing",          "\\\"",
                                      "\\n",          "\xc3\xa9",
                                      "\xe2\x82\xac", "\xf0\x9f\x98\x80",
                                      "12",           "345",
                                      "-1",           "0.5",
                                      "e1",           "{}",
                                      "[]",           "\"a\"",
                                      "ab",           "ba",
                                      "aab",          "  "},
                                     {{.id = -1, .content = "<|control|>", .special = true},
                                      {.id = -1, .content = "<|end|>", .special = true}});
  spec.eos_ids = {static_cast<int32_t>(spec.tokens.size()) - 1};
  return MakeTokenizer(std::move(spec));
}

inline ByteSet AllBytes() { return ByteSet().set(); }

inline absl::StatusOr<Automaton> RegexAutomaton(absl::string_view pattern,
                                                RegexMatch match = RegexMatch::kWhole,
                                                Spelling spelling = Spelling::kUtf8,
                                                const ByteSet& available = AllBytes()) {
  auto regex = ParseRegex(pattern);
  if (!regex.ok()) return regex.status();
  Nfa nfa;
  const int32_t root = nfa.AddRule("root");
  nfa.Silent(EmitRegex(*regex, match, spelling, nfa.rule(root).start, &nfa), nfa.rule(root).end);
  return Automaton::Build(nfa, root, available);
}

inline bool Matches(TextStates& states, absl::string_view text) {
  TextStates::State* state = states.Start();
  for (const char c : text) {
    if (state == nullptr) return false;
    state = states.Next(state, static_cast<uint8_t>(c));
  }
  return state != nullptr && state->may_end;
}

inline bool Matches(const Automaton& automaton, absl::string_view text) {
  TextStates states(&automaton);
  return Matches(states, text);
}

inline bool HasBit(const std::vector<uint32_t>& mask, int32_t id) {
  return (mask[static_cast<size_t>(id / 32)] >> (id % 32) & 1) != 0;
}

inline std::vector<int32_t> AllowedTokens(TokenConstraint& constraint, int32_t vocab_size) {
  std::vector<uint32_t> mask(static_cast<size_t>((vocab_size + 31) / 32));
  constraint.FillMask(absl::MakeSpan(mask));
  std::vector<int32_t> allowed;
  for (int32_t id = 0; id < vocab_size; ++id) {
    if (HasBit(mask, id)) allowed.push_back(id);
  }
  return allowed;
}

}  // namespace fixpoint
