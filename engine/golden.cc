#include "engine/golden.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/status_macros.h"

namespace fixpoint {
namespace {

// Never edit these: each golden digest of each bundle would change.
constexpr absl::string_view kTexts[] = {
    "The sea was",
    "On the third morning the fog lifted, and the keeper counted seven ships where there had been "
    "two.",
    R"(// Smallest index i with values[i] >= key, or n.
int lower_bound(const int* values, int n, int key) {
  int low = 0, high = n;
  while (low < high) {
    int middle = low + (high - low) / 2;
    if (values[middle] < key) low = middle + 1; else high = middle;
  }
  return low;
}
)",
    "Der Zug nach Köln hat 12 Minuten Verspätung. Où est la bibliothèque ? ¿Cuánto cuesta el pan? "
    "今日は天気がいいですね。明天会下雨吗？ Сколько будет 17 + 25? Καλημέρα, κόσμε! "
    "מה השעה? كم الساعة الآن؟ नमस्ते दुनिया। 안녕하세요. \xF0\x9F\x90\x9F\xF0\x9F\x8C\x8A\n\n"
    "1. First, boil the water.  2. Then add 0.5 kg of rice;\t3. wait 18 minutes.",
};

// Little-endian bytes of a logit row on any machine.
void HashRow(const int32_t* logits, int32_t vocab_size, std::vector<uint8_t>* bytes, Sha256* hash) {
  if constexpr (std::endian::native == std::endian::little) {
    hash->Update(logits, static_cast<size_t>(vocab_size) * sizeof(int32_t));
    return;
  }
  bytes->clear();
  for (int32_t i = 0; i < vocab_size; ++i) {
    const uint32_t value = static_cast<uint32_t>(logits[i]);
    for (int shift = 0; shift < 32; shift += 8) {
      bytes->push_back(static_cast<uint8_t>(value >> shift));
    }
  }
  hash->Update(bytes->data(), bytes->size());
}

}  // namespace

std::vector<std::vector<int32_t>> GoldenPrompts(const Tokenizer& tokenizer) {
  std::vector<std::vector<int32_t>> prompts;
  for (const absl::string_view text : kTexts) {
    prompts.push_back(tokenizer.Encode(text, /*parse_control_tokens=*/false));
    if (prompts.back().empty()) prompts.back().push_back(0);
  }
  return prompts;
}

absl::StatusOr<std::string> GoldenDigest(Executor& executor,
                                         absl::Span<const std::vector<int32_t>> prompts,
                                         int32_t chunk_tokens) {
  const ExecutorLimits& limits = executor.limits();
  if (chunk_tokens < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("chunk_tokens is ", chunk_tokens, ", must be at least 0"));
  }
  const int32_t step = std::min(limits.max_step_tokens, limits.max_step_logits);
  const int32_t chunk = chunk_tokens == 0 ? step : std::min(chunk_tokens, step);
  const int64_t capacity = std::min<int64_t>(limits.max_sequence_tokens,
                                             int64_t{limits.num_blocks} * limits.block_tokens);

  std::vector<int32_t> block_table(
      static_cast<size_t>((capacity + limits.block_tokens - 1) / limits.block_tokens));
  std::iota(block_table.begin(), block_table.end(), 0);
  std::vector<int32_t> indices(static_cast<size_t>(chunk));
  std::iota(indices.begin(), indices.end(), 0);
  std::vector<int32_t> logits(static_cast<size_t>(chunk) * static_cast<size_t>(limits.vocab_size));
  std::vector<uint8_t> bytes;
  Sha256 hash;
  for (const std::vector<int32_t>& prompt : prompts) {
    if (prompt.empty()) return absl::InvalidArgumentError("a golden prompt is empty");
    const int32_t length =
        static_cast<int32_t>(std::min<int64_t>(static_cast<int64_t>(prompt.size()), capacity));
    for (int32_t position = 0; position < length; position += chunk) {
      const size_t count = static_cast<size_t>(std::min(chunk, length - position));
      const SequenceChunk piece = {
          .token_ids = absl::MakeConstSpan(prompt).subspan(static_cast<size_t>(position), count),
          .position = position,
          .block_table = block_table,
          .logit_indices = absl::MakeConstSpan(indices).subspan(0, count)};
      RETURN_IF_ERROR(executor.Forward({piece}, logits.data()));
      for (size_t row = 0; row < count; ++row) {
        HashRow(logits.data() + row * static_cast<size_t>(limits.vocab_size), limits.vocab_size,
                &bytes, &hash);
      }
    }
  }
  return hash.FinishHex();
}

}  // namespace fixpoint
