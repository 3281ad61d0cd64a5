#include "calibrator/samples.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <utility>

#include "base/status_macros.h"
#include "calibrator/chat_render.h"
#include "calibrator/evaluate.h"

namespace fixpoint {
namespace {

constexpr int32_t kSampleTokens = 48;
constexpr const char* kQuestions[] = {"What is the capital of France, and what is it known for?",
                                      "Explain in two sentences why the sky is blue."};
constexpr const char* kBeginning = "The old lighthouse at the end of the pier";

std::vector<int32_t> WithoutPrefix(std::vector<int32_t> ids, const FloatPrefix& prefix) {
  const std::vector<int32_t>& p = prefix.token_ids;
  if (ids.size() > p.size() && std::equal(p.begin(), p.end(), ids.begin()))
    ids.erase(ids.begin(), ids.begin() + static_cast<int64_t>(p.size()));
  return ids;
}

template <typename T>
int32_t Argmax(const std::vector<T>& logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// next(ids of the step, position of the first) gives the most likely next token.
using Next = std::function<absl::StatusOr<int32_t>(const std::vector<int32_t>&, int32_t)>;

absl::StatusOr<std::string> Complete(const Tokenizer& tokenizer, std::vector<int32_t> step,
                                     const Next& next) {
  std::vector<int32_t> written;
  int32_t position = 0;
  while (static_cast<int32_t>(written.size()) < kSampleTokens) {
    ASSIGN_OR_RETURN(const int32_t id, next(step, position));
    position += static_cast<int32_t>(step.size());
    if (tokenizer.IsControl(id)) break;
    written.push_back(id);
    step = {id};
  }
  return tokenizer.Decode(written, /*skip_control=*/true);
}

absl::StatusOr<std::string> CompleteFloat(const SampleInput& input,
                                          const std::vector<int32_t>& prompt) {
  FloatForward& forward = *input.float_forward;
  const FloatConfig& c = forward.model().config();
  const std::vector<int32_t> ids = WithoutPrefix(prompt, *input.float_prefix);
  KvBuffer kv(forward.kv_type(), c.num_hidden_layers, 1, c.num_key_value_heads,
              static_cast<int32_t>(ids.size()) + kSampleTokens, c.head_dim);
  std::vector<float> logits(c.vocab_size);
  return Complete(
      *input.tokenizer, ids,
      [&](const std::vector<int32_t>& step, int32_t position) -> absl::StatusOr<int32_t> {
        const int32_t n = static_cast<int32_t>(step.size());
        forward.Run({.token_ids = step.data(), .sequences = 1, .tokens = n, .start = position},
                    {.prefix = input.float_prefix, .kv = &kv});
        forward.Logits(n - 1, n, logits.data());
        return Argmax(logits);
      });
}

absl::StatusOr<std::string> CompleteInteger(const SampleInput& input,
                                            const std::vector<int32_t>& prompt) {
  CpuExecutor& executor = *input.executor;
  const ExecutorLimits& limits = executor.limits();
  std::vector<int32_t> blocks(limits.num_blocks);
  std::iota(blocks.begin(), blocks.end(), 0);
  std::vector<int32_t> logits(limits.vocab_size);
  return Complete(
      *input.tokenizer, WithoutPrefix(prompt, *input.integer_prefix),
      [&](const std::vector<int32_t>& step, int32_t position) -> absl::StatusOr<int32_t> {
        const int32_t last = static_cast<int32_t>(step.size()) - 1;
        const SequenceChunk chunk{.token_ids = step,
                                  .position = position,
                                  .block_table = blocks,
                                  .logit_indices = absl::MakeConstSpan(&last, 1)};
        absl::Status status;
        RunOnFreshThread([&] { status = executor.Forward({&chunk, 1}, logits.data()); });
        RETURN_IF_ERROR(status);
        return Argmax(logits);
      });
}

struct Prompt {
  std::string text;
  std::vector<int32_t> token_ids;
};

std::vector<Prompt> Prompts(const SampleInput& input) {
  std::vector<Prompt> prompts;
  for (const char* question : kQuestions) {
    if (input.chat_template.empty()) break;
    DictValue message;
    message.Set("role", Value::String("user"));
    message.Set("content", Value::String(question));
    const absl::StatusOr<std::vector<TextSegment>> segments =
        RenderChat(input.chat_template, input.tokenizer,
                   {.messages = Value::List({Value::Dict(std::move(message))})});
    if (segments.ok()) prompts.push_back({question, input.tokenizer->EncodeSegments(*segments)});
  }
  prompts.push_back({kBeginning, input.tokenizer->Encode(kBeginning, false)});
  return prompts;
}

}  // namespace

absl::StatusOr<std::vector<ReportSample>> WriteSamples(const SampleInput& input) {
  const ExecutorLimits& limits = input.executor->limits();
  const int64_t room = std::min<int64_t>(
      {limits.max_sequence_tokens, int64_t{limits.num_blocks} * limits.block_tokens});
  std::vector<ReportSample> samples;
  for (const Prompt& prompt : Prompts(input)) {
    const int64_t tokens = static_cast<int64_t>(prompt.token_ids.size());
    if (tokens == 0 || tokens + kSampleTokens > room || tokens > limits.max_step_tokens) continue;
    ReportSample& sample = samples.emplace_back();
    sample.prompt = prompt.text;
    ASSIGN_OR_RETURN(sample.float_text, CompleteFloat(input, prompt.token_ids));
    ASSIGN_OR_RETURN(sample.integer_text, CompleteInteger(input, prompt.token_ids));
  }
  return samples;
}

}  // namespace fixpoint
