#include "engine/logit_rules.h"

#include <algorithm>
#include <cstring>

#include "kernels/ops.h"

namespace fixpoint {
namespace {

constexpr size_t kFirstSlots = 32;

int32_t Saturate(int64_t x) {
  return static_cast<int32_t>(std::clamp<int64_t>(x, -kLogitLimit, kLogitLimit));
}

// `value` has 16 fraction bits, the result logit_fraction_bits.
int64_t ScaleQ16(int64_t value, int32_t logit_fraction_bits) {
  // Far beyond every logit on both sides, and the shift below stays within 61 bits.
  constexpr int64_t kFar = int64_t{1} << 47;
  value = std::clamp(value, -kFar, kFar);
  const int32_t left = logit_fraction_bits - 16;
  if (left >= 0) return value * (int64_t{1} << left);
  return (value + (int64_t{1} << (-left - 1))) >> -left;
}

int32_t PenalizeRepetition(int64_t logit, int64_t repetition_q16) {
  if (logit > 0) {
    return Saturate((logit * (int64_t{1} << 17) + repetition_q16) / (2 * repetition_q16));
  }
  return Saturate((logit * repetition_q16 + (int64_t{1} << 15)) >> 16);
}

struct Penalties {
  int64_t repetition_q16;
  int64_t presence_q16;
  int64_t frequency_q16;

  explicit Penalties(const LogitAdjustment& adjust)
      : repetition_q16(adjust.repetition_q16),
        presence_q16(adjust.presence_q16),
        frequency_q16(adjust.frequency_q16) {}
  bool repetition() const { return repetition_q16 != 65536; }
  bool additive() const { return presence_q16 != 0 || frequency_q16 != 0; }
  bool any() const { return repetition() || additive(); }

  int32_t Apply(int32_t logit, const TokenCounts::Entry& entry, int32_t fraction_bits) const {
    if (repetition() && (entry.in_prompt || entry.in_answer > 0)) {
      logit = PenalizeRepetition(logit, repetition_q16);
    }
    if (additive() && entry.in_answer > 0) {
      const int64_t penalty_q16 = presence_q16 + frequency_q16 * entry.in_answer;
      logit = Saturate(logit - ScaleQ16(penalty_q16, fraction_bits));
    }
    return logit;
  }
};

}  // namespace

void TokenCounts::AddPrompt(absl::Span<const int32_t> ids) {
  for (const int32_t id : ids) Get(id).in_prompt = true;
}

void TokenCounts::AddAnswer(int32_t id) { ++Get(id).in_answer; }

const TokenCounts::Entry* TokenCounts::Find(int32_t id) const {
  if (slots_.empty()) return nullptr;
  const int32_t index = slots_[SlotOf(id)];
  return index < 0 ? nullptr : &entries_[static_cast<size_t>(index)];
}

TokenCounts::Entry& TokenCounts::Get(int32_t id) {
  if (2 * (entries_.size() + 1) > slots_.size()) Grow();
  int32_t& index = slots_[SlotOf(id)];
  if (index < 0) {
    index = static_cast<int32_t>(entries_.size());
    entries_.push_back({.id = id});
  }
  return entries_[static_cast<size_t>(index)];
}

// The slot that holds the id, or the empty one where it belongs.
size_t TokenCounts::SlotOf(int32_t id) const {
  const size_t mask = slots_.size() - 1;
  // Multiplication spreads runs of ids; the upper half of the product depends on all of the id.
  size_t slot = (static_cast<uint64_t>(id) * 0x9e3779b97f4a7c15u >> 32) & mask;
  while (slots_[slot] >= 0 && entries_[static_cast<size_t>(slots_[slot])].id != id) {
    slot = (slot + 1) & mask;
  }
  return slot;
}

void TokenCounts::Grow() {
  slots_.assign(std::max(kFirstSlots, 2 * slots_.size()), -1);
  for (size_t i = 0; i < entries_.size(); ++i) {
    slots_[SlotOf(entries_[i].id)] = static_cast<int32_t>(i);
  }
}

const int32_t* AdjustLogits(const int32_t* logits, int32_t vocab_size, int32_t logit_fraction_bits,
                            const LogitAdjustment& adjust, const TokenCounts& counts,
                            int32_t* copy) {
  const Penalties penalties(adjust);
  const bool penalize = penalties.any() && !counts.entries().empty();
  if (adjust.bias_q16.empty() && !penalize) return logits;
  std::memcpy(copy, logits, static_cast<size_t>(vocab_size) * sizeof(*copy));
  for (const auto& [id, bias] : adjust.bias_q16) {
    copy[id] = Saturate(copy[id] + ScaleQ16(bias, logit_fraction_bits));
  }
  if (!penalize) return copy;
  for (const TokenCounts::Entry& entry : counts.entries()) {
    if (entry.id >= vocab_size) continue;
    copy[entry.id] = penalties.Apply(copy[entry.id], entry, logit_fraction_bits);
  }
  return copy;
}

void AllowAll(int32_t vocab_size, uint32_t* allowed) {
  const int32_t whole = vocab_size / 32;
  for (int32_t word = 0; word < whole; ++word) allowed[word] = ~uint32_t{0};
  if (vocab_size % 32 != 0) allowed[whole] = (uint32_t{1} << (vocab_size % 32)) - 1;
}

bool Forbid(absl::Span<const int32_t> ids, int32_t vocab_size, uint32_t* allowed) {
  const auto bit = [&](int32_t id, int32_t word) {
    return id >= 0 && id < vocab_size && id / 32 == word ? uint32_t{1} << (id % 32) : 0;
  };
  bool others = false;
  for (int32_t word = 0; word < MaskWords(vocab_size) && !others; ++word) {
    uint32_t left = allowed[word];
    if (left == 0) continue;
    for (const int32_t id : ids) left &= ~bit(id, word);
    others = left != 0;
  }
  if (!others) return false;
  for (const int32_t id : ids) {
    if (id >= 0 && id < vocab_size) allowed[id / 32] &= ~bit(id, id / 32);
  }
  return true;
}

}  // namespace fixpoint
