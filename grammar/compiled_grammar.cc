#include "grammar/compiled_grammar.h"

#include <algorithm>

#include "base/check.h"

namespace fixpoint {

CompiledGrammar::CompiledGrammar(Automaton automaton, std::shared_ptr<const TokenTrie> trie,
                                 std::vector<int32_t> eos_ids)
    : automaton_(std::move(automaton)),
      trie_(std::move(trie)),
      eos_ids_(std::move(eos_ids)),
      states_(std::make_shared<TextStates>(&automaton_)) {}

const std::shared_ptr<TextStates>& CompiledGrammar::CurrentStates() {
  if (states_->memory_bytes() > kMaxStatesBytes) {
    states_ = std::make_shared<TextStates>(&automaton_);
  }
  return states_;
}

size_t CompiledGrammar::states_bytes() {
  std::lock_guard<std::mutex> lock(mutex_);
  return states_->memory_bytes();
}

GrammarConstraint::GrammarConstraint(std::shared_ptr<CompiledGrammar> grammar)
    : grammar_(std::move(grammar)) {
  std::lock_guard<std::mutex> lock(grammar_->mutex_);
  states_ = grammar_->CurrentStates();
  state_ = states_->Start();
}

GrammarConstraint::~GrammarConstraint() = default;

void GrammarConstraint::UseCurrentStates() {
  const std::shared_ptr<TextStates>& current = grammar_->CurrentStates();
  if (current == states_) return;
  if (state_ != nullptr) state_ = current->Import(*state_);
  states_ = current;
}

bool GrammarConstraint::IsEos(int32_t token_id) const {
  return std::find(grammar_->eos_ids_.begin(), grammar_->eos_ids_.end(), token_id) !=
         grammar_->eos_ids_.end();
}

void GrammarConstraint::FillMask(absl::Span<uint32_t> mask) {
  std::lock_guard<std::mutex> lock(grammar_->mutex_);
  UseCurrentStates();
  std::fill(mask.begin(), mask.end(), 0);
  if (state_ != nullptr) {
    const std::vector<uint32_t>& allowed = states_->Mask(state_, *grammar_->trie_);
    CHECK_LE(allowed.size(), mask.size());
    std::copy(allowed.begin(), allowed.end(), mask.begin());
    if (!state_->may_end) return;
  }
  // Behind the end nothing but further end-of-sequence tokens (a request may ignore them).
  for (const int32_t id : grammar_->eos_ids_) {
    mask[static_cast<size_t>(id / 32)] |= uint32_t{1} << (id % 32);
  }
}

bool GrammarConstraint::Accept(int32_t token_id) {
  std::lock_guard<std::mutex> lock(grammar_->mutex_);
  UseCurrentStates();
  if (IsEos(token_id)) {
    if (state_ != nullptr && !state_->may_end) return false;
    state_ = nullptr;
    return true;
  }
  const absl::string_view bytes = grammar_->trie_->TokenBytes(token_id);
  if (bytes.empty()) return false;
  TextStates::State* state = state_;
  for (const char byte : bytes) {
    if (state == nullptr) return false;
    state = states_->Next(state, static_cast<uint8_t>(byte));
  }
  if (state == nullptr) return false;
  state_ = state;
  return true;
}

}  // namespace fixpoint
