// Answers as wire messages.
#pragma once

#include "fixpoint/v1/generation.pb.h"
#include "server/choice.h"
#include "server/served_model.h"

namespace fixpoint {

// Each fills an empty message.
void FillPromptPart(PromptPart part, const Tokenizer& tokenizer, v1::PromptPart* out);
void FillDelta(int32_t choice, AnswerDelta delta, const Tokenizer& tokenizer, v1::Delta* out);
void FillLogprobs(const PositionLogprobs& logprobs, const Tokenizer& tokenizer, v1::Logprobs* out);
// Requires an end that is no failure: kStop or kLength.
void FillFinished(int32_t choice, const ChoiceEnd& end, v1::Finished* out);
void FillModel(const ServedModel& model, v1::GetModelResponse* out);
// What the engine knows; the rest stays to be set.
void FillLoad(const EngineLoad& load, const EngineLimits& limits, v1::GetLoadResponse* out);

}  // namespace fixpoint
