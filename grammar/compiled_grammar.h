// A compiled grammar with the states that its texts have met, shared by all constraints of it.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "engine/token_constraint.h"
#include "grammar/automaton.h"
#include "grammar/text_states.h"
#include "grammar/token_trie.h"

namespace fixpoint {

class CompiledGrammar {
 public:
  // `eos_ids` are in the vocabulary and not in the trie.
  CompiledGrammar(Automaton automaton, std::shared_ptr<const TokenTrie> trie,
                  std::vector<int32_t> eos_ids);

  // With the states met at their bound. What one token adds to them can exceed it by as much again;
  // before the next one they are dropped.
  size_t memory_bytes() const { return automaton_.memory_bytes() + kMaxStatesBytes; }
  static constexpr size_t kMaxStatesBytes = 4 << 20;
  // What the states met take now.
  size_t states_bytes();

 private:
  friend class GrammarConstraint;

  // The object to work with now: a new one when the last has grown too large. Requires mutex_.
  const std::shared_ptr<TextStates>& CurrentStates();

  const Automaton automaton_;
  const std::shared_ptr<const TokenTrie> trie_;
  const std::vector<int32_t> eos_ids_;

  std::mutex mutex_;  // the object that states_ points to, and those before it that are still held
  std::shared_ptr<TextStates> states_;
};

// Accept answers true for every token whose bytes the grammar allows, also where a bounded mask
// (TextStates::Mask) left it out.
class GrammarConstraint : public TokenConstraint {
 public:
  explicit GrammarConstraint(std::shared_ptr<CompiledGrammar> grammar);
  ~GrammarConstraint() override;

  void FillMask(absl::Span<uint32_t> mask) override;
  bool Accept(int32_t token_id) override;

 private:
  void UseCurrentStates();
  bool IsEos(int32_t token_id) const;

  const std::shared_ptr<CompiledGrammar> grammar_;
  std::shared_ptr<TextStates> states_;
  TextStates::State* state_;  // of states_; null: the text has ended
};

}  // namespace fixpoint
