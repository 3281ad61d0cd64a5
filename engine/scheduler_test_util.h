// For tests of scheduler and prefix cache: tokens by sequence, and a KV cache that remembers of
// which tokens each entry was made.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "base/check.h"
#include "engine/prefix_cache.h"
#include "engine/scheduler.h"

namespace fixpoint {

class FakeTokens final : public TokenSource {
 public:
  struct Content {
    std::vector<int32_t> tokens;
    std::string salt;
  };

  absl::Span<const int32_t> Tokens(SequenceId id) const override { return contents_.at(id).tokens; }
  absl::string_view Salt(SequenceId id) const override { return contents_.at(id).salt; }
  Content& operator[](SequenceId id) { return contents_[id]; }

 private:
  std::map<SequenceId, Content> contents_;
};

// Stands for the keys and values that an executor would have written. An entry is a number that
// stands for a salt and all tokens up to its own, as the real one depends on all of them: equal
// numbers mean equal beginnings, exactly.
class FakeKvMemory {
 public:
  static constexpr int64_t kNothing = -1;

  FakeKvMemory(int32_t num_blocks, int32_t block_tokens)
      : block_tokens_(static_cast<size_t>(block_tokens)),
        entries_(static_cast<size_t>(num_blocks) * block_tokens_, kNothing) {}

  int64_t Root(const std::string& salt) {
    const auto [place, is_new] = roots_.try_emplace(salt, last_ + 1);
    if (is_new) ++last_;
    return place->second;
  }
  int64_t Next(int64_t beginning, int32_t token) {
    const auto [place, is_new] = numbers_.try_emplace({beginning, token}, last_ + 1);
    if (is_new) ++last_;
    return place->second;
  }

  void Write(absl::Span<const int32_t> table, int32_t position, int64_t beginning) {
    At(table, position) = beginning;
  }
  int64_t Read(absl::Span<const int32_t> table, int32_t position) { return At(table, position); }

 private:
  int64_t& At(absl::Span<const int32_t> table, int32_t position) {
    const size_t block = static_cast<size_t>(position) / block_tokens_;
    CHECK_LT(block, table.size()) << "position " << position;
    return entries_[static_cast<size_t>(table[block]) * block_tokens_ +
                    static_cast<size_t>(position) % block_tokens_];
  }

  const size_t block_tokens_;
  std::vector<int64_t> entries_;
  std::map<std::string, int64_t> roots_;
  std::map<std::pair<int64_t, int32_t>, int64_t> numbers_;
  int64_t last_ = 0;
};

// "1@30+1! 2@0+100" and so on: id, position, tokens; drafts as ^d, prompt logits as ?row+rows, and
// ! if it samples.
inline std::string Text(const StepPlan& plan) {
  std::string text;
  for (const PlannedChunk& c : plan.chunks) {
    absl::StrAppend(&text, text.empty() ? "" : " ", c.id, "@", c.position, "+", c.tokens);
    if (c.drafts > 0) absl::StrAppend(&text, "^", c.drafts);
    if (c.prompt_rows > 0) absl::StrAppend(&text, "?", c.prompt_row, "+", c.prompt_rows);
    if (c.sample_rows > 0) absl::StrAppend(&text, "!");
  }
  return text;
}

}  // namespace fixpoint
