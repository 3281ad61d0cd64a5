#include "engine/prompt_lookup.h"

#include <algorithm>

#include "base/check.h"

namespace fixpoint {
namespace {

constexpr int32_t kMaxMisses = 6;  // rests of up to 2^6 proposals

// The n-gram that ends in front of `end`.
absl::Span<const int32_t> Ngram(absl::Span<const int32_t> tokens, int32_t end) {
  return tokens.subspan(static_cast<size_t>(end - PromptLookup::kNgram), PromptLookup::kNgram);
}

uint64_t Hash(absl::Span<const int32_t> ngram) {
  uint64_t hash = 0;
  for (const int32_t id : ngram)
    hash = (hash ^ static_cast<uint64_t>(id)) * 0x9e3779b97f4a7c15u;  // odd: keeps all bits
  return hash ^ (hash >> 32);
}

}  // namespace

int32_t* PromptLookup::Slot(absl::Span<const int32_t> tokens, int32_t end) {
  const absl::Span<const int32_t> wanted = Ngram(tokens, end);
  const size_t mask = slots_.size() - 1;
  size_t i = Hash(wanted) & mask;
  while (slots_[i] != 0 && Ngram(tokens, slots_[i]) != wanted) i = (i + 1) & mask;
  return &slots_[i];
}

void PromptLookup::Grow(absl::Span<const int32_t> tokens) {
  std::vector<int32_t> old(std::max<size_t>(64, slots_.size() * 2));
  std::swap(old, slots_);
  for (const int32_t end : old) {
    if (end != 0) *Slot(tokens, end) = end;
  }
}

// The n-gram at the very end is left out: it would find itself.
void PromptLookup::Index(absl::Span<const int32_t> tokens) {
  const int32_t last = static_cast<int32_t>(tokens.size()) - 1;
  for (int32_t end = std::max(indexed_ + 1, kNgram); end <= last; ++end) {
    if (static_cast<size_t>(entries_ + 1) * 2 > slots_.size()) Grow(tokens);
    int32_t* slot = Slot(tokens, end);
    if (*slot == 0) ++entries_;
    *slot = end;
  }
  indexed_ = std::max(indexed_, last);
}

void PromptLookup::Propose(absl::Span<const int32_t> tokens, int32_t most,
                           std::vector<int32_t>* drafts) {
  if (mode_ == Speculation::kOff || static_cast<int32_t>(tokens.size()) <= kNgram) return;
  Index(tokens);
  if (mode_ == Speculation::kAuto && rest_ > 0) {
    --rest_;
    return;
  }
  if (slots_.empty()) return;
  const int32_t size = static_cast<int32_t>(tokens.size());
  const int32_t found = *Slot(tokens, size);
  if (found == 0) return;
  most = std::min({most, kMaxDrafts, mode_ == Speculation::kAuto ? length_ : kMaxDrafts});
  // What followed may reach into the drafts themselves: a text that repeats goes on repeating.
  for (int32_t i = 0; i < most; ++i) {
    const int32_t from = found + i;
    const size_t drafted = drafts->size();
    drafts->push_back(from < size ? tokens[static_cast<size_t>(from)]
                                  : (*drafts)[drafted - static_cast<size_t>(size - found)]);
  }
}

void PromptLookup::Report(int32_t drafted, int32_t accepted) {
  CHECK(drafted >= 1 && accepted >= 0 && accepted <= drafted) << drafted << " " << accepted;
  if (accepted == 0) {
    misses_ = std::min(misses_ + 1, kMaxMisses);
    rest_ = (1 << misses_) - 1;
    length_ = std::max(2, length_ / 2);
    return;
  }
  misses_ = 0;
  length_ = accepted == drafted ? std::min(kMaxDrafts, length_ * 2) : std::max(2, accepted + 1);
}

}  // namespace fixpoint
