#include "engine/step_check.h"

#include <limits>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace fixpoint {
namespace {

absl::Status CheckChoices(const SequenceChunk& chunk, const ExecutorLimits& limits) {
  if (chunk.choices.empty()) return absl::OkStatus();
  const auto rows = static_cast<int64_t>(chunk.logit_indices.size());
  RETURN_IF_ERROR(
      CheckRange("choices of a chunk", static_cast<int64_t>(chunk.choices.size()), rows, rows));
  for (const RowChoice& choice : chunk.choices) {
    if (choice.sampling == nullptr) continue;
    RETURN_IF_ERROR(CheckRange("top_k", choice.sampling->top_k, 0, limits.vocab_size));
    RETURN_IF_ERROR(CheckRange("top_p_q16", choice.sampling->top_p_q16, 1, 65536));
    RETURN_IF_ERROR(CheckRange("min_p_q16", choice.sampling->min_p_q16, 0, 65536));
  }
  return absl::OkStatus();
}

absl::Status CheckChunk(const SequenceChunk& chunk, const ExecutorLimits& limits, int64_t* tokens,
                        int64_t* rows) {
  const int64_t count = static_cast<int64_t>(chunk.token_ids.size());
  *tokens += count;
  *rows += static_cast<int64_t>(chunk.logit_indices.size());
  RETURN_IF_ERROR(CheckRange("tokens of a chunk", count, 1, limits.max_step_tokens));
  RETURN_IF_ERROR(CheckRange("tokens of a step", *tokens, 1, limits.max_step_tokens));
  RETURN_IF_ERROR(CheckRange("logit rows of a step", *rows, 0, limits.max_step_logits));
  RETURN_IF_ERROR(CheckRange("position", chunk.position, 0, limits.max_sequence_tokens - count));
  const int64_t blocks = (chunk.position + count + limits.block_tokens - 1) / limits.block_tokens;
  RETURN_IF_ERROR(CheckRange("length of a block table",
                             static_cast<int64_t>(chunk.block_table.size()), blocks,
                             std::numeric_limits<int32_t>::max()));
  for (int64_t i = 0; i < blocks; ++i) {
    RETURN_IF_ERROR(CheckRange("KV block", chunk.block_table[static_cast<size_t>(i)], 0,
                               limits.num_blocks - 1));
  }
  for (const int32_t id : chunk.token_ids) {
    RETURN_IF_ERROR(CheckRange("token id", id, 0, limits.vocab_size - 1));
  }
  int32_t previous = -1;
  for (const int32_t index : chunk.logit_indices) {
    RETURN_IF_ERROR(CheckRange("logit index", index, int64_t{previous} + 1, count - 1));
    previous = index;
  }
  return CheckChoices(chunk, limits);
}

}  // namespace

absl::Status CheckRange(absl::string_view name, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " is ", value, ", must be in [", low, ", ", high, "]"));
}

absl::Status CheckStep(absl::Span<const SequenceChunk> chunks, const ExecutorLimits& limits) {
  int64_t tokens = 0, rows = 0;
  for (const SequenceChunk& chunk : chunks) {
    RETURN_IF_ERROR(CheckChunk(chunk, limits, &tokens, &rows));
  }
  return absl::OkStatus();
}

}  // namespace fixpoint
