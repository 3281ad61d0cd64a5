#include "server/wire_answer.h"

#include <utility>

#include "bundle/format.h"
#include "server/metrics.h"
#include "server/version.h"

namespace fixpoint {
namespace {

void FillTokenLogprob(const TokenLogprob& logprob, const Tokenizer& tokenizer,
                      v1::TokenLogprob* out) {
  out->set_token_id(static_cast<uint32_t>(logprob.token_id));
  out->set_logprob(logprob.logprob_q16 / 65536.0);  // exact
  out->set_token(std::string(tokenizer.TokenBytes(logprob.token_id)));
}

}  // namespace

void FillLogprobs(const PositionLogprobs& logprobs, const Tokenizer& tokenizer, v1::Logprobs* out) {
  FillTokenLogprob(logprobs.chosen, tokenizer, out->mutable_chosen());
  for (const TokenLogprob& top : logprobs.top) FillTokenLogprob(top, tokenizer, out->add_top());
}

void FillPromptPart(PromptPart part, const Tokenizer& tokenizer, v1::PromptPart* out) {
  out->set_prompt(static_cast<uint32_t>(part.prompt));
  out->set_text(std::move(part.text));
  for (const int32_t id : part.logprobs.token_ids) out->add_token_ids(static_cast<uint32_t>(id));
  for (const PositionLogprobs& logprobs : part.logprobs.logprobs)
    FillLogprobs(logprobs, tokenizer, out->add_logprobs());
  out->set_index(static_cast<uint32_t>(part.logprobs.index));
}

void FillDelta(int32_t choice, AnswerDelta delta, const Tokenizer& tokenizer, v1::Delta* out) {
  out->set_text(std::move(delta.text));
  for (const int32_t id : delta.token_ids) out->add_token_ids(static_cast<uint32_t>(id));
  for (const PositionLogprobs& logprobs : delta.logprobs)
    FillLogprobs(logprobs, tokenizer, out->add_logprobs());
  out->set_index(static_cast<uint32_t>(delta.index));
  out->set_choice(static_cast<uint32_t>(choice));
}

void FillFinished(int32_t choice, const ChoiceEnd& choice_end, v1::Finished* out) {
  const AnswerEnd& end = choice_end.answer;
  out->set_choice(static_cast<uint32_t>(choice));
  out->set_receipt(choice_end.receipt);
  out->set_max_tokens(static_cast<uint32_t>(choice_end.max_tokens));
  out->set_seed(choice_end.seed);
  out->set_reason(end.reason == FinishReason::kLength ? v1::FINISH_REASON_LENGTH
                                                      : v1::FINISH_REASON_STOP);
  if (!end.stop_string.empty()) {
    out->set_stop_string(end.stop_string);
  } else if (end.stop_token_id >= 0) {
    out->set_stop_token_id(static_cast<uint32_t>(end.stop_token_id));
  }
  v1::Usage* usage = out->mutable_usage();
  usage->set_prompt_tokens(static_cast<uint32_t>(end.prompt_tokens));
  usage->set_cached_tokens(static_cast<uint32_t>(end.cached_tokens));
  usage->set_completion_tokens(static_cast<uint32_t>(end.completion_tokens));
}

void FillModel(const ServedModel& model, v1::GetModelResponse* out) {
  const TokenizerSpec& spec = model.tokenizer().spec();
  const RequestLimits& limits = model.limits();
  out->set_model(model.identity().name);
  out->set_bundle_digest(model.identity().bundle_digest);
  out->set_numerics_version(model.identity().numerics_version);
  out->set_system_fingerprint(model.fingerprint());
  out->set_server_version(kServerVersion);
  out->set_vocab_size(static_cast<uint32_t>(limits.engine.vocab_size));
  out->set_max_context_tokens(static_cast<uint32_t>(limits.engine.max_context_tokens));
  out->set_max_prompt_tokens(static_cast<uint32_t>(limits.engine.max_prompt_tokens));
  out->set_max_prompt_bytes(static_cast<uint32_t>(limits.max_prompt_bytes));
  for (const int32_t id : spec.eos_ids) out->add_eos_ids(static_cast<uint32_t>(id));
  if (spec.bos_id >= 0) out->set_bos_id(static_cast<uint32_t>(spec.bos_id));
  out->set_has_chat_template(model.has_chat_template());
  out->set_device(model.identity().device);
  out->set_has_constraints(model.has_constraints());
}

void FillLoad(const EngineLoad& load, const EngineLimits& limits, v1::GetLoadResponse* out) {
  out->set_running(static_cast<uint32_t>(load.running));
  out->set_waiting(static_cast<uint32_t>(load.waiting));
  out->set_waiting_tokens(static_cast<uint64_t>(load.waiting_tokens));
  out->set_free_kv_blocks(static_cast<uint32_t>(load.free_blocks));
  out->set_total_kv_blocks(static_cast<uint32_t>(load.total_blocks));
  out->set_kv_usage(KvUsage(load));
  out->set_kv_block_tokens(static_cast<uint32_t>(limits.block_tokens));
  out->set_max_running(static_cast<uint32_t>(limits.max_running));
  out->set_max_waiting(static_cast<uint32_t>(limits.max_queue_requests));
  out->set_max_waiting_tokens(static_cast<uint64_t>(limits.max_queue_tokens));
}

}  // namespace fixpoint
